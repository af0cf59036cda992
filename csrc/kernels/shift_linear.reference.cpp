#include "shift_linear.h"

#include <vector>

#include "gelu.h"
#include "linear_reference.h"

namespace vitlet::reference {

void shift_linear(const float* x, std::size_t rows, const LinearWeight& w, const float* bias,
                  Activation activation, const float* residual, float* out) {
  std::vector<std::int32_t> q(w.inputs);
  for (std::size_t m = 0; m < rows; ++m) {
    const float row_scale = round_row(x + m * w.inputs, q);
    for (std::size_t n = 0; n < w.outputs; ++n) {
      float total;
      if (w.format == WeightFormat::wide) {
        const std::size_t high = n / 8 * 16 + n % 8;
        const float upper = static_cast<float>(integer_sum(w, high, q)) * 256.0f;
        total = upper + static_cast<float>(integer_sum(w, high + 8, q));
      } else {
        total = static_cast<float>(integer_sum(w, n, q));
      }
      const float y = total * (row_scale * w.scale[n]) + (bias == nullptr ? 0.0f : bias[n]);
      const std::size_t i = m * w.outputs + n;
      const float z = activation == Activation::gelu ? gelu(y) : y;
      out[i] = residual == nullptr ? z : z + residual[i];
    }
  }
}

}  // namespace vitlet::reference
