#include "depthwise_conv2d.h"

#include <cmath>
#include <cstring>

namespace vitlet {

std::size_t packed_depthwise_size(std::size_t outputs, std::size_t kernel_height,
                                  std::size_t kernel_width) {
  const std::size_t blocks = (outputs + depthwise_block - 1) / depthwise_block;
  return blocks * (kernel_height * kernel_width + 1) * depthwise_block;
}

void pack_depthwise(const float* weight, const float* bias, std::size_t outputs,
                    std::size_t kernel_height, std::size_t kernel_width, float* packed) {
  const std::size_t taps = kernel_height * kernel_width;
  std::memset(packed, 0,
              packed_depthwise_size(outputs, kernel_height, kernel_width) * sizeof(float));
  for (std::size_t o = 0; o < outputs; ++o) {
    float* block = packed + o / depthwise_block * (taps + 1) * depthwise_block;
    float* lane = block + o % depthwise_block;
    for (std::size_t tap = 0; tap < taps; ++tap)
      lane[tap * depthwise_block] = weight[o * taps + tap];
    lane[taps * depthwise_block] = bias == nullptr ? 0 : bias[o];
  }
}

namespace reference {
namespace {

double activate(Activation activation, double x) {
  if (activation == Activation::gelu) return x / 2 * (1 + std::erf(x * std::sqrt(0.5)));
  if (activation == Activation::relu) return x < 0 ? 0 : x;
  if (activation == Activation::silu) return x / (1 + std::exp(-x));
  return x;
}

}  // namespace

void depthwise_conv2d(const float* x, const DepthwiseShape& s, const float* packed,
                      const float* residual, float* y) {
  const std::size_t outputs = s.outputs(), taps = s.kernel_height * s.kernel_width;
  const std::size_t out_height = s.out_height(), out_width = s.out_width();
  const auto place = [&](std::size_t image, std::size_t c, std::size_t row, std::size_t column,
                         std::size_t channels, std::size_t height, std::size_t width) {
    return s.layout == DepthwiseLayout::nchw
               ? ((image * channels + c) * height + row) * width + column
               : ((image * height + row) * width + column) * channels + c;
  };
  for (std::size_t image = 0; image < s.batch; ++image)
    for (std::size_t o = 0; o < outputs; ++o)
      for (std::size_t i = 0; i < out_height; ++i)
        for (std::size_t j = 0; j < out_width; ++j) {
          const float* lane = packed + o / depthwise_block * (taps + 1) * depthwise_block;
          lane += o % depthwise_block;
          double sum = lane[taps * depthwise_block];
          for (std::size_t a = 0; a < s.kernel_height; ++a)
            for (std::size_t b = 0; b < s.kernel_width; ++b) {
              const std::size_t row = i * s.stride + a, column = j * s.stride + b;
              if (row < s.top || row - s.top >= s.height) continue;
              if (column < s.left || column - s.left >= s.width) continue;
              const std::size_t from = place(image, o / s.multiplier, row - s.top, column - s.left,
                                             s.channels, s.height, s.width);
              sum +=
                  static_cast<double>(lane[(a * s.kernel_width + b) * depthwise_block]) * x[from];
            }
          const std::size_t to = place(image, o, i, j, outputs, out_height, out_width);
          const double value = activate(s.activation, sum);
          y[to] = static_cast<float>(residual == nullptr ? value : value + residual[to]);
        }
}

}  // namespace reference
}  // namespace vitlet
