// Entry points of attention on Hopper: picks the instance for the dtype and head dimension. Head
// dimensions between those instances exist for are padded with zeros in shared memory.
#include "sm90/attention_fwd.h"

#include "sm90/launch.h"

namespace minference::cuda::sm90 {
namespace {

template <DType kDType>
cudaError_t launch_padded(const AttentionFwdParams& params, std::int32_t num_blocks,
                          cudaStream_t stream) {
  const std::int32_t head_dim = params.call.head_dim;
  if (head_dim <= 64) return AttentionFwd<kDType, 64>::launch(params, num_blocks, stream);
  if constexpr (kDType != DType::kFloat8E4M3) {  // 96 bytes are no row that copies can swizzle
    if (head_dim <= 96) return AttentionFwd<kDType, 96>::launch(params, num_blocks, stream);
  }
  if (head_dim <= 128) return AttentionFwd<kDType, 128>::launch(params, num_blocks, stream);
  if (head_dim <= kMaxHeadDim) {
    return AttentionFwd<kDType, 256>::launch(params, num_blocks, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

bool is_built() { return true; }

cudaError_t launch_attention_fwd(const AttentionFwdParams& params, std::int32_t num_blocks,
                                 cudaStream_t stream) {
  switch (params.call.dtype) {
    case DType::kBFloat16:
      return launch_padded<DType::kBFloat16>(params, num_blocks, stream);
    case DType::kFloat16:
      return launch_padded<DType::kFloat16>(params, num_blocks, stream);
    case DType::kFloat8E4M3:
      return launch_padded<DType::kFloat8E4M3>(params, num_blocks, stream);
    case DType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace minference::cuda::sm90
