// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
//
// Both products are the same job: rows of bits choose, and add up, rows of numbers. Four bits at a
// time, one of the 16 sums of four rows is looked up in a table: a quarter of the additions. For
// K^T V the bits are turned, 64 tokens at a time, so that one word holds a bit of 64 tokens.
// Without `exact` table rows are int16: 64 tokens of at most 511 are at most 32704.
#include "attention_turn.h"
#include "attention_vectors.h"
#include "binary_attention_task.h"

namespace vitlet::VITLET_ISA {
namespace {

constexpr std::size_t block = 64;  // tokens that share a scale
constexpr std::size_t entries = 16;

template <std::size_t value>
struct Constant {
  constexpr operator std::size_t() const { return value; }
};

// Adds to sum[] the table rows that four bits each of `word` choose. groups: 16, 8, or 0 for
// `count` of them.
template <typename V, std::size_t row_bytes, std::size_t groups>
VITLET_INLINE void look_up(const unsigned char* table, std::uint64_t word, std::size_t count,
                           V* sum) {
  constexpr std::size_t vectors = row_bytes / sizeof(V);
  constexpr int shift = row_bytes == 128 ? 7 : 6;
  if (groups == 0) {
    for (std::size_t g = 0; g < count; ++g, word >>= 4) {
      const unsigned char* row = table + (g * entries + (word & 15)) * row_bytes;
      VITLET_UNROLL
      for (std::size_t j = 0; j < vectors; ++j) sum[j] += read<V>(row + j * sizeof(V));
    }
    return;
  }
  V odd[vectors] = {};
  VITLET_UNROLL
  for (std::size_t g = 0; g < groups; ++g) {
    const int down = static_cast<int>(4 * g) - shift;
    const std::uint64_t offset =
        (down >= 0 ? word >> (down & 63) : word << (-down & 63)) & std::uint64_t{15} << shift;
    const unsigned char* row = table + g * entries * row_bytes + offset;
    VITLET_UNROLL
    for (std::size_t j = 0; j < vectors; ++j) {
      V& into = g % 2 == 0 ? sum[j] : odd[j];
      into += read<V>(row + j * sizeof(V));
    }
  }
  VITLET_UNROLL
  for (std::size_t j = 0; j < vectors; ++j) sum[j] += odd[j];
}

// The 16 sums of k[0..3], each times 0 or 1 (signed: -1 or 1), at table, table + row_bytes, ...
template <bool signed_codes, std::size_t row_bytes, typename V>
VITLET_INLINE void put_sums(const V* k, unsigned char* table) {
  const V zero = {};
  V low[4], high[4];
  low[3] = k[0] + k[1], high[3] = k[2] + k[3];
  if (signed_codes) {
    low[1] = k[0] - k[1], high[1] = k[2] - k[3];
    low[2] = zero - low[1], high[2] = zero - high[1];
    low[0] = zero - low[3], high[0] = zero - high[3];
  } else {
    low[0] = high[0] = zero;
    low[1] = k[0], high[1] = k[2];
    low[2] = k[1], high[2] = k[3];
  }
  VITLET_UNROLL
  for (std::size_t c = 0; c < entries; ++c) {
    const V sum = signed_codes || (c % 4 != 0 && c / 4 != 0) ? low[c % 4] + high[c / 4]
                  : c / 4 == 0                               ? low[c % 4]
                                                             : high[c / 4];
    write(table + c * row_bytes, sum);
  }
}

// One panel of one head.
struct Unit {
  const std::uint64_t *q, *k;
  const float *v, *taps;  // of the head
  float* out;
  std::size_t tokens, bits, words, values;
  std::size_t first, columns;  // columns of v and out; fewer than the panel's at the right edge
};

// Where the rows of a panel's block are: in v, or copied and filled up with zeros.
struct Rows {
  const float* data;
  std::size_t stride;
};

template <std::size_t columns>
Rows rows_of(const Unit& unit, std::size_t begin, std::size_t count, float* staged) {
  const float* from = unit.v + begin * unit.values + unit.first;
  if (count == block && unit.columns == columns) return {from, unit.values};
  std::memset(staged, 0, block * columns * sizeof(float));
  for (std::size_t n = 0; n < count; ++n)
    std::memcpy(staged + n * columns, from + n * unit.values, unit.columns * sizeof(float));
  return {staged, columns};
}

// Per column, the power of two of which the largest number is at most 511 times, and its inverse.
template <std::size_t columns>
VITLET_INLINE void find_steps(const Rows& rows, float* steps, float* inverses) {
  constexpr std::size_t vectors = columns / lanes;
  I largest[vectors] = {};  // bits of magnitudes: in order, and NaN above all
  for (std::size_t n = 0; n < block; ++n) {
    VITLET_UNROLL
    for (std::size_t j = 0; j < vectors; ++j)
      largest[j] = max(largest[j], read<I>(rows.data + n * rows.stride + j * lanes) & 0x7fffffff);
  }
  VITLET_UNROLL
  for (std::size_t j = 0; j < vectors; ++j) {
    const I exponent = max(((largest[j] + 0x4000) >> 23) - 8, I{} + 1);
    const I step = exponent << 23, nan = I{} + 0x7fc00000;
    write(steps + j * lanes, largest[j] >= 0x7f800000 ? nan : step);
    write(inverses + j * lanes, (254 - exponent) << 23);
  }
}

// The kernels of a panel with rows of row_bytes. Numbers in a table: int16 or, exact, float32.
template <bool exact, bool signed_codes, std::size_t row_bytes>
struct Panel {
  using V = typename Element<exact>::Vector;
  static constexpr std::size_t columns = row_bytes / (exact ? 4 : 2);
  static constexpr std::size_t vectors = row_bytes / sizeof(V);
  static constexpr std::size_t piece = row_bytes == 64 ? 64 : 32;  // tokens that share a table
  static constexpr std::size_t parts = columns / vectors / lanes;  // of float32 in a V

  static VITLET_INLINE void convert(const V& sum, F* values) { Element<exact>::widen(sum, values); }

  // Tables of the block's rows of v, four tokens each.
  static VITLET_INLINE void tables_of_v(const Rows& rows, std::size_t groups, const float* inverses,
                                        unsigned char* table) {
    for (std::size_t g = 0; g < groups; ++g) {
      VITLET_UNROLL
      for (std::size_t j = 0; j < vectors; ++j) {
        V k[4];
        VITLET_UNROLL
        for (std::size_t t = 0; t < 4; ++t) {
          const float* from = rows.data + (4 * g + t) * rows.stride + j * parts * lanes;
          F values[parts];
          VITLET_UNROLL
          for (std::size_t p = 0; p < parts; ++p) {
            values[p] = read<F>(from + p * lanes);
            if (!exact) values[p] *= read<F>(inverses + (j * parts + p) * lanes);
          }
          k[t] = Element<exact>::narrow(values);
        }
        put_sums<signed_codes, row_bytes>(k, table + g * entries * row_bytes + j * sizeof(V));
      }
    }
  }

  // kv[i] += the sum of the piece's rows of v that bit i chooses. int16 sums of a block's pieces
  // are kept in `sums` until the last of them.
  template <std::size_t groups, bool first, bool last>
  static void add_piece(const std::uint64_t* turned, int shift, std::size_t bits, std::size_t count,
                        AttentionWorkspace& w) {
    float* kv = w.kv;
    unsigned char* sums = w.sums;
    for (std::size_t i = 0; i < bits; ++i, kv += columns, sums += row_bytes) {
      V sum[vectors] = {};
      VITLET_UNROLL
      for (std::size_t j = 0; j < vectors && !first; ++j) sum[j] = read<V>(sums + j * sizeof(V));
      look_up<V, row_bytes, groups>(w.table, turned[i] >> shift, count, sum);
      VITLET_UNROLL
      for (std::size_t j = 0; j < vectors; ++j) {
        if (!last) {
          write(sums + j * sizeof(V), sum[j]);
          continue;
        }
        F values[parts];
        convert(sum[j], values);
        VITLET_UNROLL
        for (std::size_t p = 0; p < parts; ++p) {
          const std::size_t at = (j * parts + p) * lanes;
          // Times a power of two: exact, so that fused or not is one.
          if (!exact) values[p] *= read<F>(w.steps + at);
          write(kv + at, read<F>(kv + at) + values[p]);
        }
      }
    }
  }

  // The rows [0, count) of a block, in pieces whose table leaves room in the first-level cache.
  static void add_block(const Unit& unit, const Rows& rows, std::size_t count,
                        AttentionWorkspace& w) {
    const auto add = [&](auto groups, auto first, auto last, int shift, std::size_t tokens) {
      const Rows from{rows.data + static_cast<std::size_t>(shift) * rows.stride, rows.stride};
      tables_of_v(from, (tokens + 3) / 4, w.scales, w.table);
      add_piece<groups, exact || first, exact || last>(w.turned, shift, unit.bits, (tokens + 3) / 4,
                                                       w);
    };
    constexpr Constant<piece / 4> whole{};
    constexpr Constant<0> some{};
    constexpr Constant<1> yes{};
    if (count == block && piece == block) {
      add(whole, yes, yes, 0, piece);
    } else if (count == block) {
      add(whole, yes, some, 0, piece);
      add(whole, some, yes, block - piece, piece);
    } else if (count > piece) {
      add(whole, yes, some, 0, piece);
      add(some, some, yes, piece, count - piece);
    } else {
      add(some, yes, yes, 0, count);
    }
  }

  static void sum_values(const Unit& unit, AttentionWorkspace& w) {
    std::memset(w.kv, 0, (unit.bits + 3) / 4 * 4 * columns * sizeof(float));
    for (std::size_t begin = 0; begin < unit.tokens; begin += block) {
      const std::size_t left = unit.tokens - begin, count = left < block ? left : block;
      for (std::size_t word = 0; word < unit.words; ++word) {
        std::uint64_t* turned = w.turned + 64 * word;
        for (std::size_t n = 0; n < count; ++n) turned[n] = unit.k[(begin + n) * unit.words + word];
        for (std::size_t n = count; n < block; ++n) turned[n] = 0;
        turn(turned, unit.bits - 64 * word);
      }
      const Rows rows = rows_of<columns>(unit, begin, count, w.staged);
      if (!exact) find_steps<columns>(rows, w.steps, w.scales);
      add_block(unit, rows, count, w);
    }
  }

  // Tables of kv, four bits each. w.scales: what one of an int16 stands for.
  static void tables_of_kv(const Unit& unit, AttentionWorkspace& w) {
    for (std::size_t j = 0; j < vectors; ++j) {
      F inverses[parts] = {};
      for (std::size_t p = 0; p < parts && !exact; ++p) {
        const float* column = w.kv + (j * parts + p) * lanes;
        F sum = {};
        for (std::size_t i = 0; i < unit.bits; ++i)
          sum += (F)(read<I>(column + i * columns) & 0x7fffffff);
        sum = sum < 1e-30f ? F{} + 1e-30f : sum;
        inverses[p] = 32700.0f / sum;
        const F finite = sum * (1 / 32700.0f), nan = (F)(I{} + 0x7fc00000);
        write(w.scales + (j * parts + p) * lanes, (I)sum < 0x7f800000 ? finite : nan);
      }
      for (std::size_t g = 0; g < (unit.bits + 3) / 4; ++g) {
        V k[4];
        VITLET_UNROLL
        for (std::size_t t = 0; t < 4; ++t) {
          F values[parts];
          VITLET_UNROLL
          for (std::size_t p = 0; p < parts; ++p) {
            values[p] = read<F>(w.kv + (4 * g + t) * columns + (j * parts + p) * lanes);
            if (!exact) values[p] *= inverses[p];
          }
          k[t] = Element<exact>::narrow(values);
        }
        put_sums<signed_codes, row_bytes>(k, w.table + g * entries * row_bytes + j * sizeof(V));
      }
    }
  }

  // Rows [begin, end) of the output. groups: of a row's bits, 0 for any number of them.
  template <std::size_t groups>
  static void look_up_rows(const Unit& unit, AttentionWorkspace& w, std::size_t begin,
                           std::size_t end) {
    const std::size_t count = (unit.bits + 3) / 4;
    const bool whole = unit.columns == columns;
    for (std::size_t n = begin; n < end; ++n) {
      V sum[vectors] = {};
      if (groups != 0) {
        look_up<V, row_bytes, groups>(w.table, unit.q[n], groups, sum);
      } else {
        for (std::size_t word = 0; word < unit.words; ++word) {
          const std::size_t left = count - 16 * word;
          look_up<V, row_bytes, 0>(w.table + word * 16 * entries * row_bytes,
                                   unit.q[n * unit.words + word], left < 16 ? left : 16, sum);
        }
      }
      float* row = unit.out + n * unit.values + unit.first;
      float* to = whole ? row : w.staged;
      VITLET_UNROLL
      for (std::size_t j = 0; j < vectors; ++j) {
        F values[parts];
        convert(sum[j], values);
        VITLET_UNROLL
        for (std::size_t p = 0; p < parts; ++p) {
          const std::size_t at = (j * parts + p) * lanes;
          if (!exact) values[p] *= read<F>(w.scales + at);
          write(to + at, values[p]);
        }
      }
      if (!whole) std::memcpy(row, to, unit.columns * sizeof(float));
    }
  }
};

constexpr float one_over_pi = 0.318309886183790671538f;

// r = v / 2 + y / pi, its length, and then out = r / |r| + the convolution of v, over y.
void finish_row(const Unit& unit, std::size_t n) {
  const std::size_t values = unit.values, vector_end = values / lanes * lanes;
  const float* v = unit.v + n * values;
  float* out = unit.out + n * values;
  F squares = {};
  float total = 0;
  for (std::size_t j = 0; j < vector_end; j += lanes) {
    const F r = read<F>(v + j) * 0.5f + read<F>(out + j) * one_over_pi;
    squares += r * r;
    write(out + j, r);
  }
  for (std::size_t j = vector_end; j < values; ++j) {
    out[j] = v[j] * 0.5f + out[j] * one_over_pi;
    total += out[j] * out[j];
  }
  for (std::size_t lane = 0; lane < lanes; ++lane) total += squares[lane];
  const float scale = total == 0 ? 0 : 1 / __builtin_sqrtf(total);
  const std::size_t half = token_taps / 2;
  const std::size_t first = n < half ? half - n : 0;
  const std::size_t after = unit.tokens - n, last = after <= half ? half + after : token_taps;
  const float* near = v + first * values - half * values;
  for (std::size_t j = 0; j < vector_end; j += lanes) {
    F sum = read<F>(out + j) * scale;
    const float* from = near + j;
    for (std::size_t t = first; t < last; ++t, from += values) sum += read<F>(from) * unit.taps[t];
    write(out + j, sum);
  }
  for (std::size_t j = vector_end; j < values; ++j) {
    float sum = out[j] * scale;
    const float* from = near + j;
    for (std::size_t t = first; t < last; ++t, from += values) sum += *from * unit.taps[t];
    out[j] = sum;
  }
}

Unit head_of(const BinaryAttention& task, std::size_t head) {
  const std::size_t words = (task.bits + 63) / 64;
  const std::size_t rows = head * task.tokens, numbers = rows * task.values;
  const float* taps = task.taps == nullptr ? nullptr : task.taps + head % task.heads * token_taps;
  return {task.q + rows * words,
          task.k + rows * words,
          task.v + numbers,
          taps,
          task.out + numbers,
          task.tokens,
          task.bits,
          words,
          task.values,
          0,
          task.values};
}

template <typename P>
void run(const Unit& unit, bool finish, AttentionWorkspace& w) {
  P::sum_values(unit, w);
  P::tables_of_kv(unit, w);
  for (std::size_t begin = 0; begin < unit.tokens; begin += block) {
    const std::size_t end = unit.tokens - begin < block ? unit.tokens : begin + block;
    if (unit.bits > 60 && unit.bits <= 64)
      P::template look_up_rows<16>(unit, w, begin, end);
    else if (unit.bits > 28 && unit.bits <= 32)
      P::template look_up_rows<8>(unit, w, begin, end);
    else
      P::template look_up_rows<0>(unit, w, begin, end);
    for (std::size_t n = begin; finish && n < end; ++n) finish_row(unit, n);
  }
}

template <bool exact, bool signed_codes>
void run_width(const Unit& unit, const AttentionPlan& plan, AttentionWorkspace& w) {
  const bool finish = unit.taps != nullptr && plan.panels == 1;
  if (plan.row_bytes == 128)
    run<Panel<exact, signed_codes, 128>>(unit, finish, w);
  else
    run<Panel<exact, signed_codes, 64>>(unit, finish, w);
}

}  // namespace

void binary_attention_unit(const BinaryAttention& task, const AttentionPlan& plan,
                           std::size_t index, void* workspace) {
  auto& w = *static_cast<AttentionWorkspace*>(workspace);
  Unit unit = head_of(task, index / plan.panels);
  unit.first = index % plan.panels * plan.columns;
  const std::size_t left = task.values - unit.first;
  unit.columns = left < plan.columns ? left : plan.columns;
  if (task.exact)
    task.signed_codes ? run_width<true, true>(unit, plan, w)
                      : run_width<true, false>(unit, plan, w);
  else
    task.signed_codes ? run_width<false, true>(unit, plan, w)
                      : run_width<false, false>(unit, plan, w);
}

void binary_attention_output(const BinaryAttention& task, std::size_t head, std::size_t begin,
                             std::size_t end) {
  const Unit unit = head_of(task, head);
  for (std::size_t n = begin; n < end; ++n) finish_row(unit, n);
}

}  // namespace vitlet::VITLET_ISA
