#include "depthwise_conv2d.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "scratch.h"

namespace py = pybind11;

namespace vitlet {
namespace {

constexpr const char* op = "depthwise_conv2d";

constexpr int max_threads = 256;
// Sides, kernels and paddings up to this; their products stay far from 64 bits.
constexpr std::size_t max_side = std::size_t{1} << 24;

std::size_t side(const std::string& what, long long value, long long least) {
  if (value < least || value > static_cast<long long>(max_side))
    refuse(op, what + " of " + std::to_string(least) + " to " + std::to_string(max_side),
           std::to_string(value));
  return static_cast<std::size_t>(value);
}

py::array_t<float> pack(const py::array& weight, const std::optional<py::array>& bias) {
  std::vector<std::size_t> shape(weight.shape(), weight.shape() + weight.ndim());
  if (shape.size() != 3 || shape[1] == 0 || shape[2] == 0)
    refuse(op, "weight of shape (outputs, kernel height, kernel width)", show(weight));
  const float* from = numbers(op, weight, "weight", shape);
  const float* shift = bias ? numbers(op, *bias, "bias", {shape[0]}) : nullptr;
  py::array_t<float> packed(packed_depthwise_size(shape[0], shape[1], shape[2]));
  float* to = packed.mutable_data();
  {
    py::gil_scoped_release release;
    pack_depthwise(from, shift, shape[0], shape[1], shape[2], to);
  }
  return packed;
}

py::array_t<float> convolve(const py::array& x, const py::array& packed, long long multiplier,
                            const std::array<long long, 2>& kernel, long long stride,
                            const std::array<long long, 4>& padding, const std::string& activation,
                            const std::optional<py::array>& residual, const std::string& layout,
                            int threads, const std::string& isa) {
  if (layout != "nhwc" && layout != "nchw")
    refuse(op, "layout \"nhwc\" or \"nchw\"", "\"" + layout + "\"");
  const bool planes = layout == "nchw";
  std::vector<std::size_t> shape(x.shape(), x.shape() + x.ndim());
  if (shape.size() != 4)
    refuse(op, planes ? "x of shape (B, C, H, W)" : "x of shape (B, H, W, C)", show(x));
  const float* from = numbers(op, x, "x", shape);
  const DepthwiseShape request{shape[0],
                               shape[planes ? 1 : 3],
                               side("a height", static_cast<long long>(shape[planes ? 2 : 1]), 0),
                               side("a width", static_cast<long long>(shape[planes ? 3 : 2]), 0),
                               side("a multiplier", multiplier, 1),
                               side("a kernel height", kernel[0], 1),
                               side("a kernel width", kernel[1], 1),
                               side("a stride", stride, 1),
                               side("top padding", padding[0], 0),
                               side("left padding", padding[1], 0),
                               side("bottom padding", padding[2], 0),
                               side("right padding", padding[3], 0),
                               planes ? DepthwiseLayout::nchw : DepthwiseLayout::nhwc,
                               activation_of(op, activation)};
  const float* weights = numbers(
      op, packed, "packed weights",
      {packed_depthwise_size(request.outputs(), request.kernel_height, request.kernel_width)});
  const std::size_t height = request.out_height(), width = request.out_width();
  if (height == 0 || width == 0)
    refuse(op,
           "a padded map of at least (" + std::to_string(kernel[0]) + ", " +
               std::to_string(kernel[1]) + ")",
           "(" + std::to_string(request.height + request.top + request.bottom) + ", " +
               std::to_string(request.width + request.left + request.right) + ")");
  if (threads < 1) refuse(op, "threads of at least 1", std::to_string(threads));
  threads = std::min(threads, max_threads);
  const std::vector<std::size_t> out_shape =
      planes ? std::vector<std::size_t>{shape[0], request.outputs(), height, width}
             : std::vector<std::size_t>{shape[0], height, width, request.outputs()};
  const float* added = residual ? numbers(op, *residual, "residual", out_shape) : nullptr;
  const bool plain = isa == "reference";
  const Isa instructions = plain ? Isa::baseline : choose_isa(isa);
  py::array_t<float> out(out_shape);
  float* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    if (plain) {
      reference::depthwise_conv2d(from, request, weights, added, to);
    } else {
      const Scratch space(depthwise_conv2d_workspace(request, threads));
      depthwise_conv2d(from, request, weights, added, to, space.get(), threads, instructions);
    }
  }
  return out;
}

}  // namespace

void bind_depthwise_conv2d(py::module_& m) {
  m.def("pack_depthwise", &pack, py::arg("weight"), py::arg("bias") = py::none(),
        "Weights (outputs, kernel height, kernel width) in the order that depthwise_conv2d reads.");
  m.def("depthwise_conv2d", &convolve, py::arg("x"), py::arg("packed"), py::arg("multiplier"),
        py::arg("kernel"), py::kw_only(), py::arg("stride") = 1,
        py::arg("padding") = std::array<long long, 4>{}, py::arg("activation") = "none",
        py::arg("residual") = py::none(), py::arg("layout") = "nhwc", py::arg("threads") = 1,
        py::arg("isa") = "",
        "Depthwise convolution. padding: top, left, bottom, right. isa forces one instruction set, "
        "or \"reference\" (for tests).");
}

}  // namespace vitlet
