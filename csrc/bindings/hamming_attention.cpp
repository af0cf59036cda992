#include "hamming_attention.h"

#include <cmath>
#include <limits>
#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "pack_bits.h"
#include "scratch.h"

namespace py = pybind11;

namespace vitlet {
namespace {

constexpr const char* op = "hamming_attention";

constexpr int max_threads = 1024;

template <typename T>
const T* data_of(const std::string& what, const char* type, const py::array& array) {
  if (!py::isinstance<py::array_t<T>>(array))
    refuse(op, what + " of " + type, py::str(array.dtype()).cast<std::string>());
  if ((array.flags() & py::array::c_style) == 0)
    refuse(op, "a C-contiguous " + what, "a strided one");
  if (reinterpret_cast<std::uintptr_t>(array.data()) % sizeof(T) != 0)
    refuse(op, "an aligned " + what, "a misaligned one");
  return static_cast<const T*>(array.data());
}

py::array_t<float> attend(const py::array& q, const py::array& k, const py::array& v,
                          std::int64_t bits, double scale, bool signed_codes, int threads,
                          const std::string& isa) {
  const auto* queries = data_of<std::uint64_t>("q", "uint64", q);
  const auto* keys = data_of<std::uint64_t>("k", "uint64", k);
  const auto* values = data_of<float>("v", "float32", v);
  const Shape shape = shape_of(v);
  if (shape.size() != 4) refuse(op, "v of shape (B, H, N, D)", show(shape));
  if (bits < 1 || bits > std::int64_t{max_hamming_bits})
    refuse(op, "1 to " + std::to_string(max_hamming_bits) + " bits", std::to_string(bits));
  const auto words = static_cast<py::ssize_t>(words_of(static_cast<std::size_t>(bits)));
  const Shape rows{shape[0], shape[1], shape[2], words};
  if (shape_of(q) != rows) refuse(op, "q of shape " + show(rows), show(shape_of(q)));
  if (shape_of(k) != rows) refuse(op, "k of shape " + show(rows), show(shape_of(k)));
  if (!(std::fabs(scale) <= double{std::numeric_limits<float>::max()}))
    refuse(op, "a finite float32 scale", py::str(py::float_(scale)).cast<std::string>());
  if (threads < 1 || threads > max_threads)
    refuse(op, "1 to " + std::to_string(max_threads) + " threads", std::to_string(threads));
  const bool plain = isa == "reference";
  const Isa chosen = plain ? Isa::baseline : choose_isa(isa);
  py::array_t<float> out(shape);
  const auto size = [&](int axis) { return static_cast<std::size_t>(shape[axis]); };
  const HammingAttention task{size(0),
                              size(1),
                              size(2),
                              static_cast<std::size_t>(bits),
                              size(3),
                              signed_codes,
                              static_cast<float>(scale),
                              queries,
                              keys,
                              values,
                              out.mutable_data()};
  py::gil_scoped_release release;
  if (plain) {
    reference::hamming_attention(task);
  } else {
    const Scratch space(hamming_attention_workspace(task, threads));
    hamming_attention(task, space.get(), threads, chosen);
  }
  return out;
}

}  // namespace

void bind_hamming_attention(py::module_& m) {
  m.def("hamming_attention", &attend, py::arg("q"), py::arg("k"), py::arg("v"), py::arg("bits"),
        py::kw_only(), py::arg("scale"), py::arg("signed") = true, py::arg("threads") = 1,
        py::arg("isa") = "",
        "Softmax attention of packed q, k and float32 v. isa forces one instruction set, or "
        "\"reference\" (for tests).");
}

}  // namespace vitlet
