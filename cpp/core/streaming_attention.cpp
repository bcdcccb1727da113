#include "minference/streaming_attention.h"

#include "core/attention_problem.h"

namespace minference {
namespace core {
namespace {

auto maker(const AShapeParams& params) {
  return [&params](plan::Problem* problem) {
    AShapeParams copy;
    const Status status =
        read_struct(params, "AShapeParams", MINFERENCE_REQUIRED_SIZE(AShapeParams, window), &copy);
    problem->patterns.uniform = {PatternKind::kAShape, {copy.sink, copy.window, 0}};
    return status;
  };
}

auto maker(const TriShapeParams& params) {
  return [&params](plan::Problem* problem) {
    TriShapeParams copy;
    const Status status = read_struct(params, "TriShapeParams",
                                      MINFERENCE_REQUIRED_SIZE(TriShapeParams, last), &copy);
    problem->patterns.uniform = {PatternKind::kTriShape, {copy.sink, copy.window, copy.last}};
    return status;
  };
}

}  // namespace
}  // namespace core

Status a_shape_attention_supports(const AttentionArgs& args, const AShapeParams& params) {
  return core::supports(args, core::maker(params));
}

Status a_shape_attention_workspace_bytes(const AttentionArgs& args, const AShapeParams& params,
                                         std::size_t* bytes) {
  return core::workspace_bytes(args, core::maker(params), bytes);
}

Status a_shape_attention(const AttentionArgs& args, const AShapeParams& params, void* workspace,
                         std::size_t bytes) {
  return core::run(args, core::maker(params), workspace, bytes);
}

Status tri_shape_attention_supports(const AttentionArgs& args, const TriShapeParams& params) {
  return core::supports(args, core::maker(params));
}

Status tri_shape_attention_workspace_bytes(const AttentionArgs& args, const TriShapeParams& params,
                                           std::size_t* bytes) {
  return core::workspace_bytes(args, core::maker(params), bytes);
}

Status tri_shape_attention(const AttentionArgs& args, const TriShapeParams& params, void* workspace,
                           std::size_t bytes) {
  return core::run(args, core::maker(params), workspace, bytes);
}

}  // namespace minference
