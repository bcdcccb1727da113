// Entry points of attention on mma.sync: picks the instance for the dtype and head dimension. Head
// dimensions between those instances exist for are padded with zeros in shared memory.
#include <cuda_runtime.h>

#include "sm80/attention_fwd.h"
#include "sm80/launch.h"

namespace minference::cuda::sm80 {
namespace {

template <bool kIsBfloat16, class Run>
cudaError_t run_padded(int head_dim, const Run& run) {
  if (head_dim <= 64) return run(AttentionFwd<kIsBfloat16, 64>{});
  if (head_dim <= 96) return run(AttentionFwd<kIsBfloat16, 96>{});
  if (head_dim <= 128) return run(AttentionFwd<kIsBfloat16, 128>{});
  if (head_dim <= kMaxHeadDim) return run(AttentionFwd<kIsBfloat16, 256>{});
  return cudaErrorInvalidValue;
}

/// run(instance) with the one that serves.
template <class Run>
cudaError_t run_instance(std::int32_t head_dim, bool is_bfloat16, const Run& run) {
  return is_bfloat16 ? run_padded<true>(head_dim, run) : run_padded<false>(head_dim, run);
}

}  // namespace

cudaError_t launch_attention_fwd(const AttentionFwdParams& params, cudaStream_t stream) {
  return run_instance(params.call.head_dim, params.call.dtype == DType::kBFloat16,
                      [&](auto instance) { return instance.launch(params, stream); });
}

cudaError_t count_attention_fwd_slots(std::int32_t head_dim, bool is_bfloat16,
                                      std::int32_t* slots) {
  int device = 0, multiprocessors = 0, blocks = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = run_instance(head_dim, is_bfloat16,
                         [&](auto instance) { return instance.count_blocks_per_sm(&blocks); });
  }
  *slots = multiprocessors * blocks;
  return error;
}

}  // namespace minference::cuda::sm80
