#pragma once
// Rows of float rounded to 8 bits (see shift_linear.h), for *.simd.cpp. As simd.h, all of it is
// static and in the instruction set's namespace.
#include "simd.h"

namespace vitlet::VITLET_ISA {
namespace {

using F32x16 = float __attribute__((vector_size(64)));
using I32x16s = std::int32_t __attribute__((vector_size(64)));
using U8x16 = std::uint8_t __attribute__((vector_size(16)));

constexpr std::int32_t infinity_bits = 0x7f800000;
constexpr float least = 0x1p-100f;

// Floats without their sign order as integers do, NaN after infinity.
inline float largest(const float* x, std::size_t count) {
  std::int32_t most = 0;
  for (std::size_t k = 0; k < count; ++k) {
    const std::int32_t bits = read_i32(x + k) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  float value;
  std::memcpy(&value, &most, sizeof(value));
  return most >= infinity_bits ? __builtin_nanf("") : value;
}

// Adding 1.5 * 2^23 leaves the rounded integer in the low bits. `nothing` is 0: between the product
// and the sum, it keeps a compiler that may from making one operation of them, which would round
// once instead of twice.
template <class Floats, class Integers>
inline Integers rounded(const float* x, float inverse, std::int32_t nothing, std::int32_t zero) {
  Floats v;
  std::memcpy(&v, x, sizeof(v));
  v = (Floats)((Integers)(v * inverse) ^ nothing) + 12582912.0f;
  return (Integers)v + (zero - 0x4b400000);
}

inline void round_16(const float* x, float inverse, std::int32_t nothing, std::int32_t zero,
                     std::uint8_t* q) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // gcc 12 would move the low bytes one by one.
  using F32x8 = float __attribute__((vector_size(32)));
  using I32x8 = std::int32_t __attribute__((vector_size(32)));
  const I32x8 low = rounded<F32x8, I32x8>(x, inverse, nothing, zero) & 255;
  const I32x8 high = rounded<F32x8, I32x8>(x + 8, inverse, nothing, zero) & 255;
  // 0-3 8-11 in one half, 4-7 12-15 in the other.
  const __m256i words = _mm256_packs_epi32((__m256i)low, (__m256i)high);
  const U8x16 bytes = (U8x16)_mm_shuffle_epi32(
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)), 0xd8);
#else
  const I32x16s bits = rounded<F32x16, I32x16s>(x, inverse, nothing, zero);
  const U8x16 bytes = __builtin_convertvector(bits, U8x16);
#endif
  std::memcpy(q, &bytes, sizeof(bytes));
}

// One row of `count` floats to `stride` bytes, the padding 0, all of them + zero.
inline void round_row(const float* x, std::size_t count, std::size_t stride, std::int32_t zero,
                      std::uint8_t* q, float* row_scale) {
  const float most = largest(x, count);
  if (!(most >= least)) {  // also NaN
    std::memset(q, zero, stride);
    *row_scale = most < least ? 0.0f : most;
    return;
  }
  *row_scale = most / 127.0f;
  const float inverse = 127.0f / most;
  std::int32_t nothing = 0;
  asm("" : "+r"(nothing));  // the compiler cannot know
  std::size_t k = 0;
  for (; k + 16 <= count; k += 16) round_16(x + k, inverse, nothing, zero, q + k);
  if (k == stride) return;
  float rest[16] = {};
  std::uint8_t bytes[16];
  std::memcpy(rest, x + k, (count - k) * sizeof(float));
  round_16(rest, inverse, nothing, zero, bytes);
  std::memcpy(q + k, bytes, stride - k);
}

}  // namespace
}  // namespace vitlet::VITLET_ISA
