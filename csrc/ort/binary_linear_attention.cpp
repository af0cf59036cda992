#include "binary_linear_attention.h"

#include <algorithm>

#include "operators.h"
#include "pack_bits.h"
#include "scratch.h"

namespace vitlet::ort {
namespace {

constexpr const char* name = "BinaryLinearAttention";

// The thresholds of the heads; zeros where the input is absent.
std::vector<float> thresholds(const Tensor& given, std::int64_t heads) {
  if (given.data == nullptr) return std::vector<float>(static_cast<std::size_t>(heads), 0.0f);
  if (given.shape != Shape{heads})
    refuse(name, "thresholds of shape " + show({heads}), show(given.shape));
  return {given.floats(), given.floats() + heads};
}

void pack(const Tensor& x, const std::vector<float>& levels, std::uint64_t* out) {
  const std::size_t tokens = count(x.shape, 2, 3), bits = count(x.shape, 3, 4);
  const std::size_t units = count(x.shape, 0, 2);
  for (std::size_t u = 0; u < units; ++u)
    pack_bits(x.floats() + u * tokens * bits, tokens, bits, levels[u % levels.size()],
              out + u * tokens * words_of(bits));
}

class BinaryLinearAttention final : public Kernel {
 public:
  BinaryLinearAttention(const Info& info, int threads)
      : threads_(threads),
        signed_(info.integer("signed", 0) != 0),
        exact_(info.integer("exact", 0) != 0) {}

  void compute(const Context& context) const override {
    const Tensor q = context.input(0), k = context.input(1), v = context.input(2);
    if (q.shape.size() != 4 || q.shape != k.shape || q.shape[3] < 1 ||
        q.shape[3] > static_cast<std::int64_t>(max_attention_bits))
      refuse(name, "q and k of one shape (B, H, N, 1 to 128)",
             show(q.shape) + " and " + show(k.shape));
    if (v.shape.size() != 4 || !std::equal(q.shape.begin(), q.shape.begin() + 3, v.shape.begin()))
      refuse(name, "v of the batch, heads and tokens of " + show(q.shape), show(v.shape));
    const std::int64_t heads = q.shape[1];
    const Tensor taps = context.input(5);
    const Shape filters{heads, static_cast<std::int64_t>(token_taps)};
    if (taps.data != nullptr && taps.shape != filters)
      refuse(name, "taps of shape " + show(filters), show(taps.shape));
    const auto size = [&](std::size_t axis) { return count(v.shape, axis, axis + 1); };
    BinaryAttention task{size(0), size(1), size(2), count(q.shape, 3, 4), size(3),       signed_,
                         exact_,  nullptr, nullptr, v.floats(),           taps.floats(), nullptr};
    const auto q_levels = thresholds(context.input(3), heads);
    const auto k_levels = thresholds(context.input(4), heads);
    task.out = context.output(0, v.shape);
    // Of the packed words each side is a multiple of 64 bytes.
    const std::size_t words = (count(q.shape, 0, 3) * words_of(task.bits) + 7) / 8 * 8;
    const std::size_t own = binary_linear_attention_workspace(task, threads_);
    const Scratch space(2 * words * sizeof(std::uint64_t) + own);
    auto* packed = static_cast<std::uint64_t*>(space.get());
    pack(q, q_levels, packed);
    pack(k, k_levels, packed + words);
    task.q = packed;
    task.k = packed + words;
    binary_linear_attention(task, packed + 2 * words, threads_);
  }

 private:
  int threads_;
  bool signed_, exact_;
};

}  // namespace

std::unique_ptr<Kernel> make_binary_linear_attention(const Info& info, int threads) {
  return std::make_unique<BinaryLinearAttention>(info, threads);
}

}  // namespace vitlet::ort
