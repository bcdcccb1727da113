// Block-sparse attention over 64 x 64 blocks: the top_k best key blocks of each row block by
// mean-pooled scores (MInference, algorithm 3), or a list given by the caller. Meaning:
// sparse_attention.h.
#pragma once

#include "minference/sparse_attention.h"
#include "minference/types.h"

namespace minference {

struct BlockSparseParams {
  std::uint32_t struct_size = sizeof(BlockSparseParams);
  /// Key blocks per row block, >= 1; used where block_idx is left empty (all zeros). Row block m
  /// ranks the key blocks n that hold a key it may attend by mean(q rows of m) . mean(k rows of n),
  /// ties to the lowest n, and takes the top_k best. Means divide by the true count of a partial
  /// block.
  std::int64_t top_k = 0;
  /// [sequences, num_heads_q, >= ceil(q_len / 64), count], key blocks in [0, ceil(kv_len / 64));
  /// blocks a row block cannot attend causally contribute nothing.
  IndexView block_idx;
};

MINFERENCE_API Status block_sparse_attention_supports(const AttentionArgs& args,
                                                      const BlockSparseParams& params);
MINFERENCE_API Status block_sparse_attention_workspace_bytes(const AttentionArgs& args,
                                                             const BlockSparseParams& params,
                                                             std::size_t* bytes);
MINFERENCE_API Status block_sparse_attention(const AttentionArgs& args,
                                             const BlockSparseParams& params, void* workspace,
                                             std::size_t bytes);

}  // namespace minference
