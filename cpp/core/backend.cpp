#include "core/backend.h"

#include "core/choose.h"
#include "core/status.h"
#include "cuda/api.h"

namespace minference::core {

Status workspace_bytes(const Call& call, std::size_t* bytes) {
  if (call.is_cuda()) return cuda::workspace_bytes(call.problem, bytes);
  *bytes = cpu::attention_workspace_bytes(call.problem, *call.cpu_kernel);
  return Status::kOk;
}

Status check_workspace(const Call& call, const void* workspace, std::size_t bytes) {
  std::size_t needed = 0;
  const Status status = workspace_bytes(call, &needed);
  if (status != Status::kOk) return status;
  if (bytes < needed) {
    return fail(Status::kWorkspaceTooSmall, "workspace has %zu bytes; %zu are needed", bytes,
                needed);
  }
  if (workspace == nullptr) return fail(Status::kInvalidArgument, "workspace is null");
  return Status::kOk;
}

Status attention(const Call& call, void* workspace) {
  if (call.is_cuda()) return cuda::attention(call.problem, workspace);
  cpu::attention(call.problem, *call.cpu_kernel, workspace);
  return Status::kOk;
}

Status attention_kernel(const Call& call, KernelInfo* info) {
  return call.is_cuda() ? cuda::attention_kernel(call.problem, info) : describe_kernel_set(info);
}

Status plan_stats(const Call& call, PlanStats* stats, void* workspace) {
  if (call.is_cuda()) return cuda::plan_stats(call.problem, stats, workspace);
  cpu::plan_stats(call.problem, *call.cpu_kernel, stats, workspace);
  return Status::kOk;
}

Status estimate(const Call& call, const plan::EstimatedLines& lines, void* workspace) {
  if (call.is_cuda()) return cuda::estimate(call.problem, lines, workspace);
  cpu::estimate(call.problem, *call.cpu_kernel, lines, workspace);
  return Status::kOk;
}

}  // namespace minference::core
