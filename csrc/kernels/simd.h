#pragma once
// The vector vocabulary of *.simd.cpp: one register's worth of integers, its width chosen by the
// instruction set this file is compiled for. Everything is `static inline` inside the instruction
// set's own namespace: an inline function with external linkage would be a weak symbol, of which
// the linker keeps one copy for all, perhaps the AVX-512 one.
//
//   U8, I16, I32        vectors of `lanes_u8` bytes, half and a quarter as many numbers
//   interleave_low/high bytes of a and b in turn, from the low/high half of each 128-bit part
//   widen_low/high      bytes to int16, from the low/high half of each 128-bit part
//   madd                a[2i] * b[2i] + a[2i+1] * b[2i+1]
//   narrow              four I32, clamped to bytes; undoes widen(interleave()) of the same halves
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace vitlet::VITLET_ISA {

#if defined(__AVX512BW__)

using U8 = __m512i;
using I16 = __m512i;
using I32 = __m512i;
// gcc 12's own shift intrinsics set off -Wmaybe-uninitialized (gcc bug 105593).
using I32x16 = std::int32_t __attribute__((vector_size(64)));
using U32x16 = std::uint32_t __attribute__((vector_size(64)));
static constexpr std::size_t lanes_u8 = 64;
static inline U8 load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
static inline void store(std::uint8_t* p, U8 v) { _mm512_storeu_si512(p, v); }
static inline I32 all_i32(std::int32_t v) { return _mm512_set1_epi32(v); }
static inline U8 interleave_low(U8 a, U8 b) { return _mm512_unpacklo_epi8(a, b); }
static inline U8 interleave_high(U8 a, U8 b) { return _mm512_unpackhi_epi8(a, b); }
static inline I16 widen_low(U8 v) { return _mm512_unpacklo_epi8(v, _mm512_setzero_si512()); }
static inline I16 widen_high(U8 v) { return _mm512_unpackhi_epi8(v, _mm512_setzero_si512()); }
static inline I32 madd(I16 a, I16 b) { return _mm512_madd_epi16(a, b); }
static inline I32 add(I32 a, I32 b) { return _mm512_add_epi32(a, b); }
template <int n>
static inline I32 shift_left(I32 v) {
  return (I32)((U32x16)v << n);
}
template <int n>
static inline I32 shift_right(I32 v) {
  return (I32)((I32x16)v >> n);
}
static inline U8 narrow(I32 a, I32 b, I32 c, I32 d) {
  return _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
}

#elif defined(__AVX2__)

using U8 = __m256i;
using I16 = __m256i;
using I32 = __m256i;
static constexpr std::size_t lanes_u8 = 32;
static inline U8 load(const std::uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
static inline void store(std::uint8_t* p, U8 v) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v);
}
static inline I32 all_i32(std::int32_t v) { return _mm256_set1_epi32(v); }
static inline U8 interleave_low(U8 a, U8 b) { return _mm256_unpacklo_epi8(a, b); }
static inline U8 interleave_high(U8 a, U8 b) { return _mm256_unpackhi_epi8(a, b); }
static inline I16 widen_low(U8 v) { return _mm256_unpacklo_epi8(v, _mm256_setzero_si256()); }
static inline I16 widen_high(U8 v) { return _mm256_unpackhi_epi8(v, _mm256_setzero_si256()); }
static inline I32 madd(I16 a, I16 b) { return _mm256_madd_epi16(a, b); }
static inline I32 add(I32 a, I32 b) { return _mm256_add_epi32(a, b); }
template <int n>
static inline I32 shift_left(I32 v) {
  return _mm256_slli_epi32(v, n);
}
template <int n>
static inline I32 shift_right(I32 v) {
  return _mm256_srai_epi32(v, n);
}
static inline U8 narrow(I32 a, I32 b, I32 c, I32 d) {
  return _mm256_packus_epi16(_mm256_packs_epi32(a, b), _mm256_packs_epi32(c, d));
}

#elif defined(__SSE2__)

using U8 = __m128i;
using I16 = __m128i;
using I32 = __m128i;
static constexpr std::size_t lanes_u8 = 16;
static inline U8 load(const std::uint8_t* p) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
}
static inline void store(std::uint8_t* p, U8 v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v);
}
static inline I32 all_i32(std::int32_t v) { return _mm_set1_epi32(v); }
static inline U8 first_four(std::int32_t bytes) { return _mm_cvtsi32_si128(bytes); }
static inline U8 interleave_low(U8 a, U8 b) { return _mm_unpacklo_epi8(a, b); }
static inline U8 interleave_high(U8 a, U8 b) { return _mm_unpackhi_epi8(a, b); }
static inline I16 widen_low(U8 v) { return _mm_unpacklo_epi8(v, _mm_setzero_si128()); }
static inline I16 widen_high(U8 v) { return _mm_unpackhi_epi8(v, _mm_setzero_si128()); }
static inline I32 madd(I16 a, I16 b) { return _mm_madd_epi16(a, b); }
static inline I32 add(I32 a, I32 b) { return _mm_add_epi32(a, b); }
template <int n>
static inline I32 shift_left(I32 v) {
  return _mm_slli_epi32(v, n);
}
template <int n>
static inline I32 shift_right(I32 v) {
  return _mm_srai_epi32(v, n);
}
static inline U8 narrow(I32 a, I32 b, I32 c, I32 d) {
  return _mm_packus_epi16(_mm_packs_epi32(a, b), _mm_packs_epi32(c, d));
}

#else  // NEON, and any processor whose compiler has 128-bit vectors

using U8 = std::uint8_t __attribute__((vector_size(16)));
using I16 = std::int16_t __attribute__((vector_size(16)));
using I32 = std::int32_t __attribute__((vector_size(16)));
using U32 = std::uint32_t __attribute__((vector_size(16)));
static constexpr std::size_t lanes_u8 = 16;
static inline U8 load(const std::uint8_t* p) {
  U8 v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
static inline void store(std::uint8_t* p, U8 v) { std::memcpy(p, &v, sizeof(v)); }
static inline I32 all_i32(std::int32_t v) { return I32{v, v, v, v}; }
static inline U8 first_four(std::int32_t bytes) { return (U8)I32{bytes, 0, 0, 0}; }
static inline U8 interleave_low(U8 a, U8 b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
static inline U8 interleave_high(U8 a, U8 b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
}
static inline I16 widen_low(U8 v) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7), I16);
}
static inline I16 widen_high(U8 v) {
  return __builtin_convertvector(__builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15), I16);
}
static inline I32 madd(I16 a, I16 b) {
  const I32 even = __builtin_convertvector(__builtin_shufflevector(a, a, 0, 2, 4, 6), I32) *
                   __builtin_convertvector(__builtin_shufflevector(b, b, 0, 2, 4, 6), I32);
  const I32 odd = __builtin_convertvector(__builtin_shufflevector(a, a, 1, 3, 5, 7), I32) *
                  __builtin_convertvector(__builtin_shufflevector(b, b, 1, 3, 5, 7), I32);
  return even + odd;
}
// Sums wrap on purpose (see resize_normalize.simd.cpp), so they are formed without a sign.
static inline I32 add(I32 a, I32 b) { return (I32)((U32)a + (U32)b); }
template <int n>
static inline I32 shift_left(I32 v) {
  return (I32)((U32)v << n);
}
template <int n>
static inline I32 shift_right(I32 v) {
  return v >> n;
}
static inline U8 narrow(I32 a, I32 b, I32 c, I32 d) {
  const auto clamp = [](I32 v) {
    v = v < 0 ? I32{} : v;
    return v > 255 ? all_i32(255) : v;
  };
  const I16 low = __builtin_convertvector(
      __builtin_shufflevector(clamp(a), clamp(b), 0, 1, 2, 3, 4, 5, 6, 7), I16);
  const I16 high = __builtin_convertvector(
      __builtin_shufflevector(clamp(c), clamp(d), 0, 1, 2, 3, 4, 5, 6, 7), I16);
  return __builtin_convertvector(
      __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15), U8);
}

#endif

static inline std::int32_t read_i32(const void* p) {
  std::int32_t v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

}  // namespace vitlet::VITLET_ISA
