#pragma once
// The mixer's projection to q, k, v by 8-bit products, for token_mixer_project.h. Everything has
// internal linkage: see simd.h. As in shift_linear.simd.cpp, a strip of columns becomes bytes once
// for all pixels of a group; a column is a lane of a block of channels.
#include "float_simd.h"
#include "int8_tile.h"
#include "round_rows.h"
#include "token_mixer_job.h"

namespace vitlet::VITLET_ISA {
namespace {

constexpr std::size_t lanes = mixer_block;
using I32Lanes = std::int32_t __attribute__((vector_size(4 * lanes_f32)));

struct Range {
  std::size_t begin, end;
};

struct Scratch {
  float* inputs;
  float* sums;
  std::size_t* place;
};

std::size_t project_strips(const MixerJob& job) {
  return (job.weights.qkv_rounded.outputs + strip_columns - 1) / strip_columns;
}

// The input's pixels from `first` on, rounded, into a worker's scratch.
void take_rounded(const MixerJob& job, std::size_t first, std::size_t pixels, float* scratch) {
  const std::size_t channels = job.weights.channels, stride = padded_inputs(channels);
  const std::int32_t zero = offset_rows(job.precision == MixerPrecision::shift) ? 128 : 0;
  auto* rounded = reinterpret_cast<std::uint8_t*>(scratch + job.rounded);
  for (std::size_t begin = 0; begin < pixels; begin += mixer_chunk) {
    const std::size_t end = begin + mixer_chunk < pixels ? begin + mixer_chunk : pixels;
    const float* from = job.x + (first + begin) * channels;
    if (job.layout == MixerLayout::nchw) {
      transpose(job.x + first + begin, job.height * job.width, channels, end - begin, scratch,
                channels);
      from = scratch;
    }
    for (std::size_t i = begin; i < end; ++i, from += channels)
      round_row(from, channels, stride, zero, rounded + i * stride, scratch + job.row_scale + i);
  }
}

// One tile's sums to q, k, v. sums: (pixels, strip_columns).
void place_sums(const MixerJob& job, const std::int32_t* sums, std::size_t column,
                const float* row_scale, const std::size_t* place, std::size_t pixels) {
  const PackedMixer& w = job.weights;
  for (std::size_t c = 0; c < strip_columns && column + c < w.qkv_rounded.outputs; c += lanes) {
    float* out = job.maps + (column + c) / lanes * job.plane;
    for (std::size_t part = 0; part < lanes; part += lanes_f32) {
      const F32 scale = load_f32(w.qkv_rounded.scale + column + c + part);
      const F32 bias = load_f32(w.qkv_bias + column + c + part);
      for (std::size_t m = 0; m < pixels; ++m) {
        I32Lanes sum;
        std::memcpy(&sum, sums + m * strip_columns + c + part, sizeof(sum));
        const F32 total = __builtin_convertvector(sum, F32);
        store_f32(out + place[m] + part, total * (row_scale[m] * scale) + bias);
      }
    }
  }
}

// rounded: the scratch that take_rounded filled. scratch: the worker's own.
void project_rounded(const MixerJob& job, const float* rounded, const std::size_t* place,
                     std::size_t pixels, Range strips, float* scratch) {
  const LinearWeight& w = job.weights.qkv_rounded;
  const bool small = w.format == WeightFormat::shift;
  const std::size_t stride = padded_inputs(w.inputs), bytes = panel_bytes(w.format, w.inputs);
  const auto* q = reinterpret_cast<const std::uint8_t*>(rounded + job.rounded);
  const float* row_scale = rounded + job.row_scale;
  auto* room = reinterpret_cast<std::uint8_t*>(scratch + job.strip);
  auto* sums = reinterpret_cast<std::int32_t*>(room + stride * 64);
  const std::size_t tiles = (pixels + tile_rows - 1) / tile_rows;
  for (std::size_t strip = strips.begin; strip < strips.end; ++strip) {
    const std::size_t column = strip * strip_columns;
    const std::uint8_t* panel = w.panels + column / 64 * bytes;
    const std::uint8_t* weights = small ? strip_of_codes(panel, column % 64, stride, false, room)
                                        : strip_of_bytes(panel, column % 64, stride, room);
    for (std::size_t i = 0; i < tiles; ++i) {
      const std::size_t first = i * pixels / tiles, count = (i + 1) * pixels / tiles - first;
      multiply_bytes({q + first * stride, stride, w.sums + column, sums}, count, weights, small);
      place_sums(job, sums, column, row_scale + first, place + first, count);
    }
  }
}

}  // namespace
}  // namespace vitlet::VITLET_ISA
