#include "token_mixer_weights.h"

#include <cstring>

namespace vitlet {
namespace {

constexpr std::size_t lanes = mixer_block;

std::size_t blocks_of(std::size_t channels) { return (channels + lanes - 1) / lanes; }

std::size_t depth_of(std::size_t channels, MixerPrecision precision) {
  return precision == MixerPrecision::bf16 ? channels + channels % 2 : channels;
}

WeightFormat format_of(MixerPrecision precision) {
  return precision == MixerPrecision::int8 ? WeightFormat::dense : WeightFormat::shift;
}

// 8-bit weights in floats: panels, column sums and scales.
struct RoundedSize {
  std::size_t panels, sums, scale;
};

RoundedSize rounded_size(std::size_t channels, MixerPrecision precision) {
  const WeightFormat format = format_of(precision);
  const std::size_t outputs = 3 * blocks_of(channels) * lanes;
  const std::size_t columns = padded_columns(format, outputs);
  return {columns / 64 * panel_bytes(format, channels) / sizeof(float), columns, outputs};
}

// Floats of the q, k, v weights.
std::size_t qkv_size(std::size_t channels, MixerPrecision precision) {
  if (in_8_bits(precision)) {
    const RoundedSize size = rounded_size(channels, precision);
    return size.panels + size.sums + size.scale;
  }
  const std::size_t depth = depth_of(channels, precision);
  return 3 * blocks_of(channels) * (precision == MixerPrecision::bf16 ? depth / 2 : depth) * lanes;
}

void pack_taps(const float* taps, const float* bias, std::size_t channels, float* out) {
  for (std::size_t c = 0; c < channels; ++c) {
    float* block = out + c / lanes * 10 * lanes + c % lanes;
    for (std::size_t tap = 0; tap < 9; ++tap) block[tap * lanes] = taps[c * 9 + tap];
    block[9 * lanes] = bias[c];
  }
}

void pack_rounded(const float* weights, std::size_t channels, MixerPrecision precision,
                  std::size_t column, float* qkv) {
  const RoundedSize size = rounded_size(channels, precision);
  auto* panels = reinterpret_cast<std::uint8_t*>(qkv);
  const PackedColumn packed = pack_column(format_of(precision), weights, channels, column, panels);
  std::memcpy(qkv + size.panels + column, &packed.sum, sizeof(packed.sum));
  qkv[size.panels + size.sums + column] = packed.scale;
}

}  // namespace

std::uint32_t round_to_bf16(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits | 0x00400000) & 0xffff0000;
  return (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
}

std::size_t packed_mixer_size(std::size_t channels, MixerPrecision precision) {
  const std::size_t blocks = blocks_of(channels);
  const std::size_t per_block = 3 * lanes + 4 * 10 * lanes + 2 * lanes + 2 * channels * lanes;
  return qkv_size(channels, precision) + blocks * per_block;
}

PackedMixer unpack_mixer(const float* packed, std::size_t channels, MixerPrecision precision) {
  PackedMixer view{};
  view.channels = channels;
  view.blocks = blocks_of(channels);
  view.depth = depth_of(channels, precision);
  const auto take = [&](std::size_t count) {
    const float* part = packed;
    packed += count;
    return part;
  };
  view.qkv = take(qkv_size(channels, precision));
  view.qkv_bf16 = reinterpret_cast<const std::uint32_t*>(view.qkv);
  if (in_8_bits(precision)) {
    const RoundedSize size = rounded_size(channels, precision);
    const float* sums = view.qkv + size.panels;
    view.qkv_rounded = {format_of(precision),
                        size.scale,
                        channels,
                        reinterpret_cast<const std::uint8_t*>(view.qkv),
                        reinterpret_cast<const std::int32_t*>(sums),
                        sums + size.sums};
  }
  view.qkv_bias = take(3 * view.blocks * lanes);
  for (int gate = 0; gate < 2; ++gate) {
    view.gate_taps[gate] = take(view.blocks * 10 * lanes);
    view.gate_point[gate] = take(view.blocks * lanes);
    view.gate_channel[gate] = take(view.blocks * channels * lanes);
  }
  view.dwc = take(view.blocks * 10 * lanes);
  view.proj = take(view.blocks * 10 * lanes);
  return view;
}

void pack_mixer(const MixerParameters& p, MixerPrecision precision, float* packed) {
  const std::size_t channels = p.channels;
  std::memset(packed, 0, packed_mixer_size(channels, precision) * sizeof(float));
  const PackedMixer view = unpack_mixer(packed, channels, precision);
  const auto at = [&](const float* part) { return packed + (part - packed); };  // writable
  for (std::size_t output = 0; output < 3 * channels; ++output) {
    const std::size_t c = output % channels;
    const std::size_t block = output / channels * view.blocks + c / lanes, lane = c % lanes;
    at(view.qkv_bias)[block * lanes + lane] = p.qkv_bias[output];
    if (in_8_bits(precision)) {
      pack_rounded(p.qkv + output * channels, channels, precision, block * lanes + lane,
                   at(view.qkv));
      continue;
    }
    for (std::size_t input = 0; input < channels; ++input) {
      const float weight = p.qkv[output * channels + input];
      if (precision == MixerPrecision::fp32) {
        at(view.qkv)[(block * view.depth + input) * lanes + lane] = weight;
        continue;
      }
      float* place = at(view.qkv) + (block * (view.depth / 2) + input / 2) * lanes + lane;
      std::uint32_t pair;
      std::memcpy(&pair, place, sizeof(pair));
      pair |= round_to_bf16(weight) >> (input % 2 == 0 ? 16 : 0);
      std::memcpy(place, &pair, sizeof(pair));
    }
  }
  const MixerGate* gates[2] = {&p.q, &p.k};
  for (int gate = 0; gate < 2; ++gate) {
    pack_taps(gates[gate]->taps, gates[gate]->bias, channels, at(view.gate_taps[gate]));
    std::memcpy(at(view.gate_point[gate]), gates[gate]->point, channels * sizeof(float));
    for (std::size_t out = 0; out < channels; ++out)
      for (std::size_t in = 0; in < channels; ++in)
        at(view.gate_channel[gate])[(out / lanes * channels + in) * lanes + out % lanes] =
            gates[gate]->channel[out * channels + in];
  }
  pack_taps(p.dwc, p.dwc_bias, channels, at(view.dwc));
  pack_taps(p.proj, p.proj_bias, channels, at(view.proj));
}

}  // namespace vitlet
