#include "any/estimate.cuh"

namespace minference::cuda {

template cudaError_t launch_estimate<DType::kBFloat16, 256>(EstimatePass, const EstimateParams&,
                                                            cudaStream_t);

}  // namespace minference::cuda
