#pragma once
#include "linear_product.cuh"
#include "shift_linear.h"

// shift_linear for GPUs: rows are rounded to bytes as on a processor, products of 16 x 8 x 32 bytes
// are summed in 32 bits, and the float operations are the reference's in its order.
namespace vitlet::cuda {

struct LinearCall {
  const float* x;
  std::size_t rows;
  LinearWeight weight;  // as vitlet::LinearWeight, on the device; sums may be null: q is signed
  const float* bias;
  Activation activation;
  float* out;
  void* workspace;  // shift_linear_workspace bytes, 16-byte aligned
};

// A rounded row in 32-bit words: a multiple of 16 bytes.
inline std::size_t row_words(std::size_t inputs) { return (inputs + 15) / 16 * 4; }

inline std::size_t shift_linear_workspace(std::size_t rows, std::size_t inputs) {
  return rows * (row_words(inputs) * 4 + sizeof(float));
}

// Up to 16 rows by 32 columns for a block. The warps share the inputs among them and read their
// operands where they are, so that a single row keeps the memory busy.
struct MultiplyFewRows : LinearProduct {
  static constexpr int threads = 256, warps = threads / warp, most_rows = 16, columns = 32;

  struct Shared {
    std::int32_t sums[warps][most_rows][columns];
  };
  struct Registers {
    std::int32_t c[4][4];
    std::uint32_t a[4], b[4][2];
  };

  VITLET_DEVICE std::uint32_t word_of_row(int row, int quad) const {
    if (row >= rows || quad >= words) return 0;
    return q[static_cast<std::size_t>(row) * words + quad];
  }

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int strip = static_cast<int>(block / 2), half = static_cast<int>(block % 2);
    const std::uint32_t* from = panel(strip) + half * (quad_words() / 2);
    run.warp_phase([&](int, Registers& r) {
      VITLET_UNROLL
      for (int j = 0; j < 4; ++j) {
        VITLET_UNROLL
        for (int i = 0; i < 4; ++i) r.c[j][i] = 0;
      }
    });
    const int steps = (quads + 8 * warps - 1) / (8 * warps);
    VITLET_KEEP_ROLLED
    for (int step = 0; step < steps; ++step) {
      run.warp_phase([&](int thread, Registers& r) {
        const int group = thread % warp / 4;
        const int quad = (step * warps + thread / warp) * 8 + thread % 4;
        VITLET_UNROLL
        for (int i = 0; i < 4; ++i) r.a[i] = word_of_row(group + i % 2 * 8, quad + i / 2 * 4);
        VITLET_UNROLL
        for (int i = 0; i < 2; ++i) {
          const bool inside = quad + 4 * i < quads;
          const std::uint32_t* row =
              from + static_cast<std::size_t>(quad + 4 * i) * quad_words() + group;
          if (format == WeightFormat::dense) {
            VITLET_UNROLL
            for (int j = 0; j < 4; ++j) r.b[j][i] = inside ? row[8 * j] : 0;
            continue;
          }
          VITLET_UNROLL
          for (int j = 0; j < 2; ++j) {
            const std::uint32_t two = inside ? row[8 * j] : 0;
            r.b[j][i] = decode(two & 0x0f0f0f0fu);
            r.b[j + 2][i] = decode(two >> 4 & 0x0f0f0f0fu);
          }
        }
      });
      VITLET_UNROLL
      for (int j = 0; j < 4; ++j)
        run.multiply([&](Registers& r) { return ByteProduct{r.c[j], r.a, r.b[j]}; });
    }
    run.phase([&](int thread, Registers& r) {
      const int group = thread % warp / 4, pair = thread % 4 * 2;
      VITLET_UNROLL
      for (int j = 0; j < 4; ++j) {
        VITLET_UNROLL
        for (int i = 0; i < 4; ++i)
          shared.sums[thread / warp][group + i / 2 * 8][8 * j + pair + i % 2] = r.c[j][i];
      }
    });
    run.phase([&](int thread, Registers&) {
      const int column = thread % columns;
      const bool wide = format == WeightFormat::wide;
      if (wide && column % 16 >= 8) return;  // of low parts: added by the high ones' threads
      const int place = strip * 64 + half * columns + column;
      const int output = wide ? place / 16 * 8 + place % 8 : place;
      VITLET_UNROLL
      for (int row = thread / columns; row < most_rows; row += threads / columns) {
        std::int32_t sum = 0, low = 0;
        VITLET_UNROLL
        for (int w = 0; w < warps; ++w) {
          sum += shared.sums[w][row][column];
          if (wide) low += shared.sums[w][row][column + 8];
        }
        store(sum, low, row, output);
      }
    });
  }
};

// 64 rows by one panel of 64 columns for a block, a quarter for each warp. While one step of 64
// inputs is multiplied, the next one is on its way into registers.
struct MultiplyRows : LinearProduct {
  static constexpr int threads = 128, tile = 64, step_quads = 16;
  // Rows padded so that the lanes' words lie in different banks.
  static constexpr int a_stride = step_quads + 4, b_stride = tile + 8;

  struct alignas(16) Shared {
    std::uint32_t a[2][tile][a_stride];
    std::uint32_t b[2][step_quads][b_stride];
  };
  struct Registers {
    std::int32_t c[2][4][4];
    std::uint32_t a[2][4], b[4][2];
    FourWords next_a[2], next_b[2];
  };

  VITLET_DEVICE void fetch(int thread, int first_row, int strip, int step, Registers& r) const {
    VITLET_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int item = thread + i * threads;
      const int row = first_row + item / 4, quad = step * step_quads + item % 4 * 4;
      r.next_a[i] = FourWords{};
      if (row < rows && quad < words)
        r.next_a[i] =
            *reinterpret_cast<const FourWords*>(q + static_cast<std::size_t>(row) * words + quad);
    }
    const int fours = quad_words() / 4;  // of one quad of inputs
    VITLET_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int item = thread + i * threads, quad = step * step_quads + item / fours;
      r.next_b[i] = FourWords{};
      if (item < step_quads * fours && quad < quads)
        r.next_b[i] = *reinterpret_cast<const FourWords*>(
            panel(strip) + static_cast<std::size_t>(quad) * quad_words() + item % fours * 4);
    }
  }

  VITLET_DEVICE void put(int thread, int half, Shared& shared, const Registers& r) const {
    VITLET_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int item = thread + i * threads;
      *reinterpret_cast<FourWords*>(&shared.a[half][item / 4][item % 4 * 4]) = r.next_a[i];
    }
    if (format == WeightFormat::dense) {
      VITLET_UNROLL
      for (int i = 0; i < 2; ++i) {
        const int item = thread + i * threads;
        *reinterpret_cast<FourWords*>(&shared.b[half][item / 16][item % 16 * 4]) = r.next_b[i];
      }
      return;
    }
    const int word = thread % 8 * 4, column = word / 16 * 32 + word % 16;
    FourWords low, high;
    VITLET_UNROLL
    for (int i = 0; i < 4; ++i) {
      low.v[i] = decode(r.next_b[0].v[i] & 0x0f0f0f0fu);
      high.v[i] = decode(r.next_b[0].v[i] >> 4 & 0x0f0f0f0fu);
    }
    *reinterpret_cast<FourWords*>(&shared.b[half][thread / 8][column]) = low;
    *reinterpret_cast<FourWords*>(&shared.b[half][thread / 8][column + 16]) = high;
  }

  template <typename Run>
  VITLET_DEVICE void body(Run& run, std::size_t block, Shared& shared) const {
    const int strip = static_cast<int>(block % strips);
    const int first_row = static_cast<int>(block / strips) * tile;
    const int steps = (quads + step_quads - 1) / step_quads;
    run.phase([&](int thread, Registers& r) {
      VITLET_UNROLL
      for (int i = 0; i < 32; ++i) r.c[i / 16][i / 4 % 4][i % 4] = 0;
      fetch(thread, first_row, strip, 0, r);
      put(thread, 0, shared, r);
    });
    VITLET_KEEP_ROLLED
    for (int step = 0; step < steps; ++step) {
      const int half = step % 2;
      run.warp_phase(
          [&](int thread, Registers& r) { fetch(thread, first_row, strip, step + 1, r); });
      VITLET_UNROLL
      for (int k = 0; k < step_quads; k += 8) {
        run.warp_phase([&](int thread, Registers& r) {
          const int group = thread % warp / 4, quad = k + thread % 4;
          const int row = thread / warp / 2 * 32 + group, column = thread / warp % 2 * 32 + group;
          VITLET_UNROLL
          for (int i = 0; i < 8; ++i)
            r.a[i / 4][i % 4] = shared.a[half][row + i / 4 * 16 + i % 2 * 8][quad + i % 4 / 2 * 4];
          VITLET_UNROLL
          for (int i = 0; i < 8; ++i)
            r.b[i / 2][i % 2] = shared.b[half][quad + i % 2 * 4][column + i / 2 * 8];
        });
        VITLET_UNROLL
        for (int i = 0; i < 8; ++i)
          run.multiply(
              [&](Registers& r) { return ByteProduct{r.c[i / 4][i % 4], r.a[i / 4], r.b[i % 4]}; });
      }
      run.phase([&](int thread, Registers& r) { put(thread, 1 - half, shared, r); });
    }
    run.phase([&](int thread, Registers& r) {
      const int row = first_row + thread / warp / 2 * 32 + thread % warp / 4;
      const int column = strip * tile + thread / warp % 2 * 32 + thread % 4 * 2;
      const bool wide = format == WeightFormat::wide;
      VITLET_UNROLL
      for (int i = 0; i < 8; ++i) {
        const int j = i % 4, place = column + 8 * j;
        if (wide && j % 2 == 1) continue;
        const int output = wide ? place / 16 * 8 + place % 8 : place;
        VITLET_UNROLL
        for (int n = 0; n < 4; ++n)
          store(r.c[i / 4][j][n], r.c[i / 4][j | 1][n], row + i / 4 * 16 + n / 2 * 8,
                output + n % 2);
      }
    });
  }
};

// Calls launch(kernel, blocks) for each kernel, in order.
template <typename Launch>
void plan_shift_linear(const LinearCall& call, Launch&& launch) {
  const LinearWeight& w = call.weight;
  if (call.rows == 0 || w.outputs == 0) return;
  const auto words = static_cast<int>(row_words(w.inputs));
  auto* q = static_cast<std::uint32_t*>(call.workspace);
  auto* row_scale = reinterpret_cast<float*>(q + call.rows * words);
  launch(RoundRows{call.x, q, row_scale, static_cast<int>(w.inputs), words,
                   rows_are_aligned(call.x, w.inputs)},
         call.rows);
  const std::size_t strips = padded_columns(w.format, w.outputs) / 64;
  const LinearProduct product{q,
                              row_scale,
                              reinterpret_cast<const std::uint32_t*>(w.panels),
                              w.scale,
                              call.bias,
                              call.out,
                              static_cast<int>(call.rows),
                              static_cast<int>(w.outputs),
                              words,
                              static_cast<int>(padded_inputs(w.inputs) / 4),
                              static_cast<int>(strips),
                              w.format,
                              call.activation};
  if (call.rows <= MultiplyFewRows::most_rows)
    launch(MultiplyFewRows{product}, strips * 2);
  else
    launch(MultiplyRows{product},
           strips * ((call.rows + MultiplyRows::tile - 1) / MultiplyRows::tile));
}

}  // namespace vitlet::cuda
