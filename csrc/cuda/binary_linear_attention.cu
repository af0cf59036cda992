#include "launchers.h"

namespace vitlet::cuda {

// kernels: GatherValues, AddChunks and ApplyQueries of binary_linear_attention.cuh

// launchers

cudaError_t binary_linear_attention(const AttentionCall& call, cudaStream_t stream) {
  Launch launch{stream};
  plan_binary_linear_attention(call, launch);
  return launch.status;
}

}  // namespace vitlet::cuda
