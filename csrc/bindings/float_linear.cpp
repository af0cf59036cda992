#include "float_linear.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <new>
#include <optional>
#include <stdexcept>

#include "arguments.h"
#include "bindings.h"
#include "scratch.h"
#include "shift_linear.h"

namespace py = pybind11;

namespace vitlet {
namespace {

constexpr const char* op = "linear";

constexpr int most_threads = 256;

template <typename T>
const T* vector_of(const char* what, const char* dtype, const py::array& array, std::size_t size) {
  if (!py::isinstance<py::array_t<T>>(array) || array.ndim() != 1 ||
      static_cast<std::size_t>(array.size()) != size || (array.flags() & py::array::c_style) == 0)
    refuse(op, std::string(what) + " as contiguous " + dtype + " (" + std::to_string(size) + ",)",
           show(array));
  return static_cast<const T*>(array.data());
}

const float* matrix_of(const char* what, const char* shape, const py::array& array) {
  if (!py::isinstance<py::array_t<float>>(array) || array.ndim() != 2 ||
      (array.flags() & py::array::c_style) == 0)
    refuse(op, std::string(what) + " as contiguous float32 " + shape, show(array));
  return static_cast<const float*>(array.data());
}

FloatFormat format_of(const std::string& name) {
  if (name == "fp32") return FloatFormat::fp32;
  if (name == "bf16") return FloatFormat::bf16;
  if (name == "shift") return FloatFormat::shift;
  if (name == "wide") return FloatFormat::wide;
  refuse(op, "format \"fp32\", \"bf16\", \"shift\" or \"wide\"", "\"" + name + "\"");
}

py::array_t<std::uint8_t> pack(const py::array& weight, const std::string& precision) {
  if (precision != "fp32" && precision != "bf16")
    refuse(op, "precision \"fp32\" or \"bf16\"", "\"" + precision + "\"");
  const float* from = matrix_of("weight", "(outputs, inputs)", weight);
  const auto outputs = static_cast<std::size_t>(weight.shape(0));
  const auto inputs = static_cast<std::size_t>(weight.shape(1));
  const FloatFormat format = format_of(precision);
  const std::size_t bytes = float_panel_bytes(format, outputs, inputs);
  auto* to = static_cast<unsigned char*>(
      ::operator new(std::max<std::size_t>(bytes, 1), std::align_val_t{64}));
  const py::capsule owner(to, [](void* p) { ::operator delete(p, std::align_val_t{64}); });
  const py::array_t<std::uint8_t> panels(static_cast<py::ssize_t>(bytes), to, owner);
  py::gil_scoped_release release;
  pack_float_weight(from, outputs, inputs, inputs, 1, format, to);
  return panels;
}

py::array_t<float> linear(const py::array& x, const py::array& panels, std::size_t outputs,
                          const std::optional<py::array>& scale,
                          const std::optional<py::array>& bias,
                          const std::optional<py::array>& residual, const std::string& format,
                          const std::string& activation, int threads, const std::string& isa) {
  FloatLinear call{};
  call.x = matrix_of("x", "(rows, inputs)", x);
  call.rows = static_cast<std::size_t>(x.shape(0));
  const auto inputs = static_cast<std::size_t>(x.shape(1));
  if (inputs > max_linear_inputs || outputs > max_linear_inputs)
    refuse(op, "at most " + std::to_string(max_linear_inputs) + " inputs and outputs",
           std::to_string(std::max(inputs, outputs)));
  const FloatFormat kind = format_of(format);
  call.weight = {kind, outputs, inputs, nullptr, nullptr};
  call.weight.panels =
      vector_of<std::uint8_t>("panels", "uint8", panels, float_panel_bytes(kind, outputs, inputs));
  if (kind == FloatFormat::shift || kind == FloatFormat::wide) {
    if (!scale) refuse(op, "a scale", "none");
    call.weight.scale = vector_of<float>("scale", "float32", *scale, outputs);
  }
  if (bias) call.bias = vector_of<float>("bias", "float32", *bias, outputs);
  if (residual) {
    call.residual = matrix_of("residual", "(rows, outputs)", *residual);
    if (residual->shape(0) != x.shape(0) || static_cast<std::size_t>(residual->shape(1)) != outputs)
      refuse(
          op,
          "residual of shape (" + std::to_string(call.rows) + ", " + std::to_string(outputs) + ")",
          show(*residual));
  }
  call.activation = activation_of(op, activation);
  if (threads < 1) refuse(op, "threads >= 1", std::to_string(threads));
  threads = std::min(threads, most_threads);
  const bool plain = isa == "reference";
  const Isa chosen = plain ? Isa::baseline : choose_isa(isa);
  py::array_t<float> out({call.rows, outputs});
  call.out = out.mutable_data();
  {
    py::gil_scoped_release release;
    if (plain) {
      reference::float_linear(call);
    } else {
      const Scratch space(float_linear_workspace(call.rows, call.weight, threads));
      float_linear(call, space.get(), threads, chosen);
    }
  }
  return out;
}

}  // namespace

void bind_float_linear(py::module_& m) {
  m.def("pack_linear_weight", &pack, py::arg("weight"), py::kw_only(),
        py::arg("precision") = "fp32");
  m.def("float_linear", &linear, py::arg("x"), py::arg("panels"), py::arg("outputs"), py::kw_only(),
        py::arg("scale") = py::none(), py::arg("bias") = py::none(),
        py::arg("residual") = py::none(), py::arg("format") = "fp32",
        py::arg("activation") = "none", py::arg("threads") = 1, py::arg("isa") = "",
        "x times packed weights with float activations. isa forces one instruction set, or "
        "\"reference\" (for tests).");
}

}  // namespace vitlet
