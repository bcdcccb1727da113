// Declares what estimate.cu calls and instances/estimate_*.cu compile: both passes of the
// estimation for one dtype and padded head dimension. The definition, in estimate.cuh, needs CuTe.
#pragma once

#include <driver_types.h>

#include "params.h"

namespace minference::cuda {

enum class EstimatePass { kRowStats, kLineSums };

/// `kHeadDim`: call.head_dim padded up.
template <DType kDType, int kHeadDim>
cudaError_t launch_estimate(EstimatePass pass, const EstimateParams& params, cudaStream_t stream);

}  // namespace minference::cuda
