#pragma once
// Tiles of 8-bit products for *.simd.cpp: `rows` rows of rounded activations times one strip of
// columns, summed in 32 bits. As simd.h, all of it is static and in the instruction set's
// namespace.
//
//   strip_columns        columns of a strip: a divisor of 64
//   tile_rows            most rows of a tile
//   offset_rows(small)   whether activations come as x + 128, for instructions that multiply
//                        unsigned by signed bytes; small: no weight is larger than 64
//   strip_of_codes       4-bit codes to bytes in `room`, in the order multiply_bytes likes
//   strip_of_bytes       the same from bytes; may return a pointer into the panel
//   multiply_bytes       the sums of one tile, rows x strip_columns
//   multiply_codes       the same straight from the codes, where tiles_read_codes
#include "simd.h"

#if defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace vitlet::VITLET_ISA {
namespace {

struct Tile {
  const std::uint8_t* q;            // (rows, stride)
  std::size_t stride;               // a multiple of 8
  const std::int32_t* column_sums;  // of the weights of the strip's columns
  std::int32_t* sums;               // (rows, strip_columns)
};

// The integers of the 16 codes: sign and exponent + 1. See shift_linear.h.
alignas(16) constexpr std::int8_t narrow_codes[16] = {0, 1,  2,  4,  8,  16,  32,  64,
                                                      0, -1, -2, -4, -8, -16, -32, -64};
alignas(16) constexpr std::int8_t wide_codes[16] = {0,    1,  2,  4,  8,  16,  32,  64,
                                                    -128, -1, -2, -4, -8, -16, -32, -64};

#define VITLET_UNROLL _Pragma("GCC unroll 16")
#define VITLET_TILE __attribute__((noinline)) void

#if defined(__AVX512BW__)

}  // namespace
}  // namespace vitlet::VITLET_ISA
#include "int8_tile_avx512.h"
namespace vitlet::VITLET_ISA {
namespace {

#else  // strips of 16 columns: 64 bytes for four inputs

constexpr std::size_t strip_columns = 16;

// Sixteen codes to bytes.
#if defined(__SSSE3__)
inline void codes_16(const std::uint8_t* codes, int shift, bool wide, std::uint8_t* bytes) {
  const __m128i table =
      _mm_load_si128(reinterpret_cast<const __m128i*>(wide ? wide_codes : narrow_codes));
  const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(codes));
  const __m128i index =
      _mm_and_si128(_mm_srl_epi16(v, _mm_cvtsi32_si128(shift)), _mm_set1_epi8(15));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), _mm_shuffle_epi8(table, index));
}
#elif defined(__ARM_NEON) && defined(__aarch64__)
inline void codes_16(const std::uint8_t* codes, int shift, bool wide, std::uint8_t* bytes) {
  const int8x16_t table = vld1q_s8(wide ? wide_codes : narrow_codes);
  const uint8x16_t v = vshlq_u8(vld1q_u8(codes), vdupq_n_s8(static_cast<std::int8_t>(-shift)));
  vst1q_u8(bytes, vreinterpretq_u8_s8(vqtbl1q_s8(table, vandq_u8(v, vdupq_n_u8(15)))));
}
#else
inline void codes_16(const std::uint8_t* codes, int shift, bool wide, std::uint8_t* bytes) {
  const std::int8_t* table = wide ? wide_codes : narrow_codes;
  for (int i = 0; i < 16; ++i) bytes[i] = static_cast<std::uint8_t>(table[codes[i] >> shift & 15]);
}
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8)
// Matrix products take eight inputs of a column together.
inline void order_for_tile(std::uint8_t* strip, std::size_t inputs) {
  for (std::size_t k = 0; k < inputs; k += 8, strip += 128) {
    uint32x4_t low[4], high[4];
    for (int v = 0; v < 4; ++v) {
      low[v] = vreinterpretq_u32_u8(vld1q_u8(strip + 16 * v));
      high[v] = vreinterpretq_u32_u8(vld1q_u8(strip + 64 + 16 * v));
    }
    for (int v = 0; v < 4; ++v) {
      vst1q_u8(strip + 32 * v, vreinterpretq_u8_u32(vzip1q_u32(low[v], high[v])));
      vst1q_u8(strip + 32 * v + 16, vreinterpretq_u8_u32(vzip2q_u32(low[v], high[v])));
    }
  }
}
#else
inline void order_for_tile(std::uint8_t*, std::size_t) {}
#endif

inline const std::uint8_t* strip_of_bytes(const std::uint8_t* panel, std::size_t column,
                                          std::size_t inputs, std::uint8_t* room) {
  for (std::size_t k = 0; k < inputs; k += 4)
    std::memcpy(room + 16 * k, panel + 64 * k + 4 * column, 64);
  order_for_tile(room, inputs);
  return room;
}

inline const std::uint8_t* strip_of_codes(const std::uint8_t* panel, std::size_t column,
                                          std::size_t inputs, bool wide, std::uint8_t* room) {
  const int shift = column / 16 % 2 == 0 ? 0 : 4;
  for (std::size_t k = 0; k < inputs; k += 4)
    for (int i = 0; i < 64; i += 16)
      codes_16(panel + 32 * k + column / 32 * 64 + i, shift, wide, room + 16 * k + i);
  order_for_tile(room, inputs);
  return room;
}

constexpr bool tiles_read_codes = false;
inline void multiply_codes(const Tile&, std::size_t, const std::uint8_t*, bool) {}

#if defined(__AVX2__)

#if defined(__AVXVNNI__)
constexpr std::size_t tile_rows = 6;
constexpr bool offset_rows(bool) { return true; }
#else
constexpr std::size_t tile_rows = 5;
constexpr bool offset_rows(bool small) { return small; }
#endif

#if !defined(__AVXVNNI__)
alignas(32) constexpr std::int16_t ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
#endif

// acc += x . w over fours of bytes. In assembly, or gcc 12 keeps accumulators in memory.
template <bool small>
inline void dot(__m256i& acc, __m256i x, __m256i w) {
#if defined(__AVXVNNI__)
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc) : "x"(x), "x"(w));
#else
  // 2 * 255 * 64 and 2 * 128 * 127 both fit in 16 bits.
  const __m256i factor = small ? x : _mm256_abs_epi8(w), other = small ? w : _mm256_sign_epi8(x, w);
  __m256i pairs;
  asm("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
      : "+x"(acc), "=&x"(pairs)
      : "x"(factor), "x"(other), "x"(_mm256_set1_epi16(1)));
#endif
}

template <int rows, bool small>
VITLET_TILE multiply(const Tile& t, const std::uint8_t* w) {
  constexpr int chains = rows <= 2 ? 2 : 1;
  __m256i acc[chains * rows][2];
  VITLET_UNROLL
  for (int m = 0; m < chains * rows; ++m) acc[m][0] = acc[m][1] = _mm256_setzero_si256();
  const std::uint8_t *q = t.q, *end = t.q + t.stride;
  for (; q != end; q += 4 * chains, w += chains * 64) {
    VITLET_UNROLL
    for (int c = 0; c < chains; ++c) {
      const __m256i b0 = load(w + c * 64), b1 = load(w + c * 64 + 32);
      VITLET_UNROLL
      for (int m = 0; m < rows; ++m) {
        const __m256i x = _mm256_set1_epi32(read_i32(q + m * t.stride + 4 * c));
        dot<small>(acc[c * rows + m][0], x, b0);
        dot<small>(acc[c * rows + m][1], x, b1);
      }
    }
  }
  VITLET_UNROLL
  for (int v = 0; v < 2; ++v) {
    __m256i offset = _mm256_setzero_si256();
    if (offset_rows(small))
      offset = _mm256_slli_epi32(
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(t.column_sums + 8 * v)), 7);
    VITLET_UNROLL
    for (int m = 0; m < rows; ++m) {
      __m256i total = acc[m][v];
      if (chains == 2) total = _mm256_add_epi32(total, acc[(chains - 1) * rows + m][v]);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(t.sums + 16 * m + 8 * v),
                          _mm256_sub_epi32(total, offset));
    }
  }
}

#elif defined(__ARM_NEON) && defined(__aarch64__)

}  // namespace
}  // namespace vitlet::VITLET_ISA
#include "int8_tile_arm.h"
namespace vitlet::VITLET_ISA {
namespace {

#else  // SSE2, and any other processor

constexpr std::size_t tile_rows = 2;
constexpr bool offset_rows(bool) { return false; }

template <int rows, bool small>
VITLET_TILE multiply(const Tile& t, const std::uint8_t* w) {
  using I16x8 = std::int16_t __attribute__((vector_size(16)));
  using I8x8 = std::int8_t __attribute__((vector_size(8)));
  using I32x4 = std::int32_t __attribute__((vector_size(16)));
  I32x4 acc[rows][8] = {};  // two columns each, two halves of the inputs each
  for (std::size_t k = 0; k < t.stride; k += 4, w += 64) {
    I16x8 x[rows];
    for (int m = 0; m < rows; ++m) {
      const std::int32_t four = read_i32(t.q + m * t.stride + k);
      std::int8_t bytes[8];
      std::memcpy(bytes, &four, 4);
      std::memcpy(bytes + 4, &four, 4);
      I8x8 narrow_x;
      std::memcpy(&narrow_x, bytes, 8);
      x[m] = __builtin_convertvector(narrow_x, I16x8);
    }
    VITLET_UNROLL
    for (int v = 0; v < 8; ++v) {
      I8x8 narrow_w;
      std::memcpy(&narrow_w, w + 8 * v, 8);
      const I16x8 b = __builtin_convertvector(narrow_w, I16x8);
      VITLET_UNROLL
      for (int m = 0; m < rows; ++m) acc[m][v] += (I32x4)madd((I16)x[m], (I16)b);
    }
  }
  for (int m = 0; m < rows; ++m)
    for (int v = 0; v < 8; ++v) {
      t.sums[m * strip_columns + 2 * v] = acc[m][v][0] + acc[m][v][1];
      t.sums[m * strip_columns + 2 * v + 1] = acc[m][v][2] + acc[m][v][3];
    }
}

#endif

template <bool small>
void multiply_rows(const Tile& t, std::size_t rows, const std::uint8_t* w) {
  switch (rows) {
    case 1:
      return multiply<1, small>(t, w);
    case 2:
      return multiply<2, small>(t, w);
    default:
      break;
  }
  if constexpr (tile_rows >= 3)
    if (rows == 3) return multiply<3, small>(t, w);
  if constexpr (tile_rows >= 4)
    if (rows == 4) return multiply<4, small>(t, w);
  if constexpr (tile_rows >= 5)
    if (rows == 5) return multiply<5, small>(t, w);
  if constexpr (tile_rows >= 6) return multiply<6, small>(t, w);
}

inline void multiply_bytes(const Tile& t, std::size_t rows, const std::uint8_t* w, bool small) {
#if defined(__AVX2__) && !defined(__AVXVNNI__)
  if (!small) return multiply_rows<false>(t, rows, w);
#endif
  (void)small;
  multiply_rows<true>(t, rows, w);
}

#endif

#undef VITLET_UNROLL
#undef VITLET_TILE

}  // namespace
}  // namespace vitlet::VITLET_ISA
