// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
// Nothing here may be inline with external linkage: see simd.h.
//
// The work is cut into strips of `strip_columns` columns (int8_tile.h) by blocks of at most
// `tile_rows` rows. Strips' codes become bytes once, in memory that stays in the nearest cache, and
// all row blocks use them.
#include "shift_linear.h"

#include "float_activation.h"
#include "int8_tile.h"
#include "round_rows.h"

namespace vitlet::VITLET_ISA {
namespace {

constexpr std::size_t max_strips = 64;

inline bool is_small(WeightFormat format) { return format == WeightFormat::shift; }

// The sums of 16 columns to outputs: 16 of them, or (wide) 8.
template <bool wide, bool with_gelu>
inline void finish(const std::int32_t* sums, float row_scale, const float* scale, const float* bias,
                   float* out) {
  constexpr int width = wide ? 8 : 16;
  alignas(64) float y[16] = {};
  for (int j = 0; j < width; ++j) {
    float total = static_cast<float>(sums[j]);
    if (wide) total = total * 256.0f + static_cast<float>(sums[8 + j]);
    y[j] = total * (row_scale * scale[j]) + bias[j];
  }
  // gelu.h's operations in its order, whole vectors at a time: the compiler leaves that loop
  // scalar.
  if (with_gelu)
    for (std::size_t j = 0; j < width; j += lanes_f32) store_f32(y + j, gelu_f32(load_f32(y + j)));
  std::memcpy(out, y, width * sizeof(float));
}

// At most `width` floats. A copy of unknown length would cost more than a tile's epilogue.
template <std::size_t width>
inline void copy(const float* from, std::size_t count, float* to) {
  if (count == width)
    std::memcpy(to, from, width * sizeof(float));
  else
    std::memcpy(to, from, count * sizeof(float));
}

template <bool wide, bool with_gelu>
void finish_block(const LinearTask& t, const std::int32_t* sums, std::size_t column,
                  std::size_t first_row, std::size_t rows) {
  constexpr std::size_t width = wide ? 8 : 16;
  const std::size_t outputs = t.weight.outputs;
  for (std::size_t g = 0; g < strip_columns / 16; ++g) {
    const std::size_t n = (column + 16 * g) / (16 / width);
    if (n >= outputs) return;
    const std::size_t count = outputs - n < width ? outputs - n : width;
    float scale[width] = {}, bias[width] = {}, y[width];
    copy<width>(t.weight.scale + n, count, scale);
    if (t.bias != nullptr) copy<width>(t.bias + n, count, bias);
    for (std::size_t m = 0; m < rows; ++m) {
      float* out = t.out + (first_row + m) * outputs + n;
      const std::int32_t* group = sums + m * strip_columns + 16 * g;
      const float row_scale = t.row_scale[first_row + m];
      if (count == width && t.residual == nullptr) {
        finish<wide, with_gelu>(group, row_scale, scale, bias, out);
        continue;
      }
      finish<wide, with_gelu>(group, row_scale, scale, bias, y);
      if (t.residual != nullptr) {
        const float* residual = t.residual + (out - t.out);
        for (std::size_t j = 0; j < count; ++j) y[j] += residual[j];
      }
      copy<width>(y, count, out);
    }
  }
}

void finish_any(const LinearTask& t, const std::int32_t* sums, std::size_t column,
                std::size_t first_row, std::size_t rows) {
  const bool with_gelu = t.activation == Activation::gelu;
  if (t.weight.format == WeightFormat::wide)
    (with_gelu ? finish_block<true, true> : finish_block<true, false>)(t, sums, column, first_row,
                                                                       rows);
  else
    (with_gelu ? finish_block<false, true> : finish_block<false, false>)(t, sums, column, first_row,
                                                                         rows);
}

}  // namespace

void shift_linear_round(const LinearTask& t, std::size_t begin, std::size_t end) {
  const std::int32_t zero = offset_rows(is_small(t.weight.format)) ? 128 : 0;
  for (std::size_t m = begin; m < end; ++m)
    round_row(t.x + m * t.weight.inputs, t.weight.inputs, t.stride, zero, t.q + m * t.stride,
              t.row_scale + m);
}

void shift_linear_multiply(const LinearTask& t, std::size_t part) {
  const LinearWeight& w = t.weight;
  const bool small = is_small(w.format), dense = w.format == WeightFormat::dense;
  std::uint8_t* expanded = t.space + part * t.part_space;
  auto* sums = reinterpret_cast<std::int32_t*>(expanded + linear_strip_space(t.stride));
  const std::size_t bytes = panel_bytes(w.format, w.inputs);
  const std::size_t blocks = (t.rows + tile_rows - 1) / tile_rows;
  // Strips of nothing but padding are left out: of 32 outputs they would be half of the work.
  const std::size_t columns = w.format == WeightFormat::wide ? (w.outputs + 7) / 8 * 16 : w.outputs;
  const std::size_t strips = (columns + strip_columns - 1) / strip_columns;
  const bool direct = tiles_read_codes && !dense && blocks == 1;
  // As many strips as fit into the nearest cache are expanded together, so that a block of rows
  // meets all of them at once and writes whole rows.
  const std::size_t room = t.stride * strip_columns;
  std::size_t most = 1;
  while (blocks > 1 && most < max_strips && (most + 1) * room <= linear_strip_bytes) ++most;
  const std::size_t group_units = most * blocks;
  const std::uint8_t* strip_bytes[max_strips] = {};
  const std::size_t units = strips * blocks;
  const std::size_t begin = units * part / t.parts, end = units * (part + 1) / t.parts;
  std::size_t ready = static_cast<std::size_t>(-1);  // the group of strips that is expanded
  for (std::size_t unit = begin; unit < end; ++unit) {
    const std::size_t group = unit / group_units, inside = unit % group_units;
    const std::size_t first = group * most, left = strips - first;
    const std::size_t width = left < most ? left : most;
    const std::size_t block = inside / width, strip = first + inside % width;
    const std::size_t column = strip * strip_columns;
    const std::size_t length = t.rows / blocks, longer = t.rows % blocks;
    const std::size_t row = block * length + (block < longer ? block : longer);
    const std::size_t rows = length + (block < longer ? 1 : 0);
    const Tile tile{t.q + row * t.stride, t.stride, w.sums + column, sums};
    if (direct) {
      multiply_codes(tile, rows, w.panels + column / 64 * bytes, w.format == WeightFormat::wide);
    } else {
      if (group != ready) {
        for (std::size_t i = 0; i < width; ++i) {
          const std::size_t at = (first + i) * strip_columns;
          const std::uint8_t* panel = w.panels + at / 64 * bytes;
          strip_bytes[i] =
              dense ? strip_of_bytes(panel, at % 64, t.stride, expanded + i * room)
                    : strip_of_codes(panel, at % 64, t.stride, w.format == WeightFormat::wide,
                                     expanded + i * room);
        }
        ready = group;
      }
      multiply_bytes(tile, rows, strip_bytes[strip - first], small);
    }
    finish_any(t, sums, column, row, rows);
  }
}

}  // namespace vitlet::VITLET_ISA
