// Packed weights: what the kernels, their reference and csrc/cuda agree on.
#include <algorithm>
#include <cassert>
#include <cmath>

#include "shift_linear.h"

namespace vitlet {
namespace {

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// round(log2(|w|)) of a weight other than 0.
int octave_of(double weight) {
  int exponent;
  const double mantissa = std::frexp(std::fabs(weight), &exponent);
  return exponent - (mantissa < std::sqrt(0.5) ? 1 : 0);
}

PackedColumn pack_bytes(const float* weights, std::size_t inputs, std::uint8_t* column) {
  double most = 0;
  for (std::size_t k = 0; k < inputs; ++k)
    most = std::max(most, std::fabs(static_cast<double>(weights[k])));
  const auto scale = static_cast<float>(most / 127);
  const double divisor = scale > 0 ? scale : 1;
  std::int32_t sum = 0;
  for (std::size_t k = 0; k < inputs; ++k) {
    const double rounded = std::nearbyint(weights[k] / divisor);
    const auto integer = static_cast<std::int8_t>(std::clamp(rounded, -127.0, 127.0));
    column[k / 4 * 256 + k % 4] = static_cast<std::uint8_t>(integer);
    sum += integer;
  }
  return {sum, scale};
}

PackedColumn pack_codes(const float* weights, std::size_t inputs, int shift, std::uint8_t* column) {
  constexpr int octaves = 7;
  int top = -120;
  for (std::size_t k = 0; k < inputs; ++k)
    if (weights[k] != 0) top = std::max(top, octave_of(weights[k]));
  const double half_least = std::ldexp(1.0, top - octaves);
  std::int32_t sum = 0;
  for (std::size_t k = 0; k < inputs; ++k) {
    const double weight = weights[k];
    if (weight == 0 || std::fabs(weight) < half_least) continue;
    const int level = std::max(octave_of(weight) - top + octaves, 1);
    const int code = weight < 0 ? level + 8 : level;
    column[k / 4 * 128 + k % 4] |= static_cast<std::uint8_t>(code << shift);
    sum += weight < 0 ? -(1 << level >> 1) : 1 << level >> 1;
  }
  return {sum, std::ldexp(1.0f, top - octaves + 1)};
}

}  // namespace

std::size_t padded_inputs(std::size_t inputs) { return round_up(inputs, 8); }

std::size_t padded_columns(WeightFormat format, std::size_t outputs) {
  return format == WeightFormat::wide ? round_up(outputs, 32) * 2 : round_up(outputs, 64);
}

std::size_t panel_bytes(WeightFormat format, std::size_t inputs) {
  return padded_inputs(inputs) * (format == WeightFormat::dense ? 64 : 32);
}

PackedColumn pack_column(WeightFormat format, const float* weights, std::size_t inputs,
                         std::size_t column, std::uint8_t* panels) {
  assert(format != WeightFormat::wide);
  const std::size_t c = column % 64;
  std::uint8_t* panel = panels + column / 64 * panel_bytes(format, inputs);
  if (format == WeightFormat::dense) return pack_bytes(weights, inputs, panel + c * 4);
  return pack_codes(weights, inputs, c / 16 % 2 == 0 ? 0 : 4, panel + c / 32 * 64 + c % 16 * 4);
}

}  // namespace vitlet
