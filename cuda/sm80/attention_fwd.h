// Declares what attention_fwd.cu calls and instances/attention_fwd_*.cu compile: attention for one
// dtype and padded head dimension. The definitions, in attention_fwd.cuh, need CuTe.
#pragma once

#include <driver_types.h>

#include "params.h"

namespace minference::cuda::sm80 {

/// `kHeadDim`: call.head_dim padded up.
template <bool kIsBfloat16, int kHeadDim>
struct AttentionFwd {
  static cudaError_t launch(const AttentionFwdParams& params, cudaStream_t stream);
  /// How many of its blocks a multiprocessor of the current device runs at once.
  static cudaError_t count_blocks_per_sm(int* blocks);
};

}  // namespace minference::cuda::sm80
