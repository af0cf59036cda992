#include "additive_token_mixer.h"

#include "dispatch.h"
#include "parallel.h"
#include "token_mixer_job.h"

namespace vitlet {
namespace {

constexpr std::size_t lanes = mixer_block;
constexpr std::size_t small_map = 196;    // pixels: below, weights are read once, not per row group
constexpr std::size_t group_pixels = 56;  // at least so many for each reading of the weights
constexpr std::size_t tile_sums = 6 * 64;  // of the largest tile of int8_tile.h

std::size_t round_up(std::size_t count, std::size_t step) {
  return (count + step - 1) / step * step;
}

// Images mixed at the same time, and workers inside each.
std::size_t images_at_once(const MixerShape& shape, int threads) {
  const auto most = static_cast<std::size_t>(threads);
  return shape.batch >= most ? most : 1;
}

// Lays out one image's arrays from `space` on; returns the floats taken.
std::size_t lay_out(const MixerShape& shape, std::size_t workers, float* space, MixerJob& job) {
  std::size_t used = 0;
  const auto take = [&](std::size_t count) {
    float* part = space == nullptr ? nullptr : space + used;
    used += round_up(count, lanes);
    return part;
  };
  const std::size_t blocks = round_up(shape.channels, lanes) / lanes, width = shape.width;
  const std::size_t depth = shape.channels + shape.channels % 2;
  job.precision = shape.precision;
  job.layout = shape.layout;
  job.height = shape.height;
  job.width = width;
  job.workers = workers;
  job.row = (width + 2) * lanes;
  // An odd number of cache lines: the planes' beginnings fall on different cache sets.
  job.plane = ((shape.height + 2) * (width + 2) | 1) * lanes;
  job.maps = take(3 * blocks * job.plane);
  job.position_row = round_up(width, lanes);
  for (int gate = 0; gate < 2; ++gate) {
    job.position[gate] = take(shape.height * job.position_row);
    job.row_sums[gate] = take(shape.height * blocks * lanes);
    job.channel[gate] = take(blocks * lanes);
  }
  job.small = shape.height * width <= small_map;
  job.group = job.small ? shape.height : (group_pixels + width - 1) / width;
  const std::size_t pixels = job.group * width;
  std::size_t inputs = round_up(pixels * depth, lanes);
  if (in_8_bits(shape.precision)) {
    const std::size_t stride = padded_inputs(shape.channels);
    job.rounded = round_up(mixer_chunk * shape.channels, lanes);
    job.row_scale = job.rounded + round_up(pixels * stride / sizeof(float), lanes);
    job.strip = job.row_scale + round_up(pixels, lanes);
    inputs = job.strip + stride * 64 / sizeof(float) + tile_sums;
  }
  const std::size_t project = inputs +
                              round_up(pixels * (sizeof(std::size_t) / sizeof(float)), lanes) +
                              job.position_row * lanes;
  const std::size_t mix = 6 * job.row + (64 + width) * lanes;
  job.scratch_size = project > mix ? project : mix;
  job.scratch = take(workers * job.scratch_size);
  return used;
}

bool nothing_to_do(const MixerShape& shape) {
  return shape.batch == 0 || shape.height == 0 || shape.width == 0;
}

struct Batch {
  const float* x;
  const MixerShape& shape;
  const float* packed;
  float* y;
  float* workspace;
  std::size_t at_once, workers, space;  // space: floats for one image
  void (*kernel)(const MixerJob&);
};

void mix_images(void* context, std::size_t begin, std::size_t end) {
  const Batch& batch = *static_cast<const Batch*>(context);
  const MixerShape& shape = batch.shape;
  const std::size_t size = shape.channels * shape.height * shape.width;
  for (std::size_t slot = begin; slot < end; ++slot) {
    MixerJob job{};
    lay_out(shape, batch.workers, batch.workspace + slot * batch.space, job);
    job.weights = unpack_mixer(batch.packed, shape.channels, shape.precision);
    const std::size_t last = (slot + 1) * shape.batch / batch.at_once;
    for (std::size_t image = slot * shape.batch / batch.at_once; image < last; ++image) {
      job.x = batch.x + image * size;
      job.y = batch.y + image * size;
      batch.kernel(job);
    }
  }
}

}  // namespace

using MixerKernel = void(const MixerJob&);
VITLET_INT8_BF16_KERNEL_TABLE(mix_image, MixerKernel)

std::size_t additive_token_mixer_workspace(const MixerShape& shape, int threads) {
  if (nothing_to_do(shape)) return 0;
  MixerJob job{};
  const std::size_t at_once = images_at_once(shape, threads);
  const std::size_t workers = at_once > 1 ? 1 : static_cast<std::size_t>(threads);
  return at_once * lay_out(shape, workers, nullptr, job) * sizeof(float);
}

void additive_token_mixer(const float* x, const MixerShape& shape, const float* packed, float* y,
                          void* workspace, int threads, Isa isa) {
  if (nothing_to_do(shape)) return;
  const std::size_t at_once = images_at_once(shape, threads);
  const std::size_t workers = at_once > 1 ? 1 : static_cast<std::size_t>(threads);
  MixerJob job{};
  Batch batch{x,
              shape,
              packed,
              y,
              static_cast<float*>(workspace),
              at_once,
              workers,
              lay_out(shape, workers, nullptr, job),
              mix_image_table[static_cast<int>(isa)]};
  if (at_once == 1)
    mix_images(&batch, 0, 1);  // the workers are inside
  else
    parallel_for(at_once, threads, mix_images, &batch);
}

}  // namespace vitlet
