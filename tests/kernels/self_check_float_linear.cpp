// float_linear on every instruction set against the reference, in all its formats.
#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <vector>

#include "float_linear.h"
#include "self_check.h"

namespace {

using namespace vitlet;

struct Release {
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{64}); }
};

std::vector<float> noise(std::size_t count, std::uint32_t state) {
  std::vector<float> values;
  for (std::size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    values.push_back(static_cast<float>(state >> 8) / 8388608.0f - 1);
  }
  return values;
}

struct Shape {
  std::size_t rows, inputs, outputs;
};

bool agrees(const Shape& s, FloatFormat format, Activation activation, bool in_place) {
  const auto x = noise(s.rows * s.inputs, 1), weight = noise(s.outputs * s.inputs, 2);
  const auto bias = noise(s.outputs, 3), scale = noise(s.outputs, 4);
  const auto residual = noise(s.rows * s.outputs, 5);
  std::vector<std::uint8_t> panels(float_panel_bytes(format, s.outputs, s.inputs));
  const bool codes = format == FloatFormat::shift || format == FloatFormat::wide;
  if (codes) {
    std::uint32_t state = 6;
    for (auto& byte : panels) byte = static_cast<std::uint8_t>((state = state * 69069 + 1) >> 24);
  } else {
    pack_float_weight(weight.data(), s.outputs, s.inputs, s.inputs, 1, format, panels.data());
  }
  std::vector<float> expected(s.rows * s.outputs), got;
  FloatLinear call{
      x.data(),       s.rows,     {format, s.outputs, s.inputs, panels.data(), scale.data()},
      bias.data(),    activation, residual.data(),
      expected.data()};
  reference::float_linear(call);
  float most = 1;
  for (float value : expected) most = std::fmax(most, std::fabs(value));
  for (Isa isa : all_isas) {
    if (!isa_supported(isa)) continue;
    for (int threads : {1, 3}) {
      got = residual;
      call.out = got.data();
      call.residual = in_place ? got.data() : residual.data();
      const std::unique_ptr<unsigned char, Release> space(
          static_cast<unsigned char*>(::operator new(
              float_linear_workspace(s.rows, call.weight, threads), std::align_val_t{64})));
      float_linear(call, space.get(), threads, isa);
      for (std::size_t i = 0; i < got.size(); ++i)
        if (!(std::fabs(got[i] - expected[i]) <= 1e-5f * most)) {
          std::printf("%s differs: float linear %d of (%zu, %zu) to %zu\n", isa_name(isa).c_str(),
                      static_cast<int>(format), s.rows, s.inputs, s.outputs);
          return false;
        }
    }
  }
  return true;
}

}  // namespace

std::size_t check_float_linear() {
  const Shape shapes[] = {{1, 0, 5},   {1, 1, 1},      {1, 520, 70},  {2, 17, 33}, {3, 64, 65},
                          {4, 7, 16},  {5, 33, 130},   {6, 8, 64},    {7, 31, 15}, {13, 40, 80},
                          {50, 9, 31}, {11, 1030, 17}, {200, 12, 20}, {4, 2051, 9}};
  std::size_t checks = 0;
  for (const Shape& shape : shapes)
    for (FloatFormat format :
         {FloatFormat::fp32, FloatFormat::bf16, FloatFormat::shift, FloatFormat::wide}) {
      const auto activation = static_cast<Activation>(checks / 2 % 4);
      if (!agrees(shape, format, activation, checks % 2 == 0)) return 0;
      ++checks;
    }
  return checks;
}
