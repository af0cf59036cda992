#include "resize_plan.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <cstring>

namespace vitlet {
namespace {

// Radius of the filter at scale 1, in source pixels.
double radius(Filter filter) { return filter == Filter::bilinear ? 1.0 : 2.0; }

// The triangle, and Keys' cubic convolution with a = -1/2 (R. Keys, 1981).
double evaluate(Filter filter, double x) {
  x = std::abs(x);
  if (filter == Filter::bilinear) return x < 1.0 ? 1.0 - x : 0.0;
  constexpr double a = -0.5;
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0;
  if (x < 2.0) return (((x - 5.0) * x + 8.0) * x - 4.0) * a;
  return 0.0;
}

// The source samples under output i. Shrinking stretches the filter: that is the antialiasing.
struct Taps {
  double centre, stretch;
  std::int64_t first, count;
};

Taps taps_of(Filter filter, std::size_t source, std::size_t resized, std::size_t i) {
  Taps taps;
  const double scale = static_cast<double>(source) / static_cast<double>(resized);
  taps.stretch = std::max(scale, 1.0);
  const double support = radius(filter) * taps.stretch;
  taps.centre = (static_cast<double>(i) + 0.5) * scale;
  taps.first = std::max<std::int64_t>(0, static_cast<std::int64_t>(taps.centre - support + 0.5));
  const auto last = std::min<std::int64_t>(static_cast<std::int64_t>(source),
                                           static_cast<std::int64_t>(taps.centre + support + 0.5));
  taps.count = last - taps.first;
  return taps;
}

double raw_weight(Filter filter, const Taps& taps, std::int64_t k) {
  return evaluate(filter,
                  (static_cast<double>(k + taps.first) - taps.centre + 0.5) * (1.0 / taps.stretch));
}

struct Extent {
  std::size_t max_taps;
  std::size_t begin, end;  // source samples needed by the outputs
};

Extent extent_of(Filter filter, std::size_t source, std::size_t resized, std::size_t offset,
                 std::size_t count) {
  // Same size: the filter is 1 at its centre and 0 at every other sample.
  if (source == resized) return {1, offset, offset + count};
  Extent extent{1, source, 0};
  for (std::size_t i = 0; i < count; ++i) {
    const Taps taps = taps_of(filter, source, resized, offset + i);
    extent.max_taps = std::max(extent.max_taps, static_cast<std::size_t>(taps.count));
    extent.begin = std::min(extent.begin, static_cast<std::size_t>(taps.first));
    extent.end = std::max(extent.end, static_cast<std::size_t>(taps.first + taps.count));
  }
  return extent;
}

bool is_vertical_first(const ResizeRequest& r) {
  const auto lost = [](std::size_t from, std::size_t to) {
    return static_cast<std::int64_t>(from) - static_cast<std::int64_t>(to);
  };
  const std::int64_t rows = lost(r.height, r.resized_height);
  return rows > 0 && rows > 2 * lost(r.width, r.resized_width);
}

std::size_t round_up(std::size_t value, std::size_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Hands out 64-byte aligned pieces of the workspace; with a null base it only counts.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<unsigned char*>(base)) {}
  template <typename T>
  T* take(std::size_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * sizeof(T), 64);
    return piece;
  }
  std::size_t used() const { return used_; }

 private:
  unsigned char* base_;
  std::size_t used_ = 0;
};

void fill_axis(ResizeAxis& axis, std::int32_t* first, std::int16_t* weights, Filter filter,
               std::size_t source, std::size_t resized, std::size_t offset, std::size_t origin) {
  const std::size_t padded = round_up(axis.count, 4);
  std::memset(first, 0, padded * sizeof(*first));
  std::memset(weights, 0, padded * axis.blocks * 8 * sizeof(*weights));
  for (std::size_t i = 0; i < axis.count; ++i) {
    std::int16_t* row = weights + i * axis.blocks * 8;
    const auto store = [row](std::int64_t k, std::int32_t weight) {
      row[k / 4 * 8 + k % 4] = static_cast<std::int16_t>(weight >> 15);
      row[k / 4 * 8 + 4 + k % 4] = static_cast<std::int16_t>(weight & 0x7fff);
    };
    if (source == resized) {
      first[i] = static_cast<std::int32_t>(offset + i - origin);
      store(0, std::int32_t{1} << weight_bits);
      continue;
    }
    const Taps taps = taps_of(filter, source, resized, offset + i);
    first[i] = static_cast<std::int32_t>(taps.first - static_cast<std::int64_t>(origin));
    double sum = 0.0;
    for (std::int64_t k = 0; k < taps.count; ++k) sum += raw_weight(filter, taps, k);
    for (std::int64_t k = 0; k < taps.count; ++k) {
      const double weight = raw_weight(filter, taps, k) / sum * (1 << weight_bits);
      store(k, static_cast<std::int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5));
    }
  }
  axis.first = first;
  axis.weights = weights;
}

ResizePlan lay_out(const ResizeRequest& r, Arena& arena, bool fill) {
  const Extent x = extent_of(r.filter, r.width, r.resized_width, r.left, r.out_width);
  const Extent y = extent_of(r.filter, r.height, r.resized_height, r.top, r.out_height);
  ResizePlan plan{};
  plan.request = r;
  plan.vertical_first = is_vertical_first(r);
  plan.x = {r.out_width, (x.max_taps + 3) / 4, x.max_taps == 1, nullptr, nullptr};
  plan.y = {r.out_height, (y.max_taps + 3) / 4, y.max_taps == 1, nullptr, nullptr};
  plan.first_row = y.begin;
  plan.rows = y.end - y.begin;
  plan.first_column = x.begin;
  plan.columns = x.end - x.begin;
  plan.plane = round_up(r.out_width, 16);
  plan.row_bytes = round_up(plan.plane * r.channels, 64);
  // An output's last block begins before first + max_taps, so before columns + 4 * blocks; a load
  // takes 16 bytes.
  plan.reach = round_up((plan.columns + 4 * plan.x.blocks) * r.channels + 16, 64);
  plan.middle_stride = plan.vertical_first ? plan.reach : plan.row_bytes;
  const std::size_t nx = round_up(r.out_width, 4), ny = round_up(r.out_height, 4);
  auto* x_first = arena.take<std::int32_t>(nx);
  auto* y_first = arena.take<std::int32_t>(ny);
  auto* x_weights = arena.take<std::int16_t>(nx * plan.x.blocks * 8);
  auto* y_weights = arena.take<std::int16_t>(ny * plan.y.blocks * 8);
  plan.table = arena.take<float>(256 * r.channels);
  plan.lines = arena.take<unsigned char>(4 * plan.row_bytes);
  plan.padded = arena.take<unsigned char>(4 * plan.reach);
  plan.middle =
      arena.take<unsigned char>((plan.vertical_first ? 4 : plan.rows) * plan.middle_stride);
  if (fill) {
    fill_axis(plan.x, x_first, x_weights, r.filter, r.width, r.resized_width, r.left, x.begin);
    fill_axis(plan.y, y_first, y_weights, r.filter, r.height, r.resized_height, r.top, y.begin);
  }
  return plan;
}

}  // namespace

std::size_t resize_normalize_workspace(const ResizeRequest& request) {
  Arena arena(nullptr);
  lay_out(request, arena, false);
  return arena.used();
}

ResizePlan make_plan(const ResizeRequest& request, void* workspace) {
  assert(request.top + request.out_height <= request.resized_height);
  assert(request.left + request.out_width <= request.resized_width);
  Arena arena(workspace);
  return lay_out(request, arena, true);
}

}  // namespace vitlet
