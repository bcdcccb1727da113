// Entry points of both passes of the estimation: picks the instance for the dtype and head
// dimension. Head dimensions between those instances exist for are padded with zeros in shared
// memory.
#include "any/estimate.h"
#include "any/launch.h"

namespace minference::cuda {
namespace {

template <DType kDType>
cudaError_t launch_padded(EstimatePass pass, const EstimateParams& params, cudaStream_t stream) {
  const int head_dim = params.call.head_dim;
  if (head_dim <= 64) return launch_estimate<kDType, 64>(pass, params, stream);
  if constexpr (kDType != DType::kFloat8E4M3) {
    if (head_dim <= 96) return launch_estimate<kDType, 96>(pass, params, stream);
  }
  if (head_dim <= 128) return launch_estimate<kDType, 128>(pass, params, stream);
  if (head_dim <= kMaxHeadDim) return launch_estimate<kDType, 256>(pass, params, stream);
  return cudaErrorInvalidValue;
}

cudaError_t launch_pass(EstimatePass pass, const EstimateParams& params, cudaStream_t stream) {
  switch (params.call.dtype) {
    case DType::kBFloat16:
      return launch_padded<DType::kBFloat16>(pass, params, stream);
    case DType::kFloat16:
      return launch_padded<DType::kFloat16>(pass, params, stream);
    case DType::kFloat8E4M3:
      return launch_padded<DType::kFloat8E4M3>(pass, params, stream);
    case DType::kFloat32:
      break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace

cudaError_t launch_row_stats(const EstimateParams& params, cudaStream_t stream) {
  return launch_pass(EstimatePass::kRowStats, params, stream);
}

cudaError_t launch_line_sums(const EstimateParams& params, cudaStream_t stream) {
  return launch_pass(EstimatePass::kLineSums, params, stream);
}

}  // namespace minference::cuda
