// The self check of hamming_attention.
#include <cmath>
#include <cstdio>
#include <memory>
#include <new>
#include <vector>

#include "hamming_attention.h"
#include "pack_bits.h"
#include "self_check.h"

namespace {

using namespace vitlet;

std::vector<float> noise(std::size_t count, std::uint32_t state) {
  std::vector<float> numbers(count);
  for (auto& number : numbers) {
    state = state * 1664525u + 1013904223u;
    number = static_cast<float>(state >> 8) / 8388608.0f - 1.0f;
  }
  return numbers;
}

struct Release {
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{64}); }
};

std::vector<std::uint64_t> packed(std::size_t rows, std::size_t bits, std::uint32_t seed) {
  std::vector<std::uint64_t> words(rows * words_of(bits));
  reference::pack_bits(noise(rows * bits, seed).data(), rows, bits, 0.0f, words.data());
  return words;
}

bool agrees(std::size_t tokens, std::size_t bits, std::size_t values, int form, Isa isa) {
  constexpr std::size_t batch = 1, heads = 2;
  const std::size_t rows = batch * heads * tokens, count = rows * values;
  const auto q = packed(rows, bits, 1), k = packed(rows, bits, 2);
  const auto v = noise(count, 3);
  std::vector<float> got(count), expected(count);
  const float scale = (form & 1) != 0 ? 0.1f : -0.1f;
  HammingAttention task{batch, heads,    tokens,   bits,     values,         (form & 2) != 0,
                        scale, q.data(), k.data(), v.data(), expected.data()};
  reference::hamming_attention(task);
  task.out = got.data();
  const int threads = 1 + form % 3;
  // Exactly as much as was asked for, so that a sanitizer sees a step beyond it.
  const std::unique_ptr<unsigned char, Release> space(static_cast<unsigned char*>(
      ::operator new(hamming_attention_workspace(task, threads), std::align_val_t{64})));
  hamming_attention(task, space.get(), threads, isa);
  float error = 0;
  for (std::size_t i = 0; i < count; ++i) error = std::fmax(error, std::fabs(got[i] - expected[i]));
  return error <= 1e-5f;
}

}  // namespace

std::size_t check_hamming() {
  std::size_t checks = 0;
  for (Isa isa : all_isas) {
    if (!isa_supported(isa)) continue;
    for (std::size_t bits : {1, 61, 64, 128})
      for (std::size_t tokens : {1, 12, 29, 530})
        for (std::size_t values : {1, 7, 33, 64})
          for (int form = 0; form < 4; ++form) {
            if (tokens > 500 && (bits != 64 || values != 33 || form > 0)) continue;
            ++checks;
            if (agrees(tokens, bits, values, form, isa)) continue;
            std::printf("%s differs: Hamming attention of %zu tokens, %zu bits, %zu values, %d\n",
                        isa_name(isa).c_str(), tokens, bits, values, form);
            return 0;
          }
  }
  return checks;
}
