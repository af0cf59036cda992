#pragma once
#include <cstddef>
#include <cstdint>

namespace vitlet {

inline constexpr std::size_t max_attention_bits = 128;
inline constexpr std::size_t token_taps = 9;  // of the convolution along the tokens

// One call of binary_linear_attention: see there. Plain, for the kernels of every instruction set.
struct BinaryAttention {
  std::size_t batch, heads, tokens;
  std::size_t bits;    // of a row of q and k: 1 to max_attention_bits
  std::size_t values;  // numbers in a row of v
  bool signed_codes;   // a bit 0 stands for -1, not for 0
  bool exact;
  const std::uint64_t* q;
  const std::uint64_t* k;
  const float* v;
  const float* taps;  // (heads, token_taps), or null: the raw product
  float* out;
};

// How the work is cut: every head's columns of v into panels of one table row each. A unit is one
// panel of one head, and units are independent.
struct AttentionPlan {
  std::size_t row_bytes;  // of a row of a table: 64 or 128
  std::size_t columns;    // of a panel: int16 in a table, or float32 if exact
  std::size_t panels;
  std::size_t units;
};

// What one thread needs for one unit.
struct alignas(64) AttentionWorkspace {
  unsigned char table[max_attention_bits / 4 * 16 * 128];
  unsigned char sums[max_attention_bits * 128];
  float kv[max_attention_bits * 64];
  float staged[64 * 64];
  float steps[64], scales[64];
  std::uint64_t turned[max_attention_bits];
};

}  // namespace vitlet
