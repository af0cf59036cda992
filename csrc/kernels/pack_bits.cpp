#include "pack_bits.h"

#include "dispatch.h"

namespace vitlet {

using PackKernel = void(const float*, std::size_t, std::size_t, float, std::uint64_t*);
VITLET_KERNEL_TABLE(pack_bits, PackKernel)

void pack_bits(const float* x, std::size_t rows, std::size_t bits, float threshold,
               std::uint64_t* out, Isa isa) {
  pack_bits_table[static_cast<int>(isa)](x, rows, bits, threshold, out);
}

}  // namespace vitlet
