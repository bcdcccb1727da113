#include "minference/sparse_attention.h"

#include <cinttypes>

#include "core/attention_problem.h"
#include "plan/cost.h"

namespace minference {
namespace core {
namespace {

constexpr std::size_t kRequiredSize =
    MINFERENCE_REQUIRED_SIZE(SparseAttentionParams, head_patterns);

auto maker(const SparseAttentionParams& params) {
  return [&params](plan::Problem* problem) {
    SparseAttentionParams copy;
    const Status status = read_struct(params, "SparseAttentionParams", kRequiredSize, &copy);
    if (status != Status::kOk) return status;
    if (copy.head_patterns == nullptr) {
      return fail(Status::kInvalidArgument, "head_patterns is null");
    }
    problem->patterns.each = copy.head_patterns;
    problem->mode = copy.mode;
    problem->vertical_idx = copy.vertical_idx;
    problem->slash_idx = copy.slash_idx;
    problem->block_idx = copy.block_idx;
    problem->estimate_every = copy.estimate_every;
    problem->dense_fallback = copy.dense_fallback != 0;
    return Status::kOk;
  };
}

}  // namespace
}  // namespace core

Status sparse_attention_supports(const AttentionArgs& args, const SparseAttentionParams& params) {
  return core::supports(args, core::maker(params));
}

Status sparse_attention_workspace_bytes(const AttentionArgs& args,
                                        const SparseAttentionParams& params, std::size_t* bytes) {
  return core::workspace_bytes(args, core::maker(params), bytes);
}

Status sparse_attention(const AttentionArgs& args, const SparseAttentionParams& params,
                        void* workspace, std::size_t bytes) {
  return core::run(args, core::maker(params), workspace, bytes);
}

Status attention_kernel(const AttentionArgs& args, const SparseAttentionParams& params,
                        KernelInfo* info) {
  if (info == nullptr) return core::fail(Status::kInvalidArgument, "info is null");
  constexpr std::size_t kRequiredInfo = MINFERENCE_REQUIRED_SIZE(KernelInfo, reason);
  if (info->struct_size < kRequiredInfo) {
    return core::fail(Status::kInvalidArgument,
                      "KernelInfo has struct_size %u; it must be at least %zu", info->struct_size,
                      kRequiredInfo);
  }
  core::Call call;
  Status status = core::maker(params)(&call.problem);
  if (status == Status::kOk) status = core::prepare(args, {.values = true, .data = false}, &call);
  return status == Status::kOk ? core::attention_kernel(call, info) : status;
}

Status plan_stats_supports(const AttentionArgs& args, const SparseAttentionParams& params) {
  return core::supports(args, core::maker(params), false);
}

Status plan_stats_workspace_bytes(const AttentionArgs& args, const SparseAttentionParams& params,
                                  std::size_t* bytes) {
  return core::workspace_bytes(args, core::maker(params), bytes, false);
}

Status plan_stats(const AttentionArgs& args, const SparseAttentionParams& params, PlanStats* stats,
                  void* workspace, std::size_t bytes) {
  core::Call call;
  Status status = core::maker(params)(&call.problem);
  if (status == Status::kOk) status = core::prepare(args, {.values = false, .data = true}, &call);
  if (status == Status::kOk && stats == nullptr && call.problem.num_sequences() > 0) {
    status = core::fail(Status::kInvalidArgument, "stats is null");
  }
  if (status == Status::kOk) status = core::check_workspace(call, workspace, bytes);
  return status == Status::kOk ? core::plan_stats(call, stats, workspace) : status;
}

Status predict(const HeadPattern& pattern, std::int64_t q_len, std::int64_t kv_len,
               Prediction* prediction) {
  if (prediction == nullptr) return core::fail(Status::kInvalidArgument, "prediction is null");
  if (prediction->struct_size < MINFERENCE_REQUIRED_SIZE(Prediction, cost_sparse)) {
    return core::fail(Status::kInvalidArgument, "Prediction has struct_size %u",
                      prediction->struct_size);
  }
  const Status status = core::check_pattern(pattern, 0, true);
  if (status != Status::kOk) return status;
  if (q_len < 0 || kv_len < q_len || kv_len > core::kMaxLength) {
    return core::fail(Status::kInvalidArgument,
                      "q_len is %" PRId64 " and kv_len %" PRId64
                      "; 0 <= q_len <= kv_len <= %" PRId64 " must hold",
                      q_len, kv_len, core::kMaxLength);
  }
  const plan::Costs costs = plan::predict(pattern, q_len, kv_len);
  prediction->is_dense = costs.is_dense() ? 1 : 0;
  prediction->cost_dense = static_cast<double>(costs.dense) / plan::kDensePieceCost;
  prediction->cost_sparse = static_cast<double>(costs.sparse) / plan::kDensePieceCost;
  return Status::kOk;
}

}  // namespace minference
