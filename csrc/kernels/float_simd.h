#pragma once
// Vectors of float for *.simd.cpp, as wide as the instruction set, in the compiler's own vector
// types: + - * and comparisons work on them, and a * b + c becomes one operation where there is
// one. Everything is `static inline` inside the instruction set's namespace: see simd.h.
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace vitlet::VITLET_ISA {

#if defined(__AVX512F__)
static constexpr std::size_t lanes_f32 = 16;
#elif defined(__AVX__)
static constexpr std::size_t lanes_f32 = 8;
#else
static constexpr std::size_t lanes_f32 = 4;
#endif

using F32 = float __attribute__((vector_size(4 * lanes_f32)));
using F32Bits = std::uint32_t __attribute__((vector_size(4 * lanes_f32)));
using F32x4 = float __attribute__((vector_size(16)));

static inline F32 load_f32(const float* p) {
  F32 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline void store_f32(float* p, F32 v) { std::memcpy(p, &v, sizeof(v)); }
static inline F32Bits load_bits(const std::uint32_t* p) {
  F32Bits v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline F32 all_f32(float v) { return F32{} + v; }
static inline F32x4 load_x4(const float* p) {
  F32x4 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline void store_x4(float* p, F32x4 v) { std::memcpy(p, &v, sizeof(v)); }

// The sum of the vector's quarters (or halves, or itself): four floats.
static inline F32x4 fold_to_x4(F32 v) {
#if defined(__AVX512F__)
  const auto half = __builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15);
#elif defined(__AVX__)
  const F32 half = v;
#endif
#if defined(__AVX__)
  return __builtin_shufflevector(half, half, 0, 1, 2, 3) +
         __builtin_shufflevector(half, half, 4, 5, 6, 7);
#else
  return v;
#endif
}

// Columns become rows.
static inline void transpose_4x4(F32x4& a, F32x4& b, F32x4& c, F32x4& d) {
  const F32x4 ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5);
  const F32x4 ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const F32x4 cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5);
  const F32x4 cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  a = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  b = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  c = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  d = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

// to[column * to_stride + row] = from[row * from_stride + column]
static inline void transpose(const float* from, std::size_t from_stride, std::size_t rows,
                             std::size_t columns, float* to, std::size_t to_stride) {
  std::size_t row = 0;
  for (; row + 4 <= rows; row += 4) {
    const float* in = from + row * from_stride;
    float* out = to + row;
    std::size_t column = 0;
    for (; column + 4 <= columns; column += 4) {
      F32x4 a = load_x4(in + column), b = load_x4(in + from_stride + column);
      F32x4 c = load_x4(in + 2 * from_stride + column), d = load_x4(in + 3 * from_stride + column);
      transpose_4x4(a, b, c, d);
      store_x4(out + column * to_stride, a);
      store_x4(out + (column + 1) * to_stride, b);
      store_x4(out + (column + 2) * to_stride, c);
      store_x4(out + (column + 3) * to_stride, d);
    }
    for (; column < columns; ++column)
      for (std::size_t i = 0; i < 4; ++i)
        out[column * to_stride + i] = in[i * from_stride + column];
  }
  for (; row < rows; ++row)
    for (std::size_t column = 0; column < columns; ++column)
      to[column * to_stride + row] = from[row * from_stride + column];
}

// max(x, 0) that keeps a NaN.
static inline F32 relu_f32(F32 x) { return x < 0 ? F32{} : x; }

// exp(x) within 2 ulp for |x| <= 87, the bounds beyond; a NaN stays one. Cephes' polynomial.
static inline F32 exp_f32(F32 x) {
  x = x > 87.0f ? all_f32(87.0f) : x;
  x = x < -87.0f ? all_f32(-87.0f) : x;
  constexpr float round = 12582912.0f;  // 1.5 * 2^23: adding it leaves no bits for fractions
  const F32 shifted = x * 1.44269504f + round;
  const F32 n = shifted - round;
  F32 r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  F32 p = all_f32(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  return p * (F32)(((F32Bits)shifted + 127u) << 23);
}

static inline F32 sigmoid_f32(F32 x) { return 1.0f / (1.0f + exp_f32(-x)); }

// Rounded to bfloat16, ties to even, in the upper halves; a NaN stays one.
static inline F32Bits bf16_bits(F32 x) {
  const F32Bits bits = (F32Bits)x;
  const F32Bits rounded = bits + 0x7fffu + (bits >> 16 & 1u);
  return ((bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x00400000u : rounded) & 0xffff0000u;
}

}  // namespace vitlet::VITLET_ISA
