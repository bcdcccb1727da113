#include "device_error.h"

#include <cuda_runtime_api.h>

#include "core/status.h"

namespace minference::cuda {
namespace {

constexpr int kMinMajor = 8;  // cp.async, bf16 tensor cores

Status device_error(cudaError_t error, const char* what) {
  cudaGetLastError();  // answered here, it is no error of the caller's next call
  return core::fail(Status::kDeviceError, "%s: %s (%s)", what, cudaGetErrorString(error),
                    cudaGetErrorName(error));
}

}  // namespace

Status launched(cudaError_t error, const char* kernel) {
  if (error == cudaSuccess) return Status::kOk;
  cudaGetLastError();
  return core::fail(Status::kDeviceError, "CUDA kernel %s cannot be launched: %s (%s)", kernel,
                    cudaGetErrorString(error), cudaGetErrorName(error));
}

Status device_answered(cudaError_t error, const char* what) {
  return error == cudaSuccess ? Status::kOk : device_error(error, what);
}

DeviceScope::DeviceScope(const void* data) { status_ = enter(data); }

DeviceScope::~DeviceScope() {
  if (previous_ >= 0) cudaSetDevice(previous_);
}

Status DeviceScope::enter(const void* data) {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error != cudaSuccess) {
    cudaGetLastError();  // a missing driver is no error of the caller's next call
    return core::fail(Status::kUnsupported,
                      "device is CUDA; this machine has no CUDA device: %s (%s)",
                      cudaGetErrorString(error), cudaGetErrorName(error));
  }
  device_ = current;
  if (data != nullptr) {
    cudaPointerAttributes attributes{};
    error = cudaPointerGetAttributes(&attributes, data);
    if (error != cudaSuccess) return device_error(error, "cudaPointerGetAttributes");
    const bool is_on_device = attributes.type == cudaMemoryTypeDevice;
    if (is_on_device) device_ = attributes.device;
  }
  int major = 0, minor = 0;
  error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device_);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device_);
  }
  if (error != cudaSuccess) return device_error(error, "cudaDeviceGetAttribute");
  if (major < kMinMajor) {
    return core::fail(Status::kUnsupported,
                      "CUDA device %d has compute capability %d.%d; %d.0 or later is supported",
                      device_, major, minor, kMinMajor);
  }
  if (device_ == current) return Status::kOk;
  error = cudaSetDevice(device_);
  if (error != cudaSuccess) return device_error(error, "cudaSetDevice");
  previous_ = current;
  return Status::kOk;
}

Status check_access(const void* data, const char* name, int device) {
  if (data == nullptr) return Status::kOk;
  cudaPointerAttributes attributes{};
  cudaError_t error = cudaPointerGetAttributes(&attributes, data);
  if (error != cudaSuccess) return device_error(error, "cudaPointerGetAttributes");
  if (attributes.type == cudaMemoryTypeUnregistered) {
    int reads_host_memory = 0;
    error = cudaDeviceGetAttribute(&reads_host_memory, cudaDevAttrPageableMemoryAccess, device);
    if (error == cudaSuccess && reads_host_memory != 0) return Status::kOk;
    return core::fail(Status::kInvalidArgument,
                      "%s is host memory; with device CUDA it must be memory of CUDA device %d",
                      name, device);
  }
  if (attributes.type == cudaMemoryTypeDevice && attributes.device != device) {
    return core::fail(
        Status::kInvalidArgument,
        "%s is on CUDA device %d, the call runs on device %d; all memory of a call must be "
        "on one device",
        name, attributes.device, device);
  }
  return Status::kOk;
}

}  // namespace minference::cuda
