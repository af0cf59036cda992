#include "resize_normalize.h"

#include <pybind11/stl.h>

#include <array>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "bindings.h"
#include "scratch.h"

namespace py = pybind11;

namespace vitlet {
namespace {

constexpr std::size_t max_pixels = std::size_t{1} << 28;  // of the window
constexpr const char* name = "resize_normalize";

using Pair = std::array<std::int64_t, 2>;
using Window = std::array<std::int64_t, 4>;

[[noreturn]] void refuse(const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string("[") + name + "] expected " + expected + ", got " + got);
}

std::string show(const std::int64_t* values, std::size_t count) {
  std::string text = "(";
  for (std::size_t i = 0; i < count; ++i) text += (i == 0 ? "" : ", ") + std::to_string(values[i]);
  return text + ")";
}

ResizeRequest check(const py::array& image, const Pair& resized, const Window& window,
                    const std::string& filter) {
  if (!py::isinstance<py::array_t<std::uint8_t>>(image))
    refuse("a uint8 image", py::str(image.dtype()).cast<std::string>());
  const std::vector<std::int64_t> shape(image.shape(), image.shape() + image.ndim());
  if (image.ndim() != 3 || (shape[2] != 1 && shape[2] != 3 && shape[2] != 4))
    refuse("an image of shape (H, W, 1), (H, W, 3) or (H, W, 4)", show(shape.data(), shape.size()));
  const auto side = static_cast<std::int64_t>(max_source_side);
  if (shape[0] < 1 || shape[0] > side || shape[1] < 1 || shape[1] > side)
    refuse("sides of 1 to " + std::to_string(side) + " pixels", show(shape.data(), 2));
  if ((image.flags() & py::array::c_style) == 0) refuse("a C-contiguous image", "a strided one");
  const auto resized_side = static_cast<std::int64_t>(max_resized_side);
  for (std::int64_t length : resized)
    if (length < 1 || length > resized_side)
      refuse("resized sides of 1 to " + std::to_string(resized_side), show(resized.data(), 2));
  const auto [top, left, height, width] = window;
  if (top < 0 || left < 0 || height < 1 || width < 1 || height > resized[0] || width > resized[1] ||
      top > resized[0] - height || left > resized[1] - width)
    refuse(
        "a window (top, left, height, width) inside the resized image " + show(resized.data(), 2),
        show(window.data(), 4));
  if (height > side || width > side ||
      static_cast<std::size_t>(height) > max_pixels / static_cast<std::size_t>(width))
    refuse("a window of at most " + std::to_string(side) + " pixels a side and " +
               std::to_string(max_pixels) + " in all",
           show(window.data(), 4));
  if (filter != "bilinear" && filter != "bicubic")
    refuse("filter \"bilinear\" or \"bicubic\"", "\"" + filter + "\"");
  const auto size = [](std::int64_t value) { return static_cast<std::size_t>(value); };
  return {size(shape[0]),   size(shape[1]),
          size(shape[2]),   size(resized[0]),
          size(resized[1]), size(top),
          size(left),       size(height),
          size(width),      filter == "bilinear" ? Filter::bilinear : Filter::bicubic};
}

void check_scale(const char* what, const std::vector<float>& values, const ResizeRequest& request) {
  if (values.size() != request.channels)
    refuse(std::to_string(request.channels) + " values of " + what + ", one per channel",
           std::to_string(values.size()));
  for (float value : values)
    if (!std::isfinite(value) || (what[0] == 's' && !(value > 0)))
      refuse(std::string("finite mean and positive std"), what + (" " + std::to_string(value)));
}

py::array_t<float> normalize(const py::array& image, const Pair& resized, const Window& window,
                             const std::vector<float>& mean, const std::vector<float>& std,
                             const std::string& filter, const std::string& isa) {
  const ResizeRequest request = check(image, resized, window, filter);
  check_scale("mean", mean, request);
  check_scale("std", std, request);
  const bool plain = isa == "reference";
  const Isa chosen = plain ? Isa::baseline : choose_isa(isa);
  py::array_t<float> out({request.channels, request.out_height, request.out_width});
  const auto* from = static_cast<const std::uint8_t*>(image.data());
  float* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    // Never much larger than the source or the window: the first pass is the one that shrinks.
    const Scratch space(resize_normalize_workspace(request));
    if (plain)
      reference::resize_normalize(from, request, mean.data(), std.data(), to, space.get());
    else
      resize_normalize(from, request, mean.data(), std.data(), to, space.get(), chosen);
  }
  return out;
}

py::array_t<std::uint8_t> crop(const py::array& image, const Pair& resized, const Window& window,
                               const std::string& filter, const std::string& isa) {
  const ResizeRequest request = check(image, resized, window, filter);
  const bool plain = isa == "reference";
  const Isa chosen = plain ? Isa::baseline : choose_isa(isa);
  py::array_t<std::uint8_t> out({request.out_height, request.out_width, request.channels});
  const auto* from = static_cast<const std::uint8_t*>(image.data());
  std::uint8_t* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    const Scratch space(resize_normalize_workspace(request));
    if (plain)
      reference::resize_crop(from, request, to, space.get());
    else
      resize_crop(from, request, to, space.get(), chosen);
  }
  return out;
}

}  // namespace

void bind_resize_normalize(py::module_& m) {
  m.def("resize_normalize", &normalize, py::arg("image"), py::arg("resized"), py::arg("window"),
        py::arg("mean"), py::arg("std"), py::kw_only(), py::arg("filter") = "bilinear",
        py::arg("isa") = "",
        "Window of the resized image as (C, H, W) float32, normalized. isa forces one instruction "
        "set, or \"reference\" (for tests).");
  m.def("resize_crop", &crop, py::arg("image"), py::arg("resized"), py::arg("window"),
        py::kw_only(), py::arg("filter") = "bilinear", py::arg("isa") = "",
        "The same window as (H, W, C) uint8: the bytes before normalization.");
}

}  // namespace vitlet
