#include "epilogue.h"

namespace vitlet::ort {

Activation activation_of(const char* op, const Info& info) {
  const std::string text = info.text("activation", "none");
  if (text == "none") return Activation::none;
  if (text == "gelu") return Activation::gelu;
  if (text == "relu") return Activation::relu;
  if (text == "silu") return Activation::silu;
  refuse(op, "activation \"none\", \"gelu\", \"relu\" or \"silu\"", "\"" + text + "\"");
}

const float* bias_of(const char* op, const Tensor& bias, std::size_t outputs) {
  const Shape expected{static_cast<std::int64_t>(outputs)};
  if (bias.data != nullptr && bias.shape != expected)
    refuse(op, "a bias of shape " + show(expected), show(bias.shape));
  return bias.floats();
}

const float* residual_of(const char* op, const Tensor& residual, const Shape& out) {
  if (residual.data != nullptr && residual.shape != out)
    refuse(op, "a residual of shape " + show(out), show(residual.shape));
  return residual.floats();
}

}  // namespace vitlet::ort
