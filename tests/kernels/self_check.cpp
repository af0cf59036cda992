// Holds every instruction set that the processor has to the reference, without Python. Prints one
// line and returns 0, or names the first difference and returns 1. Built and run by
// test_self_check.py, for ARM under an emulator; on a board, build it with the kernels and run it.
#include "self_check.h"

#include <cstdio>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include "resize_normalize.h"

namespace {

using namespace vitlet;

std::vector<std::uint8_t> noise(std::size_t count) {
  std::vector<std::uint8_t> bytes(count);
  std::uint32_t state = 1;
  for (auto& byte : bytes) {
    state = state * 1664525u + 1013904223u;
    const std::uint8_t value = static_cast<std::uint8_t>(state >> 24);
    byte = value < 64 ? 0 : value > 192 ? 255 : value;  // extremes make bicubic overshoot
  }
  return bytes;
}

struct Release {
  void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t{64}); }
};

bool agrees(const ResizeRequest& r, Isa isa) {
  const auto image = noise(r.height * r.width * r.channels);
  const std::size_t count = r.out_height * r.out_width * r.channels;
  const std::unique_ptr<unsigned char, Release> space(static_cast<unsigned char*>(
      ::operator new(resize_normalize_workspace(r), std::align_val_t{64})));
  const float mean[4] = {0.5f, 0.25f, 0.1f, 0.0f}, std[4] = {0.2f, 0.3f, 1.0f, 0.7f};
  std::vector<std::uint8_t> bytes(count), expected_bytes(count);
  std::vector<float> values(count), expected_values(count);
  reference::resize_crop(image.data(), r, expected_bytes.data(), space.get());
  resize_crop(image.data(), r, bytes.data(), space.get(), isa);
  reference::resize_normalize(image.data(), r, mean, std, expected_values.data(), space.get());
  resize_normalize(image.data(), r, mean, std, values.data(), space.get(), isa);
  return bytes == expected_bytes &&
         std::memcmp(values.data(), expected_values.data(), count * sizeof(float)) == 0;
}

}  // namespace

int main() {
  const std::size_t sides[] = {1, 2, 5, 16, 17, 33, 64, 97};
  std::size_t checks = 0;
  for (Isa isa : all_isas) {
    if (!isa_supported(isa)) continue;
    for (std::size_t channels : {1, 3, 4})
      for (Filter filter : {Filter::bilinear, Filter::bicubic})
        for (std::size_t h : sides)
          for (std::size_t w : sides)
            for (std::size_t to_h : {1, 7, 32, 65})
              for (std::size_t to_w : {1, 9, 32, 47}) {
                const std::size_t top = to_h / 3, left = to_w / 4;
                const ResizeRequest r{h,   w,    channels,   to_h,        to_w,
                                      top, left, to_h - top, to_w - left, filter};
                ++checks;
                if (agrees(r, isa)) continue;
                std::printf("%s differs: %zux%zux%zu to %zux%zu\n", isa_name(isa).c_str(), h, w,
                            channels, to_h, to_w);
                return 1;
              }
  }
  const std::size_t linear = check_linear();
  if (linear == 0) return 1;
  checks += linear;
  const std::size_t float_linear = check_float_linear();
  if (float_linear == 0) return 1;
  checks += float_linear;
  const std::size_t attention = check_binary_attention();
  if (attention == 0) return 1;
  checks += attention;
  const std::size_t hamming = check_hamming();
  if (hamming == 0) return 1;
  checks += hamming;
  const std::size_t mixer = check_mixer();
  if (mixer == 0) return 1;
  checks += mixer;
  const std::size_t depthwise = check_depthwise();
  if (depthwise == 0) return 1;
  checks += depthwise;
  std::printf("ok %zu checks, best instruction set %s\n", checks, isa_name(active_isa()).c_str());
  return 0;
}
