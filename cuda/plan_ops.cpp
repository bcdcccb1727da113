// cuda/api.h: what core calls. Finds the device, checks what it must be able to access, runs.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cinttypes>

#include "any/launch.h"
#include "api.h"
#include "core/status.h"
#include "device_error.h"
#include "layer_index.h"

namespace minference::cuda {
namespace {

/// Positions are rounded up to whole steps of a kernel, in 32 bits.
constexpr std::int64_t kMaxKeys = (std::int64_t{1} << 31) - 1024;

/// What no kernel serves, whatever the device.
Status check_supported(const plan::Problem& problem) {
  if (problem.args.q.dtype == DType::kFloat32) {
    return core::fail(Status::kUnsupported,
                      "q has dtype float32; CUDA kernels support bfloat16 and float16");
  }
  if (problem.num_heads_q() > kMaxHeads) {
    return core::fail(Status::kUnsupported,
                      "q has %" PRId64 " heads; CUDA kernels support at most %d per call",
                      problem.num_heads_q(), kMaxHeads);
  }
  if (problem.seq_kv() > kMaxKeys) {
    return core::fail(Status::kUnsupported,
                      "k has %" PRId64 " tokens; CUDA kernels support at most %" PRId64,
                      problem.seq_kv(), kMaxKeys);
  }
  for (std::int64_t head = 0; head < problem.num_heads_q(); ++head) {
    const PatternKind kind = problem.patterns.at(head).kind;
    const bool has_lines =
        kind == PatternKind::kVerticalSlash || kind == PatternKind::kVerticalSlashIndex;
    if (has_lines && problem.mode == SlashMode::kReference) {
      return core::fail(
          Status::kUnsupported,
          "mode is reference; it has CPU kernels only, CUDA supports cover and exact");
    }
    if (kind != PatternKind::kBlockSparse) continue;
    const std::int64_t key_blocks = plan::num_row_blocks(problem.seq_kv());
    if (key_blocks > kMaxKeyBlocks) {
      return core::fail(Status::kUnsupported,
                        "k has %" PRId64 " tokens; for block_sparse CUDA kernels rank at most %d",
                        problem.seq_kv(), kMaxKeyBlocks * kRowBlock);
    }
    const std::int64_t top_k = problem.patterns.at(head).size[0];
    if (std::min(top_k, key_blocks) > kMaxTopBlocks) {
      return core::fail(Status::kUnsupported,
                        "top_k of head %" PRId64 " is %" PRId64
                        "; CUDA kernels rank at most %d key blocks",
                        head, top_k, kMaxTopBlocks);
    }
  }
  return Status::kOk;
}

/// Memory that tells the device of a call; a tensor without elements may have none.
const void* any_memory(const plan::Problem& problem, const void* workspace) {
  const AttentionArgs& args = problem.args;
  return args.q.data != nullptr ? args.q.data : args.k.data != nullptr ? args.k.data : workspace;
}

/// Everything the kernels read or write but q, whose device is that of the call.
Status check_memory(const plan::Problem& problem, const void* workspace, int device) {
  const AttentionArgs& args = problem.args;
  const struct {
    const void* data;
    const char* name;
  } pieces[] = {{args.q.data, "q"},
                {args.k.data, "k"},
                {problem.needs_values ? args.v.data : nullptr, "v"},
                {args.first_valid_key, "first_valid_key"},
                {args.cu_seqlens_q, "cu_seqlens_q"},
                {args.cu_seqlens_kv, "cu_seqlens_kv"},
                {problem.vertical_idx.data, "vertical_idx"},
                {problem.slash_idx.data, "slash_idx"},
                {problem.block_idx.data, "block_idx"},
                {workspace, "workspace"}};
  Status status = Status::kOk;
  for (const auto& piece : pieces) {
    if (status == Status::kOk) status = check_access(piece.data, piece.name, device);
  }
  return status;
}

}  // namespace

bool is_built() { return true; }

const char* architectures() { return MINFERENCE_CUDA_ARCHITECTURES; }

Status supports_plan(const plan::Problem& problem) {
  const Status status = check_supported(problem);
  if (status != Status::kOk) return status;
  const DeviceScope scope(any_memory(problem, nullptr));
  if (scope.status() != Status::kOk) return scope.status();
  const cudaError_t error = find_kernels();
  if (error == cudaSuccess) return Status::kOk;
  cudaGetLastError();  // answered here, it is no error of the caller's next call
  return core::fail(Status::kUnsupported,
                    "CUDA device %d runs none of this build's kernels, which are for %s: %s (%s)",
                    scope.device(), architectures(), cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

Status supports_attention(const plan::Problem&) {
  return core::fail(Status::kUnsupported,
                    "device is CUDA; this version has CUDA kernels for estimate_vs_index and "
                    "plan_stats, attention runs on the CPU");
}

Status plan_workspace_bytes(const plan::Problem& problem, std::size_t* bytes) {
  *bytes = LayerIndex(problem, nullptr).workspace_bytes();
  return Status::kOk;
}

Status estimate(const plan::Problem& problem, const plan::EstimatedLines& lines, void* workspace) {
  const DeviceScope scope(any_memory(problem, workspace));
  Status status = scope.status();
  if (status == Status::kOk) status = check_memory(problem, workspace, scope.device());
  if (status == Status::kOk) {
    status = check_access(lines.vertical_idx, "vertical_idx", scope.device());
  }
  if (status == Status::kOk) status = check_access(lines.slash_idx, "slash_idx", scope.device());
  if (status == Status::kOk) {
    status = check_access(lines.column_scores, "column_scores", scope.device());
  }
  if (status == Status::kOk) {
    status = check_access(lines.slash_scores, "slash_scores", scope.device());
  }
  return status == Status::kOk ? LayerIndex(problem, workspace).estimate(lines) : status;
}

Status plan_stats(const plan::Problem& problem, PlanStats* stats, void* workspace) {
  const DeviceScope scope(any_memory(problem, workspace));
  Status status = scope.status();
  if (status == Status::kOk) status = check_memory(problem, workspace, scope.device());
  if (status == Status::kOk) status = check_access(stats, "stats", scope.device());
  LayerIndex index(problem, workspace);
  for (std::int32_t chunk = 0; chunk < index.num_query_chunks() && status == Status::kOk; ++chunk) {
    status = index.build(chunk);
    if (status == Status::kOk) status = index.add_stats(stats);
  }
  return status;
}

}  // namespace minference::cuda
