#pragma once
#include "binary_attention_task.h"
#include "chosen_sums.cuh"

// binary_linear_attention for GPUs, the exact form: sums in float32. As on a processor, rows of
// bits choose rows of numbers, four bits at a time among the 16 sums that four rows can have:
// K^T V (a row of bits is one bit of 32 tokens) and Q times it (32 bits of one token) are one job.
namespace vitlet::cuda {

struct AttentionCall {
  BinaryAttention task;  // device pointers; exact must be set
  void* workspace;       // binary_linear_attention_workspace bytes, 16-byte aligned
};

// How the work is cut. Chunks of tokens are summed apart, and then in order.
struct AttentionSizes {
  int heads;    // of all batches
  int columns;  // of a panel: 32 or 64
  int panels;   // of columns that hold a row of v
  int words;    // 32-bit words that hold a row of bits
  int chunk, chunks;

  // Numbers of K^T V, for all heads and padded to whole words and panels.
  std::size_t product() const {
    return static_cast<std::size_t>(heads) * words * 32 * panels * columns;
  }
};

inline AttentionSizes attention_sizes(const BinaryAttention& t) {
  constexpr std::size_t enough_blocks = 512, least_chunk = 128;
  AttentionSizes s{};
  s.heads = static_cast<int>(t.batch * t.heads);
  s.columns = t.values <= 32 ? 32 : 64;
  s.panels = static_cast<int>((t.values + s.columns - 1) / s.columns);
  s.words = static_cast<int>((t.bits + 31) / 32);
  const std::size_t units = t.batch * t.heads * s.panels;
  std::size_t chunks = units < enough_blocks ? (enough_blocks + units - 1) / units : 1;
  std::size_t chunk = (t.tokens + chunks - 1) / chunks;
  chunk = (chunk < least_chunk ? least_chunk : chunk + 31) / 32 * 32;
  s.chunk = static_cast<int>(chunk);
  s.chunks = static_cast<int>((t.tokens + chunk - 1) / chunk);
  return s;
}

inline std::size_t binary_linear_attention_workspace(const BinaryAttention& t) {
  if (t.batch * t.heads * t.tokens * t.values == 0) return 0;
  const AttentionSizes s = attention_sizes(t);
  return s.product() * sizeof(float) * (s.chunks == 1 ? 1 : s.chunks + 1);
}

// K^T V of one chunk of tokens, one head and one panel.
template <int columns>
struct GatherValues {
  using Sums = ChosenSums<columns>;
  using Table = typename Sums::Shared;
  static constexpr int threads = Sums::threads, loads = 32 * columns / threads;
  const std::uint64_t* k;
  const float* v;
  float* parts;  // (chunks, heads, 32 words, panels * columns)
  AttentionSizes sizes;
  int tokens, bits, values;
  bool signed_codes;

  struct Shared {
    Table sums;
    std::uint64_t keys[32][max_attention_bits / 64];
  };
  struct Registers {
    Four sums[Sums::per_thread];
    float next[loads];
    std::uint64_t next_key;
  };

  VITLET_DEVICE void fetch(int thread, std::size_t head, int panel, int first, int end,
                           Registers& r) const {
    const int column = panel * columns + thread % columns;
    VITLET_UNROLL
    for (int i = 0; i < loads; ++i) {
      const int token = first + thread / columns + i * (threads / columns);
      const bool inside = token < end && column < values;
      r.next[i] = inside ? v[(head * tokens + token) * values + column] : 0.0f;
    }
    const int key_words = (bits + 63) / 64, token = first + thread / key_words;
    r.next_key = 0;
    if (thread < 32 * key_words && token < end)
      r.next_key = k[(head * tokens + token) * key_words + thread % key_words];
  }

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int panel = static_cast<int>(block % sizes.panels);
    const int chunk = static_cast<int>(block / sizes.panels % sizes.chunks);
    const std::size_t head = block / sizes.panels / sizes.chunks;
    const int begin = chunk * sizes.chunk;
    const int end = begin + sizes.chunk < tokens ? begin + sizes.chunk : tokens;
    run.warp_phase([&](int thread, Registers& r) {
      VITLET_UNROLL
      for (int j = 0; j < Sums::per_thread; ++j) r.sums[j] = Four{};
      fetch(thread, head, panel, begin, end, r);
    });
    VITLET_KEEP_ROLLED
    for (int first = begin; first < end; first += 32) {
      run.phase([&](int thread, Registers& r) {
        VITLET_UNROLL
        for (int i = 0; i < loads; ++i)
          shared.sums.numbers[thread / columns + i * (threads / columns)][thread % columns] =
              r.next[i];
        const int key_words = (bits + 63) / 64;
        if (thread < 32 * key_words)
          shared.keys[thread / key_words][thread % key_words] = r.next_key;
      });
      run.phase([&](int thread, Registers&) {
        Sums::fill_table(thread, signed_codes, shared.sums);
        if (thread >= 32 * sizes.words) return;
        std::uint32_t word = 0;  // one bit of 32 tokens
        VITLET_UNROLL
        for (int token = 0; token < 32; ++token)
          word |= static_cast<std::uint32_t>(shared.keys[token][thread / 64] >> thread % 64 & 1)
                  << token;
        shared.sums.words[thread] = word;
      });
      run.phase([&](int thread, Registers& r) {
        fetch(thread, head, panel, first + 32, end, r);
        Sums::add_chosen(thread, 32 * sizes.words, shared.sums, r.sums);
      });
    }
    run.warp_phase([&](int thread, Registers& r) {
      const int quad = thread % Sums::quads, slot = thread / Sums::quads;
      const int width = sizes.panels * columns, height = 32 * sizes.words;
      float* to = parts + (static_cast<std::size_t>(chunk) * sizes.heads + head) * height * width;
      VITLET_UNROLL
      for (int j = 0; j < Sums::per_thread; ++j) {
        const int row = slot + Sums::slots * j;
        if (row < height)  // past the last bit: zeros
          *reinterpret_cast<Four*>(&to[row * width + panel * columns + 4 * quad]) =
              row < bits ? r.sums[j] : Four{};
      }
    });
  }
};

// K^T V as the sum of its chunks, in their order.
struct AddChunks {
  static constexpr int threads = 256;
  const Four* parts;
  Four* sums;
  std::size_t count;
  int chunks;

  struct Shared {};
  struct Registers {};

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared&) const {
    run.warp_phase([&](int thread, Registers&) {
      const std::size_t i = block * threads + thread;
      if (i >= count) return;
      Four sum = parts[i];
      for (int chunk = 1; chunk < chunks; ++chunk) add(sum, parts[chunk * count + i]);
      sums[i] = sum;
    });
  }
};

// Q times K^T V for 128 tokens of one head, and ShiftAddViT's output if there are taps: then the
// block has all panels, because a row's length needs them, and else one.
template <int columns>
struct ApplyQueries {
  using Sums = ChosenSums<columns>;
  using Shared = typename Sums::Shared;
  static constexpr int threads = Sums::threads, resident = 512 / threads;
  const std::uint64_t* q;
  const float *kv, *v, *taps;
  float* out;
  AttentionSizes sizes;
  int tokens, bits, values, tiles, heads;
  bool signed_codes, whole;

  struct Registers {
    Four sums[Sums::per_thread];
    float squares[Sums::per_thread];
  };

  VITLET_DEVICE void load(int thread, std::size_t head, int first, int panel, int word,
                          Shared& shared) const {
    const int width = sizes.panels * columns;
    const float* from = kv + (head * sizes.words + word) * 32 * width + panel * columns;
    VITLET_UNROLL
    for (int i = thread; i < 32 * Sums::quads; i += threads)
      *reinterpret_cast<Four*>(&shared.numbers[i / Sums::quads][i % Sums::quads * 4]) =
          *reinterpret_cast<const Four*>(&from[i / Sums::quads * width + i % Sums::quads * 4]);
    if (thread >= Sums::rows) return;
    const std::size_t row = head * tokens + first + thread;
    const std::uint64_t bits_of_row =
        first + thread < tokens ? q[row * ((bits + 63) / 64) + word / 2] : 0;
    shared.words[thread] = static_cast<std::uint32_t>(bits_of_row >> word % 2 * 32);
  }

  // v / 2 + sums / pi, and its squares.
  VITLET_DEVICE void blend(const float* values_of_row, int count, Four& sums,
                           float& squares) const {
    const Four value = load_four(values_of_row, count, whole);
    VITLET_UNROLL
    for (int i = 0; i < 4; ++i) {
      sums.v[i] = 0.5f * value.v[i] + sums.v[i] * 0.318309886183790672f;
      if (i < count) squares += sums.v[i] * sums.v[i];
    }
  }

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int panels = taps == nullptr ? 1 : sizes.panels;
    const int begin = taps == nullptr ? static_cast<int>(block % sizes.panels) : 0;
    const std::size_t place = taps == nullptr ? block / sizes.panels : block;
    const int first = static_cast<int>(place % tiles) * Sums::rows;
    const std::size_t head = place / tiles;
    run.warp_phase([&](int, Registers& r) {
      VITLET_UNROLL
      for (int j = 0; j < Sums::per_thread; ++j) r.squares[j] = 0;
    });
    VITLET_KEEP_ROLLED
    for (int panel = begin; panel < begin + panels; ++panel) {
      run.warp_phase([&](int, Registers& r) {
        VITLET_UNROLL
        for (int j = 0; j < Sums::per_thread; ++j) r.sums[j] = Four{};
      });
      VITLET_KEEP_ROLLED
      for (int word = 0; word < sizes.words; ++word) {
        run.phase([&](int thread, Registers&) { load(thread, head, first, panel, word, shared); });
        run.phase([&](int thread, Registers&) { Sums::fill_table(thread, signed_codes, shared); });
        run.phase([&](int thread, Registers& r) {
          Sums::add_chosen(thread, Sums::rows, shared, r.sums);
        });
      }
      run.warp_phase([&](int thread, Registers& r) {
        const int column = panel * columns + thread % Sums::quads * 4;
        const int token = first + thread / Sums::quads;
        std::size_t at = (head * tokens + token) * values + column;
        VITLET_UNROLL
        for (int j = 0; j < Sums::per_thread; ++j) {
          if (token + Sums::slots * j >= tokens || column >= values) break;
          if (taps != nullptr) blend(v + at, values - column, r.sums[j], r.squares[j]);
          store_four(out + at, r.sums[j], values - column, whole);
          at += static_cast<std::size_t>(Sums::slots) * values;
        }
      });
    }
    if (taps == nullptr) return;
    run.phase([&](int thread, Registers& r) {
      VITLET_UNROLL
      for (int j = 0; j < Sums::per_thread; ++j) {
        const int row = thread / Sums::quads + Sums::slots * j;
        shared.table[row / 16][row % 16][thread % Sums::quads] = r.squares[j];
      }
    });
    run.warp_phase([&](int thread, Registers&) {
      VITLET_KEEP_ROLLED
      for (int j = 0; j < Sums::per_thread; ++j) {
        const int row = thread / Sums::quads + Sums::slots * j;
        if (first + row < tokens) normalize(thread % Sums::quads, head, first + row, row, shared);
      }
    });
  }

  // Divides what this thread stored of one row by the row's length and adds the convolution.
  VITLET_DEVICE void normalize(int quad, std::size_t head, int token, int row,
                               const Shared& shared) const {
    float squares = 0;
    VITLET_UNROLL
    for (int i = 0; i < Sums::quads; ++i) squares += shared.table[row / 16][row % 16][i];
    const float scale = squares == 0 ? 0.0f : 1.0f / sqrtf(squares);
    const float* tap = taps + head % heads * token_taps;
    for (int column = 4 * quad; column < values; column += columns) {
      const std::size_t at = (head * tokens + token) * values + column;
      Four sum = load_four(out + at, values - column, whole);
      VITLET_UNROLL
      for (int i = 0; i < 4; ++i) sum.v[i] *= scale;
      VITLET_UNROLL
      for (int t = 0; t < static_cast<int>(token_taps); ++t) {
        const int other = token + t - static_cast<int>(token_taps) / 2;
        if (other < 0 || other >= tokens) continue;
        const Four value =
            load_four(v + (head * tokens + other) * values + column, values - column, whole);
        VITLET_UNROLL
        for (int i = 0; i < 4; ++i) sum.v[i] += tap[t] * value.v[i];
      }
      store_four(out + at, sum, values - column, whole);
    }
  }
};

template <int columns, typename Launch>
void plan_attention(const AttentionCall& call, const AttentionSizes& s, Launch& launch) {
  const BinaryAttention& t = call.task;
  const auto tokens = static_cast<int>(t.tokens), bits = static_cast<int>(t.bits);
  const auto values = static_cast<int>(t.values);
  auto* kv = static_cast<float*>(call.workspace);
  float* parts = s.chunks == 1 ? kv : kv + s.product();
  const std::size_t units = static_cast<std::size_t>(s.heads) * s.panels;
  launch(GatherValues<columns>{t.k, t.v, parts, s, tokens, bits, values, t.signed_codes},
         units * s.chunks);
  if (s.chunks > 1) {
    const std::size_t fours = s.product() / 4;
    launch(AddChunks{reinterpret_cast<const Four*>(parts), reinterpret_cast<Four*>(kv), fours,
                     s.chunks},
           (fours + AddChunks::threads - 1) / AddChunks::threads);
  }
  constexpr int rows = ChosenSums<columns>::rows;
  const int tiles = static_cast<int>((t.tokens + rows - 1) / rows);
  const bool whole = rows_are_aligned(t.v, t.values) && rows_are_aligned(t.out, t.values);
  launch(ApplyQueries<columns>{t.q, kv, t.v, t.taps, t.out, s, tokens, bits, values, tiles,
                               static_cast<int>(t.heads), t.signed_codes, whole},
         (t.taps == nullptr ? units : static_cast<std::size_t>(s.heads)) * tiles);
}

// Calls launch(kernel, blocks) for each kernel, in order.
template <typename Launch>
void plan_binary_linear_attention(const AttentionCall& call, Launch&& launch) {
  const BinaryAttention& t = call.task;
  if (t.batch * t.heads * t.tokens * t.values == 0) return;
  const AttentionSizes s = attention_sizes(t);
  if (s.columns == 32)
    plan_attention<32>(call, s, launch);
  else
    plan_attention<64>(call, s, launch);
}

}  // namespace vitlet::cuda
