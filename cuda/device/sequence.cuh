// Finds a sequence and its rows in shared arrays, from lengths in device memory.
#pragma once

#include "params.h"
#include "plan/cost.h"

namespace minference::cuda {

__device__ inline std::int32_t clamp(std::int32_t x, std::int32_t low, std::int32_t high) {
  return x < low ? low : x > high ? high : x;
}

/// Sequence `index`. Lengths that make no sense (the host cannot read them) give one without
/// queries: nothing is read or written outside of the tensors.
__device__ inline Sequence sequence_at(const Sequences& all, std::int32_t index) {
  Sequence found{};
  if (all.cu_seqlens_q != nullptr) {
    found.q_begin = clamp(all.cu_seqlens_q[index], 0, all.seq_q);
    found.q_len = clamp(all.cu_seqlens_q[index + 1], found.q_begin, all.seq_q) - found.q_begin;
    found.kv_begin = clamp(all.cu_seqlens_kv[index], 0, all.seq_kv);
    found.kv_len = clamp(all.cu_seqlens_kv[index + 1], found.kv_begin, all.seq_kv) - found.kv_begin;
    if (found.q_len > found.kv_len) found.q_len = 0;
  } else {
    const std::int32_t first =
        all.first_valid_key == nullptr ? 0 : clamp(all.first_valid_key[index], 0, all.seq_kv);
    const std::int32_t before = first - (all.seq_kv - all.seq_q);
    found.batch = index;
    found.q_begin = before > 0 ? before : 0;
    found.q_len = all.seq_q - found.q_begin;
    found.kv_begin = first;
    found.kv_len = all.seq_kv - first;
  }
  const std::int64_t begin = std::int64_t{all.chunk_index} * all.chunk_rows;
  const std::int64_t end = all.chunk_rows == 0 ? found.q_len : begin + all.chunk_rows;
  found.row_begin = static_cast<std::int32_t>(begin < found.q_len ? begin : found.q_len);
  found.row_end = static_cast<std::int32_t>(end < found.q_len ? end : found.q_len);
  found.chunk_kv_len = found.kv_len - (found.q_len - found.row_end);
  return found;
}

/// First row of sequence `index`; `begin`: its first key, or query for arrays of query rows.
__device__ inline std::int64_t first_row(const Rows& rows, std::int32_t index, std::int32_t begin) {
  return rows.divisor == 0
             ? index * rows.stride
             : (begin / rows.divisor + std::int64_t{index} * rows.slack) * rows.multiple;
}

__device__ inline HeadPattern pattern_of(const Patterns& patterns, std::int32_t head,
                                         const Sequence& sequence) {
  HeadPattern pattern{static_cast<PatternKind>(patterns.kind[head]), {}};
  for (int i = 0; i < 3; ++i) {
    const std::int32_t size = patterns.size[head][i];
    pattern.size[i] = size < sequence.kv_len ? size : sequence.kv_len;
  }
  return pattern;
}

/// Whether the head's lines are estimated: not where dense attention is predicted to be cheaper.
__device__ inline bool needs_estimate(const Call& call, const HeadPattern& pattern,
                                      const Sequence& sequence) {
  const std::int32_t q_len = sequence.row_end - sequence.row_begin;
  if (pattern.kind != PatternKind::kVerticalSlash || q_len == 0) return false;
  return !call.may_fall_back || !plan::predict(pattern, q_len, sequence.chunk_kv_len).is_dense();
}

}  // namespace minference::cuda
