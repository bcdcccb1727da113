#include "minference/dense_attention.h"

#include "core/attention_problem.h"

namespace minference {
namespace {

Status make_dense(plan::Problem* problem) {
  problem->patterns.uniform.kind = PatternKind::kDense;
  return Status::kOk;
}

}  // namespace

Status dense_attention_supports(const AttentionArgs& args) {
  return core::supports(args, make_dense);
}

Status dense_attention_workspace_bytes(const AttentionArgs& args, std::size_t* bytes) {
  return core::workspace_bytes(args, make_dense, bytes);
}

Status dense_attention(const AttentionArgs& args, void* workspace, std::size_t bytes) {
  return core::run(args, make_dense, workspace, bytes);
}

}  // namespace minference
