#pragma once
#include <cuda_runtime_api.h>

#include "additive_token_mixer.cuh"
#include "binary_linear_attention.cuh"
#include "shift_linear.cuh"

// The kernels on a stream. All pointers are the device's; a workspace has the bytes that the
// function's *_workspace tells (the same for the same sizes), 16-byte aligned. Nothing is
// allocated and nothing waits: calls can be captured into a graph. What comes back is
// cudaGetLastError's answer to the first launch that failed; a failing kernel shows itself later,
// as always on a stream.
namespace vitlet::cuda {

cudaError_t shift_linear(const LinearCall& call, cudaStream_t stream);
cudaError_t binary_linear_attention(const AttentionCall& call, cudaStream_t stream);
cudaError_t additive_token_mixer(const MixerCall& call, cudaStream_t stream);

}  // namespace vitlet::cuda
