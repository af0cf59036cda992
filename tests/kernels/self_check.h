#pragma once
#include <cstddef>

// Each holds one kernel to its reference on every instruction set that the processor has, and
// returns how many checks passed; or prints the first that did not and returns 0.
std::size_t check_binary_attention();
std::size_t check_depthwise();
std::size_t check_float_linear();
std::size_t check_hamming();
std::size_t check_linear();
std::size_t check_mixer();
