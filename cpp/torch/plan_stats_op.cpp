// plan_stats: what the plan of each sequence and head computes and costs, as one int64 tensor.
#include <torch/csrc/stable/library.h>

#include "sparse_params.h"

namespace minference::binding {
namespace {

constexpr std::int64_t kNumFields = 9;

/// The fields of PlanStats in order; the last axis of the result.
std::array<std::int64_t, kNumFields> fields(const PlanStats& stats) {
  return {stats.is_dense,     stats.num_vertical,   stats.num_slash,
          stats.num_chunks,   stats.computed_pairs, stats.attended_pairs,
          stats.causal_pairs, stats.plan_bytes,     stats.estimation_bytes};
}

Tensor plan_stats_op(const Tensor& q, const Tensor& k,
                     const std::vector<std::int64_t>& head_patterns,
                     const OptionalTensor& vertical_idx, const OptionalTensor& slash_idx,
                     const OptionalTensor& block_idx, StringArgument mode,
                     std::int64_t estimate_every, bool dense_fallback,
                     std::optional<double> softmax_scale, const OptionalTensor& first_valid_key,
                     const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_kv,
                     const OptionalTensor& q_scale, const OptionalTensor& k_scale) {
  const OwnedString mode_owner(mode);
  return named("plan_stats", [&] {
    AttentionCall call(q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, q_scale,
                       k_scale);
    const SparseAttentionParams params =
        sparse_params(call, head_patterns, vertical_idx, slash_idx, block_idx, mode, estimate_every,
                      dense_fallback);

    const std::int64_t heads = call.num_sequences() * call.num_heads();
    const auto allocate_stats = [&](const CallDevice& device) {
      return allocate<1>({heads * static_cast<std::int64_t>(sizeof(PlanStats))},
                         aoti_torch_dtype_uint8(), device);
    };
    Tensor stats = allocate_stats(call.device());
    call.run(
        [&](std::size_t* bytes) { return plan_stats_workspace_bytes(call.args, params, bytes); },
        [&](void* workspace, std::size_t bytes) {
          return plan_stats(call.args, params, static_cast<PlanStats*>(stats.data_ptr()), workspace,
                            bytes);
        });
    const auto allocate_result = [&](const CallDevice& device) {
      return allocate<3>({call.num_sequences(), call.num_heads(), kNumFields},
                         aoti_torch_dtype_int64(), device);
    };
    // The fields are taken apart on the CPU; a copy from a GPU waits for it.
    const bool is_cuda = call.device().device() == Device::kCuda;
    if (is_cuda) {
      Tensor on_cpu = allocate_stats(CallDevice::cpu());
      torch::stable::copy_(on_cpu, stats);
      stats = on_cpu;
    }
    Tensor result = allocate_result(CallDevice::cpu());
    const auto* head = static_cast<const PlanStats*>(stats.data_ptr());
    auto* row = static_cast<std::int64_t*>(result.data_ptr());
    for (std::int64_t i = 0; i < heads; ++i) row = std::ranges::copy(fields(head[i]), row).out;
    if (!is_cuda) return result;
    Tensor on_gpu = allocate_result(call.device());
    torch::stable::copy_(on_gpu, result);
    return on_gpu;
  });
}

}  // namespace
}  // namespace minference::binding

STABLE_TORCH_LIBRARY_IMPL(minference, CPU, m) {
  m.impl("plan_stats", TORCH_BOX(&minference::binding::plan_stats_op));
}
STABLE_TORCH_LIBRARY_IMPL(minference, CUDA, m) {
  m.impl("plan_stats", TORCH_BOX(&minference::binding::plan_stats_op));
}
