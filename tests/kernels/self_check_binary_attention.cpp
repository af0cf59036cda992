// The self check of pack_bits and binary_linear_attention.
#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <vector>

#include "binary_linear_attention.h"
#include "pack_bits.h"
#include "self_check.h"

namespace {

using namespace vitlet;

std::vector<float> noise(std::size_t count, std::uint32_t state) {
  std::vector<float> numbers(count);
  for (auto& number : numbers) {
    state = state * 1664525u + 1013904223u;
    number = static_cast<float>(static_cast<std::int32_t>(state >> 8)) / 8388608.0f - 1.0f;
  }
  return numbers;
}

struct Release {
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{64}); }
};

struct Case {
  std::size_t tokens, bits, values;
  bool signed_codes, exact, output;
};

std::vector<std::uint64_t> packed(std::size_t rows, std::size_t bits, std::uint32_t seed) {
  std::vector<std::uint64_t> words(rows * words_of(bits));
  reference::pack_bits(noise(rows * bits, seed).data(), rows, bits, 0.0f, words.data());
  return words;
}

bool packs(std::size_t bits, Isa isa) {
  constexpr std::size_t rows = 7;
  const auto x = noise(rows * bits, 3);
  std::vector<std::uint64_t> got(rows * words_of(bits)), expected(got.size());
  pack_bits(x.data(), rows, bits, 0.1f, got.data(), isa);
  reference::pack_bits(x.data(), rows, bits, 0.1f, expected.data());
  return got == expected;
}

bool agrees(const Case& c, Isa isa, int threads) {
  constexpr std::size_t batch = 1, heads = 2;
  const std::size_t rows = batch * heads * c.tokens, count = rows * c.values;
  const auto q = packed(rows, c.bits, 1), k = packed(rows, c.bits, 2);
  const auto v = noise(count, 3), taps = noise(heads * token_taps, 4);
  std::vector<float> got(count), expected(count);
  BinaryAttention task{batch,
                       heads,
                       c.tokens,
                       c.bits,
                       c.values,
                       c.signed_codes,
                       c.exact,
                       q.data(),
                       k.data(),
                       v.data(),
                       c.output ? taps.data() : nullptr,
                       expected.data()};
  reference::binary_linear_attention(task);
  task.out = got.data();
  const std::unique_ptr<unsigned char, Release> space(static_cast<unsigned char*>(
      ::operator new(binary_linear_attention_workspace(task, threads), std::align_val_t{64})));
  binary_linear_attention(task, space.get(), threads, isa);
  if (!c.exact && !c.output) return got == expected;
  float largest = 0, error = 0;
  for (std::size_t i = 0; i < count; ++i) {
    largest = std::fmax(largest, std::fabs(expected[i]));
    error = std::fmax(error, std::fabs(got[i] - expected[i]));
  }
  return error <= 1e-5f * largest;
}

}  // namespace

std::size_t check_binary_attention() {
  std::size_t checks = 0;
  for (Isa isa : all_isas) {
    if (!isa_supported(isa)) continue;
    for (std::size_t bits : {1, 5, 32, 61, 64, 128}) {
      ++checks;
      if (!packs(bits, isa)) {
        std::printf("%s packs %zu bits wrongly\n", isa_name(isa).c_str(), bits);
        return 0;
      }
      for (std::size_t tokens : {1, 4, 64, 67})
        for (std::size_t values : {1, 33, 64, 70})
          for (int form = 0; form < 8; ++form) {
            const Case c{tokens, bits, values, (form & 1) != 0, (form & 2) != 0, (form & 4) != 0};
            ++checks;
            if (agrees(c, isa, 1 + form % 3)) continue;
            std::printf("%s differs: attention of %zu tokens, %zu bits, %zu values, form %d\n",
                        isa_name(isa).c_str(), tokens, bits, values, form);
            return 0;
          }
    }
  }
  return checks;
}
