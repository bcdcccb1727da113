// A validated call, as core hands it to a backend.
#pragma once

#include <cstdint>

#include "minference/sparse_attention.h"
#include "minference/types.h"

namespace minference::plan {

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

/// Arguments common to all ops and the patterns of the heads.
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

/// Where an estimation writes; members as in VsIndexParams.
struct EstimatedLines {
  std::int32_t* vertical_idx;
  std::int32_t* slash_idx;
  std::int64_t vertical_count;
  std::int64_t slash_count;
  float* column_scores;
  float* slash_scores;
};

}  // namespace minference::plan
