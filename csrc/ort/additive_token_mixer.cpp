#include "additive_token_mixer.h"

#include <array>
#include <cmath>
#include <memory>

#include "operators.h"
#include "scratch.h"

namespace vitlet::ort {
namespace {

constexpr const char* name = "AdditiveTokenMixer";
constexpr std::size_t inputs = 15;  // x and the weights, in the order of MixerParameters

using Inputs = std::array<Tensor, inputs>;

MixerPrecision precision_of(const std::string& text) {
  if (text == "fp32") return MixerPrecision::fp32;
  if (text == "bf16") return MixerPrecision::bf16;
  if (text == "int8") return MixerPrecision::int8;
  if (text != "shift")
    refuse(name, "precision \"fp32\", \"bf16\", \"int8\" or \"shift\"", "\"" + text + "\"");
  return MixerPrecision::shift;
}

MixerLayout layout_of(const std::string& text) {
  if (text == "nchw") return MixerLayout::nchw;
  if (text != "nhwc") refuse(name, "layout \"nchw\" or \"nhwc\"", "\"" + text + "\"");
  return MixerLayout::nhwc;
}

// The weights, their shapes checked against the bias of the last convolution.
MixerParameters parameters(const Inputs& in) {
  const std::int64_t c = in[14].shape.size() == 1 ? in[14].shape[0] : 0;
  if (c < 1) refuse(name, "a bias of shape (C,)", show(in[14].shape));
  const Shape taps{c, 1, 3, 3}, bias{c}, point{1, c, 1, 1}, channel{c, c, 1, 1};
  const Shape expected[] = {
      {3 * c, c, 1, 1}, {3 * c}, taps, bias, point, channel, taps, bias, point,
      channel,          taps,    bias, taps, bias};
  for (std::size_t i = 1; i < inputs; ++i)
    if (in[i].shape != expected[i - 1])
      refuse(name, "input " + std::to_string(i) + " of shape " + show(expected[i - 1]),
             show(in[i].shape));
  const auto w = [&](std::size_t i) { return in[i].floats(); };
  return {static_cast<std::size_t>(c),
          w(1),
          w(2),
          {w(3), w(4), w(5), w(6)},
          {w(7), w(8), w(9), w(10)},
          w(11),
          w(12),
          w(13),
          w(14)};
}

class AdditiveTokenMixer : public Kernel {
 public:
  AdditiveTokenMixer(const Info& info, int threads)
      : threads_(threads),
        precision_(precision_of(info.text("precision", "fp32"))),
        layout_(layout_of(info.text("layout", "nchw"))) {
    Inputs in;
    for (std::size_t i = 1; i < inputs; ++i) {
      const auto weight = info.constant(i);
      if (!weight) return;  // computed by the graph: packed anew in each run
      in[i] = *weight;
    }
    channels_ = in[14].shape.empty() ? 0 : in[14].shape[0];
    packed_ = pack(parameters(in));
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(0);
    Buffer fresh;
    std::int64_t channels = channels_;
    if (!packed_) {
      Inputs in;
      for (std::size_t i = 1; i < inputs; ++i) in[i] = context.input(i);
      const MixerParameters weights = parameters(in);
      channels = static_cast<std::int64_t>(weights.channels);
      fresh = pack(weights);
    }
    const std::string c = std::to_string(channels);
    const bool last = layout_ == MixerLayout::nhwc;
    if (x.shape.size() != 4 || x.shape[last ? 3 : 1] != channels)
      refuse(name, last ? "(B, H, W, " + c + ")" : "(B, " + c + ", H, W)", show(x.shape));
    const auto size = [&](int axis) { return static_cast<std::size_t>(x.shape[axis]); };
    const MixerShape shape{
        size(0), size(last ? 3 : 1), size(last ? 1 : 2), size(last ? 2 : 3), precision_, layout_};
    float* y = context.output(0, x.shape);
    const void* packed = packed_ ? packed_.get() : fresh.get();
    const Scratch space(additive_token_mixer_workspace(shape, threads_));
    additive_token_mixer(x.floats(), shape, static_cast<const float*>(packed), y, space.get(),
                         threads_);
  }

 private:
  Buffer pack(const MixerParameters& weights) const {
    const std::size_t c = weights.channels;
    if (in_8_bits(precision_)) {
      if (c > max_linear_inputs)
        refuse(name, "at most " + std::to_string(max_linear_inputs) + " channels",
               std::to_string(c));
      for (std::size_t i = 0; i < 3 * c * c; ++i)
        if (!std::isfinite(weights.qkv[i]))
          refuse(name, "finite q, k, v weights, to round them", "an infinity or a NaN");
    }
    Buffer packed = allocate(packed_mixer_size(c, precision_) * sizeof(float));
    pack_mixer(weights, precision_, static_cast<float*>(packed.get()));
    return packed;
  }

  int threads_;
  MixerPrecision precision_;
  MixerLayout layout_;
  std::int64_t channels_ = 0;
  Buffer packed_;
};

}  // namespace

std::unique_ptr<Kernel> make_additive_token_mixer(const Info& info, int threads) {
  return std::make_unique<AdditiveTokenMixer>(info, threads);
}

}  // namespace vitlet::ort
