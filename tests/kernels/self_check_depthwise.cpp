// Holds depthwise_conv2d to its reference, without Python: see self_check.cpp.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <vector>

#include "depthwise_conv2d.h"
#include "self_check.h"

namespace {

using namespace vitlet;

std::vector<float> noise(std::size_t count, std::uint32_t state) {
  std::vector<float> values(count);
  for (float& value : values) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(state >> 8) / (1 << 23) - 1;
  }
  return values;
}

struct Release {
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{64}); }
};

struct Given {
  std::vector<float> x, packed, residual, expected;
};

Given make(const DepthwiseShape& s, bool with_residual) {
  const std::size_t taps = s.kernel_height * s.kernel_width;
  Given given{noise(s.batch * s.channels * s.height * s.width, 1), {}, {}, {}};
  given.packed.resize(packed_depthwise_size(s.outputs(), s.kernel_height, s.kernel_width));
  pack_depthwise(noise(s.outputs() * taps, 2).data(), noise(s.outputs(), 3).data(), s.outputs(),
                 s.kernel_height, s.kernel_width, given.packed.data());
  given.expected.resize(s.batch * s.outputs() * s.out_height() * s.out_width());
  if (with_residual) given.residual = noise(given.expected.size(), 4);
  reference::depthwise_conv2d(given.x.data(), s, given.packed.data(),
                              with_residual ? given.residual.data() : nullptr,
                              given.expected.data());
  return given;
}

bool agrees(const DepthwiseShape& s, const Given& given, int threads, Isa isa) {
  // Exactly as much as was asked for, so that a sanitizer sees a step beyond it.
  const std::unique_ptr<unsigned char, Release> space(static_cast<unsigned char*>(
      ::operator new(depthwise_conv2d_workspace(s, threads), std::align_val_t{64})));
  std::vector<float> y(given.expected.size());
  depthwise_conv2d(given.x.data(), s, given.packed.data(),
                   given.residual.empty() ? nullptr : given.residual.data(), y.data(), space.get(),
                   threads, isa);
  float difference = 0;
  for (std::size_t i = 0; i < y.size(); ++i)
    difference = std::max(difference, std::fabs(given.expected[i] - y[i]));
  return difference <= 2e-5f;
}

constexpr std::size_t kernels[][2] = {{1, 1}, {3, 3}, {5, 5}, {7, 7}, {4, 2}, {2, 9}};
constexpr std::size_t sizes[][2] = {{0, 5}, {1, 1}, {2, 3}, {7, 7}, {9, 33}, {40, 5}};

}  // namespace

std::size_t check_depthwise() {
  std::size_t checks = 0;
  for (const auto layout : {DepthwiseLayout::nhwc, DepthwiseLayout::nchw})
    for (const auto& [kernel_height, kernel_width] : kernels)
      for (const std::size_t stride : {1, 2, 3})
        for (const auto& [height, width] : sizes)
          for (const std::size_t channels : {1, 11, 16, 37})
            for (const std::size_t multiplier : {1, 2}) {
              const auto activation = static_cast<Activation>(checks % 4);
              const DepthwiseShape shape{2,
                                         channels,
                                         height,
                                         width,
                                         multiplier,
                                         kernel_height,
                                         kernel_width,
                                         stride,
                                         kernel_height / 2,
                                         kernel_width,  // more than half: columns of zeros only
                                         kernel_height,
                                         kernel_width / 2,
                                         layout,
                                         activation};
              const Given given = make(shape, checks % 2 == 0);
              const int threads = 1 + static_cast<int>(checks % 3);
              for (const Isa isa : all_isas) {
                if (!isa_supported(isa)) continue;
                ++checks;
                if (agrees(shape, given, threads, isa)) continue;
                std::printf("%s differs: depthwise %zux%zu of %zux%zux%zu, stride %zu, %s\n",
                            isa_name(isa).c_str(), kernel_height, kernel_width, channels, height,
                            width, stride, layout == DepthwiseLayout::nchw ? "nchw" : "nhwc");
                return 0;
              }
            }
  return checks;
}
