// What core may call of the CPU backend: this header, and with it the table of kernels and the
// reference lists. Arguments are validated: see core/attention_problem.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"          // kernel_set, num_kernel_sets
#include "cpu/reference_lists.h"  // reference_row_lists
#include "minference/sparse_attention.h"
#include "minference/types.h"

namespace minference::cpu {

/// Patterns of a layer's heads: one for each, or one for all with sizes that may vary.
struct HeadPatterns {
  const HeadPattern* each = nullptr;  ///< [num_heads_q]; null: `uniform`
  HeadPattern uniform;
  const std::int64_t* vertical_size = nullptr;  ///< [num_heads_q]: replaces size[0] of `uniform`
  const std::int64_t* slash_size = nullptr;     ///< [num_heads_q]: replaces size[1] of `uniform`

  HeadPattern at(std::int64_t head) const {
    if (each != nullptr) return each[head];
    HeadPattern pattern = uniform;
    if (vertical_size != nullptr) pattern.size[0] = vertical_size[head];
    if (slash_size != nullptr) pattern.size[1] = slash_size[head];
    return pattern;
  }
};

/// A validated call: arguments common to all ops, the patterns of its heads, and who computes.
struct Problem {
  AttentionArgs args;
  HeadPatterns patterns;
  SlashMode mode = SlashMode::kCover;
  IndexView vertical_idx;
  IndexView slash_idx;
  IndexView block_idx;
  std::int64_t estimate_every = 0;
  bool dense_fallback = false;
  bool needs_values = true;  ///< false: v and out are not used, nothing is packed or gathered
  float scale_log2 = 0;      ///< softmax_scale * log2(e)
  const AttentionKernel* kernel = nullptr;

  std::int64_t batch() const { return args.q.shape[0]; }
  std::int64_t num_heads_q() const { return args.q.shape[1]; }
  std::int64_t num_heads_kv() const { return args.k.shape[1]; }
  std::int64_t heads_per_kv() const { return num_heads_q() / num_heads_kv(); }
  std::int64_t seq_q() const { return args.q.shape[2]; }
  std::int64_t seq_kv() const { return args.k.shape[2]; }
  int head_dim() const { return static_cast<int>(args.q.shape[3]); }
  bool is_packed() const { return args.cu_seqlens_q != nullptr; }
  std::int64_t num_sequences() const { return is_packed() ? args.num_sequences : batch(); }
};

/// One sequence inside of the tensors.
struct Sequence {
  std::int64_t batch;
  std::int64_t q_begin;  ///< first row of q
  std::int64_t q_len;
  std::int64_t kv_begin;  ///< first row of k and v
  std::int64_t kv_len;
};
Sequence sequence_at(const Problem& problem, std::int64_t index);

/// Writes the entries other than -1, ascending and unique, to sorted[0, count); returns how many.
std::int32_t sort_unique(const std::int32_t* entries, std::int64_t count, std::int32_t* sorted);

/// Cores this process may use.
std::int32_t available_threads();

/// Columns and offsets that an estimation selects at least, and those that rank first.
inline constexpr std::int64_t kMinVertical = 30;
inline constexpr std::int64_t kMinSlash = 50;
inline constexpr std::int64_t kForcedVertical = 30;
inline constexpr std::int64_t kForcedSlash = 100;

/// Lines an estimation selects.
std::int64_t num_estimated_vertical(std::int64_t vertical_size, std::int64_t kv_len);
std::int64_t num_estimated_slash(std::int64_t slash_size, std::int64_t kv_len);

std::size_t attention_workspace_bytes(const Problem& problem);
void attention(const Problem& problem, void* workspace);
/// `stats` [num_sequences, num_heads_q].
void plan_stats(const Problem& problem, PlanStats* stats, void* workspace);

/// Where estimate() writes; members as in VsIndexParams.
struct EstimatedLines {
  std::int32_t* vertical_idx;
  std::int32_t* slash_idx;
  std::int64_t vertical_count;
  std::int64_t slash_count;
  float* column_scores;
  float* slash_scores;
};
void estimate(const Problem& problem, const EstimatedLines& lines, void* workspace);

/// Costs in 64 x 32 pieces of one head, before any data is seen.
struct Costs {
  double dense;
  double sparse;
  bool is_dense() const { return sparse >= dense; }
};
Costs predict(const HeadPattern& pattern, std::int64_t q_len, std::int64_t kv_len);

}  // namespace minference::cpu
