#pragma once
#include <cstddef>

#include "activation.h"
#include "cpu.h"

namespace vitlet {

enum class DepthwiseLayout { nhwc, nchw };

struct DepthwiseShape {
  std::size_t batch, channels, height, width;  // of x; any, also zero
  std::size_t multiplier;                      // at least one
  std::size_t kernel_height, kernel_width;     // at least one
  std::size_t stride;                          // at least one, the same both ways
  std::size_t top, left, bottom, right;        // rows and columns of zeros around x
  DepthwiseLayout layout;
  Activation activation;

  std::size_t outputs() const { return channels * multiplier; }
  // Zero where the kernel does not fit.
  std::size_t out_height() const { return places(height + top + bottom, kernel_height); }
  std::size_t out_width() const { return places(width + left + right, kernel_width); }

 private:
  std::size_t places(std::size_t length, std::size_t kernel) const {
    return length < kernel ? 0 : (length - kernel) / stride + 1;
  }
};

// Depthwise convolution: output channel o reads input channel o / multiplier,
//
//   y[o, i, j] = activation(bias[o] + sum_ab w[o, a, b] * x[o / multiplier, i * stride - top + a,
//                                                           j * stride - left + b]) + residual
//
// with zeros outside x. float32, contiguous, any alignment. x: (B, H, W, C) or (B, C, H, W); y and
// residual (or nullptr) likewise with outputs() channels. y overlaps nothing. packed: from
// pack_depthwise, finite. workspace: depthwise_conv2d_workspace bytes, 64-byte aligned. The result
// does not depend on `threads`.
//
// A NaN or Inf of x reaches the outputs whose windows hold it, and no others.
void depthwise_conv2d(const float* x, const DepthwiseShape& shape, const float* packed,
                      const float* residual, float* y, void* workspace, int threads = 1,
                      Isa isa = active_isa());

// In bytes.
std::size_t depthwise_conv2d_workspace(const DepthwiseShape& shape, int threads);

// The weights in the kernels' order, the same for every instruction set: for each block of 16
// output channels, kernel_height * kernel_width taps and the bias, 16 floats each, filled up with
// zeros. In floats, not bytes.
constexpr std::size_t depthwise_block = 16;
std::size_t packed_depthwise_size(std::size_t outputs, std::size_t kernel_height,
                                  std::size_t kernel_width);

// weight: (outputs, kernel_height, kernel_width). bias: (outputs,) or nullptr.
void pack_depthwise(const float* weight, const float* bias, std::size_t outputs,
                    std::size_t kernel_height, std::size_t kernel_width, float* packed);

namespace reference {
// The definition, in the plainest loops, with sums in double precision.
void depthwise_conv2d(const float* x, const DepthwiseShape& shape, const float* packed,
                      const float* residual, float* y);
}  // namespace reference

// What the threads of one call share. Work comes in units: some rows of one block of 16 channels.
struct DepthwiseJob {
  DepthwiseShape shape;
  std::size_t out_height, out_width;
  const float* x;
  const float* packed;
  const float* residual;
  float* y;
  std::size_t blocks, bands, workers;  // units: batch * bands * blocks
  std::size_t group;                   // rows turned to pixels at once (nchw)
  // Each worker's own, in floats: rows to convolve, what turning them takes, results, row pointers.
  float* scratch;
  std::size_t ring_row, ring, turned, results, pointers;

  std::size_t scratch_size() const { return ring + turned + results + pointers; }
};

}  // namespace vitlet
