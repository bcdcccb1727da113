#include "sm80/attention_fwd.cuh"

namespace minference::cuda::sm80 {

template struct AttentionFwd<true, 128>;

}  // namespace minference::cuda::sm80
