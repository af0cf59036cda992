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
  int type = 0;
  std::size_t rank = 0;
  check(api, GetTensorElementType::call(api, info, &type));
  check(api, GetDimensionsCount::call(api, info, &rank));
  Tensor tensor{nullptr, std::vector<std::int64_t>(rank)};
  check(api, GetDimensions::call(api, info, tensor.shape.data(), rank));
  if (type != element_float)
    throw std::invalid_argument("expected float32, got element type " + std::to_string(type));
  void* data = nullptr;
  check(api, GetTensorMutableData::call(api, const_cast<OrtValue*>(value), &data));
  tensor.data = static_cast<const float*>(data);
  return tensor;
}

}  // namespace

std::string Info::text(const char* attribute, const std::string& fallback) const {
  std::size_t size = 0;
  Status status = KernelInfoGetAttributeString::call(api_, info_, attribute, nullptr, &size);
  if (status != nullptr) {  // there is none, or this is how the size is told
    ReleaseStatus::call(api_, status);
    if (size == 0) return fallback;
  }
  std::string value(size, '\0');
  check(api_, KernelInfoGetAttributeString::call(api_, info_, attribute, value.data(), &size));
  return value.c_str();  // the size counts the closing zero
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
  if (value == nullptr)
    throw std::invalid_argument("input " + std::to_string(index) + " is absent");
  return view(api_, value);
}

float* Context::output(std::size_t index, const std::vector<std::int64_t>& shape) const {
  OrtValue* value = nullptr;
  check(api_,
        KernelContextGetOutput::call(api_, context_, index, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api_, GetTensorMutableData::call(api_, value, &data));
  return static_cast<float*>(data);
}

void refuse(const char* op, const std::string& expected, const std::string& got) {
  throw std::invalid_argument(std::string("[") + op + "] expected " + expected + ", got " + got);
}

std::string show(const std::vector<std::int64_t>& shape) {
  std::string text = "(";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + ")";
}

}  // namespace vitlet::ort
