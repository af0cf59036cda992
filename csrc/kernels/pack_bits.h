#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"

namespace vitlet {

// 64-bit words that hold one row of `bits` bits: bit i of a row is bit i % 64 of its word i / 64.
constexpr std::size_t words_of(std::size_t bits) { return (bits + 63) / 64; }

// Writes which numbers are above a threshold: bit i of row r is x[r][i] > threshold. A NaN is above
// nothing. Bits past the last one of a row are 0.
//
// x: (rows, bits) float32. out: (rows, words_of(bits)), no overlap with x.
void pack_bits(const float* x, std::size_t rows, std::size_t bits, float threshold,
               std::uint64_t* out, Isa isa = active_isa());

namespace reference {
void pack_bits(const float* x, std::size_t rows, std::size_t bits, float threshold,
               std::uint64_t* out);
}  // namespace reference

}  // namespace vitlet
