// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
// Nothing here may be inline with external linkage: see simd.h.
//
// Maps lie in blocks of 16 channels, [block][height + 2][width + 2][16], with edges of zeros. The
// first pass projects some rows to q, k, v and, while they are in the cache, finds the gates of
// their positions. q and k stay as they are: the second pass, block by block, multiplies by both
// gates, convolves, multiplies by v and convolves again, keeping three rows of each stage.
#include "parallel.h"
#include "token_mixer_project.h"

namespace vitlet::VITLET_ISA {

void mix_image(const MixerJob& job);

namespace {

// ---- first pass: gates by position ------------------------------------------------------------

// Depthwise 3x3 of neighbouring pixels. rows: the left neighbour of the first pixel, in the row
// above, the same and the one below. taps: nine and the bias, 16 floats apart.
template <int pixels>
inline void depthwise(const float* const rows[3], const float* taps, F32* sum) {
  UNROLL for (int i = 0; i < pixels; ++i) sum[i] = load_f32(taps + 9 * lanes);
  UNROLL for (int r = 0; r < 3; ++r) {
    const F32 left = load_f32(taps + r * 3 * lanes), middle = load_f32(taps + (r * 3 + 1) * lanes);
    const F32 right = load_f32(taps + (r * 3 + 2) * lanes);
    UNROLL for (int i = 0; i < pixels + 2; ++i) {
      const F32 value = load_f32(rows[r] + i * lanes);
      if (i < pixels) sum[i] += value * left;
      if (i >= 1 && i <= pixels) sum[i - 1] += value * middle;
      if (i >= 2) sum[i - 2] += value * right;
    }
  }
}

// All ones in the lanes of the last block that are channels.
inline F32Bits lanes_in_use(std::size_t channels, std::size_t first) {
  std::uint32_t bits[lanes_f32];
  for (std::size_t i = 0; i < lanes_f32; ++i) bits[i] = first + i < channels ? ~0u : 0;
  return load_bits(bits);
}

// The gates of row y of q (0) or k (1), and the row's gated channel sums. sums: width vectors.
void gate_row(const MixerJob& job, int which, std::size_t y, float* sums) {
  const PackedMixer& w = job.weights;
  const std::size_t width = job.width, quads = (width + 3) / 4 * 4;
  const float* map = job.maps + static_cast<std::size_t>(which) * w.blocks * job.plane;
  std::memset(sums, 0, quads * sizeof(F32));
  for (std::size_t c = 0; c < w.blocks * lanes; c += lanes_f32) {
    const std::size_t part = c % lanes;
    const float* above = map + c / lanes * job.plane + y * job.row + part;
    const float* taps = w.gate_taps[which] + c / lanes * 10 * lanes + part;
    const F32 point = load_f32(w.gate_point[which] + c);
    const bool partial = c + lanes_f32 > w.channels;  // a NaN in unused lanes must stay there
    const F32Bits used = lanes_in_use(w.channels, c);
    in_chunks<7>(width, [&](std::size_t x, auto count) {
      constexpr int pixels = decltype(count)::value;
      const float* from = above + x * lanes;
      const float* const rows[3] = {from, from + job.row, from + 2 * job.row};
      F32 value[pixels];
      depthwise<pixels>(rows, taps, value);
      UNROLL for (int i = 0; i < pixels; ++i) {
        float* sum = sums + (x + i) * lanes_f32;
        F32 term = relu_f32(value[i]) * point;
        if (partial) term = (F32)((F32Bits)term & used);
        store_f32(sum, load_f32(sum) + term);
      }
    });
  }
  float* gates = job.position[which] + y * job.position_row;
  for (std::size_t x = 0; x < quads; x += 4) {
    const float* sum = sums + x * lanes_f32;
    F32x4 a = fold_to_x4(load_f32(sum)), b = fold_to_x4(load_f32(sum + lanes_f32));
    F32x4 c = fold_to_x4(load_f32(sum + 2 * lanes_f32));
    F32x4 d = fold_to_x4(load_f32(sum + 3 * lanes_f32));
    transpose_4x4(a, b, c, d);
    store_x4(gates + x, (a + b) + (c + d));
  }
  for (std::size_t x = 0; x < width; x += lanes_f32)
    store_f32(gates + x, sigmoid_f32(load_f32(gates + x)));
  float* row_sums = job.row_sums[which] + y * w.blocks * lanes;
  for (std::size_t c = 0; c < w.blocks * lanes; c += lanes_f32) {
    const float* from = map + c / lanes * job.plane + (y + 1) * job.row + lanes + c % lanes;
    F32 even = {}, odd = {};
    std::size_t x = 0;
    for (; x + 2 <= width; x += 2) {
      even += gates[x] * load_f32(from + x * lanes);
      odd += gates[x + 1] * load_f32(from + (x + 1) * lanes);
    }
    if (x < width) even += gates[x] * load_f32(from + x * lanes);
    store_f32(row_sums + c, even + odd);
  }
}

Scratch scratch_of(const MixerJob& job, std::size_t worker) {
  float* space = job.scratch + worker * job.scratch_size;
  float* sums = space + job.scratch_size - job.position_row * lanes;
  const std::size_t pixels = job.group * job.width;
  auto* place = reinterpret_cast<std::size_t*>(sums) - (pixels + 7) / 8 * 8;
  return {space, sums, place};
}

void gate_rows(const MixerJob& job, Range rows, float* sums) {
  for (std::size_t y = rows.begin; y < rows.end; ++y)
    for (int which = 0; which < 2; ++which) gate_row(job, which, y, sums);
}

// A worker's rows that need no other worker's.
Range inner_rows(const MixerJob& job, Range rows) {
  const Range inner = {rows.begin + (rows.begin > 0), rows.end - (rows.end < job.height)};
  return inner.begin < inner.end ? inner : Range{rows.begin, rows.begin};
}

void project_and_gate(void* context, std::size_t begin, std::size_t end) {
  const MixerJob& job = *static_cast<const MixerJob*>(context);
  for (std::size_t worker = begin; worker < end; ++worker) {
    const Scratch scratch = scratch_of(job, worker);
    const Range rows = share(job.height, worker, job.workers), inner = inner_rows(job, rows);
    std::size_t done = inner.begin;
    for (std::size_t y = rows.begin; y < rows.end;) {
      const std::size_t next = y + job.group < rows.end ? y + job.group : rows.end;
      const float* x = take_inputs(job, y * job.width, (next - y) * job.width, scratch.inputs);
      project_rows(job, {y, next}, x, {0, project_tiles(job)}, scratch);
      y = next;
      const std::size_t ready = y == rows.end ? inner.end : y - 1;
      if (done < ready) {
        gate_rows(job, {done, ready}, scratch.sums);
        done = ready;
      }
    }
  }
}

void gate_outer_rows(void* context, std::size_t begin, std::size_t end) {
  const MixerJob& job = *static_cast<const MixerJob*>(context);
  for (std::size_t worker = begin; worker < end; ++worker) {
    float* sums = scratch_of(job, worker).sums;
    const Range rows = share(job.height, worker, job.workers), inner = inner_rows(job, rows);
    gate_rows(job, {rows.begin, inner.begin}, sums);
    gate_rows(job, {inner.end, rows.end}, sums);
  }
}

void project_share(void* context, std::size_t begin, std::size_t end) {
  const MixerJob& job = *static_cast<const MixerJob*>(context);
  const float* x = job.precision == MixerPrecision::fp32 && job.layout == MixerLayout::nhwc
                       ? job.x
                       : scratch_of(job, 0).inputs;
  for (std::size_t worker = begin; worker < end; ++worker)
    project_rows(job, {0, job.height}, x, share(project_tiles(job), worker, job.workers),
                 scratch_of(job, worker));
}

void gate_share(void* context, std::size_t begin, std::size_t end) {
  const MixerJob& job = *static_cast<const MixerJob*>(context);
  for (std::size_t worker = begin; worker < end; ++worker)
    gate_rows(job, share(job.height, worker, job.workers), scratch_of(job, worker).sums);
}

// ---- gates by channel -------------------------------------------------------------------------

void mean_channels(const MixerJob& job, int which) {
  const std::size_t channels = job.weights.blocks * lanes;
  const float pixels = static_cast<float>(job.height * job.width);
  for (std::size_t c = 0; c < channels; c += lanes_f32) {
    F32 sum = {};
    for (std::size_t y = 0; y < job.height; ++y)
      sum += load_f32(job.row_sums[which] + y * channels + c);
    store_f32(job.row_sums[which] + c, sum / pixels);  // the first row now holds the means
  }
}

void gate_channels(void* context, std::size_t begin, std::size_t end) {
  const MixerJob& job = *static_cast<const MixerJob*>(context);
  const PackedMixer& w = job.weights;
  for (std::size_t worker = begin; worker < end; ++worker) {
    const Range mine = share(2 * w.blocks, worker, job.workers);
    for (std::size_t i = mine.begin; i < mine.end; ++i) {
      const std::size_t which = i / w.blocks, block = i % w.blocks;
      const float* means = job.row_sums[which];
      for (std::size_t part = 0; part < lanes; part += lanes_f32) {
        const float* weights = w.gate_channel[which] + block * w.channels * lanes + part;
        F32 sum[4] = {};
        std::size_t c = 0;
        for (; c + 4 <= w.channels; c += 4)
          UNROLL for (int j = 0; j < 4; ++j) sum[j] +=
              means[c + j] * load_f32(weights + (c + j) * lanes);
        for (; c < w.channels; ++c) sum[0] += means[c] * load_f32(weights + c * lanes);
        store_f32(job.channel[which] + block * lanes + part,
                  sigmoid_f32((sum[0] + sum[1]) + (sum[2] + sum[3])));
      }
    }
  }
}

// ---- second pass ------------------------------------------------------------------------------

// Three rows of [width + 2][16] with zeros at both ends, by row number modulo three.
struct Ring {
  float* data;
  std::size_t row;
  float* operator[](std::size_t y) const { return data + y % 3 * row; }
};

// to = both gated maps, added. q, k: the row's first pixel.
inline void add_gated(const MixerJob& job, std::size_t block, std::size_t y, float* to) {
  const float* q = job.maps + block * job.plane + (y + 1) * job.row + lanes;
  const float* k = q + job.weights.blocks * job.plane;
  const float* gates_q = job.position[0] + y * job.position_row;
  const float* gates_k = job.position[1] + y * job.position_row;
  for (std::size_t part = 0; part < lanes; part += lanes_f32) {
    const F32 channel_q = load_f32(job.channel[0] + block * lanes + part);
    const F32 channel_k = load_f32(job.channel[1] + block * lanes + part);
    for (std::size_t x = 0; x < job.width; ++x) {
      const std::size_t i = x * lanes + part;
      const F32 from_q = load_f32(q + i) * (channel_q * gates_q[x]);
      store_f32(to + i, load_f32(k + i) * (channel_k * gates_k[x]) + from_q);
    }
  }
}

// Convolves one row (ring row y in the middle; y counts from one) and calls put(x, part, value).
template <typename Put>
inline void convolve(const MixerJob& job, const Ring& ring, std::size_t y, const float* taps,
                     Put put) {
  for (std::size_t part = 0; part < lanes; part += lanes_f32) {
    in_chunks<7>(job.width, [&](std::size_t x, auto count) {
      constexpr int pixels = decltype(count)::value;
      const std::size_t at = x * lanes + part;
      const float* const rows[3] = {ring[y - 1] + at, ring[y] + at, ring[y + 1] + at};
      F32 value[pixels];
      depthwise<pixels>(rows, taps + part, value);
      UNROLL for (int i = 0; i < pixels; ++i) put(x + i, part, value[i]);
    });
  }
}

// Writes some lanes of one pixel's block.
inline void put_lanes(float* to, std::size_t part, std::size_t used, F32 value) {
  if (part + lanes_f32 <= used)
    store_f32(to + part, value);
  else if (part < used)
    std::memcpy(to + part, &value, (used - part) * sizeof(float));
}

void mix_block(const MixerJob& job, std::size_t block, float* scratch) {
  const PackedMixer& w = job.weights;
  const std::size_t height = job.height, width = job.width, pixels = height * width;
  const std::size_t first = block * lanes, channels = w.channels;
  const std::size_t used = channels - first < lanes ? channels - first : lanes;
  const std::size_t row_bytes = job.row * sizeof(float);
  const Ring gated{scratch, job.row}, mixed{scratch + 3 * job.row, job.row};
  float* out = scratch + 6 * job.row;  // nchw: pixels that wait to be transposed
  std::size_t waiting = 0, written = 0;
  std::memset(scratch, 0, 6 * row_bytes);
  const float* dwc = w.dwc + block * 10 * lanes;
  const float* proj = w.proj + block * 10 * lanes;
  const float* v = job.maps + (2 * w.blocks + block) * job.plane;
  // Row numbers count from one; rows 0 and height + 1 are zeros.
  for (std::size_t y = 1; y <= height + 2; ++y) {
    if (y <= height)
      add_gated(job, block, y - 1, gated[y] + lanes);
    else if (y == height + 1)
      std::memset(gated[y], 0, row_bytes);
    if (y >= 2 && y <= height + 1) {
      float* to = mixed[y - 1] + lanes;
      const float* factor = v + (y - 1) * job.row + lanes;
      convolve(job, gated, y - 1, dwc, [&](std::size_t x, std::size_t part, F32 value) {
        const std::size_t i = x * lanes + part;
        store_f32(to + i, value * load_f32(factor + i));
      });
    } else if (y == height + 2) {
      std::memset(mixed[y - 1], 0, row_bytes);
    }
    if (y < 3) continue;
    if (job.layout == MixerLayout::nhwc) {
      float* to = job.y + (y - 3) * width * channels + first;
      convolve(job, mixed, y - 2, proj, [&](std::size_t x, std::size_t part, F32 value) {
        put_lanes(to + x * channels, part, used, value);
      });
      continue;
    }
    float* to = out + waiting * lanes;
    convolve(job, mixed, y - 2, proj, [&](std::size_t x, std::size_t part, F32 value) {
      store_f32(to + x * lanes + part, value);
    });
    waiting += width;
    if (waiting < 64 && y < height + 2) continue;
    transpose(out, lanes, waiting, used, job.y + first * pixels + written, pixels);
    written += waiting;
    waiting = 0;
  }
}

void mix_blocks(void* context, std::size_t begin, std::size_t end) {
  const MixerJob& job = *static_cast<const MixerJob*>(context);
  for (std::size_t worker = begin; worker < end; ++worker) {
    const Range mine = share(job.weights.blocks, worker, job.workers);
    for (std::size_t block = mine.begin; block < mine.end; ++block)
      mix_block(job, block, job.scratch + worker * job.scratch_size);
  }
}

// The edges of q and k, which are convolved; v's are not read.
void clear_edges(const MixerJob& job) {
  for (std::size_t block = 0; block < 2 * job.weights.blocks; ++block) {
    float* plane = job.maps + block * job.plane;
    std::memset(plane, 0, job.row * sizeof(float));
    std::memset(plane + (job.height + 1) * job.row, 0, job.row * sizeof(float));
    for (std::size_t y = 1; y <= job.height; ++y) {
      std::memset(plane + y * job.row, 0, lanes * sizeof(float));
      std::memset(plane + (y + 1) * job.row - lanes, 0, lanes * sizeof(float));
    }
  }
}

}  // namespace

void mix_image(const MixerJob& job) {
  const auto run = [&](void (*body)(void*, std::size_t, std::size_t)) {
    parallel_for(job.workers, static_cast<int>(job.workers), body, const_cast<MixerJob*>(&job));
  };
  clear_edges(job);
  if (job.small) {
    take_inputs(job, 0, job.height * job.width, scratch_of(job, 0).inputs);
    run(project_share);
    run(gate_share);
  } else {
    run(project_and_gate);
    if (job.workers > 1) run(gate_outer_rows);
  }
  for (int which = 0; which < 2; ++which) mean_channels(job, which);
  run(gate_channels);
  run(mix_blocks);
}

}  // namespace vitlet::VITLET_ISA
