// additive_token_mixer in float32, against the reference with its sums in float64.
#include <cmath>
#include <cstdio>
#include <limits>

#include "additive_token_mixer.cuh"
#include "additive_token_mixer.h"
#include "check.h"
#include "host_runner.h"

namespace {

using namespace vitlet;

struct alignas(64) Aligned {
  float numbers[16];
};

std::vector<float> packed_weights(std::size_t channels) {
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
  std::vector<float> packed(packed_mixer_size(channels, MixerPrecision::fp32));
  pack_mixer(parameters, MixerPrecision::fp32, packed.data());
  return packed;
}

bool agrees(const MixerShape& shape, bool backwards, bool special) {
  const std::size_t size = shape.channels * shape.height * shape.width;
  auto x = noise(shape.batch * size, 6, 1.5f);
  if (special) x[size / 2] = std::numeric_limits<float>::quiet_NaN();  // of the first image
  const auto packed = packed_weights(shape.channels);
  std::vector<float> expected(x.size()), got(x.size());
  std::vector<float> space(3 * size + shape.channels + shape.height * shape.width);
  reference::additive_token_mixer(x.data(), shape, packed.data(), expected.data(), space.data());
  std::vector<Aligned> workspace(cuda::additive_token_mixer_workspace(shape) / sizeof(Aligned) + 1);
  cuda::plan_additive_token_mixer({x.data(), shape, packed.data(), got.data(), workspace.data()},
                                  cuda::HostLaunch{backwards});
  float largest = 0, difference = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) != std::isnan(got[i])) return false;
    if (std::isnan(expected[i])) continue;
    largest = std::fmax(largest, std::fabs(expected[i]));
    difference = std::fmax(difference, std::fabs(expected[i] - got[i]));
  }
  return difference <= 1e-5f * largest;
}

constexpr std::size_t sizes[][2] = {{0, 3},  {3, 0},  {1, 1},  {1, 7},   {2, 13},  {5, 4},  {7, 7},
                                    {14, 9}, {31, 7}, {9, 57}, {33, 33}, {1, 211}, {211, 1}};

}  // namespace

std::size_t check_mixer(bool few) {
  std::size_t checks = 0;
  const std::vector<std::size_t> all_channels =
      few ? std::vector<std::size_t>{17} : std::vector<std::size_t>{1, 15, 16, 17, 48, 67};
  for (const std::size_t channels : all_channels)
    for (const auto& [height, width] : sizes) {
      if (few && height * width > 200) continue;
      for (const MixerLayout layout : {MixerLayout::nchw, MixerLayout::nhwc}) {
        const std::size_t check = ++checks, batch = check % 3 == 0 ? 2 : 1;
        const MixerShape shape{batch, channels, height, width, MixerPrecision::fp32, layout};
        if (agrees(shape, check % 2 == 0, check % 5 == 0 && height * width > 0)) continue;
        std::printf("mixer differs: %zu x %zu channels of %zu x %zu, %s\n", batch, channels, height,
                    width, layout == MixerLayout::nchw ? "nchw" : "nhwc");
        return 0;
      }
    }
  return checks;
}
