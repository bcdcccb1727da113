#include "sm90/attention_fwd.cuh"

namespace minference::cuda::sm90 {

template struct AttentionFwd<DType::kFloat16, 96>;

}  // namespace minference::cuda::sm90
