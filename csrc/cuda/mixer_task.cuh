#pragma once
#include "additive_token_mixer.h"
#include "phases.cuh"

// What the kernels of the mixer share: sizes, maps and tiles of them.
namespace vitlet::cuda {

struct MixerCall {
  const float* x;
  MixerShape shape;     // precision fp32
  const float* packed;  // on the device, as pack_mixer writes it
  float* y;
  void* workspace;  // additive_token_mixer_workspace bytes, 16-byte aligned
};

constexpr int mixer_lanes = static_cast<int>(mixer_block);
constexpr int split_channels = 32;  // whose part of a position's gate one block sums

// A map is cut into rectangles of at most 128 places, whatever its width.
struct MixerTiles {
  static constexpr int most = 128, longest = 32;
  // Places of a rectangle with one and two more on each side: at most those of 4 x 32.
  static constexpr int most_edged = 6 * 34, most_edged_twice = 8 * 36;
  int height, width;  // of the map
  int rows, columns;  // of a rectangle
  int down, across;   // rectangles

  VITLET_DEVICE int count() const { return down * across; }
};

inline MixerTiles tiles_of(std::size_t height, std::size_t width) {
  const auto smaller = [](int a, int b) { return a < b ? a : b; };
  MixerTiles t{};
  t.height = static_cast<int>(height);
  t.width = static_cast<int>(width);
  t.columns = smaller(t.width, MixerTiles::longest);
  t.rows = smaller(smaller(t.height, MixerTiles::longest), MixerTiles::most / t.columns);
  t.down = (t.height + t.rows - 1) / t.rows;
  t.across = (t.width + t.columns - 1) / t.columns;
  return t;
}

// Arrays in the workspace. Channels are padded to blocks of 16 lanes.
struct MixerArrays {
  int channels, padded, pixels, splits;
  float* maps;       // (images, q k v, padded, pixels)
  float* parts;      // (images, q k, splits, pixels): sums for the position gates
  float* positions;  // (images, q k, pixels)
  float* means;      // (images, q k, padded)
  float* gates;      // (images, q k, padded)

  VITLET_DEVICE const float* map(std::size_t image, int part, int channel) const {
    return maps + ((image * 3 + part) * padded + channel) * pixels;
  }
};

// Lays the arrays out from `space` on; returns how many floats they take, each a multiple of four.
inline std::size_t lay_out(const MixerShape& s, float* space, MixerArrays& a) {
  std::size_t used = 0;
  const auto take = [&](std::size_t count) {
    float* part = space == nullptr ? nullptr : space + used;
    used += (count + 3) / 4 * 4;
    return part;
  };
  const std::size_t blocks = (s.channels + mixer_block - 1) / mixer_block;
  const std::size_t padded = blocks * mixer_block, pixels = s.height * s.width;
  a.channels = static_cast<int>(s.channels);
  a.padded = static_cast<int>(padded);
  a.pixels = static_cast<int>(pixels);
  a.splits = static_cast<int>((s.channels + split_channels - 1) / split_channels);
  a.maps = take(s.batch * 3 * padded * pixels);
  a.parts = take(s.batch * 2 * a.splits * pixels);
  a.positions = take(s.batch * 2 * pixels);
  a.means = take(s.batch * 2 * padded);
  a.gates = take(s.batch * 2 * padded);
  return used;
}

inline std::size_t additive_token_mixer_workspace(const MixerShape& shape) {
  MixerArrays arrays{};
  return lay_out(shape, nullptr, arrays) * sizeof(float);
}

// The nine places around (row, column) of a rectangle that is `stride` wide, times nine taps, plus
// the bias. `taps` of one channel, as packed.
VITLET_DEVICE float depthwise(const float* map, int stride, int row, int column,
                              const float* taps) {
  float sum = taps[9 * mixer_lanes];
  VITLET_UNROLL
  for (int i = 0; i < 9; ++i)
    sum += taps[i * mixer_lanes] * map[(row + i / 3) * stride + column + i % 3];
  return sum;
}

VITLET_DEVICE const float* channel_taps(const float* packed, int channel) {
  return packed + channel / mixer_lanes * 10 * mixer_lanes + channel % mixer_lanes;
}

}  // namespace vitlet::cuda
