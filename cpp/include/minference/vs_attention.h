// Vertical-slash attention (MInference, section 3): sizes per head with lines estimated from the
// prompt, or lines given by the caller. Meaning: sparse_attention.h.
#pragma once

#include "minference/sparse_attention.h"
#include "minference/types.h"

namespace minference {

/// V and S estimated from the prompt, every head with its own sizes.
struct VsAttentionParams {
  std::uint32_t struct_size = sizeof(VsAttentionParams);
  SlashMode mode = SlashMode::kCover;
  const std::int64_t* vertical_size = nullptr;  ///< [num_heads_q] >= 0, host memory
  const std::int64_t* slash_size = nullptr;     ///< [num_heads_q] >= 0, host memory
  std::int64_t estimate_every = 0;              ///< as in SparseAttentionParams
  std::int32_t dense_fallback = 1;              ///< as in SparseAttentionParams
};

MINFERENCE_API Status vs_attention_supports(const AttentionArgs& args,
                                            const VsAttentionParams& params);
MINFERENCE_API Status vs_attention_workspace_bytes(const AttentionArgs& args,
                                                   const VsAttentionParams& params,
                                                   std::size_t* bytes);
MINFERENCE_API Status vs_attention(const AttentionArgs& args, const VsAttentionParams& params,
                                   void* workspace, std::size_t bytes);

/// V and S given by the caller, for every sequence and head.
struct VsAttentionWithIndexParams {
  std::uint32_t struct_size = sizeof(VsAttentionWithIndexParams);
  SlashMode mode = SlashMode::kCover;
  IndexView vertical_idx;  ///< [sequences, num_heads_q, count], keys in [0, kv_len)
  IndexView slash_idx;     ///< [sequences, num_heads_q, count], offsets in [0, kv_len)
};

MINFERENCE_API Status vs_attention_with_index_supports(const AttentionArgs& args,
                                                       const VsAttentionWithIndexParams& params);
MINFERENCE_API Status vs_attention_with_index_workspace_bytes(
    const AttentionArgs& args, const VsAttentionWithIndexParams& params, std::size_t* bytes);
MINFERENCE_API Status vs_attention_with_index(const AttentionArgs& args,
                                              const VsAttentionWithIndexParams& params,
                                              void* workspace, std::size_t bytes);

}  // namespace minference
