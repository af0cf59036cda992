#include "launchers.h"
#include "shift_linear.cuh"

namespace vitlet::cuda {

// kernels: RoundRows, MultiplyFewRows and MultiplyRows of shift_linear.cuh

// launchers

cudaError_t shift_linear(const LinearCall& call, cudaStream_t stream) {
  Launch launch{stream};
  plan_shift_linear(call, launch);
  return launch.status;
}

}  // namespace vitlet::cuda
