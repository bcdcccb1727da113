#include "minference/block_sparse_attention.h"

#include "core/attention_problem.h"

namespace minference {
namespace core {
namespace {

constexpr std::size_t kRequiredSize = MINFERENCE_REQUIRED_SIZE(BlockSparseParams, top_k);

auto maker(const BlockSparseParams& params) {
  return [&params](plan::Problem* problem) {
    BlockSparseParams copy;
    const Status status = read_struct(params, "BlockSparseParams", kRequiredSize, &copy);
    // A list without entries may have no memory either: its shape tells it from an absent one.
    bool is_listed = copy.block_idx.data != nullptr;
    for (const std::int64_t extent : copy.block_idx.shape) is_listed |= extent != 0;
    problem->patterns.uniform = {is_listed ? PatternKind::kBlockIndex : PatternKind::kBlockSparse,
                                 {copy.top_k, 0, 0}};
    problem->block_idx = copy.block_idx;
    return status;
  };
}

}  // namespace
}  // namespace core

Status block_sparse_attention_supports(const AttentionArgs& args, const BlockSparseParams& params) {
  return core::supports(args, core::maker(params));
}

Status block_sparse_attention_workspace_bytes(const AttentionArgs& args,
                                              const BlockSparseParams& params, std::size_t* bytes) {
  return core::workspace_bytes(args, core::maker(params), bytes);
}

Status block_sparse_attention(const AttentionArgs& args, const BlockSparseParams& params,
                              void* workspace, std::size_t bytes) {
  return core::run(args, core::maker(params), workspace, bytes);
}

}  // namespace minference
