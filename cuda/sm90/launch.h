// Host functions of the attention kernel for Hopper.
#pragma once

#include <driver_types.h>

#include <cstdint>

#include "params.h"

namespace minference::cuda::sm90 {

/// Whether this build holds it: code for sm_90a.
bool is_built();

/// out and lse of a layer, or the results of its parts, by `num_blocks` blocks, each of which fills
/// a multiprocessor. Rows of q, k and v begin at multiples of 16 bytes.
cudaError_t launch_attention_fwd(const AttentionFwdParams& params, std::int32_t num_blocks,
                                 cudaStream_t stream);

}  // namespace minference::cuda::sm90
