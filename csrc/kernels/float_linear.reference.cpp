#include "float_linear.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "gelu.h"
#include "shift_linear.h"
#include "token_mixer_weights.h"

namespace vitlet::reference {
namespace {

float to_bf16(float value) {
  const std::uint32_t bits = round_to_bf16(value);
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

float integer_of(const FloatWeight& w, std::size_t column, std::size_t k) {
  const auto* panel = static_cast<const std::uint8_t*>(w.panels) +
                      column / 64 * panel_bytes(WeightFormat::shift, w.inputs);
  const std::size_t c = column % 64;
  const int byte = panel[k / 4 * 128 + c / 32 * 64 + c % 16 * 4 + k % 4];
  const int code = c / 16 % 2 == 0 ? byte & 15 : byte >> 4;
  if (code == 8) return w.format == FloatFormat::wide ? -128.0f : 0.0f;
  const int size = (1 << (code & 7)) >> 1;
  return static_cast<float>(code < 8 ? size : -size);
}

float weight_of(const FloatWeight& w, std::size_t n, std::size_t k) {
  const std::size_t depth = float_depth(w.format, w.inputs), panel = n / float_panel;
  switch (w.format) {
    case FloatFormat::fp32:
      return static_cast<const float*>(
          w.panels)[(panel * depth + k) * float_panel + n % float_panel];
    case FloatFormat::bf16: {
      const auto* pairs = static_cast<const std::uint32_t*>(w.panels);
      const std::uint32_t pair = pairs[(panel * depth / 2 + k / 2) * float_panel + n % float_panel];
      const std::uint32_t bits = k % 2 == 0 ? pair << 16 : pair & 0xffff0000u;
      float value;
      std::memcpy(&value, &bits, sizeof(value));
      return value;
    }
    case FloatFormat::shift:
      return integer_of(w, n, k);
    case FloatFormat::wide: {
      const std::size_t high = n / 8 * 16 + n % 8;
      return to_bf16(integer_of(w, high, k) * 256.0f + integer_of(w, high + 8, k));
    }
  }
  return 0;
}

float activate(Activation activation, float x) {
  switch (activation) {
    case Activation::gelu:
      return gelu(x);
    case Activation::relu:
      return x < 0 ? 0.0f : x;
    case Activation::silu:
      return x / (1.0f + std::exp(-x < 87.0f ? -x : 87.0f));
    default:
      return x;
  }
}

}  // namespace

void float_linear(const FloatLinear& call) {
  const FloatWeight& w = call.weight;
  const bool codes = w.format == FloatFormat::shift || w.format == FloatFormat::wide;
  std::vector<float> row(w.inputs);
  for (std::size_t m = 0; m < call.rows; ++m) {
    for (std::size_t k = 0; k < w.inputs; ++k) {
      const float value = call.x[m * w.inputs + k];
      row[k] = w.format == FloatFormat::fp32 ? value : to_bf16(value);
    }
    for (std::size_t n = 0; n < w.outputs; ++n) {
      double sum = 0;
      for (std::size_t k = 0; k < w.inputs; ++k) sum += double{row[k]} * double{weight_of(w, n, k)};
      if (codes) sum *= double{w.scale[n]};
      if (call.bias != nullptr) sum += double{call.bias[n]};
      const std::size_t i = m * w.outputs + n;
      const float y = activate(call.activation, static_cast<float>(sum));
      call.out[i] = call.residual == nullptr ? y : y + call.residual[i];
    }
  }
}

}  // namespace vitlet::reference
