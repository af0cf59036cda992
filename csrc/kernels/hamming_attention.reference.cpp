#include "hamming_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pack_bits.h"

namespace vitlet::reference {
namespace {

int code(const HammingAttention& t, const std::uint64_t* row, std::size_t bit) {
  const bool set = row[bit / 64] >> bit % 64 & 1;
  return set ? 1 : t.signed_codes ? -1 : 0;
}

int product(const HammingAttention& t, const std::uint64_t* q, const std::uint64_t* k) {
  int sum = 0;
  for (std::size_t i = 0; i < t.bits; ++i) sum += code(t, q, i) * code(t, k, i);
  return sum;
}

float weight(const HammingAttention& t, int difference) {
  const auto w = static_cast<float>(std::exp(double{t.scale} * difference));
  return w < std::numeric_limits<float>::min() ? 0 : w;
}

// Row n of one head.
void attend(const HammingAttention& t, const std::uint64_t* q, const std::uint64_t* k,
            const float* v, float* out) {
  const std::size_t words = words_of(t.bits);
  int best = product(t, q, k);
  for (std::size_t m = 1; m < t.tokens; ++m) {
    const int s = product(t, q, k + m * words);
    best = t.scale < 0 ? std::min(best, s) : std::max(best, s);
  }
  std::vector<double> sums(t.values);
  double total = 0;
  for (std::size_t m = 0; m < t.tokens; ++m) {
    const double w{weight(t, product(t, q, k + m * words) - best)};
    for (std::size_t j = 0; j < t.values; ++j) sums[j] += w * v[m * t.values + j];
    total += w;
  }
  for (std::size_t j = 0; j < t.values; ++j) out[j] = static_cast<float>(sums[j] / total);
}

}  // namespace

void hamming_attention(const HammingAttention& t) {
  const std::size_t words = words_of(t.bits);
  for (std::size_t h = 0; h < t.batch * t.heads; ++h)
    for (std::size_t n = 0; n < t.tokens; ++n) {
      const std::size_t first = h * t.tokens, row = first + n;
      attend(t, t.q + row * words, t.k + first * words, t.v + first * t.values,
             t.out + row * t.values);
    }
}

}  // namespace vitlet::reference
