// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
#include <cstddef>
#include <cstdint>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace vitlet::VITLET_ISA {
namespace {

// above(p, t): bit i is p[i] > t, for i < lanes.
#if defined(__AVX512F__)
constexpr std::size_t lanes = 16;
inline std::uint64_t above(const float* p, float threshold) {
  return _mm512_cmp_ps_mask(_mm512_loadu_ps(p), _mm512_set1_ps(threshold), _CMP_GT_OQ);
}
#elif defined(__AVX2__)
constexpr std::size_t lanes = 8;
inline std::uint64_t above(const float* p, float threshold) {
  return static_cast<std::uint64_t>(
      _mm256_movemask_ps(_mm256_cmp_ps(_mm256_loadu_ps(p), _mm256_set1_ps(threshold), _CMP_GT_OQ)));
}
#elif defined(__SSE2__)
constexpr std::size_t lanes = 4;
inline std::uint64_t above(const float* p, float threshold) {
  return static_cast<std::uint64_t>(
      _mm_movemask_ps(_mm_cmpgt_ps(_mm_loadu_ps(p), _mm_set1_ps(threshold))));
}
#elif defined(__ARM_NEON)
constexpr std::size_t lanes = 8;
inline std::uint64_t above(const float* p, float threshold) {
  const uint16x8_t weights = {1, 2, 4, 8, 16, 32, 64, 128};
  const float32x4_t t = vdupq_n_f32(threshold);
  const uint16x8_t mask = vcombine_u16(vmovn_u32(vcgtq_f32(vld1q_f32(p), t)),
                                       vmovn_u32(vcgtq_f32(vld1q_f32(p + 4), t)));
  return vaddvq_u16(vandq_u16(mask, weights));
}
#else
constexpr std::size_t lanes = 1;
inline std::uint64_t above(const float* p, float threshold) { return *p > threshold; }
#endif

inline std::uint64_t word(const float* p, std::size_t count, float threshold) {
  std::uint64_t bits = 0;
  std::size_t i = 0;
  for (; i + lanes <= count; i += lanes) bits |= above(p + i, threshold) << i;
  for (; i < count; ++i) bits |= static_cast<std::uint64_t>(p[i] > threshold) << i;
  return bits;
}

// Rows of 32 or 64 numbers, the usual sizes of a head, with every loop unrolled.
template <std::size_t bits>
void pack_rows(const float* x, std::size_t rows, float threshold, std::uint64_t* out) {
  for (std::size_t row = 0; row < rows; ++row) out[row] = word(x + row * bits, bits, threshold);
}

}  // namespace

void pack_bits(const float* x, std::size_t rows, std::size_t bits, float threshold,
               std::uint64_t* out) {
  if (bits == 32) return pack_rows<32>(x, rows, threshold, out);
  if (bits == 64) return pack_rows<64>(x, rows, threshold, out);
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t i = 0; i < bits; i += 64)
      *out++ = word(x + row * bits + i, bits - i < 64 ? bits - i : 64, threshold);
}

}  // namespace vitlet::VITLET_ISA
