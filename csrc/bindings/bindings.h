#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <string>

#include "cpu.h"

namespace vitlet {

// The instruction set that `name` asks for ("" = the active one), checked against this CPU.
Isa choose_isa(const std::string& name);

void bind_binary_linear_attention(pybind11::module_& m);
void bind_additive_token_mixer(pybind11::module_& m);
void bind_depthwise_conv2d(pybind11::module_& m);
void bind_float_linear(pybind11::module_& m);
void bind_hamming_attention(pybind11::module_& m);
void bind_resize_normalize(pybind11::module_& m);
void bind_shift_linear(pybind11::module_& m);

}  // namespace vitlet
