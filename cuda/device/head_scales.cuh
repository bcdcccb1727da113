// What float8 tensors are multiplied by, per head. Called by estimation and attention.
#pragma once

#include "params.h"

namespace minference::cuda {

__device__ inline float scale_of(const float* scales, std::int32_t head) {
  return scales == nullptr ? 1.0f : scales[head];
}

/// Of q . k.
__device__ inline float score_scale(const HeadScales& scales, std::int32_t head,
                                    std::int32_t head_kv) {
  return scale_of(scales.q, head) * scale_of(scales.k, head_kv);
}

}  // namespace minference::cuda
