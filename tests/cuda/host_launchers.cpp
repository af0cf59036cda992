// vitlet/_cuda without a GPU: module.cpp as it is, with the kernels run on the processor and the
// little of CUDA's runtime that it calls. Memory of the host counts as a GPU's, except at address
// 64 (of the host) and from 2^60 on (of a second GPU). test_module_on_host.py builds it.
#include <cstdint>

#include "host_runner.h"
#include "launchers.h"

extern "C" {

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t) { return "an error"; }
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* pointer) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  attributes->type = address == 64 ? cudaMemoryTypeUnregistered : cudaMemoryTypeDevice;
  attributes->device = address >> 60 == 0 ? 0 : 1;
  return cudaSuccess;
}

}  // extern "C"

namespace vitlet::cuda {

// A stream that is 3 is a broken one.
cudaError_t on_host(cudaStream_t stream) {
  return stream == reinterpret_cast<cudaStream_t>(3) ? cudaErrorUnknown : cudaSuccess;
}

cudaError_t shift_linear(const LinearCall& call, cudaStream_t stream) {
  if (on_host(stream) == cudaSuccess) plan_shift_linear(call, HostLaunch{false});
  return on_host(stream);
}

cudaError_t binary_linear_attention(const AttentionCall& call, cudaStream_t stream) {
  if (on_host(stream) == cudaSuccess) plan_binary_linear_attention(call, HostLaunch{false});
  return on_host(stream);
}

cudaError_t additive_token_mixer(const MixerCall& call, cudaStream_t stream) {
  if (on_host(stream) == cudaSuccess) plan_additive_token_mixer(call, HostLaunch{false});
  return on_host(stream);
}

}  // namespace vitlet::cuda
