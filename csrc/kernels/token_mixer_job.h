#pragma once
#include "additive_token_mixer.h"

namespace vitlet {

constexpr std::size_t mixer_chunk = 16;  // pixels that are rounded to 8 bits together

// One image on its way through the mixer: where everything lies.
struct MixerJob {
  PackedMixer weights;
  MixerPrecision precision;
  MixerLayout layout;
  std::size_t height, width;
  std::size_t workers;  // at least one
  const float* x;
  float* y;
  float* maps;  // q, k, v: [3 * blocks] planes of [height + 2][width + 2][16], edges zero
  std::size_t row, plane;  // their strides, in floats
  float* position[2];      // gates of q, k by position: [height][position_row]
  std::size_t position_row;
  float* row_sums[2];  // of gated q, k: [height][16 * blocks]
  float* channel[2];   // gates by channel: [16 * blocks]
  float* scratch;      // each worker's own
  std::size_t scratch_size;
  // int8, shift: where in it lie, in floats, the group's rounded pixels, their scales, and one
  // strip of weights with a tile's sums. In front of them, some pixels' inputs.
  std::size_t rounded, row_scale, strip;
  std::size_t group;  // rows projected at once
  bool small;         // all rows in one group: workers share out weights, not rows
};

}  // namespace vitlet
