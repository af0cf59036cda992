#pragma once
#include "mixer_task.cuh"

namespace vitlet::cuda {

// q, k, v = weights x + bias for 64 outputs and 64 pixels, 8 by 4 for a thread. While one step of
// 16 channels is multiplied, the next one is on its way into registers.
struct ProjectMap {
  static constexpr int threads = 128, tile = 64, depth = 16, loads = tile * depth / threads;
  static constexpr int resident = 4;         // else more registers than help
  static constexpr int x_stride = tile + 4;  // NHWC: pixels of one channel in different banks
  const float* x;
  const float *weights, *bias;  // [3 * blocks][channels][16], [3 * blocks][16]
  MixerArrays arrays;
  int pixel_tiles, output_tiles;
  MixerLayout layout;
  bool whole;

  struct alignas(16) Shared {
    float x[2][depth][x_stride];
    float weights[2][depth][tile];
  };
  struct Registers {
    Four sums[8];
    float next_x[loads], next_weights[loads];
  };

  VITLET_DEVICE int outputs() const { return 3 * arrays.padded; }

  // Where a thread's numbers of x lie in a tile. They follow the memory's order, so that from one
  // to the next it is two channels (NCHW) or eight pixels (NHWC).
  struct Place {
    int channel, pixel, channel_step, pixel_step;
  };
  VITLET_DEVICE Place place(int thread) const {
    if (layout == MixerLayout::nchw) return {thread / tile, thread % tile, threads / tile, 0};
    return {thread % depth, thread / depth, 0, threads / depth};
  }

  VITLET_DEVICE void fetch(int thread, std::size_t image, int first_pixel, int first_output,
                           int first_channel, Registers& r) const {
    const std::size_t channels = arrays.channels, pixels = arrays.pixels;
    const std::size_t channel_stride = layout == MixerLayout::nchw ? pixels : 1;
    const std::size_t pixel_stride = layout == MixerLayout::nchw ? 1 : channels;
    const Place at = place(thread);
    const int channel = first_channel + at.channel, pixel = first_pixel + at.pixel;
    const float* from =
        x + image * channels * pixels + channel * channel_stride + pixel * pixel_stride;
    const std::size_t step = at.channel_step * channel_stride + at.pixel_step * pixel_stride;
    VITLET_UNROLL
    for (int i = 0; i < loads; ++i) {
      const bool inside = channel + i * at.channel_step < arrays.channels &&
                          pixel + i * at.pixel_step < arrays.pixels;
      r.next_x[i] = inside ? from[i * step] : 0.0f;
    }
    const int output = first_output + thread % tile, input = first_channel + thread / tile;
    from = weights + (output / mixer_lanes * channels + input) * mixer_lanes + output % mixer_lanes;
    VITLET_UNROLL
    for (int i = 0; i < loads; ++i) {
      const int next = i * (threads / tile);
      const bool inside = output < outputs() && input + next < arrays.channels;
      r.next_weights[i] = inside ? from[next * mixer_lanes] : 0.0f;
    }
  }

  VITLET_DEVICE void put(int thread, int half, Shared& shared, const Registers& r) const {
    const Place at = place(thread);
    VITLET_UNROLL
    for (int i = 0; i < loads; ++i) {
      shared.x[half][at.channel + i * at.channel_step][at.pixel + i * at.pixel_step] = r.next_x[i];
      shared.weights[half][thread / tile + i * (threads / tile)][thread % tile] = r.next_weights[i];
    }
  }

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int first_pixel = static_cast<int>(block % pixel_tiles) * tile;
    const int first_output = static_cast<int>(block / pixel_tiles % output_tiles) * tile;
    const std::size_t image = block / pixel_tiles / output_tiles;
    run.phase([&](int thread, Registers& r) {
      VITLET_UNROLL
      for (int i = 0; i < 8; ++i) r.sums[i] = Four{};
      fetch(thread, image, first_pixel, first_output, 0, r);
      put(thread, 0, shared, r);
    });
    VITLET_KEEP_ROLLED
    for (int first = 0, half = 0; first < arrays.channels; first += depth, half = 1 - half) {
      run.phase([&](int thread, Registers& r) {
        fetch(thread, image, first_pixel, first_output, first + depth, r);
        const int pixel = thread % 16 * 4, output = thread / 16 * 8;
        VITLET_UNROLL
        for (int k = 0; k < depth; ++k) {
          const Four in = *reinterpret_cast<const Four*>(&shared.x[half][k][pixel]);
          VITLET_UNROLL
          for (int i = 0; i < 8; i += 4) {
            const Four w = *reinterpret_cast<const Four*>(&shared.weights[half][k][output + i]);
            VITLET_UNROLL
            for (int j = 0; j < 16; ++j) r.sums[i + j / 4].v[j % 4] += w.v[j / 4] * in.v[j % 4];
          }
        }
        put(thread, 1 - half, shared, r);
      });
    }
    run.warp_phase([&](int thread, Registers& r) {
      const int pixel = first_pixel + thread % 16 * 4, output = first_output + thread / 16 * 8;
      VITLET_UNROLL
      for (int i = 0; i < 8; ++i) {
        if (output + i >= outputs() || pixel >= arrays.pixels) continue;
        Four sum = r.sums[i];
        VITLET_UNROLL
        for (int j = 0; j < 4; ++j) sum.v[j] += bias[output + i];
        const std::size_t row = image * outputs() + output + i;
        store_four(arrays.maps + row * arrays.pixels + pixel, sum, arrays.pixels - pixel, whole);
      }
    });
  }
};

}  // namespace vitlet::cuda
