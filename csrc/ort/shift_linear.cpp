#include "shift_linear.h"

#include "epilogue.h"
#include "linear_weight.h"
#include "operators.h"
#include "scratch.h"

namespace vitlet::ort {
namespace {

// x, weight, scale, bias?, residual? of Int8Linear, and of ShiftLinear with codes for the weight.
class IntegerLinear : public Kernel {
 public:
  IntegerLinear(const char* op, const Info& info, int threads)
      : op_(op), threads_(threads), activation_(activation_of(op, info)) {
    if (activation_ != Activation::none && activation_ != Activation::gelu)
      refuse(op, "activation \"none\" or \"gelu\"", "\"" + info.text("activation", "") + "\"");
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(0);
    std::optional<PackedWeight> fresh;
    if (!packed_) fresh.emplace(pack(context.input(1), context.input(2)));
    const PackedWeight& weight = packed_ ? *packed_ : *fresh;
    const auto inputs = static_cast<std::int64_t>(weight.inputs());
    if (x.shape.empty() || x.shape.back() != inputs)
      refuse(op_, "x of shape (..., " + std::to_string(inputs) + ")", show(x.shape));
    Shape shape = x.shape;
    shape.back() = static_cast<std::int64_t>(weight.outputs());
    const float* bias = bias_of(op_, context.input(3), weight.outputs());
    const float* residual = residual_of(op_, context.input(4), shape);
    const std::size_t rows = count(shape, 0, shape.size() - 1);
    float* y = context.output(0, shape);
    const LinearWeight view = weight.view();
    const Scratch space(shift_linear_workspace(rows, view, threads_));
    shift_linear(x.floats(), rows, view, bias, activation_, residual, y, space.get(), threads_);
  }

 protected:
  // Packs the weights once if they are constants of the graph.
  void pack_constants(const Info& info) {
    const auto weight = info.constant(1), scale = info.constant(2);
    if (weight && scale) packed_.emplace(pack(*weight, *scale));
  }
  virtual PackedWeight pack(const Tensor& weight, const Tensor& scale) const = 0;

  const char* op_;

 private:
  int threads_;
  Activation activation_;
  std::optional<PackedWeight> packed_;
};

class Int8Linear final : public IntegerLinear {
 public:
  Int8Linear(const Info& info, int threads) : IntegerLinear("Int8Linear", info, threads) {
    pack_constants(info);
  }

 private:
  PackedWeight pack(const Tensor& weight, const Tensor& scale) const override {
    return PackedWeight::dense(op_, weight, scale);
  }
};

class ShiftLinear final : public IntegerLinear {
 public:
  ShiftLinear(const Info& info, int threads)
      : IntegerLinear("ShiftLinear", info, threads),
        inputs_(info.integer("in_features", 0)),
        wide_(info.integer("wide", 0) != 0) {
    if (inputs_ < 0) refuse(op_, "in_features of at least 0", std::to_string(inputs_));
    pack_constants(info);
  }

 private:
  PackedWeight pack(const Tensor& weight, const Tensor& scale) const override {
    return PackedWeight::codes(op_, weight, scale, static_cast<std::size_t>(inputs_), wide_);
  }

  std::int64_t inputs_;
  bool wide_;
};

}  // namespace

std::unique_ptr<Kernel> make_int8_linear(const Info& info, int threads) {
  return std::make_unique<Int8Linear>(info, threads);
}

std::unique_ptr<Kernel> make_shift_linear(const Info& info, int threads) {
  return std::make_unique<ShiftLinear>(info, threads);
}

}  // namespace vitlet::ort
