#pragma once
#include "custom_op.h"

// One file per kernel, of its name.
namespace vitlet::ort {

std::unique_ptr<Kernel> make_additive_token_mixer(const Info& info, int threads);
std::unique_ptr<Kernel> make_binary_linear_attention(const Info& info, int threads);
std::unique_ptr<Kernel> make_depthwise_conv2d(const Info& info, int threads);
std::unique_ptr<Kernel> make_int8_linear(const Info& info, int threads);
std::unique_ptr<Kernel> make_linear(const Info& info, int threads);
std::unique_ptr<Kernel> make_shift_linear(const Info& info, int threads);

}  // namespace vitlet::ort
