// Sparse causal attention of one layer: every query head with its own pattern, one call.
//
//   out[b,h,r] = sum_j softmax_j(softmax_scale * q[b,h,r] . k[b,g,j]) * v[b,g,j]
//   lse[b,h,r] = ln sum_j exp(softmax_scale * q[b,h,r] . k[b,g,j])
//
// over the keys j that the head's pattern lets query r attend. With i = r + (kv_len - q_len) and
// o = i - j, always o >= 0, and row blocks of 64 query rows:
//
//   dense                          always
//   a_shape(sink, window)          j < sink or o < window                   (StreamingLLM)
//   tri_shape(sink, window, last)  a_shape, or i is among the last `last` queries
//   vertical_slash                 j in V, or j in the cover of S           (MInference, section 3)
//   block_sparse                   the key block j / 64 is listed for the row block of i
//
// Cover of S for the row block that starts at query row r0, with e = r0 + 64 + (kv_len - q_len)
// also for a partial last block: the union over s in S of keys [e - 64 - s, e - s).
// V and S are sets: order and duplicates do not matter, nothing is counted twice. A row without
// keys gets out = 0, lse = -inf.
#pragma once

#include "minference/types.h"

namespace minference {

enum class PatternKind : std::int32_t {
  kDense = 0,          ///< sizes unused
  kAShape = 1,         ///< size = {sink, window}
  kTriShape = 2,       ///< size = {sink, window, last}
  kVerticalSlash = 3,  ///< size = {vertical_size, slash_size}; V and S estimated from the prompt
  kBlockSparse = 4,    ///< size = {top_k}; mean-pooled scores, top_k key blocks of each row block
  kVerticalSlashIndex = 5,  ///< V and S from vertical_idx and slash_idx
  kBlockIndex = 6,          ///< key blocks from block_idx
};

struct HeadPattern {
  PatternKind kind = PatternKind::kDense;
  /// Tokens, lines or blocks, >= 0; top_k >= 1. Past the sequence: all of it. The rest is not read.
  std::int64_t size[3] = {0, 0, 0};
};

/// Which keys a slash line lets a query attend.
enum class SlashMode : std::int32_t {
  /// the cover above: whole 64-wide pieces; what the paper's kernel is meant to compute
  kCover = 0,
  kExact = 1,      ///< only o in S (and j in V), element by element
  kReference = 2,  ///< the greedy 64-wide merge of the original implementation, for parity tests
};

/// Estimation (kVerticalSlash; MInference, section 3.2 and algorithm 2): the last min(64, q_len)
/// queries attend all keys, column sums and diagonal sums of the probabilities rank the lines;
/// V holds min(kv_len, max(vertical_size, 30)) columns, S min(kv_len, max(slash_size, 50)) offsets.
/// Columns 0..29 and offsets 0..99 rank first; ties go to the lowest index. A sequence without
/// queries has no lines.
struct SparseAttentionParams {
  std::uint32_t struct_size = sizeof(SparseAttentionParams);
  SlashMode mode = SlashMode::kCover;
  const HeadPattern* head_patterns = nullptr;  ///< [num_heads_q], host memory
  IndexView vertical_idx;  ///< keys in [0, kv_len); for heads of kVerticalSlashIndex
  IndexView slash_idx;     ///< offsets in [0, kv_len); for heads of kVerticalSlashIndex
  IndexView
      block_idx;  ///< key blocks in [0, ceil(kv_len / 64)) per row block; for heads of kBlockIndex
  /// 0: estimate once per call from the last queries. Else a positive multiple of 64: queries
  /// [c * estimate_every, (c + 1) * estimate_every) use their own last 64 queries, as if each such
  /// chunk were a call of its own with the keys up to its last query.
  std::int64_t estimate_every = 0;
  /// 1: a head of kVerticalSlash whose plan costs as much as dense attention is computed dense
  /// (mode kCover only); plan_stats() tells which. Lists and shapes given by the caller are never
  /// replaced.
  std::int32_t dense_fallback = 1;
};

/// kOk if run() would accept these arguments on this machine, else the status it would return.
MINFERENCE_API Status sparse_attention_supports(const AttentionArgs& args,
                                                const SparseAttentionParams& params);
/// Bytes of workspace run() needs for these arguments and the kernel that is chosen for them. Reads
/// the patterns, on the CPU also cu_seqlens_* and first_valid_key; data of tensors and index lists
/// may be null. With device CUDA it needs a device: the current one where q and k are null. The
/// answer is for these shapes, that device and the kernel that attention_kernel() tells, which
/// depends on how q, k and v are aligned (null as if to 16 bytes): a call of few queries cuts its
/// keys in parts, whose results take memory that a call of more queries does without.
MINFERENCE_API Status sparse_attention_workspace_bytes(const AttentionArgs& args,
                                                       const SparseAttentionParams& params,
                                                       std::size_t* bytes);
/// Computes out and lse. `workspace`: at least *_workspace_bytes, any alignment.
MINFERENCE_API Status sparse_attention(const AttentionArgs& args,
                                       const SparseAttentionParams& params, void* workspace,
                                       std::size_t bytes);

/// Who attends.
struct KernelInfo {
  std::uint32_t struct_size = sizeof(KernelInfo);
  /// CUDA: "sm90" (TMA, wgmma) or "sm80" (cp.async, mma.sync); else that of cpu_kernel_for()
  char name[32] = "";
  std::int32_t tile_rows = 0;            ///< queries that meet a tile of keys together
  std::int32_t tile_keys = 0;            ///< keys of a tile
  std::int32_t num_multiprocessors = 0;  ///< that attention uses; 0 on the CPU
  /// One sentence: what of the arguments, the device or the build decided.
  char reason[256] = "";
};

/// Which kernel sparse_attention would run for these arguments on this machine, and why. It is the
/// same for every pattern. Checks arguments and needs a device as sparse_attention_supports; data
/// that is null counts as aligned to 16 bytes.
MINFERENCE_API Status attention_kernel(const AttentionArgs& args,
                                       const SparseAttentionParams& params, KernelInfo* info);

/// What a plan computes and costs, per sequence and head. Lines and chunks are those of the
/// estimate also where dense attention came out cheaper; patterns without lines have none.
struct PlanStats {
  std::int32_t is_dense;        ///< 1: dense fallback (or a dense pattern)
  std::int32_t num_vertical;    ///< lines of V
  std::int32_t num_slash;       ///< lines of S
  std::int32_t num_chunks;      ///< 32-column chunks in the list all row blocks share
  std::int64_t computed_pairs;  ///< (query, key) pairs in the 64 x 32 pieces the kernel multiplies
  std::int64_t attended_pairs;  ///< (query, key) pairs that enter the softmax
  std::int64_t causal_pairs;    ///< pairs of dense causal attention
  std::int64_t plan_bytes;      ///< bytes of the plan as attention reads it, gathered keys apart
  std::int64_t estimation_bytes;  ///< scratch of the estimation (scores per key and offset)
};

/// Estimates and plans without attending: `v`, `v_scale`, `out` and `lse` of `args` are not used.
/// `stats`, on the op's device, is [num_sequences or batch, num_heads_q]; with estimate_every pairs
/// are summed over the chunks of queries, the rest is that of the last chunk.
MINFERENCE_API Status plan_stats_supports(const AttentionArgs& args,
                                          const SparseAttentionParams& params);
MINFERENCE_API Status plan_stats_workspace_bytes(const AttentionArgs& args,
                                                 const SparseAttentionParams& params,
                                                 std::size_t* bytes);
MINFERENCE_API Status plan_stats(const AttentionArgs& args, const SparseAttentionParams& params,
                                 PlanStats* stats, void* workspace, std::size_t bytes);

/// What the cost model says before any data is seen.
struct Prediction {
  std::uint32_t struct_size = sizeof(Prediction);
  std::int32_t is_dense = 0;  ///< 1: dense attention is cheaper
  double cost_dense = 0;      ///< in 64 x 32 pieces of one head
  double cost_sparse = 0;     ///< estimation, plan and attention, if the lines cluster well
};

/// Predicts whether a head with this pattern is cheaper dense: what sparse_attention decides before
/// it estimates.
MINFERENCE_API Status predict(const HeadPattern& pattern, std::int64_t q_len, std::int64_t kv_len,
                              Prediction* prediction);

}  // namespace minference
