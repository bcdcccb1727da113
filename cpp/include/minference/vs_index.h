// Vertical/slash indices as an op of their own: estimated from a prompt, or expanded to the block
// and column lists of the original implementation.
#pragma once

#include "minference/sparse_attention.h"
#include "minference/types.h"

namespace minference {

/// Estimates V and S of every head from the last min(64, q_len) queries of each sequence
/// (MInference, algorithm 2; see SparseAttentionParams). `v`, `v_scale`, `out` and `lse` of `args`
/// are not read. A sequence without queries has lists of -1.
struct VsIndexParams {
  std::uint32_t struct_size = sizeof(VsIndexParams);
  const std::int64_t* vertical_size = nullptr;  ///< [num_heads_q] >= 0, host memory
  const std::int64_t* slash_size = nullptr;     ///< [num_heads_q] >= 0, host memory
  /// [sequences, num_heads_q, vertical_count] contiguous; ascending, then -1
  std::int32_t* vertical_idx = nullptr;
  /// [sequences, num_heads_q, slash_count] contiguous; ascending, then -1
  std::int32_t* slash_idx = nullptr;
  /// >= min(kv_len, max(vertical_size, 30)) of every head and sequence (CUDA: seq_kv for kv_len)
  std::int64_t vertical_count = 0;
  std::int64_t slash_count = 0;  ///< >= min(kv_len, max(slash_size, 50))
  /// may be null; [sequences, num_heads_q, seq_kv] contiguous: column sums before forcing, 0 past
  /// kv_len
  float* column_scores = nullptr;
  /// may be null; same shape, by offset: diagonal sums before forcing
  float* slash_scores = nullptr;
};

MINFERENCE_API Status estimate_vs_index_supports(const AttentionArgs& args,
                                                 const VsIndexParams& params);
MINFERENCE_API Status estimate_vs_index_workspace_bytes(const AttentionArgs& args,
                                                        const VsIndexParams& params,
                                                        std::size_t* bytes);
MINFERENCE_API Status estimate_vs_index(const AttentionArgs& args, const VsIndexParams& params,
                                        void* workspace, std::size_t bytes);

/// The original implementation's lists: for every 64-row block, the absolute starts of 64-wide key
/// tiles (slash ranges merged greedily from the farthest line in steps of 64) and the single
/// columns outside of them. Differs from it where it is wrong: columns right of the last tile are
/// kept, lists are read within their bounds, duplicates count once. A vertical at or past kv_len is
/// an error; so is an offset at or past kv_len if causal. Otherwise offsets that reach no row are
/// skipped: segments of a longer prompt share one list.
/// On the CPU it runs on the calling thread, on host memory. With device CUDA all of it is memory
/// of one GPU, the call enqueues on `stream`, and what the host cannot read is not checked: entries
/// out of range are ignored, a row with lengths that break the rules has empty lists. Workspace of
/// any alignment.
struct ConvertVsIndexParams {
  std::uint32_t struct_size = sizeof(ConvertVsIndexParams);
  const std::int32_t* q_seqlens = nullptr;   ///< [batch] queries of each row
  const std::int32_t* kv_seqlens = nullptr;  ///< [batch] keys of each row
  IndexView vertical_idx;                    ///< [batch, num_heads, count]; any order, -1: no entry
  IndexView slash_idx;                       ///< [batch, num_heads, count]; any order, -1: no entry
  std::int64_t num_row_blocks = 0;           ///< R >= ceil(q_len / 64) of every row
  /// 0: every key precedes every query, offsets are kv_len + r - j, tiles are clipped at kv_len
  std::int32_t causal = 1;
  std::int32_t* block_count = nullptr;  ///< [batch, num_heads, R]
  /// [batch, num_heads, R, slash count], ascending; 0 past the count
  std::int32_t* block_offset = nullptr;
  std::int32_t* column_count = nullptr;  ///< [batch, num_heads, R]
  /// [batch, num_heads, R, vertical count], ascending; 0 past the count
  std::int32_t* column_index = nullptr;
  Device device = Device::kCpu;
  void* stream = nullptr;  ///< cudaStream_t of the lists' device; ignored on the CPU
};

MINFERENCE_API Status convert_vs_index_workspace_bytes(const ConvertVsIndexParams& params,
                                                       std::size_t* bytes);
MINFERENCE_API Status convert_vs_index(const ConvertVsIndexParams& params, void* workspace,
                                       std::size_t bytes);

}  // namespace minference
