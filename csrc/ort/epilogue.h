#pragma once
#include "activation.h"
#include "custom_op.h"

namespace vitlet::ort {

// What every layer of this library does to its product: activation(product + bias) + residual.

// Of the attribute "activation".
Activation activation_of(const char* op, const Info& info);

// Null where the input is absent. Refuses another shape.
const float* bias_of(const char* op, const Tensor& bias, std::size_t outputs);
const float* residual_of(const char* op, const Tensor& residual, const Shape& out);

}  // namespace vitlet::ort
