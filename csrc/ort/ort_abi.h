#pragma once
#include <cstddef>
#include <cstdint>

// ONNX Runtime's C ABI, as far as a custom-op library needs it, declared by hand: no package
// carries its header, and the ABI only ever grows at its end. Functions are named by their place in
// OrtApi. Version 16 (ONNX Runtime 1.16) is the first whose kernels can report an error.

struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;

namespace vitlet::ort {
constexpr std::uint32_t abi_version = 16;

enum ElementType { element_float = 1, element_uint8 = 2, element_int8 = 3 };
enum Characteristic { input_required = 0, input_optional = 1 };
enum ErrorCode { error_fail = 1, error_invalid_argument = 2 };
}  // namespace vitlet::ort

struct OrtApi {
  void* slots[250];
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(std::uint32_t version);
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, std::size_t index);
  std::size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, std::size_t index);
  std::size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void* kernel, OrtKernelContext*);
  void (*KernelDestroy)(void* kernel);
  int (*GetInputCharacteristic)(const OrtCustomOp*, std::size_t index);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, std::size_t index);
  int (*GetInputMemoryType)(const OrtCustomOp*, std::size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*,
                               void** kernel);
  OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
};

namespace vitlet::ort {

// A function of OrtApi: its place in the table and its type.
template <std::size_t slot, typename Signature>
struct Function {
  static_assert(slot < sizeof(OrtApi::slots) / sizeof(void*));
  template <typename... Arguments>
  static auto call(const OrtApi* api, Arguments... arguments) {
    return reinterpret_cast<Signature*>(api->slots[slot])(arguments...);
  }
};

using Status = OrtStatus*;  // null is success
using CreateStatus = Function<0, Status(int code, const char* message)>;
using GetErrorMessage = Function<2, const char*(const OrtStatus*)>;
using CreateCustomOpDomain = Function<26, Status(const char* domain, OrtCustomOpDomain**)>;
using CustomOpDomainAdd = Function<27, Status(OrtCustomOpDomain*, const OrtCustomOp*)>;
using AddCustomOpDomain = Function<28, Status(OrtSessionOptions*, OrtCustomOpDomain*)>;
using GetTensorMutableData = Function<51, Status(OrtValue*, void**)>;
using GetDimensionsCount = Function<61, Status(const OrtTensorTypeAndShapeInfo*, std::size_t*)>;
using GetDimensions =
    Function<62, Status(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t count)>;
using GetTensorTypeAndShape = Function<65, Status(const OrtValue*, OrtTensorTypeAndShapeInfo**)>;
using KernelInfoGetAttributeInt =
    Function<86, Status(const OrtKernelInfo*, const char* name, std::int64_t*)>;
using KernelInfoGetAttributeString =
    Function<87, Status(const OrtKernelInfo*, const char* name, char*, std::size_t*)>;
using KernelContextGetInput =
    Function<90, Status(const OrtKernelContext*, std::size_t index, const OrtValue**)>;
using KernelContextGetOutput =
    Function<91, Status(OrtKernelContext*, std::size_t index, const std::int64_t* shape,
                        std::size_t count, OrtValue**)>;
using ReleaseStatus = Function<93, void(OrtStatus*)>;
using ReleaseTensorTypeAndShapeInfo = Function<99, void(OrtTensorTypeAndShapeInfo*)>;
using ReleaseCustomOpDomain = Function<101, void(OrtCustomOpDomain*)>;
using KernelInfoGetAttributeInts =
    Function<163, Status(const OrtKernelInfo*, const char* name, std::int64_t*, std::size_t*)>;
using GetSessionConfigEntry =
    Function<238, Status(const OrtSessionOptions*, const char* key, char*, std::size_t*)>;
using KernelInfoGetConstantInput =
    Function<249, Status(const OrtKernelInfo*, std::size_t index, int* constant, const OrtValue**)>;

}  // namespace vitlet::ort
