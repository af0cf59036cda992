#pragma once
#include "phases.cuh"
#include "shift_linear.h"

// The parts of shift_linear around the products: rounding rows, decoding weights, the float end.
namespace vitlet::cuda {

// A block rounds one row; see vitlet::shift_linear.
struct RoundRows {
  static constexpr int threads = 128;
  const float* x;
  std::uint32_t* q;
  float* row_scale;
  int inputs, words;
  bool whole;

  struct Shared {
    float most[threads / warp];
  };
  struct Registers {
    float most;
  };

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const float* from = x + block * inputs;
    run.warp_phase([&](int thread, Registers& r) {
      r.most = 0;
      for (int k = 4 * thread; k < inputs; k += 4 * threads) {
        const Four four = load_four(from + k, inputs - k, whole);
        VITLET_UNROLL
        for (int i = 0; i < 4; ++i) {
          const float size = fabsf(four.v[i]);
          if (!(size <= 3.402823466e38f)) r.most = INFINITY;
          if (size > r.most) r.most = size;
        }
      }
    });
    run.warp_max([](Registers& r) -> float& { return r.most; });
    run.phase([&](int thread, Registers& r) {
      if (thread % warp == 0) shared.most[thread / warp] = r.most;
    });
    run.phase([&](int thread, Registers&) {
      float most = shared.most[0];
      VITLET_UNROLL
      for (int i = 1; i < threads / warp; ++i) most = fmaxf(most, shared.most[i]);
      const bool zero = !(most >= 0x1p-100f && most < INFINITY);
      const float inverse = zero ? 0.0f : 127.0f / most;
      if (thread == 0) row_scale[block] = !zero ? most / 127.0f : most < INFINITY ? 0.0f : NAN;
      for (int w = thread; w < words; w += threads) {
        std::uint32_t bytes = 0;
        if (!zero && 4 * w < inputs) {
          const Four four = load_four(from + 4 * w, inputs - 4 * w, whole);
          VITLET_UNROLL
          for (int i = 0; i < 4; ++i)
            bytes |= (static_cast<std::uint32_t>(round_to_int(four.v[i] * inverse)) & 255) << 8 * i;
        }
        q[block * words + w] = bytes;
      }
    });
  }
};

// What both multiplying kernels need.
struct LinearProduct {
  const std::uint32_t* q;
  const float* row_scale;
  const std::uint32_t* panels;
  const float *scale, *bias;
  float* out;
  int rows, outputs;
  int words;   // of a row of q
  int quads;   // padded inputs / 4: rows of words in a panel
  int strips;  // panels
  WeightFormat format;
  Activation activation;

  // Words of weights for one quad of inputs: a word holds four bytes, or four codes twice.
  VITLET_DEVICE int quad_words() const { return format == WeightFormat::dense ? 64 : 32; }

  VITLET_DEVICE const std::uint32_t* panel(int strip) const {
    return panels + static_cast<std::size_t>(strip) * quads * quad_words();
  }

  // Codes in the low halves of four bytes, as integers: 0, 1, 2, .. 64 and their negatives.
  VITLET_DEVICE std::uint32_t decode(std::uint32_t codes) const {
    const std::uint32_t pairs = (codes & 0x07070707u) | (codes & 0x07070707u) >> 4;
    const std::uint32_t selector = (pairs & 255) | (pairs >> 8 & 0xff00);
    const std::uint32_t minus = (codes >> 3 & 0x01010101u) * 255;
    // -0 is 0, or -128 in the wide format.
    const std::uint32_t least = format == WeightFormat::wide ? 0xfcfeff80u : 0xfcfeff00u;
    const std::uint32_t positive = choose_bytes(0x04020100u, 0x40201008u, selector);
    const std::uint32_t negative = choose_bytes(least, 0xc0e0f0f8u, selector);
    return (positive & ~minus) | (negative & minus);
  }

  // The result for exact sums; each operation is rounded by itself (this is compiled without
  // contraction to fused multiply-add).
  VITLET_DEVICE float finish(float total, int row, int output) const {
    const float y =
        total * (row_scale[row] * scale[output]) + (bias == nullptr ? 0.0f : bias[output]);
    return activation == Activation::gelu ? gelu(y) : y;
  }

  VITLET_DEVICE void store(std::int32_t sum, std::int32_t low, int row, int output) const {
    if (row >= rows || output >= outputs) return;
    float total = static_cast<float>(sum);
    if (format == WeightFormat::wide) total = total * 256.0f + static_cast<float>(low);
    out[static_cast<std::size_t>(row) * outputs + output] = finish(total, row, output);
  }
};

}  // namespace vitlet::cuda
