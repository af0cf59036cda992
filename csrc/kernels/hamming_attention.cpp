#include "hamming_attention.h"

#include <cmath>
#include <limits>

#include "dispatch.h"
#include "parallel.h"

namespace vitlet {

using RowsKernel = void(const HammingAttention&, const HammingTable&, std::size_t, std::size_t,
                        std::size_t, void*);
VITLET_KERNEL_TABLE(hamming_attention_rows, RowsKernel)

namespace {

constexpr std::size_t piece = 2 * most_hamming_rows;  // rows of q that are one piece of work

struct Job {
  const HammingAttention& task;
  HammingTable table;
  std::size_t pieces, slots;  // pieces: of all heads
  unsigned char* workspace;
  std::size_t slot_bytes;
  int isa;
};

void run_slots(void* context, std::size_t begin, std::size_t end) {
  const Job& job = *static_cast<const Job*>(context);
  const std::size_t tokens = job.task.tokens, of_head = (tokens + piece - 1) / piece;
  for (std::size_t slot = begin; slot < end; ++slot)
    for (std::size_t i = slot; i < job.pieces; i += job.slots) {
      const std::size_t first = i % of_head * piece;
      const std::size_t last = first + piece < tokens ? first + piece : tokens;
      hamming_attention_rows_table[job.isa](job.task, job.table, i / of_head, first, last,
                                            job.workspace + slot * job.slot_bytes);
    }
}

std::size_t pieces_of(const HammingAttention& t) {
  return t.batch * t.heads * ((t.tokens + piece - 1) / piece);
}

std::size_t slots_of(const HammingAttention& t, int threads) {
  const auto most = static_cast<std::size_t>(threads < 1 ? 1 : threads);
  return most < pieces_of(t) ? most : pieces_of(t);
}

std::size_t slot_bytes(const HammingAttention& t) {
  return sizeof(HammingWorkspace) + most_hamming_rows * hamming_row_bytes(t.tokens);
}

}  // namespace

HammingTable hamming_table(const HammingAttention& t) {
  const double step = (t.signed_codes ? 2 : 1) * std::fabs(double{t.scale});
  HammingTable table{};
  for (std::size_t i = 0; i <= t.bits; ++i) {
    const auto w = static_cast<float>(std::exp(-step * static_cast<double>(i)));
    table.weight[i] = w < std::numeric_limits<float>::min() ? 0 : w;
  }
  return table;
}

std::size_t hamming_attention_workspace(const HammingAttention& task, int threads) {
  return slots_of(task, threads) * slot_bytes(task);
}

void hamming_attention(const HammingAttention& task, void* workspace, int threads, Isa isa) {
  if (task.tokens == 0 || task.values == 0 || task.batch * task.heads == 0) return;
  const std::size_t slots = slots_of(task, threads);
  Job job{task,
          hamming_table(task),
          pieces_of(task),
          slots,
          static_cast<unsigned char*>(workspace),
          slot_bytes(task),
          static_cast<int>(isa)};
  parallel_for(slots, static_cast<int>(slots), run_slots, &job);
}

}  // namespace vitlet
