#include "binary_linear_attention.h"

#include "dispatch.h"
#include "pack_bits.h"
#include "parallel.h"

namespace vitlet {

using UnitKernel = void(const BinaryAttention&, const AttentionPlan&, std::size_t, void*);
using OutputKernel = void(const BinaryAttention&, std::size_t, std::size_t, std::size_t);
VITLET_KERNEL_TABLE(binary_attention_unit, UnitKernel)
VITLET_KERNEL_TABLE(binary_attention_output, OutputKernel)

namespace {

AttentionPlan make_plan(const BinaryAttention& t, int threads) {
  const std::size_t heads = t.batch * t.heads, element = t.exact ? 4 : 2;
  AttentionPlan plan{};
  plan.row_bytes = t.values * element <= 64 ? 64 : 128;
  // Too few heads to go round: half as wide panels, unless the output needs whole rows at once.
  if (heads < static_cast<std::size_t>(threads)) plan.row_bytes = 64;
  plan.columns = plan.row_bytes / element;
  plan.panels = (t.values + plan.columns - 1) / plan.columns;
  plan.units = heads * plan.panels;
  return plan;
}

struct Job {
  const BinaryAttention& task;
  AttentionPlan plan;
  std::size_t slots;
  unsigned char* workspace;
  int isa;
};

constexpr std::size_t tile = 64;  // tokens of the output that are one piece of work

void run_units(void* context, std::size_t begin, std::size_t end) {
  const Job& job = *static_cast<const Job*>(context);
  for (std::size_t slot = begin; slot < end; ++slot)
    for (std::size_t unit = slot; unit < job.plan.units; unit += job.slots)
      binary_attention_unit_table[job.isa](job.task, job.plan, unit,
                                           job.workspace + slot * sizeof(AttentionWorkspace));
}

void run_output(void* context, std::size_t begin, std::size_t end) {
  const Job& job = *static_cast<const Job*>(context);
  const std::size_t tokens = job.task.tokens, tiles = (tokens + tile - 1) / tile;
  for (std::size_t i = begin; i < end; ++i) {
    const std::size_t first = i % tiles * tile;
    binary_attention_output_table[job.isa](job.task, i / tiles, first,
                                           first + tile < tokens ? first + tile : tokens);
  }
}

std::size_t slots_of(const AttentionPlan& plan, int threads) {
  const auto most = static_cast<std::size_t>(threads < 1 ? 1 : threads);
  return most < plan.units ? most : plan.units;
}

}  // namespace

std::size_t binary_linear_attention_workspace(const BinaryAttention& task, int threads) {
  return slots_of(make_plan(task, threads), threads) * sizeof(AttentionWorkspace);
}

void binary_linear_attention(const BinaryAttention& task, void* workspace, int threads, Isa isa) {
  if (task.tokens == 0 || task.values == 0 || task.batch * task.heads == 0) return;
  const AttentionPlan plan = make_plan(task, threads);
  Job job{task, plan, slots_of(plan, threads), static_cast<unsigned char*>(workspace),
          static_cast<int>(isa)};
  parallel_for(job.slots, static_cast<int>(job.slots), run_units, &job);
  const bool done = task.taps == nullptr || plan.panels == 1;  // a unit did it
  if (done) return;
  const std::size_t tiles = (task.tokens + tile - 1) / tile;
  parallel_for(task.batch * task.heads * tiles, threads, run_output, &job);
}

}  // namespace vitlet
