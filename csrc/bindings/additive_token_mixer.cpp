#include "additive_token_mixer.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

#include "arguments.h"
#include "bindings.h"
#include "scratch.h"

namespace py = pybind11;

namespace vitlet {
namespace {

constexpr const char* name = "additive_token_mixer";
constexpr std::size_t max_channels = std::size_t{1} << 20;
constexpr int max_threads = 256;

MixerPrecision precision_from(const std::string& text) {
  if (text == "fp32") return MixerPrecision::fp32;
  if (text == "bf16") return MixerPrecision::bf16;
  if (text == "int8") return MixerPrecision::int8;
  if (text == "shift") return MixerPrecision::shift;
  refuse(name, "precision \"fp32\", \"bf16\", \"int8\" or \"shift\"", "\"" + text + "\"");
}

std::size_t most_channels(MixerPrecision precision) {
  return in_8_bits(precision) ? max_linear_inputs : max_channels;
}

struct Release {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Space = std::unique_ptr<void, Release>;

Space allocate(std::size_t bytes) {
  return Space(::operator new(std::max<std::size_t>(bytes, 1), std::align_val_t{64}));
}

MixerGate gate_from(const std::vector<py::array>& parts, const std::string& which,
                    std::size_t channels) {
  if (parts.size() != 4)
    refuse(name, "four arrays of " + which + " (taps, bias, point, channel)",
           std::to_string(parts.size()));
  return {numbers(name, parts[0], which + " taps", {channels, 3, 3}),
          numbers(name, parts[1], which + " bias", {channels}),
          numbers(name, parts[2], which + " point", {channels}),
          numbers(name, parts[3], which + " channel", {channels, channels})};
}

py::array_t<float> pack(const py::array& qkv, const py::array& qkv_bias,
                        const std::vector<py::array>& gate_q, const std::vector<py::array>& gate_k,
                        const py::array& dwc, const py::array& dwc_bias, const py::array& proj,
                        const py::array& proj_bias, const std::string& precision) {
  const MixerPrecision chosen = precision_from(precision);
  const auto channels = qkv.ndim() == 2 ? static_cast<std::size_t>(qkv.shape(1)) : 0;
  const std::size_t most = most_channels(chosen);
  if (channels < 1 || channels > most)
    refuse(name, "qkv of shape (3 C, C) with C of 1 to " + std::to_string(most), show(qkv));
  const MixerParameters parameters{channels,
                                   numbers(name, qkv, "qkv", {3 * channels, channels}),
                                   numbers(name, qkv_bias, "qkv_bias", {3 * channels}),
                                   gate_from(gate_q, "gate_q", channels),
                                   gate_from(gate_k, "gate_k", channels),
                                   numbers(name, dwc, "dwc", {channels, 3, 3}),
                                   numbers(name, dwc_bias, "dwc_bias", {channels}),
                                   numbers(name, proj, "proj", {channels, 3, 3}),
                                   numbers(name, proj_bias, "proj_bias", {channels})};
  const std::size_t count = 3 * channels * channels;
  if (in_8_bits(chosen) && !std::all_of(parameters.qkv, parameters.qkv + count,
                                        [](float w) { return std::isfinite(w); }))
    refuse(name, "finite qkv, to round it", "an infinity or a NaN");
  const std::size_t size = packed_mixer_size(channels, chosen);
  Space space = allocate(size * sizeof(float));
  float* to = static_cast<float*>(space.get());
  {
    py::gil_scoped_release release;
    pack_mixer(parameters, chosen, to);
  }
  const py::capsule owner(to, [](void* p) { Release()(p); });
  space.release();
  return py::array_t<float>({size}, {sizeof(float)}, to, owner);
}

py::array_t<float> mix(const py::array& x, const py::array& packed, std::size_t channels,
                       const std::string& precision, const std::string& layout, int threads,
                       const std::string& isa) {
  const MixerPrecision chosen = precision_from(precision);
  if (layout != "nchw" && layout != "nhwc")
    refuse(name, "layout \"nchw\" or \"nhwc\"", "\"" + layout + "\"");
  const std::size_t most = most_channels(chosen);
  if (channels < 1 || channels > most)
    refuse(name, "channels of 1 to " + std::to_string(most), std::to_string(channels));
  if (threads < 1) refuse(name, "threads of at least 1", std::to_string(threads));
  const float* weights =
      numbers(name, packed, "packed weights", {packed_mixer_size(channels, chosen)});
  const bool planes = layout == "nchw";
  std::vector<std::size_t> shape(x.shape(), x.shape() + x.ndim());
  if (shape.size() != 4 || shape[planes ? 1 : 3] != channels)
    refuse(name,
           planes ? "x of shape (B, " + std::to_string(channels) + ", H, W)"
                  : "x of shape (B, H, W, " + std::to_string(channels) + ")",
           show(x));
  const float* from = numbers(name, x, "x", shape);
  const MixerShape request{shape[0],
                           channels,
                           shape[planes ? 2 : 1],
                           shape[planes ? 3 : 2],
                           chosen,
                           planes ? MixerLayout::nchw : MixerLayout::nhwc};
  const bool plain = isa == "reference";
  const Isa instructions = plain ? Isa::baseline : choose_isa(isa);
  threads = std::min(threads, max_threads);
  py::array_t<float> out(shape);
  float* to = out.mutable_data();
  {
    py::gil_scoped_release release;
    const Scratch space(additive_token_mixer_workspace(request, threads));
    if (plain)
      reference::additive_token_mixer(from, request, weights, to, space.get());
    else
      additive_token_mixer(from, request, weights, to, space.get(), threads, instructions);
  }
  return out;
}

}  // namespace

void bind_additive_token_mixer(py::module_& m) {
  m.def("pack_token_mixer", &pack, py::arg("qkv"), py::arg("qkv_bias"), py::arg("gate_q"),
        py::arg("gate_k"), py::arg("dwc"), py::arg("dwc_bias"), py::arg("proj"),
        py::arg("proj_bias"), py::kw_only(), py::arg("precision") = "fp32",
        "Weights in the order that additive_token_mixer reads. A gate is (taps, bias, point, "
        "channel).");
  m.def("additive_token_mixer", &mix, py::arg("x"), py::arg("packed"), py::arg("channels"),
        py::kw_only(), py::arg("precision") = "fp32", py::arg("layout") = "nchw",
        py::arg("threads") = 1, py::arg("isa") = "",
        "CAS-ViT's token mixer. isa forces one instruction set, or \"reference\" (for tests).");
}

}  // namespace vitlet
