// Answers api.h in a build without CUDA, instead of this folder's other files, so that core asks
// for CUDA like for any backend and nothing needs an #if. No call gets past supports_plan(): what
// could follow it says the same.
#include "api.h"
#include "core/status.h"

namespace minference::cuda {
namespace {

Status fail_without_kernels() {
  return core::fail(Status::kUnsupported,
                    "this build of minference has no CUDA kernels; to have them, build it where "
                    "nvcc is installed, with the CMake option MINFERENCE_CUDA=ON");
}

}  // namespace

bool is_built() { return false; }

const char* architectures() { return ""; }

Status supports_plan(const plan::Problem&) { return fail_without_kernels(); }

Status supports_attention(const plan::Problem&) { return fail_without_kernels(); }

Status plan_workspace_bytes(const plan::Problem&, std::size_t*) { return fail_without_kernels(); }

Status estimate(const plan::Problem&, const plan::EstimatedLines&, void*) {
  return fail_without_kernels();
}

Status plan_stats(const plan::Problem&, PlanStats*, void*) { return fail_without_kernels(); }

}  // namespace minference::cuda
