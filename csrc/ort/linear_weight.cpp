#include "linear_weight.h"

#include <cstring>

namespace vitlet::ort {
namespace {

constexpr std::int32_t narrow_values[16] = {0, 1,  2,  4,  8,  16,  32,  64,
                                            0, -1, -2, -4, -8, -16, -32, -64};

}  // namespace

PackedWeight::PackedWeight(const char* op, WeightFormat format, const Tensor& scale,
                           std::size_t inputs)
    : format_(format), inputs_(inputs) {
  if (scale.shape.size() != 1) refuse(op, "a scale of shape (N,)", show(scale.shape));
  if (inputs > max_linear_inputs)
    refuse(op, "at most " + std::to_string(max_linear_inputs) + " inputs", std::to_string(inputs));
  const std::size_t outputs = count(scale.shape, 0, 1);
  const std::size_t columns = padded_columns(format, outputs);
  const std::size_t bytes = columns / 64 * panel_bytes(format, inputs);
  panels_ = allocate(bytes);
  std::memset(panels_.get(), 0, bytes);
  sums_.assign(columns, 0);
  scale_.assign(scale.floats(), scale.floats() + outputs);
}

LinearWeight PackedWeight::view() const {
  return {format_,      scale_.size(), inputs_, static_cast<const std::uint8_t*>(panels_.get()),
          sums_.data(), scale_.data()};
}

PackedWeight PackedWeight::dense(const char* op, const Tensor& values, const Tensor& scale) {
  if (values.shape.size() != 2) refuse(op, "a weight of shape (N, K)", show(values.shape));
  const std::size_t inputs = count(values.shape, 1, 2);
  PackedWeight made(op, WeightFormat::dense, scale, inputs);
  if (count(values.shape, 0, 1) != made.outputs())
    refuse(op, "a scale for each row of " + show(values.shape), show(scale.shape));
  const auto* from = static_cast<const std::int8_t*>(values.data);
  auto* panels = static_cast<std::int8_t*>(made.panels_.get());
  for (std::size_t c = 0; c < made.outputs(); ++c) {
    std::int8_t* column = panels + c / 64 * panel_bytes(WeightFormat::dense, inputs) + c % 64 * 4;
    for (std::size_t k = 0; k < inputs; ++k) {
      const std::int8_t value = from[c * inputs + k];
      column[k / 4 * 256 + k % 4] = value;
      made.sums_[c] += value;
    }
  }
  return made;
}

void PackedWeight::put_code(std::size_t column, std::size_t input, unsigned code) {
  auto* panels = static_cast<std::uint8_t*>(panels_.get());
  std::uint8_t& byte = panels[column / 64 * panel_bytes(format_, inputs_) + input / 4 * 128 +
                              column % 64 / 32 * 64 + column % 16 * 4 + input % 4];
  byte = static_cast<std::uint8_t>(byte | (column / 16 % 2 == 0 ? code : code << 4));
  const bool lowest = format_ == WeightFormat::wide && code == 8;
  sums_[column] += lowest ? -128 : narrow_values[code];
}

PackedWeight PackedWeight::codes(const char* op, const Tensor& codes, const Tensor& scale,
                                 std::size_t inputs, bool wide) {
  PackedWeight made(op, wide ? WeightFormat::wide : WeightFormat::shift, scale, inputs);
  const auto outputs = static_cast<std::int64_t>(made.outputs());
  const auto row = static_cast<std::int64_t>((inputs + 1) / 2);
  const Shape expected = wide ? Shape{2, outputs, row} : Shape{outputs, row};
  if (codes.shape != expected) refuse(op, "codes of shape " + show(expected), show(codes.shape));
  const auto* from = static_cast<const std::uint8_t*>(codes.data);
  const std::size_t bytes = (inputs + 1) / 2;
  for (std::size_t part = 0; part < (wide ? 2u : 1u); ++part)
    for (std::size_t n = 0; n < made.outputs(); ++n) {
      const std::uint8_t* in = from + (part * made.outputs() + n) * bytes;
      const std::size_t column = wide ? n / 8 * 16 + n % 8 + 8 * part : n;
      for (std::size_t k = 0; k < inputs; ++k)
        made.put_code(column, k, k % 2 == 0 ? in[k / 2] & 15u : in[k / 2] >> 4);
    }
  return made;
}

}  // namespace vitlet::ort
