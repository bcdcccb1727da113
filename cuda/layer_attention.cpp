#include "layer_attention.h"

#include <algorithm>

#include "any/launch.h"
#include "device_error.h"
#include "plan/arena.h"
#include "sm80/launch.h"
#include "sm90/launch.h"

namespace minference::cuda {
namespace {

constexpr std::int64_t kMaxParts = 64;
/// No part is shorter. Its own cost, too, in keys: begin and end of a task, results read again.
constexpr std::int64_t kKeysOfPart = 512;

}  // namespace

std::int32_t num_key_parts(std::int64_t tasks, std::int64_t slots, std::int64_t seq_kv) {
  if (tasks <= 0 || tasks >= slots) return 1;
  const std::int64_t most = std::clamp<std::int64_t>(seq_kv / kKeysOfPart, 1, kMaxParts);
  const auto time = [&](std::int64_t parts) {
    return ceil_div(tasks * parts, slots) * (ceil_div(seq_kv, parts) + kKeysOfPart);
  };
  std::int64_t least = time(1);
  for (std::int64_t parts = 2; parts <= most; ++parts) least = std::min(least, time(parts));
  // Every part takes memory: the last 5 % are not worth it.
  std::int64_t parts = 1;
  while (20 * time(parts) > 21 * least) ++parts;
  return static_cast<std::int32_t>(parts);
}

Status count_slots(const plan::Problem& problem, const KernelChoice& choice,
                   const DeviceFacts& facts, Slots* slots) {
  *slots = {choice.kernel, facts.num_multiprocessors};
  if (choice.kernel == AttentionKernel::kSm90) {  // a block fills a multiprocessor
    slots->count -= choice.num_reserved;
    return Status::kOk;
  }
  const bool is_bfloat16 = problem.args.q.dtype == DType::kBFloat16;
  return device_answered(
      sm80::count_attention_fwd_slots(problem.head_dim(), is_bfloat16, &slots->count),
      "asking the device how many thread blocks it runs at once");
}

LayerAttention::LayerAttention(const plan::Problem& problem, const Slots& slots, void* workspace)
    : index_(problem, workspace),
      slots_(slots),
      stream_(static_cast<cudaStream_t>(problem.args.stream)) {
  const AttentionArgs& args = problem.args;
  params_.call = index_.plan_params().call;
  params_.q = device_tensor(args.q);
  params_.k = device_tensor(args.k);
  params_.v = device_tensor(args.v);
  params_.plan = index_.plan();
  params_.columns = index_.columns();
  params_.out = device_tensor(args.out);
  params_.lse = args.lse;
  std::copy(args.lse_stride, args.lse_stride + 3, params_.lse_stride);
  params_.scale_log2 = problem.scale_log2;
  params_.scales = head_scales(args);
  params_.is_aligned =
      has_aligned_rows(params_.q) && has_aligned_rows(params_.k) && has_aligned_rows(params_.v);
  params_.is_out_aligned = has_aligned_rows(params_.out);

  PartialResults& partial = params_.partial;
  const std::int64_t count = problem.num_sequences();
  const std::int64_t heads = problem.num_heads_q();
  const std::int64_t row_blocks = params_.plan.row_blocks.total;
  partial.num_items = row_blocks / kTaskBlocks + count;
  // Without those that only the rounding of lengths leaves room for.
  const std::int64_t items = std::max(row_blocks / kTaskBlocks, count);
  partial.num_parts = num_key_parts(items * heads, slots.count, problem.seq_kv());
  workspace_bytes_ = index_.workspace_bytes();
  if (partial.num_parts == 1) return;
  plan::Arena arena(
      workspace == nullptr ? nullptr : static_cast<char*>(workspace) + workspace_bytes_,
      kAlignment);
  const std::int64_t rows = partial.num_parts * heads * partial.num_items * kTaskRows;
  partial.out = arena.take<float>(rows * problem.head_dim());
  partial.shift = arena.take<float>(rows);
  partial.sum = arena.take<float>(rows);
  workspace_bytes_ += arena.block_bytes();
}

Status LayerAttention::run() {
  Status status = Status::kOk;
  for (std::int32_t chunk = 0; chunk < index_.num_query_chunks() && status == Status::kOk;
       ++chunk) {
    status = index_.build(chunk);
    if (status == Status::kOk) status = attend();
  }
  return status;
}

Status LayerAttention::attend() {
  params_.call = index_.plan_params().call;
  const Sequences& sequences = params_.call.sequences;
  if (sequences.seq_q == 0 || sequences.seq_kv == 0) return Status::kOk;  // no rows
  const cudaError_t error = slots_.kernel == AttentionKernel::kSm90
                                ? sm90::launch_attention_fwd(params_, slots_.count, stream_)
                                : sm80::launch_attention_fwd(params_, stream_);
  const Status status = launched(error, "attention_fwd");
  if (status != Status::kOk || params_.partial.num_parts == 1) return status;
  return launched(launch_combine(params_, stream_), "combine");
}

}  // namespace minference::cuda
