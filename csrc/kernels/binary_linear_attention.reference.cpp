#include "binary_linear_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pack_bits.h"

namespace vitlet::reference {
namespace {

constexpr std::size_t block = 64;  // tokens that share a scale

// One head: where its rows begin.
struct Head {
  const std::uint64_t *q, *k;
  const float *v, *taps;
  float* out;
};

int code(const BinaryAttention& t, const std::uint64_t* rows, std::size_t row, std::size_t bit) {
  const bool set = rows[row * words_of(t.bits) + bit / 64] >> bit % 64 & 1;
  return set ? 1 : t.signed_codes ? -1 : 0;
}

void exact_column(const BinaryAttention& t, const Head& head, std::size_t column) {
  double kv[max_attention_bits];
  for (std::size_t i = 0; i < t.bits; ++i) {
    kv[i] = 0;
    for (std::size_t n = 0; n < t.tokens; ++n)
      if (const int c = code(t, head.k, n, i)) kv[i] += c * double{head.v[n * t.values + column]};
  }
  for (std::size_t n = 0; n < t.tokens; ++n) {
    double sum = 0;
    for (std::size_t i = 0; i < t.bits; ++i)
      if (const int c = code(t, head.q, n, i)) sum += c * kv[i];
    head.out[n * t.values + column] = static_cast<float>(sum);
  }
}

// The power of two of which `largest` is 256 to 511 times, rounded; NaN for what is not finite.
float step_of(float largest) {
  if (!std::isfinite(largest)) return std::numeric_limits<float>::quiet_NaN();
  int exponent = 0;
  if (std::frexp(largest, &exponent) >= 511.5f / 512) ++exponent;
  return std::ldexp(1.0f, std::max(exponent - 9, -126));
}

void rounded_column(const BinaryAttention& t, const Head& head, std::size_t column) {
  float kv[max_attention_bits] = {};
  for (std::size_t begin = 0; begin < t.tokens; begin += block) {
    const std::size_t end = std::min(begin + block, t.tokens);
    float largest = 0;
    for (std::size_t n = begin; n < end; ++n) {
      const float size = std::fabs(head.v[n * t.values + column]);
      if (!(size <= largest)) largest = size;
      if (!std::isfinite(size)) break;
    }
    const float step = step_of(largest);
    for (std::size_t i = 0; i < t.bits; ++i) {
      int sum = 0;
      for (std::size_t n = begin; n < end && std::isfinite(step); ++n)
        sum += code(t, head.k, n, i) *
               static_cast<int>(std::nearbyint(head.v[n * t.values + column] / step));
      kv[i] += static_cast<float>(sum) * step;
    }
  }
  float magnitude = 0;
  for (std::size_t i = 0; i < t.bits; ++i) magnitude += std::fabs(kv[i]);
  if (magnitude < 1e-30f) magnitude = 1e-30f;
  const float inverse = 32700.0f / magnitude, unit = magnitude * (1 / 32700.0f);
  int rounded[max_attention_bits] = {};
  for (std::size_t i = 0; i < t.bits && std::isfinite(magnitude); ++i)
    rounded[i] = static_cast<int>(std::nearbyint(kv[i] * inverse));
  for (std::size_t n = 0; n < t.tokens; ++n) {
    int sum = 0;
    for (std::size_t i = 0; i < t.bits; ++i) sum += code(t, head.q, n, i) * rounded[i];
    head.out[n * t.values + column] = static_cast<float>(sum) * unit;
  }
}

void normalize(const BinaryAttention& t, const Head& head) {
  constexpr double pi = 3.14159265358979323846;
  for (std::size_t n = 0; n < t.tokens; ++n) {
    float* row = head.out + n * t.values;
    double squares = 0;
    for (std::size_t j = 0; j < t.values; ++j) {
      const double r = 0.5 * head.v[n * t.values + j] + row[j] / pi;
      squares += r * r;
    }
    const double scale = squares == 0 ? 0 : 1 / std::sqrt(squares);
    for (std::size_t j = 0; j < t.values; ++j) {
      double sum = (0.5 * head.v[n * t.values + j] + row[j] / pi) * scale;
      for (std::size_t tap = 0; tap < token_taps; ++tap) {
        const std::size_t m = n + tap - token_taps / 2;  // wraps below 0, to no token
        if (m < t.tokens) sum += double{head.taps[tap]} * head.v[m * t.values + j];
      }
      row[j] = static_cast<float>(sum);
    }
  }
}

}  // namespace

void binary_linear_attention(const BinaryAttention& t) {
  const std::size_t words = t.tokens * words_of(t.bits), numbers = t.tokens * t.values;
  for (std::size_t h = 0; h < t.batch * t.heads; ++h) {
    const float* taps = t.taps == nullptr ? nullptr : t.taps + h % t.heads * token_taps;
    const Head head{t.q + h * words, t.k + h * words, t.v + h * numbers, taps, t.out + h * numbers};
    for (std::size_t column = 0; column < t.values; ++column)
      t.exact ? exact_column(t, head, column) : rounded_column(t, head, column);
    if (taps != nullptr) normalize(t, head);
  }
}

}  // namespace vitlet::reference
