// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
// Nothing here may be inline with external linkage: see simd.h.
//
// The work is cut into groups of rows that stay in the second cache, within a group into strips of
// a few panels, and within a strip into blocks of at most tile_rows rows. A strip stays in the
// nearest cache while the blocks of the group use it.
#include "float_linear.h"

#include "float_activation.h"
#include "float_linear_codes.h"
#include "float_linear_tile.h"

namespace vitlet::VITLET_ISA {
namespace {

constexpr std::size_t group_bytes = std::size_t{1} << 18;  // of x
constexpr std::size_t most_columns = 4 * panel_columns;    // of a strip
constexpr std::size_t least_group = 96;                    // rows
constexpr std::size_t chunk = 256;  // inputs of one row that are expanded at once

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

// One row of codes: a chunk of the strip is expanded and used at once.
template <Multiply multiply>
void multiply_row_of_codes(const FloatTask& t, const Strip& s, float* space, float* sums) {
  constexpr std::size_t unit = multiply == Multiply::bf16 ? 2 : 1;
  std::memset(sums, 0, most_columns * sizeof(float));
  for (std::size_t begin = 0; begin < t.depth; begin += chunk) {
    const std::size_t end = begin + chunk < t.depth ? begin + chunk : t.depth;
    const std::size_t steps = (end - begin) / unit;
    expand<multiply, Source::codes>(t, s, begin, end, space);
    const FloatTile tile{
        t.rounded + begin / unit, 0, space, steps * panel_columns, steps, sums, sums, 0};
    multiply_any<multiply>(tile, 1, s.panels);
  }
}

std::size_t panels_together(std::size_t rows) {
  const int together = rows == 1   ? most_panels(1)
                       : rows <= 3 ? most_panels(tile_rows < 3 ? tile_rows : 3)
                                   : most_panels(tile_rows);
  return static_cast<std::size_t>(together);
}

// Rows whose x stays in the cache; so many that the expansion of a strip is little beside its use.
std::size_t rows_together(const FloatTask& t, bool expanded) {
  const std::size_t rows = group_bytes / sizeof(float) / (t.depth + 1) + 1;
  return expanded && rows < least_group ? least_group : rows;
}

template <Multiply multiply, Source source>
void multiply_part(const FloatTask& t, std::size_t part) {
  constexpr bool codes = source == Source::codes, direct = source == Source::direct;
  const FloatLinear& c = t.call;
  const FloatWeight& w = c.weight;
  const std::size_t steps = multiply == Multiply::fp32 ? t.depth : t.depth / 2;
  const std::size_t x_stride = multiply == Multiply::bf16 ? t.depth / 2 : t.depth;
  const float* x = w.format == FloatFormat::fp32 ? c.x : t.rounded;
  auto* space = reinterpret_cast<float*>(t.space + part * t.part_space);
  Finish* const end_with = finish_for<codes>(c.activation);
  const bool plain = !codes && c.activation == Activation::none && c.residual == nullptr;

  const std::size_t panels = (w.outputs + panel_columns - 1) / panel_columns;
  const std::size_t together = panels_together(c.rows);
  const std::size_t strips = (panels + together - 1) / together;
  const std::size_t blocks = (c.rows + tile_rows - 1) / tile_rows;
  const std::size_t group_rows = rows_together(t, !direct);
  const std::size_t wanted = (c.rows + group_rows - 1) / group_rows;
  const std::size_t groups = wanted < blocks ? wanted : blocks;
  const std::size_t begin = blocks * strips * part / t.parts;
  const std::size_t end = blocks * strips * (part + 1) / t.parts;

  Strip s;
  float sums[tile_rows * most_columns];
  const float zeros[most_columns] = {};
  std::size_t unit = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    const std::size_t first_block = group * blocks / groups;
    const std::size_t count = (group + 1) * blocks / groups - first_block;
    for (std::size_t strip = 0; strip < strips; ++strip, unit += count) {
      if (unit >= end) return;
      if (unit + count <= begin) continue;
      const std::size_t from = first_block + (unit < begin ? begin - unit : 0);
      const std::size_t to = first_block + (end - unit < count ? end - unit : count);
      s.first = strip * panels / strips;
      s.panels = (strip + 1) * panels / strips - s.first;
      take_columns(c, s);
      if (codes && c.rows == 1) {
        multiply_row_of_codes<multiply>(t, s, space, sums);
        end_with(c, s, sums, 0, 1);
        continue;
      }
      const std::size_t panel_stride = steps * panel_columns;
      const float* weights = static_cast<const float*>(w.panels) + s.first * panel_stride;
      if constexpr (!direct) {
        expand<multiply, source>(t, s, 0, t.depth, space);
        weights = space;
      }
      const bool to_out = plain && s.columns == s.panels * panel_columns;
      for (std::size_t block = from; block < to; ++block) {
        const std::size_t length = c.rows / blocks, longer = c.rows % blocks;
        const std::size_t row = block * length + (block < longer ? block : longer);
        const std::size_t rows = length + (block < longer ? 1 : 0);
        const FloatTile tile{x + row * x_stride,
                             x_stride,
                             weights,
                             panel_stride,
                             steps,
                             codes ? zeros : s.bias,
                             to_out ? c.out + row * w.outputs + s.first * panel_columns : sums,
                             to_out ? w.outputs : most_columns};
        multiply_any<multiply>(tile, rows, s.panels);
        if (!to_out) end_with(c, s, sums, row, rows);
      }
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
