#include "sm90/attention_fwd.cuh"

namespace minference::cuda::sm90 {

template struct AttentionFwd<DType::kFloat8E4M3, 128>;

}  // namespace minference::cuda::sm90
