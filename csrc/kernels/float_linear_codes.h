#pragma once
// Codes of shift_linear.h to what tiles multiply, float32 or pairs of bfloat16, and such pairs to
// float32, for float_linear.simd.cpp. Everything has internal linkage: see simd.h.
#include "float_simd.h"

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

// Inputs k, k + 2 (even) and k + 1, k + 3 (odd) of 8 columns, as bfloat16 in the lower and upper
// halves, to rows of 16 columns: four of float32 or two of pairs.
template <bool to_floats>
inline void store_four(U32x8 even, U32x8 odd, std::uint32_t* out) {
  const U32x8 upper = {0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u,
                       0xffff0000u, 0xffff0000u, 0xffff0000u, 0xffff0000u};
  const auto put = [out](std::size_t row, const U32x8& values) {
    std::memcpy(out + 16 * row, &values, sizeof(values));
  };
  if constexpr (to_floats) {
    put(0, even << 16);
    put(1, odd << 16);
    put(2, even & upper);
    put(3, odd & upper);
  } else {
    put(0, (even & ~upper) | odd << 16);
    put(1, even >> 16 | (odd & upper));
  }
}

// bytes: four codes of each of 8 columns, above `shift` bits.
template <bool to_floats>
inline void expand_narrow(const std::uint8_t* bytes, int shift, std::uint32_t* out) {
  U32x8 even;
  std::memcpy(&even, bytes, sizeof(even));
  even >>= shift;
  U32x8 odd = even >> 8 & 0x000f000fu;
  even &= 0x000f000fu;
  narrow_to_bf16(even);
  narrow_to_bf16(odd);
  store_four<to_floats>(even, odd, out);
}

// The same of 256 high + low; the low parts' bytes follow the high ones'.
template <bool to_floats>
inline void expand_wide(const std::uint8_t* bytes, int shift, std::uint32_t* out) {
  U32x8 high, low, value[4];
  std::memcpy(&high, bytes, sizeof(high));
  std::memcpy(&low, bytes + sizeof(high), sizeof(low));
  _Pragma("GCC unroll 4") for (int k = 0; k < 4; ++k) {
    U32x8 upper = high >> (shift + 8 * k) & 15u, lower = low >> (shift + 8 * k) & 15u;
    wide_to_f32(upper);
    wide_to_f32(lower);
    const U32x8 bits = (U32x8)((F32x8)upper * 256.0f + (F32x8)lower);
    value[k] = bits + 0x7fffu + (bits >> 16 & 1u);
  }
  store_four<to_floats>(value[0] >> 16 | (value[2] & 0xffff0000u),
                        value[1] >> 16 | (value[3] & 0xffff0000u), out);
}

// Inputs begin..end - 1 (multiples of four) of the 16 outputs of a panel, to rows of 16.
// codes, inputs: of the whole weight, padded.
template <bool to_floats, bool wide>
void expand_panel(const std::uint8_t* codes, std::size_t inputs, std::size_t panel,
                  std::size_t begin, std::size_t end, std::uint32_t* out) {
  const std::size_t column = panel * (wide ? 32 : 16);
  const std::uint8_t* from = codes + column / 64 * inputs * 32 + column % 64 / 32 * 64;
  const int shift = column / 16 % 2 == 0 ? 0 : 4;
  for (std::size_t k = begin; k < end; k += 4, out += to_floats ? 64 : 32) {
    const std::uint8_t* bytes = from + 32 * k;
    if constexpr (wide) {
      expand_wide<to_floats>(bytes, 0, out);
      expand_wide<to_floats>(bytes, 4, out + 8);
    } else {
      expand_narrow<to_floats>(bytes, shift, out);
      expand_narrow<to_floats>(bytes + 32, shift, out + 8);
    }
  }
}

template <bool to_floats>
void expand_codes(const std::uint8_t* codes, std::size_t inputs, bool wide, std::size_t panel,
                  std::size_t begin, std::size_t end, std::uint32_t* out) {
  (wide ? expand_panel<to_floats, true> : expand_panel<to_floats, false>)(codes, inputs, panel,
                                                                          begin, end, out);
}

// Pairs of one panel to float32: [steps][16] to [2 steps][16].
inline void expand_pairs(const float* pairs, std::size_t steps, float* out) {
  for (std::size_t i = 0; i < steps * 16; i += 16)
    for (std::size_t v = 0; v < 16; v += lanes_f32) {
      const F32Bits bits = (F32Bits)load_f32(pairs + i + v);
      store_f32(out + 2 * i + v, (F32)(bits << 16));
      store_f32(out + 2 * i + 16 + v, (F32)(bits & 0xffff0000u));
    }
}

}  // namespace
}  // namespace vitlet::VITLET_ISA
