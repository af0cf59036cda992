#pragma once

namespace vitlet {

// What a linear layer does to its sums. gelu is the one with erf, silu is x / (1 + exp(-x)).
enum class Activation { none, gelu, relu, silu };

}  // namespace vitlet
