#pragma once
// Codes of shift_linear.h to pairs of bfloat16, for float_linear.simd.cpp; static, see simd.h.
#include <cstddef>
#include <cstdint>
#include <cstring>

namespace vitlet::VITLET_ISA {
namespace {

using U16x16 = std::uint16_t __attribute__((vector_size(32)));
using U32x8 = std::uint32_t __attribute__((vector_size(32)));
using F32x8 = float __attribute__((vector_size(32)));

// A code in the low bits of each half: 0 or +-2^(size - 1).
inline void narrow_to_bf16(U32x8& halves) {
  const U16x16 code = (U16x16)halves, size = code & 7;
  const U16x16 bits = (size + 126) << 7 | (code & 8) << 12;
  halves = (U32x8)(bits & (U16x16)(size != 0));
}

inline void wide_to_f32(U32x8& codes) {
  const U32x8 size = codes & 7, sign = (codes & 8) << 28;
  const U32x8 least = (U32x8)(codes == 8) & 0xc3000000u;  // -128
  codes = (((size + 126) << 23 | sign) & (U32x8)(size != 0)) | least;
}

// bytes: four codes of each of 8 columns, above `shift` bits. out: [2][16], the first 8.
inline void narrow_pairs(const std::uint8_t* bytes, int shift, std::uint32_t* out) {
  U32x8 even;
  std::memcpy(&even, bytes, sizeof(even));
  even >>= shift;
  U32x8 odd = even >> 8 & 0x000f000fu;
  even &= 0x000f000fu;
  narrow_to_bf16(even);
  narrow_to_bf16(odd);
  const U32x8 first = (even & 0xffffu) | odd << 16, second = even >> 16 | (odd & 0xffff0000u);
  std::memcpy(out, &first, sizeof(first));
  std::memcpy(out + 16, &second, sizeof(second));
}

// The same of 256 high + low; the low parts' bytes follow the high ones'.
inline void wide_pairs(const std::uint8_t* bytes, int shift, std::uint32_t* out) {
  U32x8 high, low, value[4];
  std::memcpy(&high, bytes, sizeof(high));
  std::memcpy(&low, bytes + sizeof(high), sizeof(low));
  for (int k = 0; k < 4; ++k) {
    U32x8 upper = high >> (shift + 8 * k) & 15u, lower = low >> (shift + 8 * k) & 15u;
    wide_to_f32(upper);
    wide_to_f32(lower);
    const U32x8 bits = (U32x8)((F32x8)upper * 256.0f + (F32x8)lower);
    value[k] = bits + 0x7fffu + (bits >> 16 & 1u);
  }
  for (int k = 0; k < 4; k += 2) {
    const U32x8 pair = value[k] >> 16 | (value[k + 1] & 0xffff0000u);
    std::memcpy(out + 8 * k, &pair, sizeof(pair));
  }
}

// Inputs begin..end - 1 (multiples of four) of the outputs 16 panel... to [(end - begin) / 2][16].
// panels, inputs: of all codes.
void expand_codes(const std::uint8_t* panels, std::size_t inputs, bool wide, std::size_t panel,
                  std::size_t begin, std::size_t end, std::uint32_t* out) {
  const std::size_t column = panel * (wide ? 32 : 16);
  const std::uint8_t* from = panels + column / 64 * inputs * 32 + column % 64 / 32 * 64;
  const int shift = column / 16 % 2 == 0 ? 0 : 4;
  for (std::size_t k = begin; k < end; k += 4, out += 32) {
    const std::uint8_t* bytes = from + 32 * k;
    for (int half = 0; half < 2; ++half)
      if (wide)
        wide_pairs(bytes, 4 * half, out + 8 * half);
      else
        narrow_pairs(bytes + 32 * half, shift, out + 8 * half);
  }
}

}  // namespace
}  // namespace vitlet::VITLET_ISA
