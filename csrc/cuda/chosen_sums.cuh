#pragma once
#include "phases.cuh"

namespace vitlet::cuda {

// Sums of rows of `numbers` that 32 bits of each of up to 128 rows choose. A thread has four
// columns of every sixteenth row.
template <int columns>
struct ChosenSums {
  static constexpr int quads = columns / 4, slots = 16, threads = quads * slots;
  static constexpr int per_thread = 8, rows = slots * per_thread;

  struct alignas(16) Shared {
    float numbers[32][columns];
    float table[8][16][columns];  // for every four numbers
    std::uint32_t words[rows];
  };

  // A bit that is not set takes its number off if signed_codes, and else leaves it out.
  VITLET_DEVICE static void fill_table(int thread, bool signed_codes, Shared& shared) {
    VITLET_UNROLL
    for (int item = thread; item < 8 * columns; item += threads) {
      const int group = item / columns, column = item % columns;
      float first[4], second[4];
      const float (&numbers)[32][columns] = shared.numbers;
      pair_sums(numbers[4 * group][column], numbers[4 * group + 1][column], signed_codes, first);
      pair_sums(numbers[4 * group + 2][column], numbers[4 * group + 3][column], signed_codes,
                second);
      VITLET_UNROLL
      for (int i = 0; i < 16; ++i) shared.table[group][i][column] = first[i % 4] + second[i / 4];
    }
  }

  VITLET_DEVICE static void add_chosen(int thread, int used_rows, const Shared& shared,
                                       Four* sums) {
    const int quad = thread % quads, slot = thread / quads;
    VITLET_UNROLL
    for (int j = 0; j < per_thread; ++j) {
      if (slots * j >= used_rows) break;
      const std::uint32_t word = shared.words[slot + slots * j];
      VITLET_UNROLL
      for (int group = 0; group < 8; ++group)
        add(sums[j],
            *reinterpret_cast<const Four*>(&shared.table[group][word >> 4 * group & 15][4 * quad]));
    }
  }

 private:
  VITLET_DEVICE static void pair_sums(float a, float b, bool signed_codes, float (&sums)[4]) {
    const float no_a = signed_codes ? -a : 0.0f, no_b = signed_codes ? -b : 0.0f;
    sums[0] = no_a + no_b;
    sums[1] = a + no_b;
    sums[2] = no_a + b;
    sums[3] = a + b;
  }
};

}  // namespace vitlet::cuda
