#include "launchers.h"

namespace vitlet::cuda {

// kernels: ProjectMap of mixer_project.cuh, GatePositions, WeighPositions, MeanOfChannel and
// GateChannels of mixer_gates.cuh, and MixContext of additive_token_mixer.cuh

// launchers

cudaError_t additive_token_mixer(const MixerCall& call, cudaStream_t stream) {
  Launch launch{stream};
  plan_additive_token_mixer(call, launch);
  return launch.status;
}

}  // namespace vitlet::cuda
