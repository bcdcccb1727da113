// CUDA errors as Status with a sentence, and the device a call runs on.
#pragma once

#include <driver_types.h>

#include "minference/types.h"

namespace minference::cuda {

/// kOk, or kDeviceError with the runtime's own name and words. `kernel`: what was launched.
Status launched(cudaError_t error, const char* kernel);

/// The same for a question to the device, about `what`.
Status device_answered(cudaError_t error, const char* what);

/// Makes the device of `data` current for the calling thread while it lives; the one that is
/// current where data is null. Restores it afterwards.
class DeviceScope {
 public:
  explicit DeviceScope(const void* data);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  /// kUnsupported without a driver or device, or on one older than sm_80.
  Status status() const { return status_; }
  int device() const { return device_; }

 private:
  Status enter(const void* data);

  Status status_ = Status::kInternal;
  int device_ = 0;
  int previous_ = -1;  // -1: nothing to restore
};

/// kInvalidArgument unless kernels on `device` can access `data`; null is fine.
Status check_access(const void* data, const char* name, int device);

}  // namespace minference::cuda
