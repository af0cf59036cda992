#pragma once

namespace vitlet {

// What a layer does to its sums. gelu is the one with erf, within 4e-7
// relative to max(|x|, 1); silu is x / (1 + exp(-x)).
enum class Activation { none, gelu, relu, silu };

}  // namespace vitlet
