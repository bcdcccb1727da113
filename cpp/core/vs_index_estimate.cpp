// estimate_vs_index: the estimation of vs_attention as an op of its own.
#include <algorithm>
#include <cinttypes>

#include "core/attention_problem.h"
#include "minference/vs_index.h"
#include "plan/format.h"

namespace minference {
namespace core {
namespace {

/// Every list must fit its row of the output.
Status check_counts(const Call& call, const VsIndexParams& params) {
  const plan::Problem& problem = call.problem;
  const auto check = [](const char* name, std::int64_t count, std::int64_t head,
                        std::int64_t needed) {
    if (needed <= count) return Status::kOk;
    return fail(Status::kInvalidArgument, "%s is %" PRId64 "; head %" PRId64 " needs %" PRId64,
                name, count, head, needed);
  };
  std::int64_t longest = problem.num_sequences() > 0 && call.is_cuda() ? problem.seq_kv() : 0;
  for (std::int64_t i = 0; i < problem.num_sequences() && !call.is_cuda(); ++i) {
    longest = std::max(longest, cpu::sequence_at(problem, i).kv_len);
  }
  Status status = Status::kOk;
  for (std::int64_t head = 0; head < problem.num_heads_q() && status == Status::kOk; ++head) {
    status = check("vertical_count", params.vertical_count, head,
                   plan::num_estimated_vertical(params.vertical_size[head], longest));
    if (status != Status::kOk) break;
    status = check("slash_count", params.slash_count, head,
                   plan::num_estimated_slash(params.slash_size[head], longest));
  }
  return status;
}

/// What all three functions of the op do first.
Status prepare_estimate(const AttentionArgs& args, const VsIndexParams& caller_params,
                        bool uses_data, Call* call, VsIndexParams* params) {
  Status status = read_struct(caller_params, "VsIndexParams",
                              MINFERENCE_REQUIRED_SIZE(VsIndexParams, slash_count), params);
  if (status != Status::kOk) return status;
  if (params->vertical_size == nullptr) {
    return fail(Status::kInvalidArgument, "vertical_size is null");
  }
  if (params->slash_size == nullptr) return fail(Status::kInvalidArgument, "slash_size is null");
  plan::HeadPatterns& patterns = call->problem.patterns;
  patterns.uniform.kind = PatternKind::kVerticalSlash;
  patterns.vertical_size = params->vertical_size;
  patterns.slash_size = params->slash_size;
  status = prepare(args, {.values = false, .data = uses_data}, call);
  return status == Status::kOk ? check_counts(*call, *params) : status;
}

}  // namespace
}  // namespace core

Status estimate_vs_index_supports(const AttentionArgs& args, const VsIndexParams& params) {
  core::Call call;
  VsIndexParams copy;
  return core::prepare_estimate(args, params, false, &call, &copy);
}

Status estimate_vs_index_workspace_bytes(const AttentionArgs& args, const VsIndexParams& params,
                                         std::size_t* bytes) {
  if (bytes == nullptr) return core::fail(Status::kInvalidArgument, "bytes is null");
  core::Call call;
  VsIndexParams copy;
  const Status status = core::prepare_estimate(args, params, false, &call, &copy);
  return status == Status::kOk ? core::workspace_bytes(call, bytes) : status;
}

Status estimate_vs_index(const AttentionArgs& args, const VsIndexParams& params, void* workspace,
                         std::size_t bytes) {
  core::Call call;
  VsIndexParams copy;
  Status status = core::prepare_estimate(args, params, true, &call, &copy);
  if (status != Status::kOk) return status;
  const std::int64_t rows = call.problem.num_sequences() * call.problem.num_heads_q();
  if (copy.vertical_idx == nullptr && rows * copy.vertical_count > 0) {
    return core::fail(Status::kInvalidArgument, "vertical_idx is null");
  }
  if (copy.slash_idx == nullptr && rows * copy.slash_count > 0) {
    return core::fail(Status::kInvalidArgument, "slash_idx is null");
  }
  status = core::check_workspace(call, workspace, bytes);
  if (status != Status::kOk) return status;
  return core::estimate(call,
                        {.vertical_idx = copy.vertical_idx,
                         .slash_idx = copy.slash_idx,
                         .vertical_count = copy.vertical_count,
                         .slash_count = copy.slash_count,
                         .column_scores = copy.column_scores,
                         .slash_scores = copy.slash_scores},
                        workspace);
}

}  // namespace minference
