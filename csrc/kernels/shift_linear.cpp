#include "shift_linear.h"

#include "dispatch.h"
#include "parallel.h"

namespace vitlet {

// Rounds the rows begin..end - 1. The kernel multiplies part `part` of task.parts.
using RoundKernel = void(const LinearTask& task, std::size_t begin, std::size_t end);
using MultiplyKernel = void(const LinearTask& task, std::size_t part);
VITLET_INT8_KERNEL_TABLE(shift_linear_round, RoundKernel)
VITLET_INT8_KERNEL_TABLE(shift_linear_multiply, MultiplyKernel)

namespace {

constexpr std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// A thread is worth waking for a few microseconds of work.
std::size_t parts_of(std::size_t rows, const LinearWeight& weight, int threads) {
  const double products = static_cast<double>(rows) * static_cast<double>(weight.inputs) *
                          static_cast<double>(weight.outputs);
  const double most = 1 + products / (1 << 21);
  if (threads <= 1 || most < 2) return 1;
  return most < threads ? static_cast<std::size_t>(most) : static_cast<std::size_t>(threads);
}

// Strips of bytes, and six rows of one's sums.
std::size_t part_space(const LinearWeight& weight) {
  return linear_strip_space(padded_inputs(weight.inputs)) +
         std::size_t{6} * 64 * sizeof(std::int32_t);
}

}  // namespace

std::size_t shift_linear_workspace(std::size_t rows, const LinearWeight& weight, int threads) {
  return round_up(rows * padded_inputs(weight.inputs), 64) + round_up(rows * sizeof(float), 64) +
         parts_of(rows, weight, threads) * part_space(weight);
}

void shift_linear(const float* x, std::size_t rows, const LinearWeight& weight, const float* bias,
                  Activation activation, const float* residual, float* out, void* workspace,
                  int threads, Isa isa) {
  if (rows == 0 || weight.outputs == 0) return;
  LinearTask task{};
  task.x = x;
  task.rows = rows;
  task.stride = padded_inputs(weight.inputs);
  task.weight = weight;
  task.bias = bias;
  task.activation = activation;
  task.residual = residual;
  task.out = out;
  task.part_space = part_space(weight);
  task.parts = parts_of(rows, weight, threads);
  task.q = static_cast<std::uint8_t*>(workspace);
  std::uint8_t* scales = task.q + round_up(rows * task.stride, 64);
  task.row_scale = reinterpret_cast<float*>(scales);
  task.space = scales + round_up(rows * sizeof(float), 64);

  struct Call {
    const LinearTask& task;
    RoundKernel* round;
    MultiplyKernel* multiply;
  } call{task, shift_linear_round_table[static_cast<int>(isa)],
         shift_linear_multiply_table[static_cast<int>(isa)]};
  const int parts = static_cast<int>(task.parts);
  parallel_for(
      rows, parts,
      [](void* p, std::size_t begin, std::size_t end) {
        const Call& c = *static_cast<Call*>(p);
        c.round(c.task, begin, end);
      },
      &call);
  parallel_for(
      task.parts, parts,
      [](void* p, std::size_t begin, std::size_t end) {
        const Call& c = *static_cast<Call*>(p);
        for (std::size_t part = begin; part < end; ++part) c.multiply(c.task, part);
      },
      &call);
}

}  // namespace vitlet
