#include "any/estimate.cuh"

namespace minference::cuda {

template cudaError_t launch_estimate<DType::kFloat16, 96>(EstimatePass, const EstimateParams&,
                                                          cudaStream_t);

}  // namespace minference::cuda
