#include "depthwise_conv2d.h"

#include <algorithm>

#include "epilogue.h"
#include "operators.h"
#include "scratch.h"

namespace vitlet::ort {
namespace {

constexpr const char* name = "DepthwiseConv2d";

struct Packed {
  Shape shape;  // of the weight: (outputs, 1, kernel height, kernel width)
  Buffer values;
  const float* data() const { return static_cast<const float*>(values.get()); }
};

Packed pack(const Tensor& weight, const Tensor& bias) {
  const Shape& shape = weight.shape;
  if (shape.size() != 4 || shape[1] != 1 || shape[2] < 1 || shape[3] < 1)
    refuse(name, "a weight of shape (N, 1, kh, kw)", show(shape));
  const std::size_t outputs = count(shape, 0, 1);
  const std::size_t height = count(shape, 2, 3), width = count(shape, 3, 4);
  const float* shift = bias_of(name, bias, outputs);
  Buffer values = allocate(packed_depthwise_size(outputs, height, width) * sizeof(float));
  pack_depthwise(weight.floats(), shift, outputs, height, width, static_cast<float*>(values.get()));
  return {shape, std::move(values)};
}

// x (B, H, W, C), weight (N, 1, kh, kw), bias?, residual?
class DepthwiseConv2d final : public Kernel {
 public:
  DepthwiseConv2d(const Info& info, int threads)
      : threads_(threads),
        activation_(activation_of(name, info)),
        strides_(info.integers("strides", {1, 1})),
        pads_(info.integers("pads", {0, 0, 0, 0})) {
    if (strides_.size() != 2 || strides_[0] != strides_[1] || strides_[0] < 1)
      refuse(name, "two equal strides of at least 1", show(strides_));
    if (pads_.size() != 4 || *std::min_element(pads_.begin(), pads_.end()) < 0)
      refuse(name, "four pads of at least 0", show(pads_));
    const auto weight = info.constant(1), bias = info.constant(2);
    if (weight) packed_ = pack(*weight, bias ? *bias : Tensor{});
    has_bias_ = bias.has_value();
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(0);
    const Tensor bias = context.input(2);
    std::optional<Packed> fresh;  // of a weight or bias that the graph computes
    if (!packed_ || (bias.data != nullptr && !has_bias_)) fresh = pack(context.input(1), bias);
    const Packed& packed = fresh ? *fresh : *packed_;
    const std::int64_t outputs = packed.shape[0];
    if (x.shape.size() != 4 || x.shape[3] < 1 || outputs % x.shape[3] != 0)
      refuse(name, "x of shape (B, H, W, C) with " + std::to_string(outputs) + " a multiple of C",
             show(x.shape));
    const auto size = [&](std::size_t axis) { return count(x.shape, axis, axis + 1); };
    const auto pad = [&](std::size_t side) { return static_cast<std::size_t>(pads_[side]); };
    const DepthwiseShape shape{size(0),
                               size(3),
                               size(1),
                               size(2),
                               count(packed.shape, 0, 1) / size(3),
                               count(packed.shape, 2, 3),
                               count(packed.shape, 3, 4),
                               static_cast<std::size_t>(strides_[0]),
                               pad(0),
                               pad(1),
                               pad(2),
                               pad(3),
                               DepthwiseLayout::nhwc,
                               activation_};
    const Shape out{x.shape[0], static_cast<std::int64_t>(shape.out_height()),
                    static_cast<std::int64_t>(shape.out_width()), outputs};
    const float* residual = residual_of(name, context.input(3), out);
    float* y = context.output(0, out);
    const Scratch space(depthwise_conv2d_workspace(shape, threads_));
    depthwise_conv2d(x.floats(), shape, packed.data(), residual, y, space.get(), threads_);
  }

 private:
  int threads_;
  Activation activation_;
  std::vector<std::int64_t> strides_, pads_;
  std::optional<Packed> packed_;
  bool has_bias_ = false;  // whether it was packed too
};

}  // namespace

std::unique_ptr<Kernel> make_depthwise_conv2d(const Info& info, int threads) {
  return std::make_unique<DepthwiseConv2d>(info, threads);
}

}  // namespace vitlet::ort
