// The sizes of packed weights: what the kernels, their reference and csrc/cuda agree on.
#include "shift_linear.h"

namespace vitlet {
namespace {

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

}  // namespace

std::size_t padded_inputs(std::size_t inputs) { return round_up(inputs, 8); }

std::size_t padded_columns(WeightFormat format, std::size_t outputs) {
  return format == WeightFormat::wide ? round_up(outputs, 32) * 2 : round_up(outputs, 64);
}

std::size_t panel_bytes(WeightFormat format, std::size_t inputs) {
  return padded_inputs(inputs) * (format == WeightFormat::dense ? 64 : 32);
}

}  // namespace vitlet
