// Compiled instead of this folder's other files where CUDA is built without sm_90a.
#include <driver_types.h>

#include "sm90/launch.h"

namespace minference::cuda::sm90 {

bool is_built() { return false; }

cudaError_t launch_attention_fwd(const AttentionFwdParams&, std::int32_t, cudaStream_t) {
  return cudaErrorNoKernelImageForDevice;
}

}  // namespace minference::cuda::sm90
