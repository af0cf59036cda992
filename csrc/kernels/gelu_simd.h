#pragma once
// The function of gelu.h for vectors, for *.simd.cpp: see simd.h.
#include "float_simd.h"

namespace vitlet::VITLET_ISA {

static inline F32 gelu_f32(F32 x) {
  F32 t = x * 0.70710678f;
  t = t < -4.0f ? all_f32(-4.0f) : t;
  t = t > 4.0f ? all_f32(4.0f) : t;
  const F32 s = t * t;
  F32 p = all_f32(-2.72614225801306e-10f);
  p = p * s + 2.77068142495902e-08f;
  p = p * s + -2.10102402082508e-06f;
  p = p * s + -5.69250639462346e-05f;
  p = p * s + -7.34990630326855e-04f;
  p = p * s + -2.95459980854025e-03f;
  p = p * s + -1.60960333262415e-02f;
  F32 q = all_f32(-1.45660718464996e-05f);
  q = q * s + -2.13374055278905e-04f;
  q = q * s + -1.68282697438203e-03f;
  q = q * s + -7.37332916720468e-03f;
  q = q * s + -1.42647390514189e-02f;
  return 0.5f * x * (1.0f + t * p / q);
}

}  // namespace vitlet::VITLET_ISA
