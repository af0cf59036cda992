#pragma once
#include <pybind11/numpy.h>

#include <string>
#include <vector>

#include "activation.h"

// What the bindings share in checking their arguments.
namespace vitlet {

// Throws std::invalid_argument("[op] expected ..., got ...").
[[noreturn]] void refuse(const char* op, const std::string& expected, const std::string& got);

using Shape = std::vector<pybind11::ssize_t>;
Shape shape_of(const pybind11::array& array);
std::string show(const Shape& shape);            // "(2, 3)"
std::string show(const pybind11::array& array);  // "float32 (2, 3)", " with strides" if it has some

Activation activation_of(const char* op, const std::string& name);

// The numbers of a contiguous float32 array of this shape; refuses any other.
const float* numbers(const char* op, const pybind11::array& array, const std::string& what,
                     const std::vector<std::size_t>& shape);

}  // namespace vitlet
