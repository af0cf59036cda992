#pragma once
#include <cstddef>
#include <cstdint>

#include "cpu.h"
#include "resize_plan.h"

namespace vitlet {

// Antialiased resize and crop of an 8-bit image, byte for byte as Pillow resizes: a horizontal,
// then a vertical pass with 22-bit fixed-point weights, each rounded to bytes. Every channel is
// resized by itself (alpha is not premultiplied).
//
// image: (height, width, channels) uint8, contiguous. out: below, contiguous, no overlap with
// image. workspace: resize_normalize_workspace(request) bytes, 64-byte aligned.

// out: (channels, out_height, out_width) float32 = (byte / 255 - mean[c]) / std[c], the three
// operations rounded one by one in float32, so that every instruction set gives the same bits.
// mean, std: (channels,).
void resize_normalize(const std::uint8_t* image, const ResizeRequest& request, const float* mean,
                      const float* std, float* out, void* workspace, Isa isa = active_isa());

// out: (out_height, out_width, channels) uint8: the bytes before normalization.
void resize_crop(const std::uint8_t* image, const ResizeRequest& request, std::uint8_t* out,
                 void* workspace, Isa isa = active_isa());

namespace reference {
// The definition, in the plainest loops. Tests hold every other version to it, bit by bit.
void resize_normalize(const std::uint8_t* image, const ResizeRequest& request, const float* mean,
                      const float* std, float* out, void* workspace);
void resize_crop(const std::uint8_t* image, const ResizeRequest& request, std::uint8_t* out,
                 void* workspace);
}  // namespace reference

}  // namespace vitlet
