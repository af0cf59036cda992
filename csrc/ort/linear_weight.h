#pragma once
#include <vector>

#include "custom_op.h"
#include "shift_linear.h"

namespace vitlet::ort {

// A weight of 8-bit products, in the kernel's order; see shift_linear.h.
class PackedWeight {
 public:
  // values: (N, K) int8; scale: (N,).
  static PackedWeight dense(const char* op, const Tensor& values, const Tensor& scale);
  // codes: (N, K / 2) uint8, or wide (2, N, K / 2): the high parts, then the low ones. A byte holds
  // the codes of two inputs, the lower half that of the even one. scale: (N,). For an odd K the
  // last half byte is 0.
  static PackedWeight codes(const char* op, const Tensor& codes, const Tensor& scale,
                            std::size_t inputs, bool wide);

  LinearWeight view() const;
  std::size_t inputs() const { return inputs_; }
  std::size_t outputs() const { return scale_.size(); }

 private:
  PackedWeight(const char* op, WeightFormat format, const Tensor& scale, std::size_t inputs);
  void put_code(std::size_t column, std::size_t input, unsigned code);

  WeightFormat format_;
  std::size_t inputs_;
  Buffer panels_;
  std::vector<std::int32_t> sums_;
  std::vector<float> scale_;
};

}  // namespace vitlet::ort
