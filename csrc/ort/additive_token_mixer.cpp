#include "additive_token_mixer.h"

#include <array>
#include <memory>
#include <new>

#include "operators.h"

namespace vitlet::ort {
namespace {

constexpr const char* name = "AdditiveTokenMixer";
constexpr std::size_t inputs = 15;  // x and the weights, in the order of MixerParameters

using Shape = std::vector<std::int64_t>;
using Inputs = std::array<Tensor, inputs>;

struct Release {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
using Buffer = std::unique_ptr<void, Release>;

Buffer allocate(std::size_t bytes) { return Buffer(::operator new(bytes, std::align_val_t{64})); }

MixerPrecision precision_of(const std::string& text) {
  if (text == "fp32") return MixerPrecision::fp32;
  if (text != "bf16") refuse(name, "precision \"fp32\" or \"bf16\"", "\"" + text + "\"");
  return MixerPrecision::bf16;
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
  return {static_cast<std::size_t>(c),
          in[1].data,
          in[2].data,
          {in[3].data, in[4].data, in[5].data, in[6].data},
          {in[7].data, in[8].data, in[9].data, in[10].data},
          in[11].data,
          in[12].data,
          in[13].data,
          in[14].data};
}

class AdditiveTokenMixer : public Kernel {
 public:
  AdditiveTokenMixer(const Info& info, int threads)
      : threads_(threads), precision_(precision_of(info.text("precision", "fp32"))) {
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
    if (x.shape.size() != 4 || x.shape[1] != channels)
      refuse(name, "(B, " + std::to_string(channels) + ", H, W)", show(x.shape));
    const auto size = [&](int axis) { return static_cast<std::size_t>(x.shape[axis]); };
    const MixerShape shape{size(0), size(1), size(2), size(3), precision_, MixerLayout::nchw};
    float* y = context.output(0, x.shape);
    const Buffer space = allocate(additive_token_mixer_workspace(shape, threads_));
    const void* packed = packed_ ? packed_.get() : fresh.get();
    additive_token_mixer(x.data, shape, static_cast<const float*>(packed), y, space.get(),
                         threads_);
  }

 private:
  Buffer pack(const MixerParameters& weights) const {
    Buffer packed = allocate(packed_mixer_size(weights.channels, precision_) * sizeof(float));
    pack_mixer(weights, precision_, static_cast<float*>(packed.get()));
    return packed;
  }

  int threads_;
  MixerPrecision precision_;
  std::int64_t channels_ = 0;
  Buffer packed_;
};

}  // namespace

std::unique_ptr<Kernel> make_additive_token_mixer(const Info& info, int threads) {
  return std::make_unique<AdditiveTokenMixer>(info, threads);
}

}  // namespace vitlet::ort
