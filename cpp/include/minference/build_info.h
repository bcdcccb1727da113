// What this build is and what this machine can run.
#pragma once

#include "minference/types.h"

namespace minference {

/// Version of the library as "major.minor.patch". Never null.
MINFERENCE_API const char* version();

/// CPU kernels from the best to the plainest, e.g. "amx_bf16". `name` and the flag are set for
/// index in [0, cpu_kernel_count()).
MINFERENCE_API std::int32_t cpu_kernel_count();
MINFERENCE_API Status cpu_kernel_info(std::int32_t index, const char** name,
                                      std::int32_t* supported);

/// The CPU kernel that runs `dtype` on this machine, or the one that the environment variable
/// MINFERENCE_CPU_KERNEL names. kInvalidArgument if that variable names no kernel, kUnsupported if
/// this machine cannot run it, and for float8, which the CPU does not compute.
MINFERENCE_API Status cpu_kernel_for(DType dtype, const char** name);

/// Whether this build holds CUDA kernels.
MINFERENCE_API bool has_cuda();
/// What they were compiled for, as CMAKE_CUDA_ARCHITECTURES has it, e.g. "80;90a"; empty without
/// CUDA kernels. Never null.
MINFERENCE_API const char* cuda_architectures();

}  // namespace minference
