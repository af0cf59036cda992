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
