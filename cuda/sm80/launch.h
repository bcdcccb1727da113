// Host functions of the attention kernel on mma.sync.
#pragma once

#include <driver_types.h>

#include "params.h"

namespace minference::cuda::sm80 {

/// out and lse of a layer, or the results of its parts.
cudaError_t launch_attention_fwd(const AttentionFwdParams& params, cudaStream_t stream);

/// How many of its blocks the current device runs at once.
cudaError_t count_attention_fwd_slots(std::int32_t head_dim, bool is_bfloat16, std::int32_t* slots);

}  // namespace minference::cuda::sm80
