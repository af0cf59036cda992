#pragma once
// Part of int8_tile.h: strips of 64 columns, four registers.
#include "simd.h"

namespace vitlet::VITLET_ISA {
namespace {

constexpr std::size_t strip_columns = 64, tile_rows = 6;
constexpr bool offset_rows(bool small) {
#if defined(__AVX512VNNI__)
  return small || true;
#else
  return small;
#endif
}

// The forms with a mask, all ones, are for gcc bug 105593.
// For tables of 16 bytes: the upper bits of an index go unused, or (vpshufb) must be cleared.
inline __m512i codes_to_bytes(__m512i codes, __m512i table) {
#if defined(__AVX512VBMI__)
  return _mm512_maskz_permutexvar_epi8(~0ull, codes,
                                       table);  // four copies of the table: bits 4 and 5 are free
#else
  return _mm512_shuffle_epi8(table, _mm512_and_si512(codes, _mm512_set1_epi8(15)));
#endif
}
inline __m512i upper_codes(__m512i codes) { return _mm512_maskz_srli_epi16(~0u, codes, 4); }
inline __m512i code_table(bool wide) {
  return _mm512_maskz_broadcast_i32x4(
      0xffff, _mm_load_si128(reinterpret_cast<const __m128i*>(wide ? wide_codes : narrow_codes)));
}

#if !defined(__AVX512VNNI__)
alignas(64) constexpr std::int16_t ones[32] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                               1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
#endif

// acc += x . w over fours of bytes. In assembly, or gcc 12 keeps the accumulators in memory.
template <bool small>
inline void dot(__m512i& acc, __m512i x, __m512i w) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(acc) : "v"(x), "v"(w));
#else
  const __m512i factor = small ? x : _mm512_abs_epi8(w);
  const __m512i other =
      small ? w : _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x);
  __m512i pairs;
  asm("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
      : "+v"(acc), "=&v"(pairs)
      : "v"(factor), "v"(other), "m"(ones));
#endif
}

// The bytes of four inputs: 64 columns in four registers.
template <bool from_codes>
inline void load_weights(const std::uint8_t* p, __m512i table, __m512i (&w)[4]) {
  if (from_codes) {
    const __m512i low = _mm512_loadu_si512(p), high = _mm512_loadu_si512(p + 64);
    w[0] = codes_to_bytes(low, table);
    w[1] = codes_to_bytes(upper_codes(low), table);
    w[2] = codes_to_bytes(high, table);
    w[3] = codes_to_bytes(upper_codes(high), table);
  } else {
    VITLET_UNROLL
    for (int v = 0; v < 4; ++v) w[v] = _mm512_loadu_si512(p + 64 * v);
  }
}

// Few rows leave registers for several chains of sums, which hides the latency.
template <int rows, bool small, bool from_codes>
VITLET_TILE multiply(const Tile& t, const std::uint8_t* w, bool wide) {
  constexpr int chains = rows <= 2 ? 2 : 1;
  constexpr std::size_t step = from_codes ? 128 : 256;
  const __m512i table = from_codes ? code_table(wide) : _mm512_setzero_si512();
  __m512i acc[chains * rows][4];
  VITLET_UNROLL
  for (int m = 0; m < chains * rows; ++m) {
    VITLET_UNROLL
    for (int v = 0; v < 4; ++v) acc[m][v] = _mm512_setzero_si512();
  }
  const std::uint8_t *q = t.q, *end = t.q + t.stride;
  for (; q != end; q += 4 * chains, w += chains * step) {
    VITLET_UNROLL
    for (int c = 0; c < chains; ++c) {
      __m512i b[4];
      if (rows == 1) {
        _mm_prefetch(reinterpret_cast<const char*>(w + c * step + 2048), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(w + c * step + 2112), _MM_HINT_T0);
      }
      load_weights<from_codes>(w + c * step, table, b);
      VITLET_UNROLL
      for (int m = 0; m < rows; ++m) {
        const __m512i x = _mm512_set1_epi32(read_i32(q + m * t.stride + 4 * c));
        VITLET_UNROLL
        for (int v = 0; v < 4; ++v) dot<small>(acc[c * rows + m][v], x, b[v]);
      }
    }
  }
  VITLET_UNROLL
  for (int v = 0; v < 4; ++v) {
    __m512i offset = _mm512_setzero_si512();
    if (offset_rows(small))
      offset =
          _mm512_mullo_epi32(_mm512_loadu_si512(t.column_sums + 16 * v), _mm512_set1_epi32(128));
    VITLET_UNROLL
    for (int m = 0; m < rows; ++m) {
      __m512i total = acc[m][v];
      if (chains == 2) total = _mm512_add_epi32(total, acc[(chains - 1) * rows + m][v]);
      _mm512_storeu_si512(t.sums + 64 * m + 16 * v, _mm512_sub_epi32(total, offset));
    }
  }
}

template <bool small, bool from_codes>
void multiply_any(const Tile& t, std::size_t rows, const std::uint8_t* w, bool wide) {
  switch (rows) {
    case 1:
      return multiply<1, small, from_codes>(t, w, wide);
    case 2:
      return multiply<2, small, from_codes>(t, w, wide);
    case 3:
      return multiply<3, small, from_codes>(t, w, wide);
    case 4:
      return multiply<4, small, from_codes>(t, w, wide);
    case 5:
      return multiply<5, small, from_codes>(t, w, wide);
    default:
      return multiply<6, small, from_codes>(t, w, wide);
  }
}

inline const std::uint8_t* strip_of_bytes(const std::uint8_t* panel, std::size_t, std::size_t,
                                          std::uint8_t*) {
  return panel;
}

inline const std::uint8_t* strip_of_codes(const std::uint8_t* panel, std::size_t,
                                          std::size_t inputs, bool wide, std::uint8_t* room) {
  const __m512i table = code_table(wide);
  for (std::size_t k = 0; k < inputs; k += 4) {
    __m512i w[4];
    load_weights<true>(panel + 32 * k, table, w);
    VITLET_UNROLL
    for (int v = 0; v < 4; ++v) _mm512_storeu_si512(room + 64 * k + 64 * v, w[v]);
  }
  return room;
}

inline void multiply_bytes(const Tile& t, std::size_t rows, const std::uint8_t* w, bool small) {
#if defined(__AVX512VNNI__)
  (void)small;
  multiply_any<true, false>(t, rows, w, false);
#else
  (small ? multiply_any<true, false> : multiply_any<false, false>)(t, rows, w, false);
#endif
}

constexpr bool tiles_read_codes = true;
inline void multiply_codes(const Tile& t, std::size_t rows, const std::uint8_t* w, bool wide) {
#if defined(__AVX512VNNI__)
  multiply_any<true, true>(t, rows, w, wide);
#else
  (wide ? multiply_any<false, true> : multiply_any<true, true>)(t, rows, w, wide);
#endif
}

}  // namespace
}  // namespace vitlet::VITLET_ISA
