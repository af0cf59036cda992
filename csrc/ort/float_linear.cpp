#include "float_linear.h"

#include "epilogue.h"
#include "operators.h"
#include "scratch.h"

namespace vitlet::ort {
namespace {

constexpr const char* name = "Linear";

FloatFormat format_of(const std::string& text) {
  if (text == "fp32") return FloatFormat::fp32;
  if (text != "bf16") refuse(name, "precision \"fp32\" or \"bf16\"", "\"" + text + "\"");
  return FloatFormat::bf16;
}

struct Packed {
  FloatWeight weight;
  Buffer panels;
};

// x, weight (N, K), bias?, residual?
class Linear final : public Kernel {
 public:
  Linear(const Info& info, int threads)
      : threads_(threads),
        format_(format_of(info.text("precision", "fp32"))),
        activation_(activation_of(name, info)) {
    if (const auto weight = info.constant(1)) packed_ = pack(*weight);
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(0);
    std::optional<Packed> fresh;  // of a weight that the graph computes
    if (!packed_) fresh = pack(context.input(1));
    const FloatWeight& weight = packed_ ? packed_->weight : fresh->weight;
    const auto inputs = static_cast<std::int64_t>(weight.inputs);
    if (x.shape.empty() || x.shape.back() != inputs)
      refuse(name, "x of shape (..., " + std::to_string(inputs) + ")", show(x.shape));
    Shape shape = x.shape;
    shape.back() = static_cast<std::int64_t>(weight.outputs);
    FloatLinear call{x.floats(),  count(shape, 0, shape.size() - 1),
                     weight,      bias_of(name, context.input(2), weight.outputs),
                     activation_, residual_of(name, context.input(3), shape),
                     nullptr};
    call.out = context.output(0, shape);
    const Scratch space(float_linear_workspace(call.rows, weight, threads_));
    float_linear(call, space.get(), threads_);
  }

 private:
  Packed pack(const Tensor& weight) const {
    if (weight.shape.size() != 2) refuse(name, "a weight of shape (N, K)", show(weight.shape));
    const std::size_t outputs = count(weight.shape, 0, 1), inputs = count(weight.shape, 1, 2);
    Buffer panels = allocate(float_panel_bytes(format_, outputs, inputs));
    pack_float_weight(weight.floats(), outputs, inputs, inputs, 1, format_, panels.get());
    const void* data = panels.get();
    return {{format_, outputs, inputs, data, nullptr}, std::move(panels)};
  }

  int threads_;
  FloatFormat format_;
  Activation activation_;
  std::optional<Packed> packed_;
};

}  // namespace

std::unique_ptr<Kernel> make_linear(const Info& info, int threads) {
  return std::make_unique<Linear>(info, threads);
}

}  // namespace vitlet::ort
