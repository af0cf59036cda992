#include <pybind11/pybind11.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "launchers.h"
#include "pack_bits.h"

namespace py = pybind11;

namespace vitlet::cuda {
namespace {

// Device memory as Python hands it over; 0: none. vitlet.ops.cuda has checked dtypes and shapes.
using Address = std::uintptr_t;

struct Memory {
  const char* what;
  Address address;
  std::size_t alignment;
};

[[noreturn]] void refuse(const char* op, const std::string& expected, const std::string& got) {
  throw std::invalid_argument("[" + std::string(op) + "] expected " + expected + ", got " + got);
}

void check(const char* op, cudaError_t status) {
  if (status != cudaSuccess)
    throw std::runtime_error("[" + std::string(op) + "] CUDA: " + cudaGetErrorString(status));
}

void check_size(const char* op, const char* what, std::size_t size, std::size_t most) {
  if (size > most) refuse(op, "at most " + std::to_string(most) + " " + what, std::to_string(size));
}

// Makes the device of `memory` the current one, and the one from before again at the end.
class OnDevice {
 public:
  OnDevice(const char* op, const std::vector<Memory>& memory) {
    check(op, cudaGetDevice(&before_));
    for (const Memory& m : memory) {
      if (m.address == 0) continue;
      if (m.address % m.alignment != 0)
        refuse(op, std::string(m.what) + " aligned to " + std::to_string(m.alignment) + " bytes",
               "an address that is not");
      cudaPointerAttributes at{};
      check(op, cudaPointerGetAttributes(&at, reinterpret_cast<const void*>(m.address)));
      if (at.type != cudaMemoryTypeDevice && at.type != cudaMemoryTypeManaged)
        refuse(op, std::string(m.what) + " in a GPU's memory", "memory of the host");
      if (device_ >= 0 && at.device != device_)
        refuse(op, "all arrays on one GPU",
               "GPUs " + std::to_string(device_) + " and " + std::to_string(at.device));
      device_ = at.device;
    }
    if (device_ >= 0 && device_ != before_) check(op, cudaSetDevice(device_));
  }
  ~OnDevice() {
    if (device_ >= 0 && device_ != before_) cudaSetDevice(before_);
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;

 private:
  int before_ = 0, device_ = -1;
};

template <typename T>
T* as(Address address) {
  return reinterpret_cast<T*>(address);
}

cudaStream_t stream_of(Address stream) { return reinterpret_cast<cudaStream_t>(stream); }

WeightFormat format_of(const std::string& name) {
  if (name == "shift") return WeightFormat::shift;
  if (name == "wide") return WeightFormat::wide;
  if (name == "dense") return WeightFormat::dense;
  refuse("shift_linear", "format \"shift\", \"wide\" or \"dense\"", "\"" + name + "\"");
}

Activation activation_of(const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "gelu") return Activation::gelu;
  refuse("shift_linear", "activation \"none\" or \"gelu\"", "\"" + name + "\"");
}

MixerLayout layout_of(const std::string& name) {
  if (name == "nchw") return MixerLayout::nchw;
  if (name == "nhwc") return MixerLayout::nhwc;
  refuse("additive_token_mixer", "layout \"nchw\" or \"nhwc\"", "\"" + name + "\"");
}

constexpr std::size_t most_rows = (std::size_t{1} << 31) - 64;

std::size_t linear_workspace(std::size_t rows, std::size_t inputs) {
  check_size("shift_linear", "rows", rows, most_rows);
  check_size("shift_linear", "inputs", inputs, max_linear_inputs);
  return shift_linear_workspace(rows, inputs);
}

void linear(Address x, std::size_t rows, std::size_t inputs, Address panels, Address scale,
            std::size_t outputs, Address bias, Address out, Address workspace,
            const std::string& format, const std::string& activation, Address stream) {
  constexpr const char* op = "shift_linear";
  linear_workspace(rows, inputs);
  check_size(op, "outputs", outputs, std::size_t{1} << 26);
  const LinearWeight weight{format_of(format),        outputs, inputs,
                            as<std::uint8_t>(panels), nullptr, as<float>(scale)};
  const LinearCall call{
      as<float>(x),       rows, weight, as<float>(bias), activation_of(activation), as<float>(out),
      as<void>(workspace)};
  const py::gil_scoped_release release;
  if (rows == 0 || outputs == 0) return;
  const OnDevice device(op, {{"x", x, 4},
                             {"panels", panels, 16},
                             {"scale", scale, 4},
                             {"bias", bias, 4},
                             {"out", out, 4},
                             {"workspace", workspace, 16}});
  check(op, shift_linear(call, stream_of(stream)));
}

BinaryAttention attention_task(std::size_t batch, std::size_t heads, std::size_t tokens,
                               std::size_t bits, std::size_t values) {
  constexpr const char* op = "binary_linear_attention";
  constexpr std::size_t most = std::size_t{1} << 30;
  check_size(op, "batches", batch, most);
  check_size(op, "heads", heads, most);
  check_size(op, "heads of all batches", batch * heads, most);
  check_size(op, "tokens", tokens, most);
  check_size(op, "values", values, std::size_t{1} << 22);
  if (bits < 1 || bits > max_attention_bits)
    refuse(op, "1 to " + std::to_string(max_attention_bits) + " bits", std::to_string(bits));
  return {batch, heads,   tokens,  bits,    values,  false,
          true,  nullptr, nullptr, nullptr, nullptr, nullptr};
}

std::size_t attention_workspace(std::size_t batch, std::size_t heads, std::size_t tokens,
                                std::size_t bits, std::size_t values) {
  return binary_linear_attention_workspace(attention_task(batch, heads, tokens, bits, values));
}

void attention(Address q, Address k, Address v, std::size_t batch, std::size_t heads,
               std::size_t tokens, std::size_t bits, std::size_t values, bool signed_codes,
               Address taps, Address out, Address workspace, Address stream) {
  constexpr const char* op = "binary_linear_attention";
  BinaryAttention task = attention_task(batch, heads, tokens, bits, values);
  task.signed_codes = signed_codes;
  task.q = as<std::uint64_t>(q);
  task.k = as<std::uint64_t>(k);
  task.v = as<float>(v);
  task.taps = as<float>(taps);
  task.out = as<float>(out);
  const py::gil_scoped_release release;
  if (batch * heads * tokens * values == 0) return;
  const OnDevice device(op, {{"q", q, 8},
                             {"k", k, 8},
                             {"v", v, 4},
                             {"taps", taps, 4},
                             {"out", out, 4},
                             {"workspace", workspace, 16}});
  check(op, binary_linear_attention({task, as<void>(workspace)}, stream_of(stream)));
}

MixerShape mixer_shape(std::size_t batch, std::size_t channels, std::size_t height,
                       std::size_t width, const std::string& layout) {
  constexpr const char* op = "additive_token_mixer";
  constexpr std::size_t most = std::size_t{1} << 28;
  check_size(op, "images", batch, most);
  check_size(op, "rows", height, most);
  check_size(op, "columns", width, most);
  check_size(op, "pixels", height * width, most);
  if (channels < 1 || channels > std::size_t{1} << 20)
    refuse(op, "1 to " + std::to_string(1 << 20) + " channels", std::to_string(channels));
  return {batch, channels, height, width, MixerPrecision::fp32, layout_of(layout)};
}

std::size_t mixer_workspace(std::size_t batch, std::size_t channels, std::size_t height,
                            std::size_t width) {
  return additive_token_mixer_workspace(mixer_shape(batch, channels, height, width, "nchw"));
}

std::size_t mixer_size(std::size_t channels) {
  mixer_shape(1, channels, 1, 1, "nchw");
  return packed_mixer_size(channels, MixerPrecision::fp32);
}

void mixer(Address x, std::size_t batch, std::size_t channels, std::size_t height,
           std::size_t width, Address packed, Address out, Address workspace,
           const std::string& layout, Address stream) {
  constexpr const char* op = "additive_token_mixer";
  const MixerShape shape = mixer_shape(batch, channels, height, width, layout);
  const py::gil_scoped_release release;
  if (batch * height * width == 0) return;
  const OnDevice device(
      op, {{"x", x, 4}, {"packed", packed, 4}, {"out", out, 4}, {"workspace", workspace, 16}});
  check(op, additive_token_mixer(
                {as<float>(x), shape, as<float>(packed), as<float>(out), as<void>(workspace)},
                stream_of(stream)));
}

int device_count() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

}  // namespace
}  // namespace vitlet::cuda

PYBIND11_MODULE(_cuda, m) {
  namespace cuda = vitlet::cuda;
  using py::arg;
  m.doc() = "vitlet's kernels for NVIDIA GPUs; use vitlet.ops.cuda, which checks shapes.";
  m.def("device_count", &cuda::device_count);
  m.def("shift_linear_workspace", &cuda::linear_workspace, arg("rows"), arg("inputs"));
  m.def("shift_linear", &cuda::linear, arg("x"), arg("rows"), arg("inputs"), arg("panels"),
        arg("scale"), arg("outputs"), arg("bias"), arg("out"), arg("workspace"), arg("format"),
        arg("activation"), arg("stream"));
  m.def("binary_linear_attention_workspace", &cuda::attention_workspace, arg("batch"), arg("heads"),
        arg("tokens"), arg("bits"), arg("values"));
  m.def("binary_linear_attention", &cuda::attention, arg("q"), arg("k"), arg("v"), arg("batch"),
        arg("heads"), arg("tokens"), arg("bits"), arg("values"), arg("signed"), arg("taps"),
        arg("out"), arg("workspace"), arg("stream"));
  m.def("additive_token_mixer_workspace", &cuda::mixer_workspace, arg("batch"), arg("channels"),
        arg("height"), arg("width"));
  m.def("packed_mixer_size", &cuda::mixer_size, arg("channels"));
  m.def("additive_token_mixer", &cuda::mixer, arg("x"), arg("batch"), arg("channels"),
        arg("height"), arg("width"), arg("packed"), arg("out"), arg("workspace"), arg("layout"),
        arg("stream"));
}
