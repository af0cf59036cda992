#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"

namespace vitlet {

inline constexpr std::size_t max_hamming_bits = 128;

// One call of hamming_attention. Plain, for the kernels of every instruction set.
struct HammingAttention {
  std::size_t batch, heads, tokens;
  std::size_t bits;    // of a row of q and k: 1 to max_hamming_bits
  std::size_t values;  // numbers in a row of v
  bool signed_codes;   // a bit 0 stands for -1, not for 0
  float scale;         // finite; may be negative
  const std::uint64_t* q;
  const std::uint64_t* k;
  const float* v;
  float* out;
};

// Softmax attention with binary queries and keys, for every head of every batch:
//   y[n] = sum_m w[n][m] v[m] / sum_m w[n][m],   w[n][m] = exp(scale (s[n][m] - best s of row n))
// where s[n][m] is the product of the codes: with signed_codes, equal bits minus different ones,
// and otherwise the number of ones that both have. "Best" is the largest for a scale >= 0, the
// least for a negative one: its w is 1, and none is larger. w is rounded to float32, and 0 where it
// is below the least normal number.
//
// The sums are of float32, in any order, so that |v| above 3.4e38 / tokens may overflow. A NaN or
// an infinity in v makes all of its column in its head NaN or infinite, and nothing else.
//
// q, k: (batch, heads, tokens, words_of(bits)) as pack_bits writes them; bits past the last one are
// ignored. v, out: (batch, heads, tokens, values) float32. out overlaps nothing.
// workspace: hamming_attention_workspace(task, threads) bytes, 64-byte aligned.
void hamming_attention(const HammingAttention& task, void* workspace, int threads,
                       Isa isa = active_isa());
std::size_t hamming_attention_workspace(const HammingAttention& task, int threads);

namespace reference {
// The definition, in the plainest loops; sums are of float64. Needs no workspace.
void hamming_attention(const HammingAttention& task);
}  // namespace reference

// A row of w takes few values: entry i is the w of a product that is i steps from the best. A step
// is 2 with signed codes, otherwise 1.
struct HammingTable {
  alignas(64) float weight[max_hamming_bits + 1];
};
HammingTable hamming_table(const HammingAttention& task);

// What one thread needs besides hamming_row_bytes for each of most_hamming_rows.
inline constexpr std::size_t most_hamming_rows = 12;  // of q that a kernel takes at a time
inline constexpr std::size_t hamming_keys = 512;      // whose weights are there at a time
struct alignas(64) HammingWorkspace {
  float weights[most_hamming_rows][hamming_keys + 16];  // not a power of two, for the cache's sake
};
constexpr std::size_t hamming_row_bytes(std::size_t tokens) { return (tokens + 63) / 64 * 64; }

}  // namespace vitlet
