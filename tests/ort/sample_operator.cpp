// An operator for the tests of the ABI layer: y = x * weight[0] + offset, written out plainly.
// The attribute "mode" chooses the offset; "broken" cannot be made.
#include <stdexcept>

#include "custom_op.h"

namespace vitlet::ort {
namespace {

class Sample : public Kernel {
 public:
  Sample(const Info& info, int threads) : threads_(threads), mode_(info.text("mode", "plain")) {
    if (mode_ == "broken") refuse("Sample", "a mode that works", "broken");
    if (const auto weight = info.constant(1)) constant_ = weight->floats()[0];
  }

  void compute(const Context& context) const override {
    const Tensor x = context.input(0);
    if (x.shape.size() != 2) refuse("Sample", "a matrix", show(x.shape));
    const float weight = constant_ ? *constant_ : context.input(1).floats()[0];
    // Tells the test what was seen: 1000 for a constant weight, 10 per thread.
    const float offset = mode_ == "tell" ? (constant_ ? 1000.0f : 0.0f) + 10.0f * threads_ : 0.0f;
    float* y = context.output(0, x.shape);
    for (std::int64_t i = 0; i < x.shape[0] * x.shape[1]; ++i)
      y[i] = x.floats()[i] * weight + offset;
  }

 private:
  int threads_;
  std::string mode_;
  std::optional<float> constant_;
};

std::unique_ptr<Kernel> create(const Info& info, int threads) {
  return std::make_unique<Sample>(info, threads);
}

}  // namespace

const Definition operators[] = {{"Sample", "ff", create}, {nullptr, nullptr, nullptr}};

}  // namespace vitlet::ort
