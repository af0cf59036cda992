#include "pack_bits.h"

namespace vitlet::reference {

void pack_bits(const float* x, std::size_t rows, std::size_t bits, float threshold,
               std::uint64_t* out) {
  const std::size_t words = words_of(bits);
  for (std::size_t i = 0; i < rows * words; ++i) out[i] = 0;
  for (std::size_t row = 0; row < rows; ++row)
    for (std::size_t i = 0; i < bits; ++i)
      if (x[row * bits + i] > threshold) out[row * words + i / 64] |= std::uint64_t{1} << i % 64;
}

}  // namespace vitlet::reference
