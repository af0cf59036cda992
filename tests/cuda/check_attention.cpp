// binary_linear_attention, exact, against sums in float64.
#include <cmath>
#include <cstdio>
#include <limits>

#include "binary_linear_attention.cuh"
#include "binary_linear_attention.h"
#include "check.h"
#include "host_runner.h"
#include "pack_bits.h"

namespace {

using namespace vitlet;

constexpr std::size_t batch = 2, heads = 2;

struct alignas(16) Aligned {
  float numbers[4];
};

struct Case {
  std::size_t tokens, bits, values;
  bool signed_codes, output, backwards, misaligned;
};

std::vector<std::uint64_t> packed(const Case& c, std::uint32_t seed) {
  const std::size_t rows = batch * heads * c.tokens;
  std::vector<std::uint64_t> words(rows * words_of(c.bits));
  reference::pack_bits(noise(rows * c.bits, seed).data(), rows, c.bits, 0.0f, words.data());
  for (std::size_t row = 0; c.bits % 64 != 0 && row < rows; row += 2)  // to be ignored
    words[(row + 1) * words_of(c.bits) - 1] |= ~std::uint64_t{0} << c.bits % 64;
  return words;
}

// Both NaN or infinite, or near.
bool near(const std::vector<float>& got, const std::vector<float>& expected) {
  float largest = 0, error = 0;
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (std::isfinite(expected[i]) != std::isfinite(got[i])) return false;
    if (!std::isfinite(expected[i])) continue;
    largest = std::fmax(largest, std::fabs(expected[i]));
    error = std::fmax(error, std::fabs(got[i] - expected[i]));
  }
  return error <= 3e-6f * largest;
}

bool agrees(const Case& c, bool special) {
  const std::size_t count = batch * heads * c.tokens * c.values;
  const auto q = packed(c, 1), k = packed(c, 2);
  auto v = noise(count + c.misaligned, 3);
  const auto taps = noise(heads * token_taps, 4);
  for (std::size_t i = 0; c.output && i < c.values; ++i) v[i] = 0;
  if (special) {
    v[c.misaligned + count / 2] = std::numeric_limits<float>::quiet_NaN();
    v[c.misaligned + count - 1] = std::numeric_limits<float>::infinity();
  }
  std::vector<float> expected(count), got(count);
  BinaryAttention task{batch,
                       heads,
                       c.tokens,
                       c.bits,
                       c.values,
                       c.signed_codes,
                       true,
                       q.data(),
                       k.data(),
                       v.data() + c.misaligned,
                       c.output ? taps.data() : nullptr,
                       expected.data()};
  reference::binary_linear_attention(task);
  task.out = got.data();
  std::vector<Aligned> workspace((cuda::binary_linear_attention_workspace(task) + 15) / 16);
  cuda::plan_binary_linear_attention({task, workspace.data()}, cuda::HostLaunch{c.backwards});
  return near(got, expected);
}

}  // namespace

std::size_t check_attention(bool few) {
  std::size_t checks = 0;
  const std::vector<std::size_t> all_tokens =
      few ? std::vector<std::size_t>{33, 300} : std::vector<std::size_t>{1, 67, 129, 400};
  const std::vector<std::size_t> all_bits =
      few ? std::vector<std::size_t>{65} : std::vector<std::size_t>{1, 32, 33, 64, 100, 128};
  for (std::size_t tokens : all_tokens)
    for (std::size_t bits : all_bits)
      for (std::size_t values : {1, 32, 33, 64, 130}) {
        const std::size_t form = ++checks;
        const Case c{tokens,        bits,          values,       form % 2 == 0,
                     form % 3 == 0, form % 5 == 0, form % 7 == 0};
        if (agrees(c, !c.output && form % 4 == 1)) continue;
        std::printf("attention differs: %zu tokens, %zu bits, %zu values, check %zu\n", tokens,
                    bits, values, form);
        return 0;
      }
  return checks;
}
