// Hands a validated problem to the backend that runs it.
#pragma once

#include <cstddef>

#include "cpu/api.h"
#include "minference/sparse_attention.h"
#include "minference/types.h"
#include "plan/problem.h"

namespace minference::core {

struct Call {
  plan::Problem problem;
  const cpu::AttentionKernel* cpu_kernel = nullptr;  ///< on the CPU

  bool is_cuda() const { return problem.args.device == Device::kCuda; }
};

Status workspace_bytes(const Call& call, std::size_t* bytes);
/// kWorkspaceTooSmall or kInvalidArgument unless `workspace` suffices.
Status check_workspace(const Call& call, const void* workspace, std::size_t bytes);

Status attention(const Call& call, void* workspace);
/// Fills `info`; who attends is what attention() runs.
Status attention_kernel(const Call& call, KernelInfo* info);
Status plan_stats(const Call& call, PlanStats* stats, void* workspace);
Status estimate(const Call& call, const plan::EstimatedLines& lines, void* workspace);

}  // namespace minference::core
