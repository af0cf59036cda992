// shift_linear: every bit as the reference has it, for any code and any byte as a weight.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>

#include "check.h"
#include "host_runner.h"
#include "shift_linear.cuh"

namespace {

using namespace vitlet;

std::uint32_t next(std::uint32_t& state) { return (state = state * 1664525u + 1013904223u) >> 8; }

struct alignas(16) Aligned {
  unsigned char bytes[16];
};

struct Case {
  std::vector<Aligned> panels;
  std::vector<float> scale, bias, x;
  LinearWeight weight;
};

Case make(WeightFormat format, std::size_t rows, std::size_t inputs, std::size_t outputs) {
  Case c;
  std::uint32_t state = 7;
  const std::size_t columns = padded_columns(format, outputs);
  const std::size_t size = columns / 64 * panel_bytes(format, inputs);
  c.panels.resize(size / 16);
  auto* bytes = reinterpret_cast<std::uint8_t*>(c.panels.data());
  const std::size_t quad = format == WeightFormat::dense ? 256 : 128;
  for (std::size_t i = 0; i < size; ++i) {
    const std::size_t k = i % panel_bytes(format, inputs) / quad * 4 + i % 4;
    bytes[i] = k < inputs ? static_cast<std::uint8_t>(next(state)) : 0;  // the padding is zeros
  }
  for (std::size_t n = 0; n < outputs; ++n)
    c.scale.push_back(static_cast<float>(next(state) % 1000) / 977.0f);
  c.bias = noise(outputs, 3, 70);
  c.x = noise(rows * inputs, 4);
  c.weight = {format, outputs, inputs, bytes, nullptr, c.scale.data()};
  return c;
}

// Rows that are special: of zeros, with a NaN, with an infinity, tiny, huge.
void make_special(std::vector<float>& x, std::size_t inputs) {
  const std::size_t rows = inputs == 0 ? 0 : x.size() / inputs;
  const float scales[] = {0, 1e-33f, 1e38f};
  for (std::size_t row = 0; row + 1 < rows && row < 3; ++row)
    for (std::size_t k = 0; k < inputs; ++k) x[row * inputs + k] *= scales[row];
  if (rows > 3) x[3 * inputs + inputs / 2] = std::numeric_limits<float>::quiet_NaN();
  if (rows > 4) x[5 * inputs - 1] = -std::numeric_limits<float>::infinity();
}

bool agrees(const Case& c, std::size_t rows, bool with_bias, Activation activation, bool backwards,
            bool misaligned) {
  std::vector<float> expected(rows * c.scale.size()), got(expected.size());
  const float* bias = with_bias ? c.bias.data() : nullptr;
  reference::shift_linear(c.x.data(), rows, c.weight, bias, activation, nullptr, expected.data());
  std::vector<float> x(c.x.size() + misaligned);
  std::copy(c.x.begin(), c.x.end(), x.begin() + misaligned);
  const std::size_t bytes = cuda::shift_linear_workspace(rows, c.weight.inputs);
  std::vector<Aligned> workspace((bytes + 15) / 16);
  const cuda::LinearCall call{x.data() + misaligned, rows, c.weight, bias, activation, got.data(),
                              workspace.data()};
  cuda::plan_shift_linear(call, cuda::HostLaunch{backwards});
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isnan(expected[i]) && std::isnan(got[i])) continue;
    if (std::memcmp(&got[i], &expected[i], sizeof(float)) != 0) return false;
  }
  return true;
}

}  // namespace

std::size_t check_linear(bool few) {
  std::size_t checks = 0;
  const std::vector<std::size_t> all_inputs =
      few ? std::vector<std::size_t>{8, 131} : std::vector<std::size_t>{0, 1, 8, 131, 328};
  const std::vector<std::size_t> all_rows =
      few ? std::vector<std::size_t>{3, 70} : std::vector<std::size_t>{1, 9, 16, 17, 130};
  for (WeightFormat format : {WeightFormat::shift, WeightFormat::wide, WeightFormat::dense})
    for (std::size_t inputs : all_inputs)
      for (std::size_t outputs : {1, 31, 65})
        for (std::size_t rows : all_rows) {
          Case c = make(format, rows, inputs, outputs);
          make_special(c.x, inputs);
          const bool odd = ++checks % 2 == 1;
          const Activation activation = checks % 3 == 0 ? Activation::gelu : Activation::none;
          if (agrees(c, rows, !odd, activation, odd, checks % 5 == 0)) continue;
          std::printf("linear differs: format %d, (%zu, %zu) to %zu\n", static_cast<int>(format),
                      rows, inputs, outputs);
          return 0;
        }
  return checks;
}
