// Device memory for tests, the counterpart of heap_tensor.h: buffers of exactly the bytes the
// library may touch. The emulator (ptxsim) reports every access outside of them; on a GPU guards on
// both sides show what was written there. Fresh memory is NaN, but not known as written where the
// emulator checks for reads of unwritten memory: filling it would hide them.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "../heap_tensor.h"
#include "minference/minference.h"

namespace minference::test {

/// The test cannot go on after a device error: all later calls report it too.
inline void must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::printf("%s: %s (%s)\n", what, cudaGetErrorString(error), cudaGetErrorName(error));
  std::fflush(stdout);
  std::_Exit(1);
}

/// Waits for everything enqueued so far.
inline void wait_for_device(const char* what) { must(cudaDeviceSynchronize(), what); }

inline bool has_environment(const char* name) {
  const char* const value = std::getenv(name);
  return value != nullptr && value[0] != '\0' && std::string_view(value) != "0";
}

/// Whether to run a case: its reason contains each of the program's arguments, and none that
/// stands after a minus sign.
inline bool is_chosen(const char* reason, int argc, char** argv) {
  bool result = true;
  for (int n = 1; n < argc; ++n) {
    const bool is_unwanted = argv[n][0] == '-';
    result &= (std::strstr(reason, argv[n] + (is_unwanted ? 1 : 0)) == nullptr) == is_unwanted;
  }
  return result;
}

class DeviceBytes {
 public:
  static constexpr std::size_t kGuardBytes = 256;
  static constexpr unsigned char kGuard = 0xA5;

  /// `skip` bytes that are the test's, then `size` bytes for the library.
  explicit DeviceBytes(std::size_t size = 0, std::size_t skip = 0) : size_(size), skip_(skip) {
    // With exact buffers the emulator also sees reads outside of them.
    guard_ = has_environment("PTXSIM_MEMCHECK") ? 0 : kGuardBytes;
    void* memory = nullptr;
    must(cudaMalloc(&memory, std::max<std::size_t>(1, 2 * guard_ + skip + size)), "cudaMalloc");
    memory_.reset(static_cast<unsigned char*>(memory), &cudaFree);
    if (guard_ > 0) {
      must(cudaMemset(memory, kGuard, guard_ + skip), "cudaMemset");
      must(cudaMemset(data() + size, kGuard, guard_), "cudaMemset");
    }
    if (!has_environment("PTXSIM_INITCHECK")) fill(0xFF);
  }
  /// A copy of host memory.
  DeviceBytes(const void* from, std::size_t size, std::size_t skip = 0) : DeviceBytes(size, skip) {
    write(from);
  }

  unsigned char* data() const { return memory_.get() + guard_ + skip_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data());
  }
  std::size_t size() const { return size_; }

  void fill(unsigned char byte) const {
    if (size_ > 0) must(cudaMemset(data(), byte, size_), "cudaMemset");
  }
  void write(const void* from) const {
    if (size_ > 0) must(cudaMemcpy(data(), from, size_, cudaMemcpyHostToDevice), "cudaMemcpy");
  }
  template <class T = unsigned char>
  std::vector<T> read() const {
    std::vector<T> values(size_ / sizeof(T));
    if (!values.empty()) {
      must(cudaMemcpy(values.data(), data(), values.size() * sizeof(T), cudaMemcpyDeviceToHost),
           "cudaMemcpy");
    }
    return values;
  }
  bool holds_only(unsigned char byte) const {
    const std::vector<unsigned char> bytes = read();
    return std::all_of(bytes.begin(), bytes.end(), [&](unsigned char b) { return b == byte; });
  }
  /// Whether the bytes around the library's are as they were.
  bool has_guards() const {
    if (guard_ == 0) return true;
    std::vector<unsigned char> around(2 * guard_ + skip_);
    must(cudaMemcpy(around.data(), memory_.get(), guard_ + skip_, cudaMemcpyDeviceToHost),
         "cudaMemcpy");
    must(cudaMemcpy(around.data() + guard_ + skip_, data() + size_, guard_, cudaMemcpyDeviceToHost),
         "cudaMemcpy");
    return std::all_of(around.begin(), around.end(), [](unsigned char b) { return b == kGuard; });
  }

 private:
  std::shared_ptr<unsigned char> memory_;
  std::size_t size_, skip_, guard_;
};

/// The tensor of a HeapTensor, at the same alignment.
inline TensorView copy_to_device(const HeapTensor& tensor, DeviceBytes* memory) {
  const std::size_t skip = tensor.bytes.data() == nullptr ? 0 : tensor.bytes.skip();
  *memory = DeviceBytes(tensor.bytes.data(), tensor.bytes.size(), skip);
  TensorView view = tensor.view;
  const auto offset = static_cast<unsigned char*>(view.data) - tensor.bytes.data();
  view.data = memory->data() + offset;
  return view;
}

inline IndexView copy_to_device(const HeapIndex& index, DeviceBytes* memory) {
  *memory = DeviceBytes(index.bytes.data(), index.bytes.size());
  IndexView view = index.view;
  view.data = memory->as<std::int32_t>();
  return view;
}

/// Null for an empty list.
inline const std::int32_t* copy_to_device(const std::vector<std::int32_t>& list,
                                          DeviceBytes* memory) {
  if (list.empty()) return nullptr;
  *memory = DeviceBytes(list.data(), list.size() * sizeof(std::int32_t));
  return memory->as<std::int32_t>();
}

}  // namespace minference::test
