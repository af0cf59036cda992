#pragma once
// The mixer's projection to q, k, v, for additive_token_mixer.simd.cpp only, which compiles it once
// per instruction set. Everything has internal linkage: see simd.h.
#include "token_mixer_rounded.h"

#define UNROLL _Pragma("GCC unroll 16")

namespace vitlet::VITLET_ISA {
namespace {

// A tile of the projection: pixels x vectors sums, kept in registers.
#if defined(__AVX512F__)
constexpr int tile_pixels = 8, tile_vectors = 3;
#elif defined(__aarch64__)
constexpr int tile_pixels = 6, tile_vectors = 4;
#else
constexpr int tile_pixels = 6, tile_vectors = 2;
#endif
constexpr std::size_t parts = lanes / lanes_f32;  // vectors of one block

enum class Multiply { fp32, bf16, bf16_by_fp32 };
#if defined(__AVX512BF16__)
constexpr Multiply multiply_bf16 = Multiply::bf16;
#else
constexpr Multiply multiply_bf16 = Multiply::bf16_by_fp32;
#endif

template <int n>
struct Count {
  static constexpr int value = n;
};

// Cuts [0, total) into the fewest ranges of at most `most`, as equal as can be, and calls
// f(begin, Count<length>).
template <int most, typename F>
inline void in_chunks(std::size_t total, F f) {
  const std::size_t chunks = (total + most - 1) / most;
  for (std::size_t i = 0, begin = 0; i < chunks; ++i) {
    const std::size_t end = (i + 1) * total / chunks;
    switch (end - begin) {
      case 8:
        f(begin, Count<(most < 8 ? 1 : 8)>{});
        break;
      case 7:
        f(begin, Count<(most < 7 ? 1 : 7)>{});
        break;
      case 6:
        f(begin, Count<6>{});
        break;
      case 5:
        f(begin, Count<5>{});
        break;
      case 4:
        f(begin, Count<4>{});
        break;
      case 3:
        f(begin, Count<3>{});
        break;
      case 2:
        f(begin, Count<2>{});
        break;
      default:
        f(begin, Count<1>{});
    }
    begin = end;
  }
}

inline Range share(std::size_t count, std::size_t worker, std::size_t workers) {
  return {worker * count / workers, (worker + 1) * count / workers};
}

// out[place[m] + channel] = bias + sum_k x[m][k] * w[k][channel]. x has `stride` 32-bit units a
// pixel, and each of the `steps` takes one number, or for bf16 two.
template <Multiply multiply, int pixels>
inline void project_tile(const float* x, std::size_t stride, std::size_t steps, const float* w,
                         const float* bias, float* out, std::size_t plane,
                         const std::size_t* place) {
  F32 sum[pixels][tile_vectors];
  UNROLL for (int m = 0; m < pixels; ++m) UNROLL for (int v = 0; v < tile_vectors; ++v) sum[m][v] =
      load_f32(bias + v * lanes_f32);
  for (std::size_t k = 0; k < steps; ++k) {
    F32 b[tile_vectors];
    UNROLL for (int v = 0; v < tile_vectors; ++v) b[v] =
        load_f32(w + v / parts * steps * lanes + v % parts * lanes_f32 + k * lanes);
    if constexpr (multiply == Multiply::fp32) {
      UNROLL for (int m = 0; m < pixels; ++m) {
        const float a = x[m * stride + k];
        UNROLL for (int v = 0; v < tile_vectors; ++v) sum[m][v] += a * b[v];
      }
    } else if constexpr (multiply == Multiply::bf16) {
#if defined(__AVX512BF16__)
      UNROLL for (int m = 0; m < pixels; ++m) {
        const F32 pair = all_f32(x[m * stride + k]);
        UNROLL for (int v = 0; v < tile_vectors;
                    ++v) __asm__("vdpbf16ps %1, %2, %0" : "+v"(sum[m][v]) : "v"(b[v]), "v"(pair));
      }
#endif
    } else {
      F32 even[tile_vectors];
      UNROLL for (int v = 0; v < tile_vectors; ++v) even[v] = (F32)((F32Bits)b[v] << 16);
      UNROLL for (int m = 0; m < pixels; ++m) {
        const float a = x[m * stride + 2 * k];
        UNROLL for (int v = 0; v < tile_vectors; ++v) sum[m][v] += a * even[v];
      }
      UNROLL for (int v = 0; v < tile_vectors; ++v) b[v] = (F32)((F32Bits)b[v] & 0xffff0000u);
      UNROLL for (int m = 0; m < pixels; ++m) {
        const float a = x[m * stride + 2 * k + 1];
        UNROLL for (int v = 0; v < tile_vectors; ++v) sum[m][v] += a * b[v];
      }
    }
  }
  UNROLL for (int m = 0; m < pixels; ++m) UNROLL for (int v = 0; v < tile_vectors; ++v)
      store_f32(out + v / parts * plane + v % parts * lanes_f32 + place[m], sum[m][v]);
}

template <Multiply multiply>
void project(const MixerJob& job, const float* x, const std::size_t* place, std::size_t pixels,
             Range tiles) {
  const PackedMixer& w = job.weights;
  const std::size_t steps = multiply == Multiply::fp32 ? w.depth : w.depth / 2;
  const std::size_t stride = multiply == Multiply::bf16 ? w.depth / 2 : w.depth;
  for (std::size_t tile = tiles.begin; tile < tiles.end; ++tile) {
    const std::size_t block = tile * tile_vectors / parts;
    const std::size_t lane = tile * tile_vectors % parts * lanes_f32;
    const float* weights = w.qkv + block * steps * lanes + lane;
    const float* bias = w.qkv_bias + block * lanes + lane;
    float* out = job.maps + block * job.plane + lane;
    in_chunks<tile_pixels>(pixels, [&](std::size_t first, auto count) {
      project_tile<multiply, decltype(count)::value>(x + first * stride, stride, steps, weights,
                                                     bias, out, job.plane, place + first);
    });
  }
}

std::size_t project_tiles(const MixerJob& job) {
  if (in_8_bits(job.precision)) return project_strips(job);
  return 3 * job.weights.blocks * parts / tile_vectors;
}

// `count` numbers to bfloat16. to may be from.
void round_inputs(const float* from, std::size_t count, float* to) {
  constexpr std::size_t step = lanes_f32;
  float some[step] = {};
  for (std::size_t i = 0; i < count; i += step) {
    const bool whole = i + step <= count;
    if (!whole) std::memcpy(some, from + i, (count - i) * sizeof(float));
    const F32 value = load_f32(whole ? from + i : some);
#if defined(__AVX512BF16__)
    const __m256bh rounded = _mm512_cvtneps_pbh((__m512)value);
    std::memcpy(reinterpret_cast<char*>(to) + i * 2, &rounded,
                whole ? sizeof(rounded) : (count - i) * 2);
#else
    const F32Bits rounded = bf16_bits(value);
    std::memcpy(to + i, &rounded, whole ? sizeof(rounded) : (count - i) * sizeof(float));
#endif
  }
}

// The input's pixels from `first` on, channels together, as the projection reads them.
const float* take_inputs(const MixerJob& job, std::size_t first, std::size_t pixels, float* to) {
  if (in_8_bits(job.precision)) {
    take_rounded(job, first, pixels, to);
    return to;
  }
  const std::size_t channels = job.weights.channels, depth = job.weights.depth;
  const float* from = job.x + first * channels;
  if (job.layout == MixerLayout::nchw) {
    transpose(job.x + first, job.height * job.width, channels, pixels, to, depth);
    from = to;
  } else if (depth != channels) {
    for (std::size_t i = 0; i < pixels; ++i)
      std::memcpy(to + i * depth, from + i * channels, channels * sizeof(float));
    from = to;
  }
  if (depth != channels)
    for (std::size_t i = 0; i < pixels; ++i) to[i * depth + channels] = 0;
  if (job.precision == MixerPrecision::fp32) return from;
  round_inputs(from, pixels * depth, to);
  return to;
}

// x: from take_inputs, perhaps of another worker's scratch.
void project_rows(const MixerJob& job, Range rows, const float* x, Range tiles,
                  const Scratch& scratch) {
  std::size_t pixels = 0;
  std::size_t* place = scratch.place;
  for (std::size_t y = rows.begin; y < rows.end; ++y)
    for (std::size_t column = 0; column < job.width; ++column)
      place[pixels++] = (y + 1) * job.row + (column + 1) * lanes;
  if (job.precision == MixerPrecision::fp32)
    project<Multiply::fp32>(job, x, place, pixels, tiles);
  else if (in_8_bits(job.precision))
    project_rounded(job, x, place, pixels, tiles, scratch.inputs);
  else
    project<multiply_bf16>(job, x, place, pixels, tiles);
}

}  // namespace
}  // namespace vitlet::VITLET_ISA
