#pragma once
// Squares of 64 x 64 bits, turned: for *.simd.cpp of the attention kernels, and as
// attention_vectors.h with nothing of external linkage.
#include "attention_vectors.h"

namespace vitlet::VITLET_ISA {
namespace {

// turn(): bit i of row j to bit j of row i of a square of 64 bits; rows from `count` on are not
// needed. A step of swap_blocks turns squares of 2j bits whose quarters are turned already.
#if defined(__AVX512BW__)

using W = std::uint64_t __attribute__((vector_size(64)));  // eight rows

template <int j>
VITLET_INLINE void swap_blocks(W* rows, std::uint64_t low) {
  VITLET_UNROLL
  for (int b = 0; b < 8; b += j / 4) VITLET_UNROLL
  for (int i = b; i < b + j / 8; ++i) {
    const W changed = ((rows[i] >> j) ^ rows[i + j / 8]) & low;
    rows[i] ^= changed << j;
    rows[i + j / 8] ^= changed;
  }
}

// Squares of 8 bits first find their place; then a bit is taken from 64 bytes at once.
VITLET_INLINE void turn(std::uint64_t* words, std::size_t count) {
  W rows[8];
  VITLET_UNROLL
  for (int i = 0; i < 8; ++i) rows[i] = read<W>(words + 8 * i);
  swap_blocks<32>(rows, 0x00000000ffffffff);
  swap_blocks<16>(rows, 0x0000ffff0000ffff);
  swap_blocks<8>(rows, 0x00ff00ff00ff00ff);
  // Byte b of word j to byte j of word b: pairs of words, then pairs of bytes.
  const __m512i pairs = _mm512_maskz_broadcast_i32x4(
      0xffff, _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  using Half = std::uint16_t __attribute__((vector_size(64)));
  const Half order = {0, 8,  16, 24, 1, 9,  17, 25, 2, 10, 18, 26, 3, 11, 19, 27,
                      4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31};
  for (std::size_t i = 0; i < 8 && 8 * i < count; ++i) {
    __m512i bytes = _mm512_maskz_permutexvar_epi16(0xffffffff, (__m512i)order,
                                                   _mm512_shuffle_epi8((__m512i)rows[i], pairs));
    VITLET_UNROLL
    for (std::size_t bit = 8; bit-- > 0; bytes = _mm512_add_epi8(bytes, bytes))
      words[8 * i + bit] = _mm512_movepi8_mask(bytes);
  }
}

#elif defined(__AVX2__)

// Byte b of words j, j + 1, ..., j + 31 to vector b.
VITLET_INLINE void gather_bytes(const std::uint64_t* words, __m256i* bytes) {
  const __m256i pairs = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  __m256i a[8], b[8];
  VITLET_UNROLL
  for (int i = 0; i < 8; ++i) {  // words 2 i and 2 i + 1, and those 16 further, byte by byte
    const __m128i low = read<__m128i>(words + 2 * i), high = read<__m128i>(words + 16 + 2 * i);
    a[i] = _mm256_shuffle_epi8(_mm256_set_m128i(high, low), pairs);
  }
  VITLET_UNROLL
  for (int i = 0; i < 4; ++i) {
    b[i] = _mm256_unpacklo_epi16(a[2 * i], a[2 * i + 1]);
    b[i + 4] = _mm256_unpackhi_epi16(a[2 * i], a[2 * i + 1]);
  }
  VITLET_UNROLL
  for (int i = 0; i < 8; i += 4) VITLET_UNROLL
  for (int k = 0; k < 2; ++k) {
    a[i + k] = _mm256_unpacklo_epi32(b[i + 2 * k], b[i + 2 * k + 1]);
    a[i + k + 2] = _mm256_unpackhi_epi32(b[i + 2 * k], b[i + 2 * k + 1]);
  }
  VITLET_UNROLL
  for (int i = 0; i < 8; i += 2) {
    bytes[i] = _mm256_unpacklo_epi64(a[i], a[i + 1]);
    bytes[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 1]);
  }
}

// Then a bit is taken from 32 bytes at once.
VITLET_INLINE void turn(std::uint64_t* words, std::size_t count) {
  __m256i first[8], second[8];
  gather_bytes(words, first);
  gather_bytes(words + 32, second);
  for (std::size_t i = 0; i < 8 && 8 * i < count; ++i) {
    __m256i low = first[i], high = second[i];
    VITLET_UNROLL
    for (std::size_t bit = 8; bit-- > 0;) {
      words[8 * i + bit] = std::uint64_t{static_cast<std::uint32_t>(_mm256_movemask_epi8(high))}
                               << 32 |
                           static_cast<std::uint32_t>(_mm256_movemask_epi8(low));
      low = _mm256_add_epi8(low, low);
      high = _mm256_add_epi8(high, high);
    }
  }
}

#else

template <int j>
VITLET_INLINE void swap_blocks(std::uint64_t* rows, std::uint64_t low) {
  for (std::size_t b = 0; b < 64; b += 2 * j)
    for (std::size_t i = b; i < b + j; ++i) {
      const std::uint64_t changed = ((rows[i] >> j) ^ rows[i + j]) & low;
      rows[i] ^= changed << j;
      rows[i + j] ^= changed;
    }
}

void turn(std::uint64_t* rows, std::size_t) {
  swap_blocks<32>(rows, 0x00000000ffffffff);
  swap_blocks<16>(rows, 0x0000ffff0000ffff);
  swap_blocks<8>(rows, 0x00ff00ff00ff00ff);
  swap_blocks<4>(rows, 0x0f0f0f0f0f0f0f0f);
  swap_blocks<2>(rows, 0x3333333333333333);
  swap_blocks<1>(rows, 0x5555555555555555);
}

#endif

}  // namespace
}  // namespace vitlet::VITLET_ISA
