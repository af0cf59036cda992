#pragma once
#include "binary_attention_task.h"
#include "cpu.h"

namespace vitlet {

// Additive attention with binary queries and keys, for every head of every batch:
//   y[n] = sum_i q[n][i] * kv[i],   kv[i] = sum_m k[m][i] * v[m]
// where q and k are 0 or 1, or with signed_codes -1 or 1.
//
// exact: in float32, in any order of summation.
// Otherwise v is rounded, 64 tokens of a column at a time, to whole multiples of the power of two
// that makes the largest 256 to 511, and kv to 16 bits of its column's sum of magnitudes. All
// sums are then of integers: every instruction set and number of threads gives the same bits.
//
// taps: with them the result is ShiftAddViT's output,
//   r[n] = v[n] / 2 + y[n] / pi,   out[n] = r[n] / |r[n]| + sum_t taps[head][t] * v[n + t - 4]
// with v = 0 outside the tokens, and r[n] / |r[n]| = 0 for r[n] = 0. In float32.
//
// A NaN or an infinity in v makes the numbers that depend on it NaN or infinite; if not exact, it
// makes all of its column in its head NaN.
//
// q, k: (batch, heads, tokens, words_of(bits)) as pack_bits writes them; bits past the last one are
// ignored. v, out: (batch, heads, tokens, values) float32. out overlaps nothing.
// workspace: binary_linear_attention_workspace(task, threads) bytes, 64-byte aligned.
void binary_linear_attention(const BinaryAttention& task, void* workspace, int threads,
                             Isa isa = active_isa());
std::size_t binary_linear_attention_workspace(const BinaryAttention& task, int threads);

namespace reference {
// The definition, in the plainest loops; exact sums are of float64.
void binary_linear_attention(const BinaryAttention& task);
}  // namespace reference

}  // namespace vitlet
