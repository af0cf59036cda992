#pragma once
// `static`, so that every instruction set's object has a copy of its own (see simd.h).

#ifndef VITLET_ON_DEVICE
#define VITLET_ON_DEVICE  // csrc/cuda compiles it for GPUs too
#endif

namespace vitlet {

// x / 2 (1 + erf(x / sqrt(2))), within 4e-7 (relative to max(|x|, 1)). NaN stays NaN. Only
// additions, multiplications and one division: the same bits on every processor when they are not
// contracted.
VITLET_ON_DEVICE static inline float gelu(float x) {
  float t = x * 0.70710678f;
  t = t < -4.0f ? -4.0f : t;
  t = t > 4.0f ? 4.0f : t;
  const float s = t * t;
  float p = -2.72614225801306e-10f;
  p = p * s + 2.77068142495902e-08f;
  p = p * s + -2.10102402082508e-06f;
  p = p * s + -5.69250639462346e-05f;
  p = p * s + -7.34990630326855e-04f;
  p = p * s + -2.95459980854025e-03f;
  p = p * s + -1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * s + -2.13374055278905e-04f;
  q = q * s + -1.68282697438203e-03f;
  q = q * s + -7.37332916720468e-03f;
  q = q * s + -1.42647390514189e-02f;
  return 0.5f * x * (1.0f + t * p / q);
}

}  // namespace vitlet
