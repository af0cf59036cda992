#include "depthwise_conv2d.h"

#include "dispatch.h"
#include "parallel.h"

namespace vitlet {
namespace {

constexpr std::size_t lanes = depthwise_block;
constexpr std::size_t turned_pixels = 64;  // at least so many are turned at once

std::size_t round_up(std::size_t count, std::size_t step) {
  return (count + step - 1) / step * step;
}

bool nothing_to_do(const DepthwiseShape& s) {
  return s.batch == 0 || s.outputs() == 0 || s.out_height() == 0 || s.out_width() == 0;
}

// A thread is worth waking for a few microseconds of work.
std::size_t workers_for(const DepthwiseShape& s, int threads) {
  const double results = static_cast<double>(s.batch) * static_cast<double>(s.outputs()) *
                         static_cast<double>(s.out_height()) * static_cast<double>(s.out_width());
  const double products = results * static_cast<double>(s.kernel_height * s.kernel_width);
  const double most = 1 + products / (1 << 18);
  if (threads <= 1 || most < 2) return 1;
  return most < threads ? static_cast<std::size_t>(most) : static_cast<std::size_t>(threads);
}

DepthwiseJob plan(const DepthwiseShape& s, int threads) {
  DepthwiseJob job{};
  job.shape = s;
  job.out_height = s.out_height();
  job.out_width = s.out_width();
  job.blocks = (s.outputs() + lanes - 1) / lanes;
  job.workers = workers_for(s, threads);
  // Cutting the rows costs kernel_height - 1 rows read again, so only where the other units are
  // too few to share out evenly.
  const std::size_t units = s.batch * job.blocks, wanted = 8 * job.workers;
  job.bands = job.workers == 1 || units >= wanted ? 1 : (wanted + units - 1) / units;
  const std::size_t most = (job.out_height + s.kernel_height - 1) / s.kernel_height;
  if (job.bands > most) job.bands = most;
  job.ring_row = ((job.out_width - 1) * s.stride + s.kernel_width) * lanes;
  job.ring = s.kernel_height * job.ring_row;
  const bool turn = s.layout == DepthwiseLayout::nchw;
  job.group = s.width == 0 ? 1 : (turned_pixels + s.width - 1) / s.width;
  job.turned = turn ? job.group * s.width * lanes : 0;
  job.results = ((turn ? turned_pixels : 0) + job.out_width) * lanes;
  job.pointers = round_up(s.kernel_height * (sizeof(const float*) / sizeof(float)), lanes);
  return job;
}

}  // namespace

using DepthwiseKernel = void(const DepthwiseJob& job, std::size_t worker);
VITLET_KERNEL_TABLE(depthwise_part, DepthwiseKernel)

std::size_t depthwise_conv2d_workspace(const DepthwiseShape& shape, int threads) {
  if (nothing_to_do(shape)) return 0;
  const DepthwiseJob job = plan(shape, threads);
  return job.workers * job.scratch_size() * sizeof(float);
}

void depthwise_conv2d(const float* x, const DepthwiseShape& shape, const float* packed,
                      const float* residual, float* y, void* workspace, int threads, Isa isa) {
  if (nothing_to_do(shape)) return;
  DepthwiseJob job = plan(shape, threads);
  job.x = x;
  job.packed = packed;
  job.residual = residual;
  job.y = y;
  job.scratch = static_cast<float*>(workspace);
  struct Call {
    const DepthwiseJob& job;
    DepthwiseKernel* kernel;
  } call{job, depthwise_part_table[static_cast<int>(isa)]};
  parallel_for(
      job.workers, static_cast<int>(job.workers),
      [](void* p, std::size_t begin, std::size_t end) {
        const Call& c = *static_cast<Call*>(p);
        for (std::size_t worker = begin; worker < end; ++worker) c.kernel(c.job, worker);
      },
      &call);
}

}  // namespace vitlet
