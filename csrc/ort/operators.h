#pragma once
#include "custom_op.h"

// One file per operator, of its kernel's name.
namespace vitlet::ort {

std::unique_ptr<Kernel> make_additive_token_mixer(const Info& info, int threads);

}  // namespace vitlet::ort
