// plan_stats: what the plan of each sequence and head computes and costs, as one int64 tensor.
#include <torch/csrc/stable/library.h>

#include "sparse_params.h"

namespace minference::binding {
namespace {

constexpr std::int64_t kNumFields = 9;

/// The fields of PlanStats in order; the last axis of the result.
std::array<std::int64_t, kNumFields> fields(const PlanStats& stats) {
  return {stats.is_dense,     stats.num_vertical,   stats.num_slash,
          stats.num_chunks,   stats.computed_pairs, stats.attended_pairs,
          stats.causal_pairs, stats.plan_bytes,     stats.estimation_bytes};
}

Tensor plan_stats_op(const Tensor& q, const Tensor& k,
                     const std::vector<std::int64_t>& head_patterns,
                     const OptionalTensor& vertical_idx, const OptionalTensor& slash_idx,
                     const OptionalTensor& block_idx, StringArgument mode,
                     std::int64_t estimate_every, bool dense_fallback,
                     std::optional<double> softmax_scale, const OptionalTensor& first_valid_key,
                     const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_kv) {
  const OwnedString mode_owner(mode);
  return named("plan_stats", [&] {
    AttentionCall call(q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv);
    const SparseAttentionParams params =
        sparse_params(call, head_patterns, vertical_idx, slash_idx, block_idx, mode, estimate_every,
                      dense_fallback);

    const Tensor result = allocate<3>({call.num_sequences(), call.num_heads(), kNumFields},
                                      aoti_torch_dtype_int64(), call.device());
    std::vector<PlanStats> stats(call.num_sequences() * call.num_heads());
    call.run(
        [&](std::size_t* bytes) { return plan_stats_workspace_bytes(call.args, params, bytes); },
        [&](void* workspace, std::size_t bytes) {
          return plan_stats(call.args, params, stats.data(), workspace, bytes);
        });
    auto* row = static_cast<std::int64_t*>(result.data_ptr());
    for (const PlanStats& head : stats) row = std::ranges::copy(fields(head), row).out;
    return result;
  });
}

}  // namespace
}  // namespace minference::binding

STABLE_TORCH_LIBRARY_IMPL(minference, CPU, m) {
  m.impl("plan_stats", TORCH_BOX(&minference::binding::plan_stats_op));
}
STABLE_TORCH_LIBRARY_IMPL(minference, CUDA, m) {
  m.impl("plan_stats", TORCH_BOX(&minference::binding::plan_stats_op));
}
