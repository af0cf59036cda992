// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
// Nothing here may be inline with external linkage: see simd.h.
//
// The work is cut into groups of rows that stay in the second cache, within a group into strips of
// a few panels, a strip into chunks of inputs that stay in a near cache, and the group into
// blocks of at most tile_rows rows, each of which uses a chunk. Chunks add to the group's sums.
#include "float_linear.h"

#include "float_activation.h"
#include "float_linear_codes.h"
#include "float_linear_tile.h"

namespace vitlet::VITLET_ISA {
namespace {

constexpr std::size_t most_columns = 4 * panel_columns;  // of a strip

// One strip: its panels, their bias and scale, padded.
struct Strip {
  std::size_t first, panels, columns;
  float bias[most_columns], scale[most_columns];
};

bool is_codes(FloatFormat format) {
  return format == FloatFormat::shift || format == FloatFormat::wide;
}

void take_columns(const FloatLinear& c, Strip& s) {
  const std::size_t column = s.first * panel_columns, rest = c.weight.outputs - column;
  s.columns = s.panels * panel_columns < rest ? s.panels * panel_columns : rest;
  std::memset(s.bias, 0, sizeof(s.bias));
  std::memset(s.scale, 0, sizeof(s.scale));
  if (c.bias != nullptr) std::memcpy(s.bias, c.bias + column, s.columns * sizeof(float));
  if (is_codes(c.weight.format))
    std::memcpy(s.scale, c.weight.scale + column, s.columns * sizeof(float));
}

// sums: rows of most_columns. scaled: bias and scale are still to come.
template <Activation activation, bool scaled>
void finish(const FloatLinear& c, const Strip& s, const float* sums, std::size_t row,
            std::size_t rows) {
  for (std::size_t m = 0; m < rows; ++m) {
    const std::size_t place = (row + m) * c.weight.outputs + s.first * panel_columns;
    for (std::size_t n = 0; n < s.columns; n += lanes_f32) {
      F32 y = load_f32(sums + m * most_columns + n);
      if (scaled) y = y * load_f32(s.scale + n) + load_f32(s.bias + n);
      y = activate<activation>(y);
      float some[lanes_f32] = {};
      const bool whole = n + lanes_f32 <= s.columns;
      const std::size_t bytes = (whole ? lanes_f32 : s.columns - n) * sizeof(float);
      if (c.residual != nullptr) {
        const float* residual = c.residual + place + n;
        if (!whole) residual = static_cast<const float*>(std::memcpy(some, residual, bytes));
        y += load_f32(residual);
      }
      if (whole) {
        store_f32(c.out + place + n, y);
      } else {
        store_f32(some, y);
        std::memcpy(c.out + place + n, some, bytes);
      }
    }
  }
}

using Finish = void(const FloatLinear&, const Strip&, const float*, std::size_t, std::size_t);

template <bool scaled>
Finish* finish_for(Activation activation) {
  switch (activation) {
    case Activation::gelu:
      return finish<Activation::gelu, scaled>;
    case Activation::relu:
      return finish<Activation::relu, scaled>;
    case Activation::silu:
      return finish<Activation::silu, scaled>;
    default:
      return finish<Activation::none, scaled>;
  }
}

// How the weights come to the tiles: as they lie in the panels, or expanded to t.space first.
enum class Source { direct, pairs, codes };

// Inputs begin..end - 1 of the strip's panels, as `multiply` likes them.
template <Multiply multiply, Source source>
void expand(const FloatTask& t, const Strip& s, std::size_t begin, std::size_t end, float* out) {
  const FloatWeight& w = t.call.weight;
  for (std::size_t p = s.first; p < s.first + s.panels; ++p) {
    if constexpr (source == Source::codes) {
      expand_codes<multiply == Multiply::fp32>(static_cast<const std::uint8_t*>(w.panels), t.depth,
                                               w.format == FloatFormat::wide, p, begin, end,
                                               reinterpret_cast<std::uint32_t*>(out));
      out += (end - begin) * panel_columns / (multiply == Multiply::fp32 ? 1 : 2);
    } else {
      const float* pairs = static_cast<const float*>(w.panels) + p * t.depth / 2 * panel_columns;
      expand_pairs(pairs + begin / 2 * panel_columns, (end - begin) / 2, out);
      out += (end - begin) * panel_columns;
    }
  }
}

std::size_t panels_together(std::size_t rows) {
  const int together = rows == 1   ? most_panels(1)
                       : rows <= 3 ? most_panels(tile_rows < 3 ? tile_rows : 3)
                                   : most_panels(tile_rows);
  return static_cast<std::size_t>(together);
}

struct Blocks {
  std::size_t rows, count;
  std::size_t begin(std::size_t block) const {
    const std::size_t length = rows / count, longer = rows % count;
    return block * length + (block < longer ? block : longer);
  }
};

// Lets the blocks of this strip fetch the next one, which follows it. Codes are small enough.
void fetch_next_strip(const FloatTask& t, const Strip& s, std::size_t blocks, FloatTile& tile) {
  const FloatWeight& w = t.call.weight;
  tile.next = static_cast<const char*>(w.panels);
  tile.next_step = 0;
  if (is_codes(w.format)) return;
  const std::size_t panel = float_panel_bytes(w.format, panel_columns, w.inputs);
  const std::size_t steps = blocks * (w.format == FloatFormat::fp32 ? t.depth : t.depth / 2);
  if (steps > 0) tile.next_step = (s.panels * panel + steps - 1) / steps;
  tile.next += (s.first + s.panels) * panel;
}

// The blocks from..to - 1 of a strip. space: an expanded chunk, and sums of each row of a group.
template <Multiply multiply, Source source>
void multiply_strip(const FloatTask& t, const Strip& s, const Blocks& blocks, std::size_t from,
                    std::size_t to, float* space) {
  constexpr bool codes = source == Source::codes;
  constexpr std::size_t w_unit = multiply == Multiply::fp32 ? 1 : 2;  // inputs in 32 bits
  constexpr std::size_t x_unit = multiply == Multiply::bf16 ? 2 : 1;
  const FloatLinear& c = t.call;
  const float* x = c.weight.format == FloatFormat::fp32 ? c.x : t.rounded;
  const std::size_t outputs = c.weight.outputs, column = s.first * panel_columns;
  const bool plain = !codes && c.activation == Activation::none && c.residual == nullptr &&
                     s.columns == s.panels * panel_columns;
  Finish* const finish = finish_for<codes>(c.activation);
  float* const sums = space + t.chunk * most_columns;
  const std::size_t first_row = blocks.begin(from);
  const float zeros[most_columns] = {};
  FloatTile tile;
  fetch_next_strip(t, s, to - from, tile);
  for (std::size_t k = 0;; k += t.chunk) {
    const bool last = k + t.chunk >= t.depth;
    const std::size_t end = last ? t.depth : k + t.chunk;
    if constexpr (source == Source::direct) {
      tile.panel_stride = t.depth / w_unit * panel_columns;
      tile.w = static_cast<const float*>(c.weight.panels) + s.first * tile.panel_stride +
               k / w_unit * panel_columns;
    } else {
      expand<multiply, source>(t, s, k, end, space);
      tile.panel_stride = (end - k) / w_unit * panel_columns;
      tile.w = space;
    }
    tile.steps = (end - k) / w_unit;
    tile.x_stride = t.depth / x_unit;
    for (std::size_t block = from; block < to; ++block) {
      const std::size_t row = blocks.begin(block), rows = blocks.begin(block + 1) - row;
      float* const so_far = sums + (row - first_row) * most_columns;
      tile.x = x + row * tile.x_stride + k / x_unit;
      tile.start = k > 0 ? so_far : codes ? zeros : s.bias;
      tile.start_stride = k > 0 ? most_columns : 0;
      const bool to_out = last && plain;
      tile.out = to_out ? c.out + row * outputs + column : so_far;
      tile.out_stride = to_out ? outputs : most_columns;
      multiply_any<multiply>(tile, rows, s.panels);
      tile.next += tile.next_step * tile.steps;
      if (last && !plain) finish(c, s, so_far, row, rows);
    }
    if (last) return;
  }
}

template <Multiply multiply, Source source>
void multiply_part(const FloatTask& t, std::size_t part) {
  const FloatLinear& c = t.call;
  const std::size_t panels = (c.weight.outputs + panel_columns - 1) / panel_columns;
  const std::size_t together = panels_together(c.rows);
  const std::size_t strips = (panels + together - 1) / together;
  const Blocks blocks{c.rows, (c.rows + tile_rows - 1) / tile_rows};
  const std::size_t wanted = (c.rows + t.group - 1) / t.group;
  const std::size_t groups = wanted < blocks.count ? wanted : blocks.count;
  const std::size_t begin = blocks.count * strips * part / t.parts;
  const std::size_t end = blocks.count * strips * (part + 1) / t.parts;
  auto* space = reinterpret_cast<float*>(t.space + part * t.part_space);
  std::size_t unit = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    const std::size_t first = group * blocks.count / groups;
    const std::size_t count = (group + 1) * blocks.count / groups - first;
    for (std::size_t strip = 0; strip < strips; ++strip, unit += count) {
      if (unit >= end) return;
      if (unit + count <= begin) continue;
      Strip s;
      s.first = strip * panels / strips;
      s.panels = (strip + 1) * panels / strips - s.first;
      take_columns(c, s);
      multiply_strip<multiply, source>(t, s, blocks, first + (unit < begin ? begin - unit : 0),
                                       first + (end - unit < count ? end - unit : count), space);
    }
  }
}

}  // namespace

void float_linear_round(const FloatTask& t, std::size_t begin, std::size_t end) {
  const std::size_t inputs = t.call.weight.inputs;
  float some[lanes_f32];
  for (std::size_t m = begin; m < end; ++m) {
    const float* from = t.call.x + m * inputs;
    for (std::size_t k = 0; k < t.depth; k += lanes_f32) {
      const bool whole = k + lanes_f32 <= inputs;
      if (!whole) {
        std::memset(some, 0, sizeof(some));
        if (k < inputs) std::memcpy(some, from + k, (inputs - k) * sizeof(float));
      }
      const F32 value = load_f32(whole ? from + k : some);
      const std::size_t count = t.depth - k < lanes_f32 ? t.depth - k : lanes_f32;
#if defined(__AVX512BF16__)
      const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
      char* to = reinterpret_cast<char*>(t.rounded) + (m * t.depth + k) * 2;
      std::memcpy(to, &rounded, count == lanes_f32 ? sizeof(rounded) : count * 2);
#else
      const F32Bits rounded = bf16_bits(value);
      std::memcpy(t.rounded + m * t.depth + k, &rounded,
                  count == lanes_f32 ? sizeof(rounded) : count * sizeof(float));
#endif
    }
  }
}

void float_linear_multiply(const FloatTask& t, std::size_t part) {
  const FloatFormat format = t.call.weight.format;
  if (format == FloatFormat::fp32) return multiply_part<Multiply::fp32, Source::direct>(t, part);
  if constexpr (multiplies_bf16) {
    if (format == FloatFormat::bf16) return multiply_part<Multiply::bf16, Source::direct>(t, part);
    return multiply_part<Multiply::bf16, Source::codes>(t, part);
  } else {
    if (format != FloatFormat::bf16) return multiply_part<Multiply::fp32, Source::codes>(t, part);
    if (t.call.rows <= few_rows) return multiply_part<Multiply::pairs, Source::direct>(t, part);
    return multiply_part<Multiply::fp32, Source::pairs>(t, part);
  }
}

}  // namespace vitlet::VITLET_ISA
