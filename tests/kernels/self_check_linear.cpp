// shift_linear on every instruction set against the reference: any code and any byte as a weight.
#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "self_check.h"
#include "shift_linear.h"

namespace {

using namespace vitlet;

std::uint32_t next(std::uint32_t& state) { return (state = state * 1664525u + 1013904223u) >> 8; }

struct Release {
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{64}); }
};

struct Case {
  std::vector<std::uint8_t> panels;
  std::vector<std::int32_t> sums;
  std::vector<float> scale, bias, x;
  LinearWeight weight;
};

// The panels are noise, padded with 0.
Case make(WeightFormat format, std::size_t rows, std::size_t inputs, std::size_t outputs) {
  Case c;
  std::uint32_t state = 7;
  const std::size_t columns = padded_columns(format, outputs), stride = padded_inputs(inputs);
  const bool dense = format == WeightFormat::dense;
  c.panels.resize(columns / 64 * panel_bytes(format, inputs));
  c.sums.resize(columns);
  for (std::size_t column = 0; column < columns; ++column)
    for (std::size_t k = 0; k < inputs; ++k) {
      const std::size_t n = column % 64, panel = column / 64 * stride * (dense ? 64 : 32);
      if (dense) {
        const auto byte = static_cast<std::uint8_t>(next(state));
        c.panels[panel + k / 4 * 256 + n * 4 + k % 4] = byte;
        c.sums[column] += static_cast<std::int8_t>(byte);
        continue;
      }
      const std::uint32_t code = next(state) % 16;
      c.panels[panel + k / 4 * 128 + n / 32 * 64 + n % 16 * 4 + k % 4] |=
          static_cast<std::uint8_t>(n / 16 % 2 == 0 ? code : code << 4);
      const int size = (1 << (code & 7)) >> 1;
      if (code == 8)
        c.sums[column] += format == WeightFormat::wide ? -128 : 0;
      else
        c.sums[column] += code < 8 ? size : -size;
    }
  for (std::size_t n = 0; n < outputs; ++n) {
    c.scale.push_back(static_cast<float>(next(state) % 1000) / 977.0f);
    c.bias.push_back(static_cast<float>(next(state) % 1000) / 7.0f - 70.0f);
  }
  for (std::size_t i = 0; i < rows * inputs; ++i)
    c.x.push_back(next(state) % 5 == 0 ? 1.0f : static_cast<float>(next(state) % 999) / 499.f - 1);
  c.weight = {format, outputs, inputs, c.panels.data(), c.sums.data(), c.scale.data()};
  return c;
}

bool agrees(const Case& c, std::size_t rows, Isa isa) {
  std::vector<float> expected(rows * c.scale.size()), got(expected.size()), residual;
  for (std::size_t i = 0; i < got.size(); ++i) residual.push_back(static_cast<float>(i % 97) / 7);
  for (Activation activation : {Activation::none, Activation::gelu})
    for (int threads : {1, 3}) {
      const float* added = threads == 1 ? nullptr : residual.data();
      const std::unique_ptr<unsigned char, Release> space(static_cast<unsigned char*>(
          ::operator new(shift_linear_workspace(rows, c.weight, threads), std::align_val_t{64})));
      reference::shift_linear(c.x.data(), rows, c.weight, c.bias.data(), activation, added,
                              expected.data());
      shift_linear(c.x.data(), rows, c.weight, c.bias.data(), activation, added, got.data(),
                   space.get(), threads, isa);
      if (!got.empty() && std::memcmp(got.data(), expected.data(), got.size() * sizeof(float)) != 0)
        return false;
    }
  return true;
}

}  // namespace

std::size_t check_linear() {
  const struct {
    WeightFormat format;
    const char* name;
  } formats[] = {
      {WeightFormat::shift, "shift"}, {WeightFormat::wide, "wide"}, {WeightFormat::dense, "dense"}};
  std::size_t checks = 0;
  for (const auto& format : formats)
    for (std::size_t inputs : {0, 1, 7, 8, 17, 64, 131})
      for (std::size_t outputs : {1, 8, 31, 65, 128})
        for (std::size_t rows : {1, 2, 3, 4, 5, 6, 7, 13, 50}) {
          if ((rows + outputs + inputs) % 3 != 0) continue;  // a third of them shows as much
          const Case c = make(format.format, rows, inputs, outputs);
          for (Isa isa : all_isas) {
            if (!isa_supported(isa)) continue;
            ++checks;
            if (agrees(c, rows, isa)) continue;
            std::printf("%s differs: %s linear of (%zu, %zu) to %zu\n", isa_name(isa).c_str(),
                        format.name, rows, inputs, outputs);
            return 0;
          }
        }
  return checks;
}
