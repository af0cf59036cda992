#include "arguments.h"

#include <stdexcept>

namespace py = pybind11;

namespace vitlet {

void refuse(const char* op, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string("[") + op + "] expected " + expected + ", got " + got);
}

std::string show(const py::array& array) {
  return py::str(array.attr("dtype")).cast<std::string>() + " " +
         py::str(array.attr("shape")).cast<std::string>() +
         ((array.flags() & py::array::c_style) == 0 ? " with strides" : "");
}

std::string show(const Shape& shape) {
  std::string text;
  for (py::ssize_t length : shape) text += (text.empty() ? "" : ", ") + std::to_string(length);
  return "(" + text + (shape.size() == 1 ? ",)" : ")");
}

Shape shape_of(const py::array& array) {
  return Shape(array.shape(), array.shape() + array.ndim());
}

Activation activation_of(const char* op, const std::string& name) {
  if (name == "none") return Activation::none;
  if (name == "gelu") return Activation::gelu;
  if (name == "relu") return Activation::relu;
  if (name == "silu") return Activation::silu;
  refuse(op, "activation \"none\", \"gelu\", \"relu\" or \"silu\"", "\"" + name + "\"");
}

const float* numbers(const char* op, const py::array& array, const std::string& what,
                     const std::vector<std::size_t>& shape) {
  const Shape expected(shape.begin(), shape.end());
  if (!py::isinstance<py::array_t<float>>(array) || shape_of(array) != expected ||
      (array.flags() & py::array::c_style) == 0)
    refuse(op, what + " as contiguous float32 " + show(expected), show(array));
  return static_cast<const float*>(array.data());
}

}  // namespace vitlet
