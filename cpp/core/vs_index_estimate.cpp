// estimate_vs_index: the estimation of vs_attention as an op of its own.
#include <cinttypes>

#include "core/attention_problem.h"
#include "minference/vs_index.h"

namespace minference {
namespace core {
namespace {

/// Every list must fit its row of the output.
Status check_counts(const cpu::Problem& problem, const VsIndexParams& params) {
  const auto check = [](const char* name, std::int64_t count, std::int64_t head,
                        std::int64_t needed) {
    if (needed <= count) return Status::kOk;
    return fail(Status::kInvalidArgument, "%s is %" PRId64 "; head %" PRId64 " needs %" PRId64,
                name, count, head, needed);
  };
  Status status = Status::kOk;
  for (std::int64_t i = 0; i < problem.num_sequences(); ++i) {
    const std::int64_t kv_len = cpu::sequence_at(problem, i).kv_len;
    for (std::int64_t head = 0; head < problem.num_heads_q() && status == Status::kOk; ++head) {
      status = check("vertical_count", params.vertical_count, head,
                     cpu::num_estimated_vertical(params.vertical_size[head], kv_len));
      if (status != Status::kOk) break;
      status = check("slash_count", params.slash_count, head,
                     cpu::num_estimated_slash(params.slash_size[head], kv_len));
    }
  }
  return status;
}

/// What all three functions of the op do first.
Status prepare_estimate(const AttentionArgs& args, const VsIndexParams& caller_params,
                        bool uses_data, cpu::Problem* problem, VsIndexParams* params) {
  Status status = read_struct(caller_params, "VsIndexParams",
                              MINFERENCE_REQUIRED_SIZE(VsIndexParams, slash_count), params);
  if (status != Status::kOk) return status;
  if (params->vertical_size == nullptr) {
    return fail(Status::kInvalidArgument, "vertical_size is null");
  }
  if (params->slash_size == nullptr) return fail(Status::kInvalidArgument, "slash_size is null");
  problem->patterns.uniform.kind = PatternKind::kVerticalSlash;
  problem->patterns.vertical_size = params->vertical_size;
  problem->patterns.slash_size = params->slash_size;
  status = prepare(args, {.values = false, .data = uses_data}, problem);
  return status == Status::kOk ? check_counts(*problem, *params) : status;
}

}  // namespace
}  // namespace core

Status estimate_vs_index_supports(const AttentionArgs& args, const VsIndexParams& params) {
  cpu::Problem problem;
  VsIndexParams copy;
  return core::prepare_estimate(args, params, false, &problem, &copy);
}

Status estimate_vs_index_workspace_bytes(const AttentionArgs& args, const VsIndexParams& params,
                                         std::size_t* bytes) {
  if (bytes == nullptr) return core::fail(Status::kInvalidArgument, "bytes is null");
  cpu::Problem problem;
  VsIndexParams copy;
  const Status status = core::prepare_estimate(args, params, false, &problem, &copy);
  if (status == Status::kOk) *bytes = cpu::attention_workspace_bytes(problem);
  return status;
}

Status estimate_vs_index(const AttentionArgs& args, const VsIndexParams& params, void* workspace,
                         std::size_t bytes) {
  cpu::Problem problem;
  VsIndexParams copy;
  Status status = core::prepare_estimate(args, params, true, &problem, &copy);
  if (status != Status::kOk) return status;
  const std::int64_t rows = problem.num_sequences() * problem.num_heads_q();
  if (copy.vertical_idx == nullptr && rows * copy.vertical_count > 0) {
    return core::fail(Status::kInvalidArgument, "vertical_idx is null");
  }
  if (copy.slash_idx == nullptr && rows * copy.slash_count > 0) {
    return core::fail(Status::kInvalidArgument, "slash_idx is null");
  }
  status = core::check_workspace(problem, workspace, bytes);
  if (status != Status::kOk) return status;
  cpu::estimate(problem,
                {.vertical_idx = copy.vertical_idx,
                 .slash_idx = copy.slash_idx,
                 .vertical_count = copy.vertical_count,
                 .slash_count = copy.slash_count,
                 .column_scores = copy.column_scores,
                 .slash_scores = copy.slash_scores},
                workspace);
  return Status::kOk;
}

}  // namespace minference
