#pragma once
// Tiles of float products for float_linear.simd.cpp: some rows of x times some panels of 16
// columns, the sums in registers. Everything has internal linkage: see simd.h.
#include "float_simd.h"

namespace vitlet::VITLET_ISA {
namespace {

#define VITLET_UNROLL _Pragma("GCC unroll 16")
#define VITLET_TILE __attribute__((noinline)) void

// bf16: pairs of bfloat16 in both x and w. pairs: in w only, x is float32.
enum class Multiply { fp32, bf16, pairs };
#if defined(__AVX512BF16__)
constexpr bool multiplies_bf16 = true;
#else
constexpr bool multiplies_bf16 = false;
#endif

constexpr int panel_columns = 16;
constexpr int parts = panel_columns / static_cast<int>(lanes_f32);  // vectors of a panel

// The largest tile: all but a few registers hold sums. Few rows take several panels together, so
// that there are more sums than a product takes cycles.
#if defined(__AVX512F__)
constexpr int tile_rows = 6;
constexpr int most_panels(int) { return 4; }
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int tile_rows = 6;
constexpr int most_panels(int rows) { return rows == 1 ? 4 : rows <= 3 ? 2 : 1; }
#else
constexpr int tile_rows = 2;
constexpr int most_panels(int rows) { return rows == 1 ? 2 : 1; }
#endif

// Up to so many rows, pairs are multiplied as they are; more share their expansion to float32.
constexpr int few_rows = tile_rows < 3 ? 1 : 2;

struct FloatTile {
  const float* x;  // rows of `steps` 32-bit units; pairs: of twice as many
  std::size_t x_stride;
  const float* w;            // panels of [steps][16] 32-bit units
  std::size_t panel_stride;  // in those units
  std::size_t steps;         // inputs or, for bfloat16, pairs of them
  const float* start;        // rows of (16 panels): what the sums begin with
  std::size_t start_stride;
  float* out;
  std::size_t out_stride;
  const char* next;  // weights that will be wanted soon: so many bytes more of them each step
  std::size_t next_step;
};

inline F32Bits all_bits(const float* p) {
  std::uint32_t v;
  std::memcpy(&v, p, sizeof(v));
  return F32Bits{} + v;
}

// sum += x . w over pairs. In assembly, or gcc 12 keeps the sums in memory.
inline void dot_bf16(F32& sum, F32Bits x, F32 w) {
#if defined(__AVX512BF16__)
  __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(w), "v"(x));
#else
  (void)sum, (void)x, (void)w;
#endif
}

inline F32 load_weights(const FloatTile& t, const float* w, int vector) {
  const auto panel = static_cast<std::size_t>(vector / parts);
  return load_f32(w + panel * t.panel_stride + vector % parts * lanes_f32);
}

template <Multiply multiply, int rows, int panels>
VITLET_TILE tile_product(const FloatTile& t) {
  constexpr int vectors = panels * parts;
  constexpr std::size_t units = multiply == Multiply::pairs ? 2 : 1;  // of x in a step
  F32 sum[rows][vectors];
  VITLET_UNROLL
  for (int m = 0; m < rows; ++m) {
    VITLET_UNROLL
    for (int v = 0; v < vectors; ++v)
      sum[m][v] = load_f32(t.start + m * t.start_stride + v * lanes_f32);
  }
  const char* next = t.next;
  const float *x = t.x, *w = t.w, *end = w + t.steps * panel_columns;
  for (; w != end; w += panel_columns, x += units) {
    if (rows == 1) {
      VITLET_UNROLL
      for (int p = 0; p < panels; ++p) __builtin_prefetch(w + p * t.panel_stride + 512);
    } else {
      __builtin_prefetch(next, 0, 2);
      next += t.next_step;
    }
    if constexpr (multiply == Multiply::pairs) {  // for few rows
      VITLET_UNROLL
      for (int v = 0; v < vectors; ++v) {
        const F32Bits pair = (F32Bits)load_weights(t, w, v);
        VITLET_UNROLL
        for (int m = 0; m < rows; ++m) {
          const float* a = x + m * t.x_stride;
          sum[m][v] += a[0] * (F32)(pair << 16);
          sum[m][v] += a[1] * (F32)(pair & 0xffff0000u);
        }
      }
    } else {
      F32 b[vectors];
      VITLET_UNROLL
      for (int v = 0; v < vectors; ++v) b[v] = load_weights(t, w, v);
      VITLET_UNROLL
      for (int m = 0; m < rows; ++m) {
        const float* a = x + m * t.x_stride;
        if constexpr (multiply == Multiply::fp32) {
          VITLET_UNROLL
          for (int v = 0; v < vectors; ++v) sum[m][v] += *a * b[v];
        } else {
          const F32Bits pair = all_bits(a);
          VITLET_UNROLL
          for (int v = 0; v < vectors; ++v) dot_bf16(sum[m][v], pair, b[v]);
        }
      }
    }
  }
  VITLET_UNROLL
  for (int m = 0; m < rows; ++m) {
    VITLET_UNROLL
    for (int v = 0; v < vectors; ++v)
      store_f32(t.out + m * t.out_stride + v * lanes_f32, sum[m][v]);
  }
}

template <Multiply multiply, int rows>
void multiply_panels(const FloatTile& t, std::size_t panels) {
  if constexpr (most_panels(rows) >= 4)
    if (panels == 4) return tile_product<multiply, rows, 4>(t);
  if constexpr (most_panels(rows) >= 3)
    if (panels == 3) return tile_product<multiply, rows, 3>(t);
  if constexpr (most_panels(rows) >= 2)
    if (panels == 2) return tile_product<multiply, rows, 2>(t);
  tile_product<multiply, rows, 1>(t);
}

// rows <= tile_rows, or few_rows for pairs; panels <= most_panels(rows)
template <Multiply multiply>
void multiply_any(const FloatTile& t, std::size_t rows, std::size_t panels) {
  constexpr int most_rows = multiply == Multiply::pairs ? few_rows : tile_rows;
  if constexpr (most_rows >= 6)
    if (rows == 6) return multiply_panels<multiply, 6>(t, panels);
  if constexpr (most_rows >= 5)
    if (rows == 5) return multiply_panels<multiply, 5>(t, panels);
  if constexpr (most_rows >= 4)
    if (rows == 4) return multiply_panels<multiply, 4>(t, panels);
  if constexpr (most_rows >= 3)
    if (rows == 3) return multiply_panels<multiply, 3>(t, panels);
  if constexpr (most_rows >= 2)
    if (rows == 2) return multiply_panels<multiply, 2>(t, panels);
  multiply_panels<multiply, 1>(t, panels);
}

#undef VITLET_TILE

}  // namespace
}  // namespace vitlet::VITLET_ISA
