#pragma once
#include "mixer_gates.cuh"
#include "mixer_project.cuh"

// additive_token_mixer for GPUs, in float32: the projection, the gates, and everything after them
// in one kernel. Six launches, because each needs all of what the one before it wrote.
namespace vitlet::cuda {

// y = proj(dwc(gated q + gated k) * v) for one rectangle of 8 channels. What the convolutions need
// from beyond the rectangle is computed again: two places of the context, one of the product.
struct MixContext {
  static constexpr int threads = 256, channels = 8, half = threads / 2;
  MixerArrays arrays;
  MixerTiles tiles;
  const float *dwc, *proj;
  float* y;
  int groups;  // of 8 channels
  MixerLayout layout;

  struct Shared {
    float context[channels][MixerTiles::most_edged_twice];
    float product[channels][MixerTiles::most_edged];
  };
  struct Registers {};

  VITLET_DEVICE bool inside(int row, int column) const {
    return row >= 0 && row < tiles.height && column >= 0 && column < tiles.width;
  }

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int tile = static_cast<int>(block % tiles.count());
    const int first = static_cast<int>(block / tiles.count() % groups) * channels;
    const std::size_t image = block / tiles.count() / groups, pixels = arrays.pixels;
    const int top = tile / tiles.across * tiles.rows, left = tile % tiles.across * tiles.columns;
    const int wide = tiles.columns + 4, middle = tiles.columns + 2;
    // A thread has every second channel of its places, so that it finds a place once for four.
    run.phase([&](int thread, Registers&) {
      const float* position = arrays.positions + image * 2 * pixels;
      const float* gates = arrays.gates + image * 2 * arrays.padded + first;
      for (int i = thread % half; i < wide * (tiles.rows + 4); i += half) {
        const int row = top + i / wide - 2, column = left + i % wide - 2;
        const bool valid = inside(row, column);
        const std::size_t at = valid ? static_cast<std::size_t>(row) * tiles.width + column : 0;
        const float of_q = position[at], of_k = position[pixels + at];
        VITLET_UNROLL
        for (int c = thread / half; c < channels; c += 2) {
          float sum = 0;
          if (valid) {
            sum = gates[c] * (of_q * arrays.map(image, 0, first + c)[at]);
            sum += gates[arrays.padded + c] * (of_k * arrays.map(image, 1, first + c)[at]);
          }
          shared.context[c][i] = sum;
        }
      }
    });
    run.phase([&](int thread, Registers&) {
      for (int i = thread % half; i < middle * (tiles.rows + 2); i += half) {
        const int down = i / middle, right = i % middle;
        const int row = top + down - 1, column = left + right - 1;
        const bool valid = inside(row, column);
        const std::size_t at = valid ? static_cast<std::size_t>(row) * tiles.width + column : 0;
        VITLET_UNROLL
        for (int c = thread / half; c < channels; c += 2)
          shared.product[c][i] = valid ? depthwise(shared.context[c], wide, down, right,
                                                   channel_taps(dwc, first + c)) *
                                             arrays.map(image, 2, first + c)[at]
                                       : 0.0f;
      }
    });
    run.warp_phase([&](int thread, Registers&) {
      const bool planes = layout == MixerLayout::nchw;
      const int places = tiles.rows * tiles.columns;
      for (int i = thread; i < channels * MixerTiles::most; i += threads) {
        // Along the memory's order.
        const int c = planes ? i / MixerTiles::most : i % channels;
        const int place = planes ? i % MixerTiles::most : i / channels;
        const int row = top + place / tiles.columns, column = left + place % tiles.columns;
        if (place >= places || first + c >= arrays.channels || !inside(row, column)) continue;
        const std::size_t pixel = static_cast<std::size_t>(row) * tiles.width + column;
        const std::size_t channel = first + c, count = arrays.channels;
        y[image * count * pixels + (planes ? channel * pixels + pixel : pixel * count + channel)] =
            depthwise(shared.product[c], middle, place / tiles.columns, place % tiles.columns,
                      channel_taps(proj, first + c));
      }
    });
  }
};

// Calls launch(kernel, blocks) for each kernel, in order.
template <typename Launch>
void plan_additive_token_mixer(const MixerCall& call, Launch&& launch) {
  const MixerShape& s = call.shape;
  if (s.batch * s.height * s.width == 0) return;
  const PackedMixer w = unpack_mixer(call.packed, s.channels, MixerPrecision::fp32);
  MixerArrays arrays{};
  lay_out(s, static_cast<float*>(call.workspace), arrays);
  const MixerTiles tiles = tiles_of(s.height, s.width);
  const std::size_t rectangles = static_cast<std::size_t>(tiles.down) * tiles.across;
  const std::size_t sides = s.batch * 2, pixels = s.height * s.width;

  constexpr int tile = ProjectMap::tile;
  const int pixel_tiles = static_cast<int>((pixels + tile - 1) / tile);
  const int output_tiles = (3 * arrays.padded + tile - 1) / tile;
  launch(ProjectMap{call.x, w.qkv, w.qkv_bias, arrays, pixel_tiles, output_tiles, s.layout,
                    rows_are_aligned(arrays.maps, pixels)},
         s.batch * output_tiles * pixel_tiles);
  launch(
      GatePositions{
          arrays, tiles, {w.gate_taps[0], w.gate_taps[1]}, {w.gate_point[0], w.gate_point[1]}},
      sides * arrays.splits * rectangles);
  launch(WeighPositions{arrays, sides * pixels},
         (sides * pixels + WeighPositions::threads - 1) / WeighPositions::threads);
  launch(MeanOfChannel{arrays}, sides * s.channels);
  launch(GateChannels{arrays, {w.gate_channel[0], w.gate_channel[1]}}, sides * w.blocks);
  const int groups = arrays.padded / MixContext::channels;
  launch(MixContext{arrays, tiles, w.dwc, w.proj, call.y, groups, s.layout},
         s.batch * groups * rectangles);
}

}  // namespace vitlet::cuda
