// Launches a kernel and returns the launch's own error: cudaGetLastError would also report what
// failed before, in the caller's code.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace minference::cuda {

constexpr std::size_t kDefaultSharedBytes = 48 << 10;  // more must be asked for, on every device

/// What a thread block of the current device can have: 163 KB or more where there are tensor cores
/// for a data centre, 99 KB on other cards.
inline cudaError_t max_shared_bytes(std::int32_t* bytes) {
  int device = 0;
  const cudaError_t error = cudaGetDevice(&device);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
}

/// Whether a kernel with these arguments may start before the one before it in the stream is over,
/// and waits for that itself (dependent_launch.cuh).
template <class Params>
bool may_overlap(const Params& params) {
  if constexpr (requires { params.call; }) {
    return params.call.may_overlap;
  } else if constexpr (requires { params.params; }) {
    return may_overlap(params.params);
  } else if constexpr (requires { params.common; }) {
    return may_overlap(params.common);
  } else {
    return false;
  }
}

/// Nothing is launched for an empty grid.
template <class Params>
cudaError_t launch(void (*kernel)(Params), dim3 grid, int threads, std::size_t shared_bytes,
                   cudaStream_t stream, const Params& params) {
  static_assert(sizeof(Params) <= 4096, "drivers before CUDA 12.1 take no more arguments");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return cudaSuccess;
  if (shared_bytes > kDefaultSharedBytes) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
    if (error != cudaSuccess) return error;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &attribute;
  config.numAttrs = may_overlap(params) ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, params);
}

}  // namespace minference::cuda
