#pragma once
#include "mixer_task.cuh"

// The weights of q's and k's positions and channels. A block's number counts the innermost of its
// loops first; a "side" is an image's q (even) or k (odd).
namespace vitlet::cuda {

// One rectangle's sums of point * relu(depthwise convolution) over 32 channels.
struct GatePositions {
  static constexpr int threads = 128, step = 8;  // step: channels at once
  MixerArrays arrays;
  MixerTiles tiles;
  const float* taps[2];
  const float* point[2];

  struct Shared {
    float map[step][MixerTiles::most_edged];
  };
  struct Registers {
    float sum;
  };

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int tile = static_cast<int>(block % tiles.count());
    const int split = static_cast<int>(block / tiles.count() % arrays.splits);
    const std::size_t side = block / tiles.count() / arrays.splits;
    const int which = static_cast<int>(side % 2);
    const int top = tile / tiles.across * tiles.rows, left = tile % tiles.across * tiles.columns;
    const int stride = tiles.columns + 2, area = stride * (tiles.rows + 2);
    const int begin = split * split_channels;
    const int end =
        begin + split_channels < arrays.channels ? begin + split_channels : arrays.channels;
    run.warp_phase([&](int, Registers& r) { r.sum = 0; });
    VITLET_KEEP_ROLLED
    for (int first = begin; first < end; first += step) {
      run.phase([&](int thread, Registers&) {
        for (int i = thread; i < area; i += threads) {
          const int row = top + i / stride - 1, column = left + i % stride - 1;
          const bool inside = row >= 0 && row < tiles.height && column >= 0 && column < tiles.width;
          const float* from = arrays.map(side / 2, which, first) + row * tiles.width + column;
          VITLET_UNROLL
          for (int c = 0; c < step; ++c)
            shared.map[c][i] =
                inside && first + c < end ? from[static_cast<std::size_t>(c) * arrays.pixels] : 0;
        }
      });
      run.phase([&](int thread, Registers& r) {
        if (thread >= tiles.rows * tiles.columns) return;
        VITLET_UNROLL
        for (int c = 0; c < step; ++c) {
          if (first + c >= end) break;
          const float value =
              depthwise(shared.map[c], stride, thread / tiles.columns, thread % tiles.columns,
                        channel_taps(taps[which], first + c));
          r.sum += point[which][first + c] * (value < 0 ? 0 : value);
        }
      });
    }
    run.warp_phase([&](int thread, Registers& r) {
      const int row = top + thread / tiles.columns, column = left + thread % tiles.columns;
      if (thread >= tiles.rows * tiles.columns || row >= tiles.height || column >= tiles.width)
        return;
      arrays.parts[(side * arrays.splits + split) * arrays.pixels + row * tiles.width + column] =
          r.sum;
    });
  }
};

// The positions' weights: the sigmoid of the sums over all channels.
struct WeighPositions {
  static constexpr int threads = 256;
  MixerArrays arrays;
  std::size_t count;  // sides * pixels

  struct Shared {};
  struct Registers {};

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared&) const {
    run.warp_phase([&](int thread, Registers&) {
      const std::size_t i = block * threads + thread;
      if (i >= count) return;
      const std::size_t side = i / arrays.pixels, pixel = i % arrays.pixels;
      float sum = 0;
      for (int split = 0; split < arrays.splits; ++split)
        sum += arrays.parts[(side * arrays.splits + split) * arrays.pixels + pixel];
      arrays.positions[i] = sigmoid(sum);
    });
  }
};

// The mean of one channel, weighed by position.
struct MeanOfChannel {
  static constexpr int threads = 128;
  MixerArrays arrays;

  struct Shared {
    float sums[threads / warp];
  };
  struct Registers {
    float sum;
  };

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int channel = static_cast<int>(block % arrays.channels);
    const std::size_t side = block / arrays.channels;
    run.warp_phase([&](int thread, Registers& r) {
      const float* map = arrays.map(side / 2, static_cast<int>(side % 2), channel);
      const float* weights = arrays.positions + side * arrays.pixels;
      r.sum = 0;
      for (int i = thread; i < arrays.pixels; i += threads) r.sum += weights[i] * map[i];
    });
    run.warp_sum([](Registers& r) -> float& { return r.sum; });
    run.phase([&](int thread, Registers& r) {
      if (thread % warp == 0) shared.sums[thread / warp] = r.sum;
    });
    run.warp_phase([&](int thread, Registers&) {
      if (thread != 0) return;
      float sum = 0;
      for (float part : shared.sums) sum += part;
      arrays.means[side * arrays.padded + channel] = sum / static_cast<float>(arrays.pixels);
    });
  }
};

// The channels' weights, 16 for a block: the sigmoid of a matrix times the means.
struct GateChannels {
  static constexpr int threads = 256, slices = threads / mixer_lanes;
  MixerArrays arrays;
  const float* channel[2];  // [blocks][C in][16]

  struct Shared {
    float sums[slices][mixer_lanes];
  };
  struct Registers {};

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int blocks = arrays.padded / mixer_lanes, part = static_cast<int>(block % blocks);
    const std::size_t side = block / blocks;
    run.phase([&](int thread, Registers&) {
      const int lane = thread % mixer_lanes, slice = thread / mixer_lanes;
      const float* from =
          channel[side % 2] + static_cast<std::size_t>(part) * arrays.channels * mixer_lanes + lane;
      const float* means = arrays.means + side * arrays.padded;
      float sum = 0;
      for (int in = slice; in < arrays.channels; in += slices)
        sum += from[static_cast<std::size_t>(in) * mixer_lanes] * means[in];
      shared.sums[slice][lane] = sum;
    });
    run.warp_phase([&](int thread, Registers&) {
      if (thread >= mixer_lanes) return;
      float sum = 0;
      for (int slice = 0; slice < slices; ++slice) sum += shared.sums[slice][thread];
      arrays.gates[side * arrays.padded + part * mixer_lanes + thread] = sigmoid(sum);
    });
  }
};

}  // namespace vitlet::cuda
