// Dense causal attention, bottom-right aligned. Meaning: sparse_attention.h.
#pragma once

#include "minference/types.h"

namespace minference {

MINFERENCE_API Status dense_attention_supports(const AttentionArgs& args);
MINFERENCE_API Status dense_attention_workspace_bytes(const AttentionArgs& args,
                                                      std::size_t* bytes);
MINFERENCE_API Status dense_attention(const AttentionArgs& args, void* workspace,
                                      std::size_t bytes);

}  // namespace minference
