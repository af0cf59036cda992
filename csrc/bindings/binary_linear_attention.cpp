#include "binary_linear_attention.h"

#include <pybind11/stl.h>

#include <cmath>
#include <optional>
#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "pack_bits.h"
#include "scratch.h"

namespace py = pybind11;

namespace vitlet {
namespace {

constexpr const char* name = "binary_linear_attention";
constexpr int max_threads = 1024;

template <typename T>
void check_array(const char* op, const char* what, const char* type, const py::array& array) {
  if (!py::isinstance<py::array_t<T>>(array))
    refuse(op, std::string(what) + " of " + type, py::str(array.dtype()).cast<std::string>());
  if ((array.flags() & py::array::c_style) == 0)
    refuse(op, std::string("a C-contiguous ") + what, "a strided one");
  if (reinterpret_cast<std::uintptr_t>(array.data()) % sizeof(T) != 0)
    refuse(op, std::string("an aligned ") + what, "a misaligned one");
}

py::array_t<std::uint64_t> pack(const py::array& x, const py::array& thresholds,
                                const std::string& isa) {
  constexpr const char* op = "pack_bits";
  check_array<float>(op, "x", "float32", x);
  check_array<float>(op, "threshold", "float32", thresholds);
  const Shape shape = shape_of(x);
  if (shape.size() != 4 || shape[3] < 1 || shape[3] > py::ssize_t{max_attention_bits})
    refuse(op, "x of shape (B, H, N, D), D from 1 to " + std::to_string(max_attention_bits),
           show(shape));
  if (thresholds.ndim() != 1 || thresholds.shape(0) != shape[1])
    refuse(op, "one threshold, or one per head", show(shape_of(thresholds)));
  const auto bits = static_cast<std::size_t>(shape[3]);
  const bool plain = isa == "reference";
  const Isa chosen = plain ? Isa::baseline : choose_isa(isa);
  const auto words = static_cast<py::ssize_t>(words_of(bits));
  py::array_t<std::uint64_t> out(Shape{shape[0], shape[1], shape[2], words});
  const auto* from = static_cast<const float*>(x.data());
  const auto* levels = static_cast<const float*>(thresholds.data());
  std::uint64_t* to = out.mutable_data();
  const auto rows = static_cast<std::size_t>(shape[2]), heads = static_cast<std::size_t>(shape[1]);
  const std::size_t count = static_cast<std::size_t>(shape[0]) * heads;
  py::gil_scoped_release release;
  for (std::size_t h = 0; h < count; ++h, from += rows * bits, to += rows * words_of(bits)) {
    if (plain)
      reference::pack_bits(from, rows, bits, levels[h % heads], to);
    else
      pack_bits(from, rows, bits, levels[h % heads], to, chosen);
  }
  return out;
}

py::array_t<float> attend(const py::array& q, const py::array& k, const py::array& v,
                          std::int64_t bits, bool signed_codes, bool exact,
                          const std::optional<py::array>& taps, int threads,
                          const std::string& isa) {
  check_array<std::uint64_t>(name, "q", "uint64", q);
  check_array<std::uint64_t>(name, "k", "uint64", k);
  check_array<float>(name, "v", "float32", v);
  const Shape shape = shape_of(v);
  if (shape.size() != 4) refuse(name, "v of shape (B, H, N, D)", show(shape));
  if (bits < 1 || bits > std::int64_t{max_attention_bits})
    refuse(name, "1 to " + std::to_string(max_attention_bits) + " bits", std::to_string(bits));
  const auto words = static_cast<py::ssize_t>(words_of(static_cast<std::size_t>(bits)));
  const Shape rows{shape[0], shape[1], shape[2], words};
  if (shape_of(q) != rows) refuse(name, "q of shape " + show(rows), show(shape_of(q)));
  if (shape_of(k) != rows) refuse(name, "k of shape " + show(rows), show(shape_of(k)));
  if (threads < 1 || threads > max_threads)
    refuse(name, "1 to " + std::to_string(max_threads) + " threads", std::to_string(threads));
  if (taps) {
    const Shape expected{shape[1], py::ssize_t{token_taps}};
    check_array<float>(name, "taps", "float32", *taps);
    if (shape_of(*taps) != expected)
      refuse(name, "taps of shape " + show(expected), show(shape_of(*taps)));
  }
  const bool plain = isa == "reference";
  const Isa chosen = plain ? Isa::baseline : choose_isa(isa);
  py::array_t<float> out(shape);
  const auto size = [&](int axis) { return static_cast<std::size_t>(shape[axis]); };
  const BinaryAttention task{size(0),
                             size(1),
                             size(2),
                             static_cast<std::size_t>(bits),
                             size(3),
                             signed_codes,
                             exact,
                             static_cast<const std::uint64_t*>(q.data()),
                             static_cast<const std::uint64_t*>(k.data()),
                             static_cast<const float*>(v.data()),
                             taps ? static_cast<const float*>(taps->data()) : nullptr,
                             out.mutable_data()};
  py::gil_scoped_release release;
  if (plain) {
    reference::binary_linear_attention(task);
  } else {
    const Scratch space(binary_linear_attention_workspace(task, threads));
    binary_linear_attention(task, space.get(), threads, chosen);
  }
  return out;
}

}  // namespace

void bind_binary_linear_attention(py::module_& m) {
  m.def("pack_bits", &pack, py::arg("x"), py::arg("threshold"), py::kw_only(), py::arg("isa") = "",
        "(B, H, N, D) float32 to (B, H, N, ceil(D / 64)) uint64: bit i is x[..., i] > "
        "threshold[head].");
  m.def("binary_linear_attention", &attend, py::arg("q"), py::arg("k"), py::arg("v"),
        py::arg("bits"), py::kw_only(), py::arg("signed") = false, py::arg("exact") = false,
        py::arg("taps") = py::none(), py::arg("threads") = 1, py::arg("isa") = "",
        "Q (K^T V) for packed q, k and float32 v; with taps (H, 9), ShiftAddViT's output. isa "
        "forces one instruction set, or \"reference\" (for tests).");
}

}  // namespace vitlet
