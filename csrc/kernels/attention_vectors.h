#pragma once
// Vectors of *.simd.cpp of the attention kernels, as wide as the instruction set's registers. As in
// simd.h nothing here may have external linkage.
//
//   F, I       `lanes` float32 or int32
//   Element    a vector of a table's numbers: int16 (sums may wrap) or float32
//     narrow   from `parts` vectors F, rounded to nearest even
//     widen    back, in the same order
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define VITLET_INLINE inline __attribute__((always_inline))
#define VITLET_UNROLL _Pragma("GCC unroll 16")

namespace vitlet::VITLET_ISA {
namespace {

#if defined(__AVX512BW__)
#define VITLET_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define VITLET_VECTOR_BYTES 32
#else
#define VITLET_VECTOR_BYTES 16
#endif
constexpr std::size_t lanes = VITLET_VECTOR_BYTES / 4;
using F = float __attribute__((vector_size(VITLET_VECTOR_BYTES)));
using I = std::int32_t __attribute__((vector_size(VITLET_VECTOR_BYTES)));
using S = std::uint16_t __attribute__((vector_size(VITLET_VECTOR_BYTES)));

template <typename V>
VITLET_INLINE V read(const void* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <typename V>
VITLET_INLINE void write(void* p, const V& v) {
  std::memcpy(p, &v, sizeof(v));
}

VITLET_INLINE I max(const I& a, const I& b) { return a > b ? a : b; }

template <bool exact>
struct Element;

template <>
struct Element<true> {
  using Vector = F;
  static VITLET_INLINE F narrow(const F* values) { return values[0]; }
  static VITLET_INLINE void widen(const F& v, F* values) { values[0] = v; }
};

// The order of numbers in an S is whatever `narrow` makes it.
template <>
struct Element<false> {
  using Vector = S;

#if defined(__AVX512BW__)
  static VITLET_INLINE S narrow(const F* values) {
    // Masked, for gcc 12's unmasked intrinsic sets off -Wmaybe-uninitialized (gcc bug 105593).
    return (S)_mm512_packs_epi32(_mm512_maskz_cvtps_epi32(0xffff, (__m512)values[0]),
                                 _mm512_maskz_cvtps_epi32(0xffff, (__m512)values[1]));
  }
  static VITLET_INLINE void widen(const S& v, F* values) {
    values[0] = __builtin_convertvector((I)_mm512_unpacklo_epi16((__m512i)v, (__m512i)v) >> 16, F);
    values[1] = __builtin_convertvector((I)_mm512_unpackhi_epi16((__m512i)v, (__m512i)v) >> 16, F);
  }
#elif defined(__AVX2__)
  static VITLET_INLINE S narrow(const F* values) {
    return (S)_mm256_packs_epi32(_mm256_cvtps_epi32((__m256)values[0]),
                                 _mm256_cvtps_epi32((__m256)values[1]));
  }
  static VITLET_INLINE void widen(const S& v, F* values) {
    values[0] = __builtin_convertvector((I)_mm256_unpacklo_epi16((__m256i)v, (__m256i)v) >> 16, F);
    values[1] = __builtin_convertvector((I)_mm256_unpackhi_epi16((__m256i)v, (__m256i)v) >> 16, F);
  }
#elif defined(__SSE2__)
  static VITLET_INLINE S narrow(const F* values) {
    return (S)_mm_packs_epi32(_mm_cvtps_epi32((__m128)values[0]),
                              _mm_cvtps_epi32((__m128)values[1]));
  }
  static VITLET_INLINE void widen(const S& v, F* values) {
    values[0] = __builtin_convertvector((I)_mm_unpacklo_epi16((__m128i)v, (__m128i)v) >> 16, F);
    values[1] = __builtin_convertvector((I)_mm_unpackhi_epi16((__m128i)v, (__m128i)v) >> 16, F);
  }
#elif defined(__ARM_NEON)
  static VITLET_INLINE S narrow(const F* values) {
    return (S)vcombine_s16(vqmovn_s32(vcvtnq_s32_f32((float32x4_t)values[0])),
                           vqmovn_s32(vcvtnq_s32_f32((float32x4_t)values[1])));
  }
  static VITLET_INLINE void widen(const S& v, F* values) {
    values[0] = (F)vcvtq_f32_s32(vmovl_s16(vget_low_s16((int16x8_t)v)));
    values[1] = (F)vcvtq_f32_s32(vmovl_s16(vget_high_s16((int16x8_t)v)));
  }
#else
  static VITLET_INLINE S narrow(const F* values) {
    S v = {};
    for (std::size_t i = 0; i < 2 * lanes; ++i) {
      const float x = values[i / lanes][i % lanes];
      if (x > -32768.0f && x < 32767.0f)  // no NaN; it would be an undefined conversion
        v[i] = static_cast<std::uint16_t>(static_cast<std::int16_t>(__builtin_nearbyintf(x)));
    }
    return v;
  }
  static VITLET_INLINE void widen(const S& v, F* values) {
    for (std::size_t i = 0; i < 2 * lanes; ++i)
      values[i / lanes][i % lanes] = static_cast<std::int16_t>(v[i]);
  }
#endif
};

}  // namespace
}  // namespace vitlet::VITLET_ISA
