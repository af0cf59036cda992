// Compiled once per instruction set; VITLET_ISA names the namespace (see CMakeLists.txt).
// Nothing here may be inline with external linkage: see simd.h.
//
// A 22-bit weight is high * 2^15 + low, so sum(w * x) = sum(high * x) * 2^15 + sum(low * x), and
// each of the two sums is made by 16-bit multiply-adds. The partial sums may wrap; the total fits
// in 32 bits, and sums modulo 2^32 are exact.
#include "resize_plan.h"
#include "simd.h"

namespace vitlet::VITLET_ISA {
namespace {

constexpr std::int32_t rounding = 1 << (weight_bits - 1);

inline I32 finish(I32 high, I32 low) {
  return shift_right<weight_bits>(add(add(shift_left<15>(high), low), all_i32(rounding)));
}

// A block of a row: of its last block, only the bytes that are there.
inline U8 load_some(const std::uint8_t* p, std::size_t count) {
  if (count >= lanes_u8) return load(p);
  std::uint8_t bytes[lanes_u8] = {};
  std::memcpy(bytes, p, count);
  return load(bytes);
}

// One output row: dst[i] = sum_k weight(k) * row_k[i] for i < bytes, over all channels at once.
// dst has room for whole blocks.
void vertical(const ResizePlan& plan, std::size_t output, const std::uint8_t* source,
              std::size_t stride, std::size_t bytes, std::uint8_t* __restrict dst) {
  const ResizeAxis& axis = plan.y;
  const auto first = static_cast<std::size_t>(axis.first[output]);
  source += first * stride;
  if (axis.single) {
    std::memcpy(dst, source, bytes);
    return;
  }
  const std::int16_t* weights = axis.weights + output * axis.blocks * 8;
  const std::size_t last = plan.rows - 1 - first;  // taps past it weigh nothing: any row will do
  for (std::size_t i = 0; i < bytes; i += lanes_u8) {
    I32 high[4] = {all_i32(0), all_i32(0), all_i32(0), all_i32(0)};
    I32 low[4] = {all_i32(0), all_i32(0), all_i32(0), all_i32(0)};
    for (std::size_t k = 0; k < 4 * axis.blocks; k += 2) {
      const U8 a = load_some(source + (k < last ? k : last) * stride + i, bytes - i);
      const U8 b = load_some(source + (k + 1 < last ? k + 1 : last) * stride + i, bytes - i);
      const std::int16_t* pair = weights + k / 4 * 8 + k % 4;
      const I16 wh = (I16)all_i32(read_i32(pair)), wl = (I16)all_i32(read_i32(pair + 4));
      const U8 ab_low = interleave_low(a, b), ab_high = interleave_high(a, b);
      const I16 x[4] = {widen_low(ab_low), widen_high(ab_low), widen_low(ab_high),
                        widen_high(ab_high)};
      for (int j = 0; j < 4; ++j) {
        high[j] = add(high[j], madd(x[j], wh));
        low[j] = add(low[j], madd(x[j], wl));
      }
    }
    store(dst + i, narrow(finish(high[0], low[0]), finish(high[1], low[1]), finish(high[2], low[2]),
                          finish(high[3], low[3])));
  }
}

// The horizontal pass works on "lanes": the channels of one row, or four rows of a grey image.
// `rows` are the source rows and `dst` the planes to write.
struct Lanes {
  const std::uint8_t* rows[4];
  std::uint8_t* dst[4];
};

#if defined(__AVX2__)

// Sixteen bytes that hold four taps of every lane, from column x on, in both halves.
template <int channels>
inline __m256i four_taps(const Lanes& lanes, std::size_t x) {
  if (channels == 1) {
    return _mm256_broadcastsi128_si256(
        _mm_setr_epi32(read_i32(lanes.rows[0] + x), read_i32(lanes.rows[1] + x),
                       read_i32(lanes.rows[2] + x), read_i32(lanes.rows[3] + x)));
  }
  return _mm256_broadcastsi128_si256(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes.rows[0] + x * channels)));
}

// Moves them to int16 in the order lane 0 taps 0-3, lane 1 taps 0-3; lane 2, lane 3.
template <int channels>
inline __m256i order() {
  constexpr char z = -128;  // gives zero
  if (channels == 1)
    return _mm256_setr_epi8(0, z, 1, z, 2, z, 3, z, 4, z, 5, z, 6, z, 7, z,  //
                            8, z, 9, z, 10, z, 11, z, 12, z, 13, z, 14, z, 15, z);
  if (channels == 3)
    return _mm256_setr_epi8(0, z, 3, z, 6, z, 9, z, 1, z, 4, z, 7, z, 10, z,  //
                            2, z, 5, z, 8, z, 11, z, z, z, z, z, z, z, z, z);
  return _mm256_setr_epi8(0, z, 4, z, 8, z, 12, z, 1, z, 5, z, 9, z, 13, z,  //
                          2, z, 6, z, 10, z, 14, z, 3, z, 7, z, 11, z, 15, z);
}

inline void put(std::uint8_t* p, std::int32_t four_bytes) { std::memcpy(p, &four_bytes, 4); }

// Writes four outputs of each lane: v holds them in 32-bit groups at 0, 1 | 4, 5.
template <int channels>
inline void put_lanes(const Lanes& lanes, std::size_t i, __m256i v) {
  put(lanes.dst[0] + i, _mm256_extract_epi32(v, 0));
  put(lanes.dst[1] + i, _mm256_extract_epi32(v, 1));
  put(lanes.dst[2] + i, _mm256_extract_epi32(v, 4));
  if (channels != 3) put(lanes.dst[3] + i, _mm256_extract_epi32(v, 5));
}

// From [lane 0, lane 1, lane 0, ...] bytes of four outputs to one group per lane.
inline __m256i gather_lanes(__m256i v) {
  return _mm256_shuffle_epi8(v, _mm256_broadcastsi128_si256(_mm_setr_epi8(
                                    0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1)));
}

inline __m256i weights4(const std::int16_t* p) {
  long long four;
  std::memcpy(&four, p, 8);
  return _mm256_set1_epi64x(four);
}

// Both partial sums of one output, combined: two 32-bit parts of each lane, still to be added.
template <int channels>
inline __m256i horizontal_sum(const ResizeAxis& axis, const Lanes& lanes, std::size_t i) {
  const __m256i to_lanes = order<channels>();
  const auto first = static_cast<std::size_t>(axis.first[i]);
  const std::int16_t* weights = axis.weights + i * axis.blocks * 8;
  __m256i high = _mm256_setzero_si256(), low = high;
  for (std::size_t block = 0; block < axis.blocks; ++block) {
    const __m256i x = _mm256_shuffle_epi8(four_taps<channels>(lanes, first + 4 * block), to_lanes);
    high = _mm256_add_epi32(high, _mm256_madd_epi16(x, weights4(weights + 8 * block)));
    low = _mm256_add_epi32(low, _mm256_madd_epi16(x, weights4(weights + 8 * block + 4)));
  }
  return _mm256_add_epi32(_mm256_slli_epi32(high, 15), low);
}

inline __m256i finish4(__m256i a, __m256i b, __m256i c, __m256i d) {
  const __m256i half = _mm256_set1_epi32(rounding);
  const __m256i ab =
      _mm256_srai_epi32(_mm256_add_epi32(_mm256_hadd_epi32(a, b), half), weight_bits);
  const __m256i cd =
      _mm256_srai_epi32(_mm256_add_epi32(_mm256_hadd_epi32(c, d), half), weight_bits);
  const __m256i words = _mm256_packs_epi32(ab, cd);
  return gather_lanes(_mm256_packus_epi16(words, words));
}

template <int channels>
void horizontal(const ResizeAxis& axis, const Lanes& lanes) {
  for (std::size_t i = 0; i < axis.count; i += 4) {
    const __m256i a = horizontal_sum<channels>(axis, lanes, i);
    const __m256i b = horizontal_sum<channels>(axis, lanes, i + 1);
    const __m256i c = horizontal_sum<channels>(axis, lanes, i + 2);
    const __m256i d = horizontal_sum<channels>(axis, lanes, i + 3);
    put_lanes<channels>(lanes, i, finish4(a, b, c, d));
  }
}

#else

// Two taps of every lane, as bytes: lane 0 taps 0 and 1, lane 1 taps 0 and 1, ...
template <int channels>
inline U8 two_taps(const Lanes& lanes, std::size_t x) {
  U8 a, b;
  if (channels == 1) {
    std::uint8_t bytes[32] = {};
    for (int lane = 0; lane < 4; ++lane) {
      bytes[lane] = lanes.rows[lane][x];
      bytes[16 + lane] = lanes.rows[lane][x + 1];
    }
    a = load(bytes);
    b = load(bytes + 16);
  } else {
    a = first_four(read_i32(lanes.rows[0] + x * channels));
    b = first_four(read_i32(lanes.rows[0] + (x + 1) * channels));
  }
  return interleave_low(a, b);
}

template <int channels>
void horizontal(const ResizeAxis& axis, const Lanes& lanes) {
  for (std::size_t i = 0; i < axis.count; ++i) {
    const auto first = static_cast<std::size_t>(axis.first[i]);
    const std::int16_t* weights = axis.weights + i * axis.blocks * 8;
    I32 high = all_i32(0), low = all_i32(0);
    for (std::size_t k = 0; k < 4 * axis.blocks; k += 2) {
      const std::int16_t* pair = weights + k / 4 * 8 + k % 4;
      const I16 x = widen_low(two_taps<channels>(lanes, first + k));
      high = add(high, madd(x, (I16)all_i32(read_i32(pair))));
      low = add(low, madd(x, (I16)all_i32(read_i32(pair + 4))));
    }
    const I32 sum = finish(high, low);
    std::uint8_t bytes[16];
    store(bytes, narrow(sum, sum, sum, sum));
    for (int lane = 0; lane < (channels == 3 ? 3 : 4); ++lane) lanes.dst[lane][i] = bytes[lane];
  }
}

#endif

// Takes samples as they are: the width stays, or the source is one pixel wide.
void copy_columns(const ResizePlan& plan, const std::uint8_t* row, std::uint8_t* dst) {
  const std::size_t channels = plan.request.channels;
  for (std::size_t c = 0; c < channels; ++c)
    for (std::size_t i = 0; i < plan.x.count; ++i)
      dst[c * plan.plane + i] = row[static_cast<std::size_t>(plan.x.first[i]) * channels + c];
}

// Rows that one call of the horizontal pass takes.
inline std::size_t group_of(const ResizePlan& plan) { return plan.request.channels == 1 ? 4 : 1; }

// Resizes `count` rows (one group at most) to planes dst, dst + row_bytes, ...
void horizontal_group(const ResizePlan& plan, const std::uint8_t* const* rows, std::size_t count,
                      std::uint8_t* dst) {
  if (plan.x.single) {
    for (std::size_t j = 0; j < count; ++j) copy_columns(plan, rows[j], dst + j * plan.row_bytes);
    return;
  }
  Lanes lanes{};
  const std::size_t channels = plan.request.channels;
  for (std::size_t lane = 0; lane < 4; ++lane) {
    // A group that is not full does its last row more than once, to the same place.
    const std::size_t row = channels == 1 ? (lane < count ? lane : count - 1) : 0;
    lanes.rows[lane] = rows[row];
    if (channels == 1)
      lanes.dst[lane] = dst + row * plan.row_bytes;
    else if (lane < channels)
      lanes.dst[lane] = dst + lane * plan.plane;
  }
  switch (channels) {
    case 1:
      return horizontal<1>(plan.x, lanes);
    case 3:
      return horizontal<3>(plan.x, lanes);
    default:
      return horizontal<4>(plan.x, lanes);
  }
}

// Calls emit(y, line) for every output row.
template <typename Emit>
void resize(const std::uint8_t* image, const ResizePlan& plan, Emit emit) {
  const ResizeRequest& r = plan.request;
  const std::size_t stride = r.width * r.channels, group = group_of(plan);
  const std::size_t offset = plan.first_row * stride + plan.first_column * r.channels;
  const std::size_t bytes = plan.columns * r.channels;
  const std::uint8_t* rows[4];
  if (plan.vertical_first) {
    for (std::size_t y = 0; y < r.out_height; y += group) {
      const std::size_t count = r.out_height - y < group ? r.out_height - y : group;
      for (std::size_t j = 0; j < count; ++j) {
        std::uint8_t* row = plan.middle + j * plan.middle_stride;
        vertical(plan, y + j, image + offset, stride, bytes, row);
        rows[j] = row;
      }
      horizontal_group(plan, rows, count, plan.lines);
      for (std::size_t j = 0; j < count; ++j) emit(y + j, plan.lines + j * plan.row_bytes);
    }
    return;
  }
  const std::size_t end = r.height * stride;
  for (std::size_t y = 0; y < plan.rows; y += group) {
    const std::size_t count = plan.rows - y < group ? plan.rows - y : group;
    for (std::size_t j = 0; j < count; ++j) {
      const std::size_t begin = offset + (y + j) * stride;
      rows[j] = image + begin;
      if (begin + plan.reach > end) {  // reading past this row would leave the image
        std::uint8_t* copy = plan.padded + j * plan.reach;
        std::memcpy(copy, image + begin, bytes);
        rows[j] = copy;
      }
    }
    horizontal_group(plan, rows, count, plan.middle + y * plan.row_bytes);
  }
  for (std::size_t y = 0; y < r.out_height; ++y) {
    vertical(plan, y, plan.middle, plan.row_bytes, plan.row_bytes, plan.lines);
    emit(y, plan.lines);
  }
}

}  // namespace

void resize_normalize(const std::uint8_t* image, const ResizePlan& plan, const float* mean,
                      const float* std, float* out) {
  const ResizeRequest& r = plan.request;
  for (std::size_t c = 0; c < r.channels; ++c)
    for (int byte = 0; byte < 256; ++byte)
      plan.table[256 * c + static_cast<std::size_t>(byte)] =
          (static_cast<float>(byte) / 255.0f - mean[c]) / std[c];
  resize(image, plan, [&](std::size_t y, const std::uint8_t* __restrict line) {
    for (std::size_t c = 0; c < r.channels; ++c) {
      const std::uint8_t* from = line + c * plan.plane;
      const float* __restrict table = plan.table + 256 * c;
      float* __restrict to = out + (c * r.out_height + y) * r.out_width;
      for (std::size_t x = 0; x < r.out_width; ++x) to[x] = table[from[x]];
    }
  });
}

void resize_crop(const std::uint8_t* image, const ResizePlan& plan, std::uint8_t* out) {
  const ResizeRequest& r = plan.request;
  resize(image, plan, [&](std::size_t y, const std::uint8_t* __restrict line) {
    std::uint8_t* __restrict to = out + y * r.out_width * r.channels;
    for (std::size_t c = 0; c < r.channels; ++c)
      for (std::size_t x = 0; x < r.out_width; ++x)
        to[x * r.channels + c] = line[c * plan.plane + x];
  });
}

}  // namespace vitlet::VITLET_ISA
