#pragma once
// Activations of one vector for *.simd.cpp; static, as in simd.h. gelu_f32 is gelu.h's formula,
// within 4e-7 (relative to max(|x|, 1)).
#include "activation.h"
#include "float_simd.h"

namespace vitlet::VITLET_ISA {

static inline F32 gelu_f32(F32 x) {
  F32 t = x * 0.70710678f;
  t = t < -4.0f ? all_f32(-4.0f) : t;
  t = t > 4.0f ? all_f32(4.0f) : t;
  const F32 s = t * t;
  F32 p = s * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * s + -2.10102402082508e-06f;
  p = p * s + -5.69250639462346e-05f;
  p = p * s + -7.34990630326855e-04f;
  p = p * s + -2.95459980854025e-03f;
  p = p * s + -1.60960333262415e-02f;
  F32 q = s * -1.45660718464996e-05f + -2.13374055278905e-04f;
  q = q * s + -1.68282697438203e-03f;
  q = q * s + -7.37332916720468e-03f;
  q = q * s + -1.42647390514189e-02f;
  return 0.5f * x * (1.0f + t * p / q);
}

template <Activation activation>
static inline F32 activate(F32 x) {
  if constexpr (activation == Activation::gelu) return gelu_f32(x);
  if constexpr (activation == Activation::relu) return relu_f32(x);
  if constexpr (activation == Activation::silu) return x * sigmoid_f32(x);
  return x;
}

}  // namespace vitlet::VITLET_ISA
