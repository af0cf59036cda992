#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

// Each holds one op of csrc/cuda, run on the processor, to the reference in csrc/kernels. Returns
// how many checks passed; or prints the first that did not and returns 0. few: sizes for a slow
// sanitizer.
std::size_t check_attention(bool few);
std::size_t check_linear(bool few);
std::size_t check_mixer(bool few);

inline std::vector<float> noise(std::size_t count, std::uint32_t state, float scale = 1) {
  std::vector<float> numbers(count);
  for (float& number : numbers) {
    state = state * 1664525u + 1013904223u;
    number = scale * (static_cast<float>(state >> 8) / (1 << 23) - 1);
  }
  return numbers;
}
