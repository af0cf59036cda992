// Holds the CAS-ViT mixer to its reference, without Python: see self_check.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <vector>

#include "additive_token_mixer.h"
#include "self_check.h"

namespace {

using namespace vitlet;

std::vector<float> noise(std::size_t count, std::uint32_t state, float scale) {
  std::vector<float> values(count);
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = scale * (static_cast<float>(state >> 8) / (1 << 23) - 1);
  }
  return values;
}

struct Release {
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{64}); }
};

std::vector<float> packed_weights(std::size_t channels, MixerPrecision precision) {
  const float in = 2 / std::sqrt(static_cast<float>(channels));
  const auto qkv = noise(3 * channels * channels, 1, in), bias = noise(3 * channels, 2, 0.3f);
  const auto taps = noise(4 * channels * 9, 3, 0.6f), point = noise(2 * channels, 4, in);
  const auto matrix = noise(2 * channels * channels, 5, in);
  const auto gate = [&](std::size_t i) {
    return MixerGate{&taps[i * channels * 9], &bias[i * channels], &point[i * channels],
                     &matrix[i * channels * channels]};
  };
  const MixerParameters parameters{channels,       qkv.data(),
                                   bias.data(),    gate(0),
                                   gate(1),        &taps[2 * channels * 9],
                                   bias.data(),    &taps[3 * channels * 9],
                                   &bias[channels]};
  std::vector<float> packed(packed_mixer_size(channels, precision));
  pack_mixer(parameters, precision, packed.data());
  return packed;
}

using Space = std::unique_ptr<unsigned char, Release>;

// Exactly as much as was asked for, so that a sanitizer sees a step beyond it.
Space workspace(const MixerShape& shape, int threads) {
  const std::size_t bytes = additive_token_mixer_workspace(shape, threads);
  return Space(static_cast<unsigned char*>(::operator new(bytes, std::align_val_t{64})));
}

std::vector<float> by_reference(const MixerShape& shape, const std::vector<float>& packed,
                                const std::vector<float>& x) {
  std::vector<float> y(x.size());
  const Space space = workspace(shape, 1);
  reference::additive_token_mixer(x.data(), shape, packed.data(), y.data(), space.get());
  return y;
}

bool agrees(const MixerShape& shape, const std::vector<float>& packed, const std::vector<float>& x,
            const std::vector<float>& expected, int threads, Isa isa) {
  std::vector<float> y(x.size());
  const Space space = workspace(shape, threads);
  additive_token_mixer(x.data(), shape, packed.data(), y.data(), space.get(), threads, isa);
  float largest = 0, difference = 0;
  for (std::size_t i = 0; i < y.size(); ++i) {
    largest = std::max(largest, std::fabs(expected[i]));
    difference = std::max(difference, std::fabs(expected[i] - y[i]));
  }
  return difference <= 2e-5f * largest;
}

constexpr std::size_t sizes[][2] = {{0, 3}, {3, 0},  {1, 1},  {1, 7},  {2, 13},  {5, 4},
                                    {7, 7}, {14, 9}, {31, 7}, {9, 57}, {1, 211}, {211, 1}};

}  // namespace

std::size_t check_mixer() {
  const struct {
    MixerPrecision value;
    const char* name;
  } precisions[] = {{MixerPrecision::fp32, "fp32"},
                    {MixerPrecision::bf16, "bf16"},
                    {MixerPrecision::int8, "int8"},
                    {MixerPrecision::shift, "shift"}};
  std::size_t checks = 0;
  for (const auto& [precision, name] : precisions)
    for (const std::size_t channels : {1, 3, 15, 16, 17, 48}) {
      const auto packed = packed_weights(channels, precision);
      for (const MixerLayout layout : {MixerLayout::nchw, MixerLayout::nhwc})
        for (const auto& [height, width] : sizes)
          for (const std::size_t batch : {0, 1, 2})
            for (const int threads : {1, 2, 3}) {
              if (in_8_bits(precision) && (height + width + batch) % 3 != 0)
                continue;  // a third do
              const MixerShape shape{batch, channels, height, width, precision, layout};
              const auto x = noise(batch * channels * height * width, 6, 1.5f);
              const auto expected = by_reference(shape, packed, x);
              for (const Isa isa : all_isas) {
                if (!isa_supported(isa)) continue;
                ++checks;
                if (agrees(shape, packed, x, expected, threads, isa)) continue;
                std::printf("%s differs: mixer %zux%zux%zux%zu, %s, %s, %d threads\n",
                            isa_name(isa).c_str(), batch, channels, height, width, name,
                            layout == MixerLayout::nchw ? "nchw" : "nhwc", threads);
                return 0;
              }
            }
    }
  return checks;
}
