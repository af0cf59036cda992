#include "custom_op.h"

#include <stdexcept>

namespace vitlet::ort {
namespace {

void check(const OrtApi* api, Status status) {
  if (status == nullptr) return;
  const std::string message = GetErrorMessage::call(api, status);
  ReleaseStatus::call(api, status);
  throw std::runtime_error("ONNX Runtime: " + message);
}

Tensor view(const OrtApi* api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, GetTensorTypeAndShape::call(api, value, &info));
  const struct Release {
    const OrtApi* api;
    OrtTensorTypeAndShapeInfo* info;
    ~Release() { ReleaseTensorTypeAndShapeInfo::call(api, info); }
  } release{api, info};
  std::size_t rank = 0;
  check(api, GetDimensionsCount::call(api, info, &rank));
  Tensor tensor{nullptr, Shape(rank)};
  check(api, GetDimensions::call(api, info, tensor.shape.data(), rank));
  void* data = nullptr;
  check(api, GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
  tensor.data = data;
  return tensor;
}

// Whether a question was answered; if not the node does not have what was asked for.
bool answered(const OrtApi* api, Status status) {
  if (status != nullptr) ReleaseStatus::call(api, status);
  return status == nullptr;
}

}  // namespace

std::string Info::text(const char* attribute, const std::string& fallback) const {
  std::size_t size = 0;
  // Without a buffer this fails and tells the size.
  if (!answered(api_, KernelInfoGetAttributeString::call(api_, info_, attribute, nullptr, &size)) &&
      size == 0)
    return fallback;
  std::string value(size, '\0');
  check(api_, KernelInfoGetAttributeString::call(api_, info_, attribute, value.data(), &size));
  return value.c_str();  // the size counts the closing zero
}

std::int64_t Info::integer(const char* attribute, std::int64_t fallback) const {
  std::int64_t value = 0;
  const Status status = KernelInfoGetAttributeInt::call(api_, info_, attribute, &value);
  return answered(api_, status) ? value : fallback;
}

std::vector<std::int64_t> Info::integers(const char* attribute,
                                         std::vector<std::int64_t> fallback) const {
  std::size_t size = 0;
  if (!answered(api_, KernelInfoGetAttributeInts::call(api_, info_, attribute, nullptr, &size)) &&
      size == 0)
    return fallback;
  std::vector<std::int64_t> values(size);
  check(api_, KernelInfoGetAttributeInts::call(api_, info_, attribute, values.data(), &size));
  return values;
}

std::optional<Tensor> Info::constant(std::size_t index) const {
  int constant = 0;
  const OrtValue* value = nullptr;
  check(api_, KernelInfoGetConstantInput::call(api_, info_, index, &constant, &value));
  if (constant == 0 || value == nullptr) return std::nullopt;
  return view(api_, value);
}

Tensor Context::input(std::size_t index) const {
  const OrtValue* value = nullptr;
  check(api_, KernelContextGetInput::call(api_, context_, index, &value));
  return value == nullptr ? Tensor{} : view(api_, value);
}

float* Context::output(std::size_t index, const Shape& shape) const {
  OrtValue* value = nullptr;
  check(api_,
        KernelContextGetOutput::call(api_, context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api_, GetTensorMutableData::call(api_, value, &data));
  return static_cast<float*>(data);
}

Buffer allocate(std::size_t bytes) { return Buffer(::operator new(bytes, std::align_val_t{64})); }

std::size_t count(const Shape& shape, std::size_t first, std::size_t last) {
  std::size_t product = 1;
  for (std::size_t axis = first; axis < last; ++axis)
    product *= static_cast<std::size_t>(shape[axis]);
  return product;
}

void refuse(const char* op, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string("[") + op + "] expected " + expected + ", got " + got);
}

std::string show(const Shape& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + ")";
}

}  // namespace vitlet::ort
