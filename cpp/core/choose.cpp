#include "core/choose.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "core/status.h"
#include "cuda/api.h"
#include "minference/build_info.h"
#include "plan/format.h"

namespace minference {
namespace core {
namespace {

constexpr const char* kKernelVariable = "MINFERENCE_CPU_KERNEL";

/// What the environment asks for; null: nothing.
const char* forced_kernel() {
  const char* const forced = std::getenv(kKernelVariable);
  return forced != nullptr && forced[0] != '\0' ? forced : nullptr;
}

/// `subject`: what has the dtype, for the sentence. A kernel set has the dtypes up to kFloat16.
Status check_dtype(DType dtype, const char* subject) {
  if (dtype <= DType::kFloat16) return Status::kOk;
  return fail(Status::kUnsupported,
              "%s float8_e4m3fn; the CPU backend supports float32, bfloat16 and float16", subject);
}

/// "amx_bf16, avx512_bf16, ..." of all sets of this build.
void list_names(char* text, std::size_t size) {
  text[0] = '\0';
  for (int i = 0; i < cpu::num_kernel_sets(); ++i) {
    if (i > 0) std::strncat(text, ", ", size - std::strlen(text) - 1);
    std::strncat(text, cpu::kernel_set(i).name, size - std::strlen(text) - 1);
  }
}

}  // namespace

Status choose_kernel_set(const cpu::KernelSet** set) {
  const char* const forced = forced_kernel();
  for (int i = 0; i < cpu::num_kernel_sets(); ++i) {
    const cpu::KernelSet& candidate = cpu::kernel_set(i);
    if (forced != nullptr && std::strcmp(candidate.name, forced) != 0) continue;
    if (candidate.is_supported()) {
      *set = &candidate;
      return Status::kOk;
    }
    if (forced != nullptr) {
      return fail(Status::kUnsupported, "%s is %s; this processor cannot run it", kKernelVariable,
                  forced);
    }
  }
  char names[256];
  list_names(names, sizeof(names));
  return fail(Status::kInvalidArgument, "%s is %s; this build has %s", kKernelVariable, forced,
              names);
}

Status describe_kernel_set(KernelInfo* info) {
  const cpu::KernelSet* set = nullptr;
  const Status status = choose_kernel_set(&set);
  if (status != Status::kOk) return status;
  info->tile_rows = plan::kRowBlock;
  info->tile_keys = plan::kChunk;
  info->num_multiprocessors = 0;
  std::snprintf(info->name, sizeof(info->name), "%s", set->name);
  if (const char* const forced = forced_kernel(); forced != nullptr) {
    std::snprintf(info->reason, sizeof(info->reason), "forced by %s=%s", kKernelVariable, forced);
  } else {
    std::snprintf(info->reason, sizeof(info->reason),
                  "the best of the CPU kernels that this machine can run");
  }
  return Status::kOk;
}

Status choose(DType dtype, const cpu::AttentionKernel** kernel) {
  const cpu::KernelSet* set = nullptr;
  Status status = check_dtype(dtype, "q has dtype");
  if (status == Status::kOk) status = choose_kernel_set(&set);
  if (status == Status::kOk) *kernel = set->kernels[static_cast<int>(dtype)];
  return status;
}

}  // namespace core

const char* version() { return MINFERENCE_VERSION; }

std::int32_t cpu_kernel_count() { return cpu::num_kernel_sets(); }

Status cpu_kernel_info(std::int32_t index, const char** name, std::int32_t* supported) {
  if (index < 0 || index >= cpu::num_kernel_sets()) {
    return core::fail(Status::kInvalidArgument, "index is %d; it must be in [0, %d)", index,
                      cpu::num_kernel_sets());
  }
  if (name == nullptr) return core::fail(Status::kInvalidArgument, "name is null");
  if (supported == nullptr) return core::fail(Status::kInvalidArgument, "supported is null");
  const cpu::KernelSet& set = cpu::kernel_set(index);
  *name = set.name;
  *supported = set.is_supported() ? 1 : 0;
  return Status::kOk;
}

Status cpu_kernel_for(DType dtype, const char** name) {
  if (dtype < DType::kFloat32 || dtype > DType::kFloat8E4M3) {
    return core::fail(Status::kInvalidArgument, "dtype is %d; it must be a value of DType",
                      static_cast<int>(dtype));
  }
  if (name == nullptr) return core::fail(Status::kInvalidArgument, "name is null");
  const cpu::KernelSet* set = nullptr;
  Status status = core::check_dtype(dtype, "dtype is");
  if (status == Status::kOk) status = core::choose_kernel_set(&set);
  if (status == Status::kOk) *name = set->name;
  return status;
}

bool has_cuda() { return cuda::is_built(); }

const char* cuda_architectures() { return cuda::architectures(); }

}  // namespace minference
