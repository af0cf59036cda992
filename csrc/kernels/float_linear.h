#pragma once
#include <cstddef>
#include <cstdint>

#include "activation.h"
#include "cpu.h"

namespace vitlet {

// out = activation(x weight^T + bias) + residual with float activations. A 1x1 convolution is the
// same over the pixels of a channels-last map.
//
//   fp32         float32 weights
//   bf16         weights and x rounded to bfloat16 (nearest, ties to even), sums in float32
//   shift, wide  the 4-bit codes of shift_linear.h, times scale[n] after the sum; x rounded to
//                bfloat16, in which a power of two is exact
//
// Where the processor has bfloat16 products, numbers below 2^-126 count as 0.
enum class FloatFormat { fp32, bf16, shift, wide };

struct FloatWeight {
  FloatFormat format;
  std::size_t outputs, inputs;
  // Panels of 16 outputs, the last padded with zeros.
  //   fp32  float [panel][inputs][16]
  //   bf16  pairs of bfloat16, the even input in the lower half: uint32 [panel][depth / 2][16]
  //   shift, wide  as in shift_linear.h
  const void* panels;  // any alignment; fastest at 64 bytes
  const float* scale;  // (outputs,) for shift and wide
};

inline constexpr std::size_t float_panel = 16;

std::size_t float_depth(FloatFormat format, std::size_t inputs);  // inputs, padded as stored
std::size_t float_panel_bytes(FloatFormat format, std::size_t outputs, std::size_t inputs);  // all

// Packs weight[n * output_stride + k * input_stride] as fp32 or bf16.
void pack_float_weight(const float* weight, std::size_t outputs, std::size_t inputs,
                       std::size_t output_stride, std::size_t input_stride, FloatFormat format,
                       void* panels);

// One call. Arrays are contiguous, of any alignment; out overlaps neither x nor bias.
struct FloatLinear {
  const float* x;  // (rows, inputs)
  std::size_t rows;
  FloatWeight weight;
  const float* bias;  // (outputs,) or nullptr
  Activation activation;
  const float* residual;  // (rows, outputs) or nullptr; may be out itself
  float* out;             // (rows, outputs)
};

// workspace: float_linear_workspace(...) bytes, 64-byte aligned. At most `threads` threads, fewer
// when there is little to do; their number changes no bit of the result.
std::size_t float_linear_workspace(std::size_t rows, const FloatWeight& weight, int threads);
void float_linear(const FloatLinear& call, void* workspace, int threads, Isa isa = active_isa());

namespace reference {
// The definition, with sums in double precision.
void float_linear(const FloatLinear& call);
}  // namespace reference

// A call on its way: rows are rounded first (not for fp32), then `parts` threads multiply.
struct FloatTask {
  FloatLinear call;
  std::size_t depth;         // float_depth
  std::size_t group, chunk;  // rows and inputs taken together
  float* rounded;            // (rows, depth) or, as pairs, (rows, depth / 2)
  std::uint8_t* space;       // (parts, part_space): expanded weights and sums
  std::size_t parts, part_space;
};

}  // namespace vitlet
