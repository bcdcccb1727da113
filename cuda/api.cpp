// cuda/api.h: what core calls. Finds the device, checks what it must be able to access, runs.
#include "api.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cinttypes>
#include <cstdio>

#include "any/launch.h"
#include "choose.h"
#include "core/status.h"
#include "device_error.h"
#include "layer_attention.h"
#include "layer_index.h"
#include "plan/arena.h"

namespace minference::cuda {
namespace {

/// Positions are rounded up to whole steps of a kernel, in 32 bits.
constexpr std::int64_t kMaxKeys = (std::int64_t{1} << 31) - 1024;

constexpr std::int64_t kMaxTasks = (std::int64_t{1} << 31) - 1;
constexpr std::int64_t kMaxListed = 1 << 24;  // entries of a list that one thread block sorts

/// What no kernel serves, whatever the device.
Status check_supported(const plan::Problem& problem) {
  if (problem.args.q.dtype == DType::kFloat32) {
    return core::fail(Status::kUnsupported,
                      "q has dtype float32; CUDA kernels support bfloat16, float16 and "
                      "float8_e4m3fn");
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
  const std::int64_t count = problem.num_sequences();
  const std::int64_t row_blocks = problem.is_packed()
                                      ? problem.seq_q() / kRowBlock + count
                                      : count * ceil_div(problem.seq_q(), kRowBlock);
  if ((row_blocks / kTaskBlocks + count) * problem.num_heads_q() > kMaxTasks) {
    return core::fail(Status::kUnsupported,
                      "q has %" PRId64 " sequences of %" PRId64 " tokens, %" PRId64
                      " heads each; CUDA kernels support at most 2^31 thread blocks of %d tokens",
                      count, problem.seq_q(), problem.num_heads_q(), kTaskRows);
  }
  for (std::int64_t head = 0; head < problem.num_heads_q(); ++head) {
    const PatternKind kind = problem.patterns.at(head).kind;
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

struct NamedMemory {
  const void* data;
  const char* name;
};

template <std::size_t kCount>
Status check_access_to(const NamedMemory (&pieces)[kCount], int device) {
  Status status = Status::kOk;
  for (const NamedMemory& piece : pieces) {
    if (status == Status::kOk) status = check_access(piece.data, piece.name, device);
  }
  return status;
}

/// Everything the kernels read or write.
Status check_memory(const plan::Problem& problem, const void* workspace, int device) {
  const AttentionArgs& args = problem.args;
  const NamedMemory pieces[] = {{args.q.data, "q"},
                                {args.k.data, "k"},
                                {problem.needs_values ? args.v.data : nullptr, "v"},
                                {problem.needs_values ? args.out.data : nullptr, "out"},
                                {problem.needs_values ? args.lse : nullptr, "lse"},
                                {args.q_scale, "q_scale"},
                                {args.k_scale, "k_scale"},
                                {problem.needs_values ? args.v_scale : nullptr, "v_scale"},
                                {args.first_valid_key, "first_valid_key"},
                                {args.cu_seqlens_q, "cu_seqlens_q"},
                                {args.cu_seqlens_kv, "cu_seqlens_kv"},
                                {problem.vertical_idx.data, "vertical_idx"},
                                {problem.slash_idx.data, "slash_idx"},
                                {problem.block_idx.data, "block_idx"},
                                {workspace, "workspace"}};
  return check_access_to(pieces, device);
}

/// Whether this build has code for the device of `scope`.
Status check_kernels(const DeviceScope& scope) {
  if (scope.status() != Status::kOk) return scope.status();
  const cudaError_t error = find_kernels();
  if (error == cudaSuccess) return Status::kOk;
  cudaGetLastError();  // answered here, it is no error of the caller's next call
  return core::fail(Status::kUnsupported,
                    "CUDA device %d runs none of this build's kernels, which are for %s: %s (%s)",
                    scope.device(), MINFERENCE_CUDA_ARCHITECTURES, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

/// Who attends on the device of `scope`, the current one. float8 has one kernel.
Status choose(const plan::Problem& problem, const DeviceScope& scope, DeviceFacts* facts,
              KernelChoice* choice) {
  if (scope.status() != Status::kOk) return scope.status();
  const Status status = device_facts(facts);
  if (status != Status::kOk) return status;
  *choice = choose_kernel(problem, *facts);
  if (problem.args.q.dtype == DType::kFloat8E4M3 && choice->kernel != AttentionKernel::kSm90) {
    return core::fail(Status::kUnsupported,
                      "q has dtype float8_e4m3fn, which is for the kernel with wgmma: %s",
                      choice->reason);
  }
  return Status::kOk;
}

/// How many of its blocks that device runs at once.
Status choose_slots(const plan::Problem& problem, const DeviceScope& scope, Slots* slots) {
  DeviceFacts facts{};
  KernelChoice choice{};
  const Status status = choose(problem, scope, &facts, &choice);
  return status == Status::kOk ? count_slots(problem, choice, facts, slots) : status;
}

/// The smallest power of two that is at least `count`; 0 for nothing.
std::int64_t round_up_to_power_of_two(std::int64_t count) {
  std::int64_t power = 1;
  while (power < count) power *= 2;
  return count == 0 ? 0 : power;
}

/// What the kernels of convert_vs_index do not serve.
Status check_convert(const ConvertVsIndexParams& params) {
  const IndexView& vertical_idx = params.vertical_idx;
  for (const IndexView* view : {&vertical_idx, &params.slash_idx}) {
    if (view->shape[2] <= kMaxListed) continue;
    return core::fail(
        Status::kUnsupported, "%s has shape[2] %" PRId64 "; CUDA kernels support at most %" PRId64,
        view == &vertical_idx ? "vertical_idx" : "slash_idx", view->shape[2], kMaxListed);
  }
  const std::int64_t units = vertical_idx.shape[0] * vertical_idx.shape[1];
  if (units > kMaxTasks || units * ceil_div(params.num_row_blocks, kRowBlock) > kMaxTasks) {
    return core::fail(Status::kUnsupported,
                      "vertical_idx has %" PRId64 " lists, num_row_blocks is %" PRId64
                      "; CUDA kernels support at most 2^31 times 64 row blocks in all",
                      units, params.num_row_blocks);
  }
  return Status::kOk;
}

ConvertParams convert_params(const ConvertVsIndexParams& params, plan::Arena* arena) {
  const std::int64_t units = params.vertical_idx.shape[0] * params.vertical_idx.shape[1];
  ConvertParams converted = {
      .q_seqlens = params.q_seqlens,
      .kv_seqlens = params.kv_seqlens,
      .vertical_idx = params.vertical_idx,
      .slash_idx = params.slash_idx,
      .num_row_blocks = params.num_row_blocks,
      .is_causal = params.causal != 0,
      .sorted_vertical = nullptr,
      .sorted_slash = nullptr,
      .vertical_capacity = round_up_to_power_of_two(params.vertical_idx.shape[2]),
      .slash_capacity = round_up_to_power_of_two(params.slash_idx.shape[2]),
      .block_count = params.block_count,
      .block_offset = params.block_offset,
      .column_count = params.column_count,
      .column_index = params.column_index};
  converted.sorted_vertical = arena->take<std::int32_t>(units * converted.vertical_capacity);
  converted.sorted_slash = arena->take<std::int32_t>(units * converted.slash_capacity);
  return converted;
}

}  // namespace

bool is_built() { return true; }

const char* architectures() { return MINFERENCE_CUDA_ARCHITECTURES; }

Status supports(const plan::Problem& problem) {
  Status status = check_supported(problem);
  if (status != Status::kOk) return status;
  const DeviceScope scope(any_memory(problem, nullptr));
  DeviceFacts facts{};
  KernelChoice choice{};
  status = check_kernels(scope);
  if (status != Status::kOk || problem.args.q.dtype != DType::kFloat8E4M3) return status;
  return choose(problem, scope, &facts, &choice);
}

Status workspace_bytes(const plan::Problem& problem, std::size_t* bytes) {
  if (!problem.needs_values) {
    *bytes = LayerIndex(problem, nullptr).workspace_bytes();
    return Status::kOk;
  }
  const DeviceScope scope(any_memory(problem, nullptr));
  Slots slots{};
  const Status status = choose_slots(problem, scope, &slots);
  if (status == Status::kOk) *bytes = LayerAttention(problem, slots, nullptr).workspace_bytes();
  return status;
}

Status attention_kernel(const plan::Problem& problem, KernelInfo* info) {
  const DeviceScope scope(any_memory(problem, nullptr));
  DeviceFacts facts{};
  KernelChoice choice{};
  const Status status = choose(problem, scope, &facts, &choice);
  if (status != Status::kOk) return status;
  info->tile_rows = choice.tile_rows;
  info->tile_keys = choice.tile_keys;
  info->num_multiprocessors = facts.num_multiprocessors - choice.num_reserved;
  std::snprintf(info->name, sizeof(info->name), "%s", kernel_name(choice.kernel));
  std::snprintf(info->reason, sizeof(info->reason), "%s", choice.reason);
  return status;
}

Status attention(const plan::Problem& problem, void* workspace) {
  const DeviceScope scope(any_memory(problem, workspace));
  Slots slots{};
  Status status = choose_slots(problem, scope, &slots);
  if (status == Status::kOk) status = check_memory(problem, workspace, scope.device());
  return status == Status::kOk ? LayerAttention(problem, slots, workspace).run() : status;
}

Status estimate(const plan::Problem& problem, const plan::EstimatedLines& lines, void* workspace) {
  const DeviceScope scope(any_memory(problem, workspace));
  Status status = scope.status();
  if (status == Status::kOk) status = check_memory(problem, workspace, scope.device());
  const NamedMemory outputs[] = {{lines.vertical_idx, "vertical_idx"},
                                 {lines.slash_idx, "slash_idx"},
                                 {lines.column_scores, "column_scores"},
                                 {lines.slash_scores, "slash_scores"}};
  if (status == Status::kOk) status = check_access_to(outputs, scope.device());
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

Status convert_workspace_bytes(const ConvertVsIndexParams& params, std::size_t* bytes) {
  const Status status = check_convert(params);
  if (status != Status::kOk) return status;
  plan::Arena arena(nullptr, kAlignment);
  convert_params(params, &arena);
  *bytes = arena.block_bytes();
  return Status::kOk;
}

Status convert(const ConvertVsIndexParams& params, void* workspace) {
  const void* const lists =
      params.vertical_idx.data != nullptr ? params.vertical_idx.data : params.slash_idx.data;
  const DeviceScope scope(lists != nullptr ? lists : params.block_count);
  const NamedMemory pieces[] = {{params.q_seqlens, "q_seqlens"},
                                {params.kv_seqlens, "kv_seqlens"},
                                {params.vertical_idx.data, "vertical_idx"},
                                {params.slash_idx.data, "slash_idx"},
                                {params.block_count, "block_count"},
                                {params.block_offset, "block_offset"},
                                {params.column_count, "column_count"},
                                {params.column_index, "column_index"},
                                {workspace, "workspace"}};
  Status status = check_convert(params);
  if (status == Status::kOk) status = check_kernels(scope);
  if (status == Status::kOk) status = check_access_to(pieces, scope.device());
  if (status != Status::kOk) return status;
  plan::Arena arena(workspace, kAlignment);
  return launched(launch_convert_lines(convert_params(params, &arena),
                                       static_cast<cudaStream_t>(params.stream)),
                  "convert_lines");
}

}  // namespace minference::cuda
