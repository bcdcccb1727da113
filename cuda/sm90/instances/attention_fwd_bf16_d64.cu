#include "sm90/attention_fwd.cuh"

namespace minference::cuda::sm90 {

template struct AttentionFwd<true, 64>;

}  // namespace minference::cuda::sm90
