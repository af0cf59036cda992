#pragma once
#include <cstddef>

#include "cpu.h"
#include "token_mixer_weights.h"

namespace vitlet {

enum class MixerLayout { nchw, nhwc };

struct MixerShape {
  std::size_t batch, channels, height, width;  // any, also zero (channels: at least one)
  MixerPrecision precision;
  MixerLayout layout;
};

// CAS-ViT's token mixer (arXiv:2408.03703), from the q, k, v projection to the last convolution:
//
//   q, k, v = qkv(x)                                      1x1 convolution
//   gate(t) = s * sigmoid(channel @ mean(s)), s = t * sigmoid(point . relu(taps(t)))
//   y = proj(dwc(gate_q(q) + gate_k(k)) * v)              depthwise 3x3, zero padded
//
// x, y: (B, C, H, W) or (B, H, W, C) float32, contiguous, no overlap, any alignment. packed: from
// pack_mixer with the same channels and precision. workspace: additive_token_mixer_workspace bytes,
// 64-byte aligned. The result does not depend on `threads`.
//
// A NaN or Inf of x reaches every output of its image that it reaches in the formula, as NaN or
// Inf, and no other image.
void additive_token_mixer(const float* x, const MixerShape& shape, const float* packed, float* y,
                          void* workspace, int threads = 1, Isa isa = active_isa());

// In bytes.
std::size_t additive_token_mixer_workspace(const MixerShape& shape, int threads);

namespace reference {
// The definition, in the plainest loops, with sums in double precision.
void additive_token_mixer(const float* x, const MixerShape& shape, const float* packed, float* y,
                          void* workspace);
}  // namespace reference

}  // namespace vitlet
