// Entry points of attention on Hopper: picks the instance for the dtype and head dimension. Head
// dimensions between those instances exist for are padded with zeros in shared memory.
#include "sm90/attention_fwd.h"

#include "sm90/launch.h"

namespace minference::cuda::sm90 {
namespace {

template <bool kIsBfloat16>
cudaError_t launch_padded(const AttentionFwdParams& params, std::int32_t num_blocks,
                          cudaStream_t stream) {
  const std::int32_t head_dim = params.call.head_dim;
  if (head_dim <= 64) return AttentionFwd<kIsBfloat16, 64>::launch(params, num_blocks, stream);
  if (head_dim <= 96) return AttentionFwd<kIsBfloat16, 96>::launch(params, num_blocks, stream);
  if (head_dim <= 128) return AttentionFwd<kIsBfloat16, 128>::launch(params, num_blocks, stream);
  if (head_dim <= kMaxHeadDim) {
    return AttentionFwd<kIsBfloat16, 256>::launch(params, num_blocks, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

bool is_built() { return true; }

cudaError_t launch_attention_fwd(const AttentionFwdParams& params, std::int32_t num_blocks,
                                 cudaStream_t stream) {
  return params.call.is_bfloat16 ? launch_padded<true>(params, num_blocks, stream)
                                 : launch_padded<false>(params, num_blocks, stream);
}

}  // namespace minference::cuda::sm90
