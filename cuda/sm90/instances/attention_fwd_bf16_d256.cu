#include "sm90/attention_fwd.cuh"

namespace minference::cuda::sm90 {

template struct AttentionFwd<DType::kBFloat16, 256>;

}  // namespace minference::cuda::sm90
