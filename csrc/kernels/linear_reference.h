#pragma once
// What the references of 8-bit products share: the rounding of a row and a weight's integer, as
// shift_linear.h defines them.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "shift_linear.h"

namespace vitlet::reference {

inline int integer_of(const LinearWeight& w, std::size_t column, std::size_t k) {
  const std::uint8_t* panel = w.panels + column / 64 * panel_bytes(w.format, w.inputs);
  const std::size_t c = column % 64;
  if (w.format == WeightFormat::dense)
    return static_cast<std::int8_t>(panel[k / 4 * 256 + c * 4 + k % 4]);
  const int byte = panel[k / 4 * 128 + c / 32 * 64 + c % 16 * 4 + k % 4];
  const int code = c / 16 % 2 == 0 ? byte & 15 : byte >> 4;
  if (code == 8) return w.format == WeightFormat::wide ? -128 : 0;
  const int size = (1 << (code & 7)) >> 1;
  return code < 8 ? size : -size;
}

inline std::int32_t integer_sum(const LinearWeight& w, std::size_t column,
                                const std::vector<std::int32_t>& q) {
  std::int32_t total = 0;
  for (std::size_t k = 0; k < w.inputs; ++k) total += q[k] * integer_of(w, column, k);
  return total;
}

// Rounds one row; returns its scale.
inline float round_row(const float* x, std::vector<std::int32_t>& q) {
  float most = 0;
  for (std::size_t k = 0; k < q.size(); ++k) {
    q[k] = 0;
    if (!std::isfinite(x[k])) most = std::numeric_limits<float>::infinity();
    most = std::max(most, std::fabs(x[k]));
  }
  if (std::isinf(most)) {
    for (auto& value : q) value = 0;
    return std::numeric_limits<float>::quiet_NaN();
  }
  if (most < 0x1p-100f) return 0;
  const float inverse = 127.0f / most;
  for (std::size_t k = 0; k < q.size(); ++k)
    q[k] = static_cast<std::int32_t>(std::nearbyint(x[k] * inverse));
  return most / 127.0f;
}

}  // namespace vitlet::reference
