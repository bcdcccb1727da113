// Answers api.h in a build without CUDA, instead of this folder's other files, so that core asks
// for CUDA like for any backend and nothing needs an #if. No call gets past supports(): what
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

Status supports(const plan::Problem&) { return fail_without_kernels(); }

Status workspace_bytes(const plan::Problem&, std::size_t*) { return fail_without_kernels(); }

Status attention_kernel(const plan::Problem&, KernelInfo*) { return fail_without_kernels(); }

Status attention(const plan::Problem&, void*) { return fail_without_kernels(); }

Status estimate(const plan::Problem&, const plan::EstimatedLines&, void*) {
  return fail_without_kernels();
}

Status plan_stats(const plan::Problem&, PlanStats*, void*) { return fail_without_kernels(); }

Status convert_workspace_bytes(const ConvertVsIndexParams&, std::size_t*) {
  return fail_without_kernels();
}

Status convert(const ConvertVsIndexParams&, void*) { return fail_without_kernels(); }

}  // namespace minference::cuda
