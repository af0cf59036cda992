#include "additive_token_mixer.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "linear_reference.h"

namespace vitlet::reference {
namespace {

constexpr std::size_t lanes = mixer_block;

float from_bits(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Map {  // planes of H x W, one per channel
  float* data;
  std::size_t height, width;
  float& at(std::size_t c, std::size_t y, std::size_t x) const {
    return data[(c * height + y) * width + x];
  }
};

// Depthwise 3x3 with zero padding, at one place. `taps` as packed: nine taps and the bias.
double depthwise(const Map& map, const float* taps, std::size_t c, std::size_t y, std::size_t x) {
  const float* tap = taps + c / lanes * 10 * lanes + c % lanes;
  double sum = tap[9 * lanes];
  for (std::size_t dy = 0; dy < 3; ++dy)
    for (std::size_t dx = 0; dx < 3; ++dx) {
      const std::size_t row = y + dy, column = x + dx;  // one too large
      if (row < 1 || row > map.height || column < 1 || column > map.width) continue;
      sum += static_cast<double>(tap[(dy * 3 + dx) * lanes]) * map.at(c, row - 1, column - 1);
    }
  return sum;
}

double qkv_weight(const PackedMixer& w, MixerPrecision precision, std::size_t block,
                  std::size_t lane, std::size_t input) {
  if (precision == MixerPrecision::fp32) return w.qkv[(block * w.depth + input) * lanes + lane];
  if (precision == MixerPrecision::bf16) {
    const std::uint32_t pair = w.qkv_bf16[(block * (w.depth / 2) + input / 2) * lanes + lane];
    return from_bits(input % 2 == 0 ? pair << 16 : pair & 0xffff0000);
  }
  const std::size_t column = block * lanes + lane;
  return static_cast<double>(w.qkv_rounded.scale[column]) *
         integer_of(w.qkv_rounded, column, input);
}

// One pixel's inputs as they are multiplied.
void round_inputs(const std::vector<float>& x, MixerPrecision precision, std::vector<double>& to) {
  std::vector<std::int32_t> integers(x.size());
  const float step = in_8_bits(precision) ? round_row(x.data(), integers) : 1;
  for (std::size_t c = 0; c < x.size(); ++c) {
    if (precision == MixerPrecision::fp32) to[c] = x[c];
    if (precision == MixerPrecision::bf16) to[c] = from_bits(round_to_bf16(x[c]));
    if (in_8_bits(precision)) to[c] = static_cast<double>(step) * integers[c];
  }
}

// map = map weighed by position, then by channel. means: C floats.
void gate(const Map& map, const PackedMixer& w, int which, float* means, float* weights) {
  const std::size_t channels = w.channels;
  const double pixels = static_cast<double>(map.height * map.width);
  for (std::size_t y = 0; y < map.height; ++y)
    for (std::size_t x = 0; x < map.width; ++x) {
      double sum = 0;
      for (std::size_t c = 0; c < channels; ++c) {
        const double value = depthwise(map, w.gate_taps[which], c, y, x);
        sum += w.gate_point[which][c] * (value < 0 ? 0 : value);
      }
      weights[y * map.width + x] = static_cast<float>(sigmoid(sum));
    }
  for (std::size_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (std::size_t y = 0; y < map.height; ++y)
      for (std::size_t x = 0; x < map.width; ++x) {
        map.at(c, y, x) *= weights[y * map.width + x];
        sum += map.at(c, y, x);
      }
    means[c] = static_cast<float>(sum / pixels);
  }
  for (std::size_t c = 0; c < channels; ++c) {
    double sum = 0;
    for (std::size_t in = 0; in < channels; ++in)
      sum += static_cast<double>(
                 w.gate_channel[which][(c / lanes * channels + in) * lanes + c % lanes]) *
             means[in];
    const float weight = static_cast<float>(sigmoid(sum));
    for (std::size_t y = 0; y < map.height; ++y)
      for (std::size_t x = 0; x < map.width; ++x) map.at(c, y, x) *= weight;
  }
}

}  // namespace

void additive_token_mixer(const float* x, const MixerShape& s, const float* packed, float* y,
                          void* workspace) {
  const std::size_t channels = s.channels, pixels = s.height * s.width;
  if (s.batch == 0 || pixels == 0) return;
  const PackedMixer w = unpack_mixer(packed, channels, s.precision);
  float* space = static_cast<float*>(workspace);
  Map maps[3];  // q, k, v
  for (Map& map : maps) {
    map = {space, s.height, s.width};
    space += channels * pixels;
  }
  float *means = space, *weights = space + channels;
  std::vector<float> column(channels);
  std::vector<double> inputs(channels);
  const auto place = [&](std::size_t c, std::size_t pixel) {
    return s.layout == MixerLayout::nchw ? c * pixels + pixel : pixel * channels + c;
  };
  for (std::size_t image = 0; image < s.batch; ++image) {
    const float* from = x + image * channels * pixels;
    float* to = y + image * channels * pixels;
    for (std::size_t pixel = 0; pixel < pixels; ++pixel) {
      for (std::size_t in = 0; in < channels; ++in) column[in] = from[place(in, pixel)];
      round_inputs(column, s.precision, inputs);
      for (std::size_t part = 0; part < 3; ++part)
        for (std::size_t c = 0; c < channels; ++c) {
          const std::size_t block = part * w.blocks + c / lanes, lane = c % lanes;
          double sum = w.qkv_bias[block * lanes + lane];
          for (std::size_t in = 0; in < channels; ++in)
            sum += inputs[in] * qkv_weight(w, s.precision, block, lane, in);
          maps[part].data[c * pixels + pixel] = static_cast<float>(sum);
        }
    }
    const auto [q, k, v] = maps;
    gate(q, w, 0, means, weights);
    gate(k, w, 1, means, weights);
    for (std::size_t i = 0; i < channels * pixels; ++i) q.data[i] += k.data[i];
    for (std::size_t c = 0; c < channels; ++c)
      for (std::size_t row = 0; row < s.height; ++row)
        for (std::size_t column = 0; column < s.width; ++column)
          v.at(c, row, column) =
              static_cast<float>(depthwise(q, w.dwc, c, row, column) * v.at(c, row, column));
    for (std::size_t c = 0; c < channels; ++c)
      for (std::size_t row = 0; row < s.height; ++row)
        for (std::size_t column = 0; column < s.width; ++column)
          to[place(c, row * s.width + column)] =
              static_cast<float>(depthwise(v, w.proj, c, row, column));
  }
}

}  // namespace vitlet::reference
