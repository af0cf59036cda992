#include "shift_linear.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <optional>
#include <stdexcept>
#include <vector>

#include "bindings.h"
#include "scratch.h"

namespace py = pybind11;

namespace vitlet {
namespace {

constexpr std::size_t most_threads = 256;

[[noreturn]] void refuse(const std::string& expected, const std::string& got) {
  throw std::invalid_argument("[shift_linear] expected " + expected + ", got " + got);
}

std::string show_shape(const py::array& array) {
  std::string text = array.dtype().attr("name").cast<std::string>() + " (";
  for (py::ssize_t i = 0; i < array.ndim(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(array.shape(i));
  return text + ((array.flags() & py::array::c_style) == 0 ? ") with strides" : ")");
}

template <typename T>
const T* check(const char* what, const char* dtype, const py::array& array, std::size_t size) {
  if (!py::isinstance<py::array_t<T>>(array) || array.ndim() != 1 ||
      static_cast<std::size_t>(array.size()) != size || (array.flags() & py::array::c_style) == 0)
    refuse(std::string(what) + " as contiguous " + dtype + " (" + std::to_string(size) + ")",
           show_shape(array));
  return static_cast<const T*>(array.data());
}

WeightFormat format_of(const std::string& name) {
  if (name == "shift") return WeightFormat::shift;
  if (name == "wide") return WeightFormat::wide;
  if (name == "dense") return WeightFormat::dense;
  refuse("format \"shift\", \"wide\" or \"dense\"", "\"" + name + "\"");
}

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "gelu") return Activation::gelu;
  refuse("activation \"none\" or \"gelu\"", "\"" + name + "\"");
}

py::array_t<float> linear(const py::array& x, const py::array& panels, const py::array& sums,
                          const py::array& scale, const std::optional<py::array>& bias,
                          const std::optional<py::array>& residual, const std::string& format,
                          const std::string& activation, int threads, const std::string& isa) {
  if (!py::isinstance<py::array_t<float>>(x) || x.ndim() != 2 ||
      (x.flags() & py::array::c_style) == 0)
    refuse("x as contiguous float32 (rows, inputs)", show_shape(x));
  const auto rows = static_cast<std::size_t>(x.shape(0));
  const auto inputs = static_cast<std::size_t>(x.shape(1));
  if (inputs > max_linear_inputs)
    refuse("at most " + std::to_string(max_linear_inputs) + " inputs", std::to_string(inputs));
  const WeightFormat kind = format_of(format);
  const auto outputs = static_cast<std::size_t>(scale.size());
  const std::size_t columns = padded_columns(kind, outputs);
  LinearWeight weight{kind, outputs, inputs, nullptr, nullptr, nullptr};
  weight.scale = check<float>("scale", "float32", scale, outputs);
  weight.sums = check<std::int32_t>("sums", "int32", sums, columns);
  weight.panels =
      check<std::uint8_t>("panels", "uint8", panels, columns / 64 * panel_bytes(kind, inputs));
  const float* shift = bias ? check<float>("bias", "float32", *bias, outputs) : nullptr;
  const float* last = nullptr;
  if (residual) {
    if (!py::isinstance<py::array_t<float>>(*residual) || residual->ndim() != 2 ||
        residual->shape(0) != x.shape(0) ||
        static_cast<std::size_t>(residual->shape(1)) != outputs ||
        (residual->flags() & py::array::c_style) == 0)
      refuse("residual as contiguous float32 (" + std::to_string(rows) + ", " +
                 std::to_string(outputs) + ")",
             show_shape(*residual));
    last = static_cast<const float*>(residual->data());
  }
  const Activation after = activation_of(activation);
  if (threads < 1) refuse("threads >= 1", std::to_string(threads));
  threads = std::min(threads, static_cast<int>(most_threads));
  const bool plain = isa == "reference";
  const Isa chosen = plain ? Isa::baseline : choose_isa(isa);
  py::array_t<float> out({rows, outputs});
  const auto* from = static_cast<const float*>(x.data());
  float* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    if (plain) {
      reference::shift_linear(from, rows, weight, shift, after, last, to);
    } else {
      const Scratch space(shift_linear_workspace(rows, weight, threads));
      shift_linear(from, rows, weight, shift, after, last, to, space.get(), threads, chosen);
    }
  }
  return out;
}

}  // namespace

void bind_shift_linear(py::module_& m) {
  m.def("shift_linear", &linear, py::arg("x"), py::arg("panels"), py::arg("sums"), py::arg("scale"),
        py::kw_only(), py::arg("bias") = py::none(), py::arg("residual") = py::none(),
        py::arg("format") = "shift", py::arg("activation") = "none", py::arg("threads") = 1,
        py::arg("isa") = "",
        "x times packed weights, rows rounded to 8 bits. isa forces one instruction set, or "
        "\"reference\" (for tests).");
}

}  // namespace vitlet
