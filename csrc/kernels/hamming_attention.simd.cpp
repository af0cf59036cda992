// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
//
// Some rows of q at a time. First how far every key is from them, as a byte; then, for as many keys
// as fit the nearest cache, the weights, looked up; then a matrix product of the weights with v
// whose sums stay in registers.
#include "hamming_attention.h"

#include "float_simd.h"

#define VITLET_INLINE inline __attribute__((always_inline))
#define VITLET_UNROLL _Pragma("GCC unroll 16")

namespace vitlet::VITLET_ISA {
namespace {

// Rows of q and vectors of columns whose sums fill the registers, but for two of v and one weight.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr std::size_t tile_rows = 12;
#else
constexpr std::size_t tile_rows = 6;
#endif
static_assert(tile_rows <= most_hamming_rows);

VITLET_INLINE std::uint8_t ones(std::uint64_t word) {
#if defined(__POPCNT__) || defined(__aarch64__)
  return static_cast<std::uint8_t>(__builtin_popcountll(word));
#else
  word -= word >> 1 & 0x5555555555555555;
  word = (word & 0x3333333333333333) + (word >> 2 & 0x3333333333333333);
  return static_cast<std::uint8_t>(
      ((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f) * 0x0101010101010101 >> 56);
#endif
}

using Bytes = std::uint8_t __attribute__((vector_size(16)));

VITLET_INLINE Bytes read_bytes(const std::uint8_t* p) {
  Bytes v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

// One head, and where its workspace is.
struct Head {
  const std::uint64_t *q, *k;
  const float* v;
  float* out;
  std::size_t tokens, words, values, row_bytes;
  std::uint64_t last;  // the bits of a row's last word that count
  bool differing;      // count the bits that differ, not those that are 1 in both
  std::uint8_t flip;   // 255 if more of them is better
  const float* weight;
  HammingWorkspace& space;
  std::uint8_t* steps;  // (rows, row_bytes): from each row's best
};

// For every key, in how many bits it differs from (or agrees with) a row of q. One row at a time:
// with more of them, counts go through the stack.
template <std::size_t words, bool differing>
void count_bits(const Head& head, const std::uint64_t* q, std::uint8_t* counts) {
  const std::size_t tokens = head.tokens;
  const std::uint64_t first = q[0], second = q[words - 1], last = head.last, *k = head.k;
#pragma GCC unroll 8
  for (std::size_t m = 0; m < tokens; ++m) {
    const std::uint64_t key = k[m * words + words - 1];
    std::uint8_t count = ones((differing ? second ^ key : second & key) & last);
    if (words == 2) count += ones(differing ? first ^ k[m * words] : first & k[m * words]);
    counts[m] = count;
  }
}

// How many steps every key is from the best one for row n: its count minus the least, or less than
// the largest.
void count_steps(const Head& head, std::size_t n, std::uint8_t* counts) {
  const std::uint64_t* q = head.q + n * head.words;
  if (head.words == 1)
    head.differing ? count_bits<1, true>(head, q, counts) : count_bits<1, false>(head, q, counts);
  else
    head.differing ? count_bits<2, true>(head, q, counts) : count_bits<2, false>(head, q, counts);
  for (std::size_t m = head.tokens; m < head.row_bytes; ++m) counts[m] = counts[0];
  const Bytes flip = Bytes{} + head.flip;
  Bytes least = Bytes{} + std::uint8_t{255};
  for (std::size_t m = 0; m < head.row_bytes; m += sizeof(Bytes)) {
    const Bytes count = read_bytes(counts + m) ^ flip;
    least = count < least ? count : least;
  }
  std::uint8_t best = 255;
  for (std::size_t i = 0; i < sizeof(Bytes); ++i) best = least[i] < best ? least[i] : best;
  const Bytes from = Bytes{} + best;
  for (std::size_t m = 0; m < head.row_bytes; m += sizeof(Bytes)) {
    const Bytes step = (read_bytes(counts + m) ^ flip) - from;
    std::memcpy(counts + m, &step, sizeof(step));
  }
}

// The weights of `keys` keys for one row; returns their sum.
float look_up(const float* table, const std::uint8_t* steps, std::size_t keys, float* weights) {
  F32 sums = {};
  std::size_t m = 0;
  for (; m + lanes_f32 <= keys; m += lanes_f32) {
    F32 w;
    VITLET_UNROLL
    for (std::size_t i = 0; i < lanes_f32; ++i) w[i] = table[steps[m + i]];
    store_f32(weights + m, w);
    sums += w;
  }
  float sum = 0;
  for (; m < keys; ++m) sum += weights[m] = table[steps[m]];
  const F32x4 four = fold_to_x4(sums);
  return sum + ((four[0] + four[1]) + (four[2] + four[3]));
}

// out[r] (+)= sum_m weights[r][m] * v[m], for `vectors` vectors V of columns.
template <typename V, std::size_t vectors, std::size_t rows>
VITLET_INLINE void add_columns(const HammingWorkspace& space, std::size_t keys, const float* v,
                               std::size_t values, bool first, float* out) {
  V sum[rows][vectors] = {};
  if (!first) {
    VITLET_UNROLL
    for (std::size_t r = 0; r < rows; ++r) VITLET_UNROLL
    for (std::size_t j = 0; j < vectors; ++j)
      std::memcpy(&sum[r][j], out + r * values + j * (sizeof(V) / 4), sizeof(V));
  }
  for (std::size_t m = 0; m < keys; ++m, v += values) {
    V row[vectors];
    VITLET_UNROLL
    for (std::size_t j = 0; j < vectors; ++j)
      std::memcpy(&row[j], v + j * (sizeof(V) / 4), sizeof(V));
    VITLET_UNROLL
    for (std::size_t r = 0; r < rows; ++r) {
      const float w = space.weights[r][m];
      VITLET_UNROLL
      for (std::size_t j = 0; j < vectors; ++j) sum[r][j] += w * row[j];
    }
  }
  VITLET_UNROLL
  for (std::size_t r = 0; r < rows; ++r) VITLET_UNROLL
  for (std::size_t j = 0; j < vectors; ++j)
    std::memcpy(out + r * values + j * (sizeof(V) / 4), &sum[r][j], sizeof(V));
}

// Rows n, n + 1, ... of one head.
template <std::size_t rows>
void attend(const Head& head, std::size_t n) {
  for (std::size_t r = 0; r < rows; ++r) count_steps(head, n + r, head.steps + r * head.row_bytes);
  float total[rows] = {};
  const std::size_t values = head.values;
  float* out = head.out + n * values;
  for (std::size_t m = 0; m < head.tokens; m += hamming_keys) {
    const std::size_t keys = head.tokens - m < hamming_keys ? head.tokens - m : hamming_keys;
    for (std::size_t r = 0; r < rows; ++r)
      total[r] +=
          look_up(head.weight, head.steps + r * head.row_bytes + m, keys, head.space.weights[r]);
    const float* v = head.v + m * values;
    std::size_t j = 0;
    for (; j + 2 * lanes_f32 <= values; j += 2 * lanes_f32)
      add_columns<F32, 2, rows>(head.space, keys, v + j, values, m == 0, out + j);
    for (; j + lanes_f32 <= values; j += lanes_f32)
      add_columns<F32, 1, rows>(head.space, keys, v + j, values, m == 0, out + j);
    for (; j + 4 <= values; j += 4)
      add_columns<F32x4, 1, rows>(head.space, keys, v + j, values, m == 0, out + j);
    for (; j < values; ++j)
      add_columns<float, 1, rows>(head.space, keys, v + j, values, m == 0, out + j);
  }
  for (std::size_t r = 0; r < rows; ++r) {
    const float inverse = 1 / total[r];
    for (std::size_t j = 0; j < values; ++j) out[r * values + j] *= inverse;
  }
}

// As many rows as there are, at most `most` of them.
template <std::size_t most>
void attend_some(const Head& head, std::size_t n, std::size_t rows) {
  if constexpr (most > 1) {
    if (rows < most) return attend_some<most - 1>(head, n, rows);
  }
  attend<most>(head, n);
}

}  // namespace

void hamming_attention_rows(const HammingAttention& task, const HammingTable& table,
                            std::size_t index, std::size_t begin, std::size_t end,
                            void* workspace) {
  const std::size_t words = (task.bits + 63) / 64, rows = index * task.tokens;
  auto& space = *static_cast<HammingWorkspace*>(workspace);
  const bool more_is_better = task.signed_codes ? task.scale < 0 : task.scale >= 0;
  const Head head{task.q + rows * words,
                  task.k + rows * words,
                  task.v + rows * task.values,
                  task.out + rows * task.values,
                  task.tokens,
                  words,
                  task.values,
                  hamming_row_bytes(task.tokens),
                  ~std::uint64_t{0} >> (words * 64 - task.bits),
                  task.signed_codes,
                  static_cast<std::uint8_t>(more_is_better ? 255 : 0),
                  table.weight,
                  space,
                  static_cast<std::uint8_t*>(workspace) + sizeof(HammingWorkspace)};
  for (; begin < end; begin += tile_rows) attend_some<tile_rows>(head, begin, end - begin);
}

}  // namespace vitlet::VITLET_ISA
