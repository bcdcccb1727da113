// What core may call of the CPU backend: this header, and with it the table of kernels. Arguments
// are validated: see core/attention_problem.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"  // kernel_set, num_kernel_sets
#include "minference/sparse_attention.h"
#include "minference/types.h"
#include "plan/problem.h"

namespace minference::cpu {

using plan::EstimatedLines;
using plan::Problem;

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

std::size_t attention_workspace_bytes(const Problem& problem, const AttentionKernel& kernel);
void attention(const Problem& problem, const AttentionKernel& kernel, void* workspace);
/// `stats` [num_sequences, num_heads_q].
void plan_stats(const Problem& problem, const AttentionKernel& kernel, PlanStats* stats,
                void* workspace);

void estimate(const Problem& problem, const AttentionKernel& kernel, const EstimatedLines& lines,
              void* workspace);

}  // namespace minference::cpu
