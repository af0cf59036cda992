#include "resize_normalize.h"

#include <algorithm>

namespace vitlet::reference {
namespace {

std::int32_t weight(const ResizeAxis& axis, std::size_t output, std::size_t tap) {
  const std::int16_t* block = axis.weights + (output * axis.blocks + tap / 4) * 8;
  return block[tap % 4] * (1 << 15) + block[4 + tap % 4];
}

// Output `output` of an axis over the bytes source[0], source[stride], ..., `length` of them.
std::uint8_t resample(const ResizeAxis& axis, std::size_t output, const std::uint8_t* source,
                      std::size_t stride, std::size_t length) {
  const auto first = static_cast<std::size_t>(axis.first[output]);
  std::int32_t sum = 1 << (weight_bits - 1);  // so that the shift below rounds to nearest
  for (std::size_t k = 0; k < 4 * axis.blocks && first + k < length; ++k)
    sum += weight(axis, output, k) * source[(first + k) * stride];
  return static_cast<std::uint8_t>(std::clamp(sum >> weight_bits, 0, 255));
}

// Calls emit(c, y, x, byte) for every byte of the window.
template <typename Emit>
void resize(const std::uint8_t* image, const ResizeRequest& r, void* workspace, Emit emit) {
  const ResizePlan plan = make_plan(r, workspace);
  const std::size_t channels = r.channels, row = r.width * channels;
  const std::uint8_t* corner = image + plan.first_row * row + plan.first_column * channels;
  if (plan.vertical_first) {
    for (std::size_t y = 0; y < r.out_height; ++y) {
      for (std::size_t i = 0; i < plan.columns * channels; ++i)
        plan.middle[i] = resample(plan.y, y, corner + i, row, plan.rows);
      for (std::size_t x = 0; x < r.out_width; ++x)
        for (std::size_t c = 0; c < channels; ++c)
          emit(c, y, x, resample(plan.x, x, plan.middle + c, channels, plan.columns));
    }
    return;
  }
  for (std::size_t y = 0; y < plan.rows; ++y)
    for (std::size_t x = 0; x < r.out_width; ++x)
      for (std::size_t c = 0; c < channels; ++c)
        plan.middle[y * plan.middle_stride + x * channels + c] =
            resample(plan.x, x, corner + y * row + c, channels, plan.columns);
  for (std::size_t y = 0; y < r.out_height; ++y)
    for (std::size_t x = 0; x < r.out_width; ++x)
      for (std::size_t c = 0; c < channels; ++c)
        emit(c, y, x,
             resample(plan.y, y, plan.middle + x * channels + c, plan.middle_stride, plan.rows));
}

}  // namespace

void resize_normalize(const std::uint8_t* image, const ResizeRequest& request, const float* mean,
                      const float* std, float* out, void* workspace) {
  resize(image, request, workspace,
         [&](std::size_t c, std::size_t y, std::size_t x, std::uint8_t byte) {
           out[(c * request.out_height + y) * request.out_width + x] =
               (static_cast<float>(byte) / 255.0f - mean[c]) / std[c];
         });
}

void resize_crop(const std::uint8_t* image, const ResizeRequest& request, std::uint8_t* out,
                 void* workspace) {
  resize(image, request, workspace,
         [&](std::size_t c, std::size_t y, std::size_t x, std::uint8_t byte) {
           out[(y * request.out_width + x) * request.channels + c] = byte;
         });
}

}  // namespace vitlet::reference
