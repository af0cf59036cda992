// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
// Nothing here may be inline with external linkage: see simd.h.
//
// A unit is one block of 16 output channels over some rows. Its input rows are copied into a ring
// of kernel_height rows, [columns][16] with zeros at both ends, which stays in the nearest cache:
// no border is special then, a multiplier is a matter of copying, and pixels do not fall on the
// same cache sets however many channels there are. Rows outside the map are left out of the sum.
#include "depthwise_conv2d.h"

#include "float_activation.h"
#include "float_simd.h"

#define UNROLL _Pragma("GCC unroll 64")

namespace vitlet::VITLET_ISA {

void depthwise_part(const DepthwiseJob& job, std::size_t worker);

namespace {

constexpr std::size_t lanes = depthwise_block;

// Pixels of a tile: their sums, a row of taps and one input stay in registers.
#if defined(__AVX512F__)
constexpr int tile_pixels = 12;
#elif defined(__AVX__) || defined(__aarch64__)
constexpr int tile_pixels = 8;
#else
constexpr int tile_pixels = 6;  // a product needs a register of its own
#endif

// ---- one row of results -----------------------------------------------------------------------

struct Row {
  const float* const* rows;  // the inputs under the kernel's rows
  std::size_t count;         // of them
  const float* taps;         // of the first of them
  const float* bias;
  float* to;  // pixels `to_stride` floats apart
  std::size_t to_stride;
  std::size_t width;
  std::size_t kernel, stride;  // columns
};

// sum[i] = bias + the products of pixel i. Each input is loaded once and meets every tap that it
// belongs to. `at`: of the first pixel's first input.
template <int kernel, int stride, int pixels>
inline void sum_tile(const Row& row, std::size_t at, std::size_t part, F32* sum) {
  const float* taps = row.taps + part;
  for (std::size_t r = 0; r < row.count; ++r, taps += kernel * lanes) {
    const float* from = row.rows[r] + at * lanes + part;
    F32 tap[kernel];
    UNROLL for (int t = 0; t < kernel; ++t) tap[t] = load_f32(taps + t * lanes);
    UNROLL for (int i = 0; i < (pixels - 1) * stride + kernel; ++i) {
      const F32 value = load_f32(from + i * lanes);
      UNROLL for (int t = kernel - 1; t >= 0; --t) {
        const int pixel = (i - t) / stride;
        if (i >= t && (i - t) % stride == 0 && pixel < pixels) sum[pixel] += value * tap[t];
      }
    }
  }
}

// Any kernel and stride.
template <int pixels>
inline void sum_any_tile(const Row& row, std::size_t at, std::size_t part, F32* sum) {
  const float* taps = row.taps + part;
  for (std::size_t r = 0; r < row.count; ++r)
    for (std::size_t t = 0; t < row.kernel; ++t, taps += lanes) {
      const F32 tap = load_f32(taps);
      const float* from = row.rows[r] + (at + t) * lanes + part;
      UNROLL for (int i = 0; i < pixels; ++i) sum[i] +=
          load_f32(from + i * row.stride * lanes) * tap;
    }
}

// kernel 0: any.
template <int kernel, int stride, int pixels>
inline void convolve_tile(const Row& row, std::size_t first) {
  for (std::size_t part = 0; part < lanes; part += lanes_f32) {
    F32 sum[pixels];
    UNROLL for (int i = 0; i < pixels; ++i) sum[i] = load_f32(row.bias + part);
    if constexpr (kernel == 0)
      sum_any_tile<pixels>(row, first * row.stride, part, sum);
    else
      sum_tile<kernel, stride, pixels>(row, first * stride, part, sum);
    float* to = row.to + first * row.to_stride + part;
    UNROLL for (int i = 0; i < pixels; ++i) store_f32(to + i * row.to_stride, sum[i]);
  }
}

template <int kernel, int stride, int pixels>
inline void convolve_chunk(const Row& row, std::size_t first, std::size_t count) {
  if constexpr (pixels > 1)
    if (count < pixels) return convolve_chunk<kernel, stride, pixels - 1>(row, first, count);
  convolve_tile<kernel, stride, pixels>(row, first);
}

// In the fewest tiles, as equal as can be.
template <int kernel, int stride>
void convolve_row(const Row& row) {
  const std::size_t chunks = (row.width + tile_pixels - 1) / tile_pixels;
  for (std::size_t i = 0, begin = 0; i < chunks; ++i) {
    const std::size_t end = (i + 1) * row.width / chunks;
    convolve_chunk<kernel, stride, tile_pixels>(row, begin, end - begin);
    begin = end;
  }
}

using ConvolveRow = void(const Row& row);

ConvolveRow* row_kernel(std::size_t kernel, std::size_t stride) {
  if (stride == 1) {
    if (kernel == 3) return convolve_row<3, 1>;
    if (kernel == 5) return convolve_row<5, 1>;
    if (kernel == 7) return convolve_row<7, 1>;
  }
  if (stride == 2) {
    if (kernel == 3) return convolve_row<3, 2>;
    if (kernel == 5) return convolve_row<5, 2>;
    if (kernel == 7) return convolve_row<7, 2>;
  }
  return convolve_row<0, 0>;
}

// ---- input ------------------------------------------------------------------------------------

// The block's channels of x and the rows that have been copied.
struct Input {
  const float* x;                    // the image
  std::size_t channel;               // the block's first
  std::size_t offset;                // (first output channel) % multiplier
  std::size_t used;                  // output channels of the block
  std::size_t first_turned, turned;  // nchw: rows in job.turned
  std::size_t next;                  // the first row not yet in the ring
};

struct Scratch {
  float* ring;
  float* turned;
  float* results;
  const float** rows;
};

Scratch scratch_of(const DepthwiseJob& job, std::size_t worker) {
  float* space = job.scratch + worker * job.scratch_size();
  float* turned = space + job.ring;
  float* results = turned + job.turned;
  return {space, turned, results, reinterpret_cast<const float**>(results + job.results)};
}

std::size_t input_channels(const DepthwiseJob& job, const Input& input) {
  return (input.offset + input.used - 1) / job.shape.multiplier + 1;
}

// Some lanes of one pixel.
inline void copy_lanes(const float* from, std::size_t used, float* to) {
  std::size_t i = 0;
  for (; i + 4 <= used; i += 4) store_x4(to + i, load_x4(from + i));
  for (; i < used; ++i) to[i] = from[i];
}

// Copies one pixel's channels, each `multiplier` times.
inline void copy_pixel(const float* from, std::size_t multiplier, const Input& input, float* to) {
  if (multiplier == 1 && input.used == lanes) {
    UNROLL for (std::size_t i = 0; i < lanes; i += lanes_f32) store_f32(to + i, load_f32(from + i));
  } else if (multiplier == 1) {
    copy_lanes(from, input.used, to);
  } else if (multiplier == 2 && input.used == lanes) {
    UNROLL for (int half = 0; half < 2; ++half) {
      const F32x4 four = load_x4(from + 4 * half);
      store_x4(to + 8 * half, __builtin_shufflevector(four, four, 0, 0, 1, 1));
      store_x4(to + 8 * half + 4, __builtin_shufflevector(four, four, 2, 2, 3, 3));
    }
  } else {
    for (std::size_t i = 0; i < input.used; ++i) to[i] = from[(input.offset + i) / multiplier];
  }
}

// Row y of x, into the ring between its zeros.
void copy_row(const DepthwiseJob& job, const Scratch& scratch, Input& input, std::size_t y) {
  const DepthwiseShape& s = job.shape;
  const float* from = input.x + y * s.width * s.channels + input.channel;
  std::size_t stride = s.channels;
  if (s.layout == DepthwiseLayout::nchw) {
    if (y >= input.first_turned + input.turned) {
      input.first_turned = y;
      input.turned = s.height - y < job.group ? s.height - y : job.group;
      transpose(input.x + input.channel * s.height * s.width + y * s.width, s.height * s.width,
                input_channels(job, input), input.turned * s.width, scratch.turned, lanes);
    }
    from = scratch.turned + (y - input.first_turned) * s.width * lanes;
    stride = lanes;
  }
  float* to = scratch.ring + y % s.kernel_height * job.ring_row + s.left * lanes;
  const std::size_t room = job.ring_row / lanes;
  const std::size_t most = room > s.left ? room - s.left : 0;
  const std::size_t count = s.width < most ? s.width : most;
  // Pixels of many channels are too far apart for the processor to foresee the next row.
  const std::size_t ahead =
      s.layout == DepthwiseLayout::nhwc && y + 1 < s.height ? s.width * stride : 0;
  for (std::size_t i = 0; i < count; ++i) {
    __builtin_prefetch(from + i * stride + ahead);
    copy_pixel(from + i * stride, s.multiplier, input, to + i * lanes);
  }
}

// ---- results ----------------------------------------------------------------------------------

template <Activation activation>
void activate_all(float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; i += lanes_f32)
    store_f32(values + i, activate<activation>(load_f32(values + i)));
}

void activate(Activation activation, float* values, std::size_t count) {
  if (activation == Activation::gelu) activate_all<Activation::gelu>(values, count);
  if (activation == Activation::relu) activate_all<Activation::relu>(values, count);
  if (activation == Activation::silu) activate_all<Activation::silu>(values, count);
}

void add(const float* from, std::size_t count, float* to) {
  for (std::size_t i = 0; i < count; ++i) to[i] += from[i];
}

// Row y of the results from pixels of 16 channels.
void put_pixels(const DepthwiseJob& job, const float* values, std::size_t first, std::size_t used,
                std::size_t outputs) {
  float* y = job.y + first;
  for (std::size_t i = 0; i < job.out_width; ++i, values += lanes) {
    copy_lanes(values, used, y + i * outputs);
    if (job.residual != nullptr) add(job.residual + first + i * outputs, used, y + i * outputs);
  }
}

void put_planes(const DepthwiseJob& job, const float* values, std::size_t first, std::size_t used,
                std::size_t pixels) {
  const std::size_t plane = job.out_height * job.out_width;
  // Four planes at a time: more may fall on the same cache set.
  for (std::size_t c = 0; c < used; c += 4)
    transpose(values + c, lanes, pixels, used - c < 4 ? used - c : 4, job.y + first + c * plane,
              plane);
  if (job.residual == nullptr) return;
  for (std::size_t c = 0; c < used; ++c)
    add(job.residual + first + c * plane, pixels, job.y + first + c * plane);
}

void convolve_unit(const DepthwiseJob& job, const Scratch& scratch, std::size_t image,
                   std::size_t band, std::size_t block) {
  const DepthwiseShape& s = job.shape;
  const std::size_t outputs = s.outputs(), first = block * lanes;
  const std::size_t used = outputs - first < lanes ? outputs - first : lanes;
  const std::size_t taps = s.kernel_height * s.kernel_width;
  const float* weights = job.packed + block * (taps + 1) * lanes;
  const bool planes = s.layout == DepthwiseLayout::nchw;
  const bool direct =
      !planes && used == lanes && s.activation == Activation::none && job.residual == nullptr;
  ConvolveRow* convolve = row_kernel(s.kernel_width, s.stride);
  Input input{job.x + image * s.channels * s.height * s.width,
              first / s.multiplier,
              first % s.multiplier,
              used,
              0,
              0,
              0};
  const std::size_t begin = band * job.out_height / job.bands;
  const std::size_t end = (band + 1) * job.out_height / job.bands;
  std::memset(scratch.ring, 0, job.ring * sizeof(float));
  Row row{scratch.rows,    0,     nullptr,       weights + taps * lanes,
          scratch.results, lanes, job.out_width, s.kernel_width,
          s.stride};
  std::size_t waiting = 0;
  for (std::size_t i = begin; i < end; ++i) {
    // The kernel's rows that lie in the map: first_tap .. last_tap - 1.
    const std::size_t above = i * s.stride < s.top ? s.top - i * s.stride : 0;
    const std::size_t first_tap = above < s.kernel_height ? above : s.kernel_height;
    const std::size_t below = s.height + s.top > i * s.stride ? s.height + s.top - i * s.stride : 0;
    const std::size_t last_tap = below < s.kernel_height ? below : s.kernel_height;
    row.count = 0;
    row.taps = weights + first_tap * s.kernel_width * lanes;
    for (std::size_t a = first_tap; a < last_tap; ++a) {
      const std::size_t y = i * s.stride + a - s.top;
      if (y >= input.next) {
        copy_row(job, scratch, input, y);
        input.next = y + 1;
      }
      scratch.rows[row.count++] = scratch.ring + y % s.kernel_height * job.ring_row;
    }
    const std::size_t pixel = (image * job.out_height + i) * job.out_width;
    if (direct) {
      row.to = job.y + pixel * outputs + first;
      row.to_stride = outputs;
      convolve(row);
      continue;
    }
    row.to = scratch.results + waiting * lanes;
    convolve(row);
    activate(s.activation, row.to, job.out_width * lanes);
    if (!planes) {
      put_pixels(job, scratch.results, pixel * outputs + first, used, outputs);
      continue;
    }
    waiting += job.out_width;
    if (waiting * lanes + job.out_width * lanes <= job.results && i + 1 < end) continue;
    const std::size_t done = (i + 1) * job.out_width - waiting;
    put_planes(job, scratch.results,
               (image * outputs + first) * job.out_height * job.out_width + done, used, waiting);
    waiting = 0;
  }
}

}  // namespace

void depthwise_part(const DepthwiseJob& job, std::size_t worker) {
  const Scratch scratch = scratch_of(job, worker);
  const std::size_t units = job.shape.batch * job.bands * job.blocks;
  const std::size_t end = (worker + 1) * units / job.workers;
  for (std::size_t unit = worker * units / job.workers; unit < end; ++unit)
    convolve_unit(job, scratch, unit / job.blocks / job.bands, unit / job.blocks % job.bands,
                  unit % job.blocks);
}

}  // namespace vitlet::VITLET_ISA
