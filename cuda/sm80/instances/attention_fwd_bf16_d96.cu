#include "sm80/attention_fwd.cuh"

namespace minference::cuda::sm80 {

template struct AttentionFwd<true, 96>;

}  // namespace minference::cuda::sm80
