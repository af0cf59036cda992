#include "float_linear.h"

#include <cstring>

#include "dispatch.h"
#include "parallel.h"
#include "shift_linear.h"
#include "token_mixer_weights.h"

namespace vitlet {

// Rounds the rows begin..end - 1. The kernel multiplies part `part` of task.parts.
using FloatRound = void(const FloatTask& task, std::size_t begin, std::size_t end);
using FloatMultiply = void(const FloatTask& task, std::size_t part);
VITLET_BF16_KERNEL_TABLE(float_linear_round, FloatRound)
VITLET_BF16_KERNEL_TABLE(float_linear_multiply, FloatMultiply)

namespace {

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

bool is_codes(FloatFormat format) {
  return format == FloatFormat::shift || format == FloatFormat::wide;
}

// A thread is worth waking for some ten microseconds of work.
std::size_t parts_of(std::size_t rows, const FloatWeight& weight, int threads) {
  const double products = static_cast<double>(rows) * static_cast<double>(weight.inputs) *
                          static_cast<double>(weight.outputs);
  const double most = 1 + products / (1 << 19);
  if (threads <= 1 || most < 2) return 1;
  return most < threads ? static_cast<std::size_t>(most) : static_cast<std::size_t>(threads);
}

std::size_t rounded_bytes(std::size_t rows, const FloatWeight& weight) {
  if (weight.format == FloatFormat::fp32) return 0;
  return round_up(rows * float_depth(weight.format, weight.inputs) * sizeof(float), 64);
}

// Rows whose x stays in the second or third cache; and so many that expanding the weights is little
// beside their use.
std::size_t group_of(const FloatWeight& weight) {
  constexpr std::size_t bytes = std::size_t{1} << 20, least = 192;
  const std::size_t rows = bytes / sizeof(float) / (weight.inputs + 1) + 1;
  return weight.format == FloatFormat::fp32 || rows > least ? rows : least;
}

// Inputs whose weights stay in the second cache, as equal as can be. One row uses nothing twice.
std::size_t chunk_of(std::size_t rows, const FloatWeight& weight) {
  const std::size_t most = is_codes(weight.format) ? 512 : 2048;
  const std::size_t depth = float_depth(weight.format, weight.inputs);
  if (depth == 0 || (rows == 1 && !is_codes(weight.format))) return round_up(depth + 1, 8);
  const std::size_t chunks = (depth + most - 1) / most;
  return round_up((depth + chunks - 1) / chunks, 8);
}

// A chunk of four panels, expanded, and sums of four panels for all rows of a group.
std::size_t part_space(std::size_t rows, const FloatWeight& weight) {
  const std::size_t group = group_of(weight) + 12;  // groups are cut between blocks
  return (chunk_of(rows, weight) + (rows < group ? rows : group)) * 4 * float_panel * sizeof(float);
}

}  // namespace

std::size_t float_depth(FloatFormat format, std::size_t inputs) {
  if (is_codes(format)) return padded_inputs(inputs);
  return format == FloatFormat::bf16 ? round_up(inputs, 2) : inputs;
}

std::size_t float_panel_bytes(FloatFormat format, std::size_t outputs, std::size_t inputs) {
  if (is_codes(format)) {
    const WeightFormat codes =
        format == FloatFormat::wide ? WeightFormat::wide : WeightFormat::shift;
    return padded_columns(codes, outputs) / 64 * panel_bytes(codes, inputs);
  }
  const std::size_t size = format == FloatFormat::bf16 ? sizeof(std::uint16_t) : sizeof(float);
  return round_up(outputs, float_panel) * float_depth(format, inputs) * size;
}

void pack_float_weight(const float* weight, std::size_t outputs, std::size_t inputs,
                       std::size_t output_stride, std::size_t input_stride, FloatFormat format,
                       void* panels) {
  if (outputs == 0 || inputs == 0) return;  // and perhaps no memory at all
  const std::size_t depth = float_depth(format, inputs);
  std::memset(panels, 0, float_panel_bytes(format, outputs, inputs));
  for (std::size_t n = 0; n < outputs; ++n) {
    const float* row = weight + n * output_stride;
    const std::size_t panel = n / float_panel, column = n % float_panel;
    if (format == FloatFormat::fp32) {
      float* out = static_cast<float*>(panels) + panel * depth * float_panel + column;
      for (std::size_t k = 0; k < inputs; ++k) out[k * float_panel] = row[k * input_stride];
    } else {
      auto* out = static_cast<std::uint32_t*>(panels) + panel * depth / 2 * float_panel + column;
      for (std::size_t k = 0; k < inputs; ++k) {
        const std::uint32_t bits = round_to_bf16(row[k * input_stride]);
        out[k / 2 * float_panel] |= k % 2 == 0 ? bits >> 16 : bits;
      }
    }
  }
}

std::size_t float_linear_workspace(std::size_t rows, const FloatWeight& weight, int threads) {
  return rounded_bytes(rows, weight) + parts_of(rows, weight, threads) * part_space(rows, weight);
}

void float_linear(const FloatLinear& call, void* workspace, int threads, Isa isa) {
  const FloatWeight& weight = call.weight;
  if (call.rows == 0 || weight.outputs == 0) return;
  FloatTask task{};
  task.call = call;
  task.depth = float_depth(weight.format, weight.inputs);
  task.chunk = chunk_of(call.rows, weight);
  task.group = group_of(weight);
  task.parts = parts_of(call.rows, weight, threads);
  task.part_space = part_space(call.rows, weight);
  task.rounded = static_cast<float*>(workspace);
  task.space = static_cast<std::uint8_t*>(workspace) + rounded_bytes(call.rows, weight);

  struct Call {
    const FloatTask& task;
    FloatRound* round;
    FloatMultiply* multiply;
  } both{task, float_linear_round_table[static_cast<int>(isa)],
         float_linear_multiply_table[static_cast<int>(isa)]};
  const int parts = static_cast<int>(task.parts);
  if (weight.format != FloatFormat::fp32)
    parallel_for(
        call.rows, parts,
        [](void* p, std::size_t begin, std::size_t end) {
          const Call& c = *static_cast<Call*>(p);
          c.round(c.task, begin, end);
        },
        &both);
  parallel_for(
      task.parts, parts,
      [](void* p, std::size_t begin, std::size_t end) {
        const Call& c = *static_cast<Call*>(p);
        for (std::size_t part = begin; part < end; ++part) c.multiply(c.task, part);
      },
      &both);
}

}  // namespace vitlet
