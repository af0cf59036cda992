#pragma once
#include <cstddef>
#include <cstdint>

#include "activation.h"
#include "cpu.h"

namespace vitlet {

// out = activation(x weight^T + bias) + residual with integer weights and activations rounded to 8
// bits.
//
// x: (rows, inputs) float32. Each row is rounded by itself: with a = max |x|, row_scale = a / 127
// and q = x * (127 / a) rounded to nearest, ties to even. a < 2^-100 counts as 0. A row that holds
// an infinity or a NaN gives NaN everywhere.
// out: (rows, outputs) float32 = (sum_k q[k] * w[n, k]) * (row_scale * scale[n]) + bias[n], the
// activation and the residual after it; the sum exact and the float operations rounded one by one
// in that order: every instruction set gives the same bits. All arrays are contiguous; out overlaps
// nothing, or is the residual itself.
//
// The weights are stored by columns: 16 of them are one group, four groups one panel, and within a
// panel come four inputs of a column after four of the column before it.
//   shift  0 or +-2^(0..6), as 4-bit codes (sign, exponent + 1). A column is an output.
//   wide   0 or +-2^(0..14) as 256 high + low, two of the codes above, of which 8, unused
//          otherwise, means -128. A group is the high parts of eight outputs and their low parts.
//          The sum is float(high sum) * 256 + float(low sum).
//   dense  any of -128..127, as bytes. A column is an output.
enum class WeightFormat { shift, wide, dense };

inline constexpr std::size_t max_linear_inputs = std::size_t{1} << 17;  // sums stay in 32 bits

struct LinearWeight {
  WeightFormat format;
  std::size_t outputs, inputs;
  // Of column c and input k (padded_inputs of them, the padding 0): a byte at
  // panel c / 64 * panel_bytes + k / 4 * 256 + c % 64 * 4 + k % 4 (dense), or the low (group even)
  // or high half of the byte at
  // panel c / 64 * panel_bytes + k / 4 * 128 + c % 64 / 32 * 64 + c % 16 * 4 + k % 4 (the others).
  const std::uint8_t* panels;
  const std::int32_t* sums;  // (padded_columns,): the sum of each column's integers
  const float* scale;        // (outputs,)
};

std::size_t padded_inputs(std::size_t inputs);                         // to a multiple of 8
std::size_t padded_columns(WeightFormat format, std::size_t outputs);  // to a multiple of 64
std::size_t panel_bytes(WeightFormat format, std::size_t inputs);

// Rounds one column's weights, finite floats, as vitlet.ops.pack_shift_weight (shift) or
// pack_int8_weight (dense) does, and puts them into `panels`, which hold 0 there. Not for `wide`.
struct PackedColumn {
  std::int32_t sum;
  float scale;
};
PackedColumn pack_column(WeightFormat format, const float* weights, std::size_t inputs,
                         std::size_t column, std::uint8_t* panels);

// bias: (outputs,) or nullptr. activation: none or gelu. residual: (rows, outputs) or nullptr.
// workspace: shift_linear_workspace(...) bytes, 64-byte aligned.
// At most `threads` threads, fewer when there is little to do.
std::size_t shift_linear_workspace(std::size_t rows, const LinearWeight& weight, int threads);
void shift_linear(const float* x, std::size_t rows, const LinearWeight& weight, const float* bias,
                  Activation activation, const float* residual, float* out, void* workspace,
                  int threads, Isa isa = active_isa());

namespace reference {
// The definition. Tests hold every other version to it, bit by bit.
void shift_linear(const float* x, std::size_t rows, const LinearWeight& weight, const float* bias,
                  Activation activation, const float* residual, float* out);
}  // namespace reference

// Bytes of expanded strips that are kept together, and room for them or for one that is longer.
inline constexpr std::size_t linear_strip_bytes = std::size_t{1} << 14;
constexpr std::size_t linear_strip_space(std::size_t stride) {
  return stride * 64 > linear_strip_bytes ? stride * 64 : linear_strip_bytes;
}

// What the two stages of one call share. Rows are rounded first, then `parts` threads multiply.
struct LinearTask {
  const float* x;
  std::size_t rows, stride;  // stride: padded_inputs
  LinearWeight weight;
  const float* bias;
  Activation activation;
  const float* residual;
  float* out;
  std::uint8_t* q;      // (rows, stride): the rounded rows, or those + 128, as the kernel likes
  float* row_scale;     // (rows,)
  std::uint8_t* space;  // (parts, part_space)
  std::size_t parts, part_space;
};

}  // namespace vitlet
