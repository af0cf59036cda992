#pragma once
#include <cstddef>
#include <cstdint>

#include "shift_linear.h"

namespace vitlet {

// How the q, k, v projection multiplies; everything else is float32.
//   bf16   inputs and weights are rounded to bfloat16 (nearest, ties to even), their products
//          summed in float32.
//   int8   each pixel's inputs are rounded to 8 bits by themselves, and each output's weights; the
//          sums are exact. shift_linear.h has the rules.
//   shift  the same with weights rounded to signed powers of two, in 4 bits.
enum class MixerPrecision { fp32, bf16, int8, shift };

constexpr bool in_8_bits(MixerPrecision precision) {
  return precision == MixerPrecision::int8 || precision == MixerPrecision::shift;
}

// One of the two gates: a depthwise 3x3 convolution, ReLU, a weighted sum over channels and a
// sigmoid weigh the positions; a matrix over the channel means and a sigmoid weigh the channels.
struct MixerGate {
  const float* taps;     // (C, 3, 3)
  const float* bias;     // (C,)
  const float* point;    // (C,)
  const float* channel;  // (C out, C in)
};

// The mixer's weights as a model has them, batch norms folded in.
struct MixerParameters {
  std::size_t channels;
  const float* qkv;       // (3C, C)
  const float* qkv_bias;  // (3C,)
  MixerGate q, k;
  const float* dwc;        // (C, 3, 3)
  const float* dwc_bias;   // (C,)
  const float* proj;       // (C, 3, 3)
  const float* proj_bias;  // (C,)
};

// The order the kernels read them in, the same for every instruction set: blocks of 16 channels,
// the last one filled with zeros.
constexpr std::size_t mixer_block = 16;

struct PackedMixer {
  std::size_t channels, blocks;
  std::size_t depth;              // C; for bf16 rounded up to even
  const float* qkv;               // fp32: [3 * blocks][depth][16]
  const std::uint32_t* qkv_bf16;  // bf16: [3 * blocks][depth / 2][16], the even input channel low
  LinearWeight qkv_rounded;       // int8, shift: its columns are [3 * blocks][16]
  const float* qkv_bias;          // [3 * blocks][16]
  const float* gate_taps[2];      // q, k: [blocks][10][16], nine taps and the bias
  const float* gate_point[2];     // [blocks][16]
  const float* gate_channel[2];   // [blocks][C in][16]
  const float* dwc;               // [blocks][10][16]
  const float* proj;              // [blocks][10][16]
};

// In floats, not bytes. For int8 and shift, at most max_linear_inputs channels and finite qkv.
std::size_t packed_mixer_size(std::size_t channels, MixerPrecision precision);

// Where each part lies in `packed`, an array of packed_mixer_size floats.
PackedMixer unpack_mixer(const float* packed, std::size_t channels, MixerPrecision precision);

void pack_mixer(const MixerParameters& parameters, MixerPrecision precision, float* packed);

// The nearest bfloat16, ties to even, in the upper half; a NaN stays one.
std::uint32_t round_to_bf16(float value);

}  // namespace vitlet
