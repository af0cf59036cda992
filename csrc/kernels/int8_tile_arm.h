#pragma once
// Part of int8_tile.h: NEON, with 8-bit matrix products, dot products, or neither.
#include <arm_neon.h>

#include "simd.h"

namespace vitlet::VITLET_ISA {
namespace {

#if defined(__ARM_FEATURE_MATMUL_INT8)

constexpr std::size_t tile_rows = 4;
constexpr bool offset_rows(bool) { return false; }

// Two rows by two columns in each register.
template <int rows, bool small>
VITLET_TILE multiply(const Tile& t, const std::uint8_t* w) {
  constexpr int pairs = (rows + 1) / 2;
  int32x4_t acc[pairs][8];
  VITLET_UNROLL
  for (int p = 0; p < pairs; ++p) {
    VITLET_UNROLL
    for (int v = 0; v < 8; ++v) acc[p][v] = vdupq_n_s32(0);
  }
  for (std::size_t k = 0; k < t.stride; k += 8, w += 128) {
    int8x16_t x[pairs];
    VITLET_UNROLL
    for (int p = 0; p < pairs; ++p) {
      const std::uint8_t* row = t.q + 2 * p * t.stride + k;
      const std::uint8_t* next = 2 * p + 1 < rows ? row + t.stride : row;
      x[p] = vreinterpretq_s8_u8(vcombine_u8(vld1_u8(row), vld1_u8(next)));
    }
    VITLET_UNROLL
    for (int v = 0; v < 8; ++v) {
      const int8x16_t b = vreinterpretq_s8_u8(vld1q_u8(w + 16 * v));
      VITLET_UNROLL
      for (int p = 0; p < pairs; ++p) acc[p][v] = vmmlaq_s32(acc[p][v], x[p], b);
    }
  }
  VITLET_UNROLL
  for (int p = 0; p < pairs; ++p) {
    VITLET_UNROLL
    for (int v = 0; v < 8; ++v) {
      std::int32_t* sums = t.sums + 2 * p * strip_columns + 2 * v;
      vst1_s32(sums, vget_low_s32(acc[p][v]));
      if (2 * p + 1 < rows) vst1_s32(sums + strip_columns, vget_high_s32(acc[p][v]));
    }
  }
}

#elif defined(__ARM_FEATURE_DOTPROD)

constexpr std::size_t tile_rows = 6;
constexpr bool offset_rows(bool) { return false; }

template <int rows, bool small>
VITLET_TILE multiply(const Tile& t, const std::uint8_t* w) {
  int32x4_t acc[rows][4];
  VITLET_UNROLL
  for (int m = 0; m < rows; ++m) {
    VITLET_UNROLL
    for (int v = 0; v < 4; ++v) acc[m][v] = vdupq_n_s32(0);
  }
  for (std::size_t k = 0; k < t.stride; k += 4, w += 64) {
    int8x16_t b[4];
    VITLET_UNROLL
    for (int v = 0; v < 4; ++v) b[v] = vreinterpretq_s8_u8(vld1q_u8(w + 16 * v));
    VITLET_UNROLL
    for (int m = 0; m < rows; ++m) {
      const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(read_i32(t.q + m * t.stride + k)));
      VITLET_UNROLL
      for (int v = 0; v < 4; ++v) acc[m][v] = vdotq_s32(acc[m][v], b[v], x);
    }
  }
  VITLET_UNROLL
  for (int m = 0; m < rows; ++m) {
    VITLET_UNROLL
    for (int v = 0; v < 4; ++v) vst1q_s32(t.sums + m * strip_columns + 4 * v, acc[m][v]);
  }
}

#else

constexpr std::size_t tile_rows = 3;
constexpr bool offset_rows(bool) { return false; }

// Each register sums two columns, two halves of the inputs each. 2 * 128 * 127 fits in 16 bits.
template <int rows, bool small>
VITLET_TILE multiply(const Tile& t, const std::uint8_t* w) {
  int32x4_t acc[rows][8];
  VITLET_UNROLL
  for (int m = 0; m < rows; ++m) {
    VITLET_UNROLL
    for (int v = 0; v < 8; ++v) acc[m][v] = vdupq_n_s32(0);
  }
  for (std::size_t k = 0; k < t.stride; k += 8, w += 128) {
    int8x8_t x[rows][2];
    VITLET_UNROLL
    for (int m = 0; m < rows; ++m) {
      VITLET_UNROLL
      for (int c = 0; c < 2; ++c)
        x[m][c] = vreinterpret_s8_s32(vdup_n_s32(read_i32(t.q + m * t.stride + k + 4 * c)));
    }
    VITLET_UNROLL
    for (int v = 0; v < 8; ++v) {
      const int8x8_t b0 = vreinterpret_s8_u8(vld1_u8(w + 8 * v));
      const int8x8_t b1 = vreinterpret_s8_u8(vld1_u8(w + 64 + 8 * v));
      VITLET_UNROLL
      for (int m = 0; m < rows; ++m)
        acc[m][v] = vpadalq_s16(acc[m][v], vmlal_s8(vmull_s8(b0, x[m][0]), b1, x[m][1]));
    }
  }
  VITLET_UNROLL
  for (int m = 0; m < rows; ++m) {
    VITLET_UNROLL
    for (int v = 0; v < 4; ++v)
      vst1q_s32(t.sums + m * strip_columns + 4 * v, vpaddq_s32(acc[m][2 * v], acc[m][2 * v + 1]));
  }
}

#endif

}  // namespace
}  // namespace vitlet::VITLET_ISA
