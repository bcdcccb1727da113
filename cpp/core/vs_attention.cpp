#include "minference/vs_attention.h"

#include "core/attention_problem.h"

namespace minference {
namespace core {
namespace {

auto maker(const VsAttentionParams& params) {
  return [&params](plan::Problem* problem) {
    VsAttentionParams copy;
    const Status status =
        read_struct(params, "VsAttentionParams",
                    MINFERENCE_REQUIRED_SIZE(VsAttentionParams, slash_size), &copy);
    if (status != Status::kOk) return status;
    if (copy.vertical_size == nullptr) {
      return fail(Status::kInvalidArgument, "vertical_size is null");
    }
    if (copy.slash_size == nullptr) return fail(Status::kInvalidArgument, "slash_size is null");
    problem->patterns.uniform.kind = PatternKind::kVerticalSlash;
    problem->patterns.vertical_size = copy.vertical_size;
    problem->patterns.slash_size = copy.slash_size;
    problem->mode = copy.mode;
    problem->estimate_every = copy.estimate_every;
    problem->dense_fallback = copy.dense_fallback != 0;
    return Status::kOk;
  };
}

auto maker(const VsAttentionWithIndexParams& params) {
  return [&params](plan::Problem* problem) {
    VsAttentionWithIndexParams copy;
    const Status status =
        read_struct(params, "VsAttentionWithIndexParams",
                    MINFERENCE_REQUIRED_SIZE(VsAttentionWithIndexParams, slash_idx), &copy);
    problem->patterns.uniform.kind = PatternKind::kVerticalSlashIndex;
    problem->mode = copy.mode;
    problem->vertical_idx = copy.vertical_idx;
    problem->slash_idx = copy.slash_idx;
    return status;
  };
}

}  // namespace
}  // namespace core

Status vs_attention_supports(const AttentionArgs& args, const VsAttentionParams& params) {
  return core::supports(args, core::maker(params));
}

Status vs_attention_workspace_bytes(const AttentionArgs& args, const VsAttentionParams& params,
                                    std::size_t* bytes) {
  return core::workspace_bytes(args, core::maker(params), bytes);
}

Status vs_attention(const AttentionArgs& args, const VsAttentionParams& params, void* workspace,
                    std::size_t bytes) {
  return core::run(args, core::maker(params), workspace, bytes);
}

Status vs_attention_with_index_supports(const AttentionArgs& args,
                                        const VsAttentionWithIndexParams& params) {
  return core::supports(args, core::maker(params));
}

Status vs_attention_with_index_workspace_bytes(const AttentionArgs& args,
                                               const VsAttentionWithIndexParams& params,
                                               std::size_t* bytes) {
  return core::workspace_bytes(args, core::maker(params), bytes);
}

Status vs_attention_with_index(const AttentionArgs& args, const VsAttentionWithIndexParams& params,
                               void* workspace, std::size_t bytes) {
  return core::run(args, core::maker(params), workspace, bytes);
}

}  // namespace minference
