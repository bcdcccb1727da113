// libtorch_cuda.so of torch 2.11 and later exports the function that tells its current stream. It
// is looked up in the copy that torch has loaded: RTLD_DEFAULT does not see it (torch loads it with
// RTLD_LOCAL), and linking it would keep this library from loading into a torch without CUDA.
#include "current_stream.h"

#include <dlfcn.h>

namespace minference::binding {
namespace {

using GetCurrentStream = AOTITorchError (*)(std::int32_t device_index, void** stream);

GetCurrentStream find_get_current_stream() {
  void* const library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return nullptr;
  // Without dlclose: torch's libraries stay for the life of the process.
  return reinterpret_cast<GetCurrentStream>(dlsym(library, "aoti_torch_get_current_cuda_stream"));
}

}  // namespace

void* current_stream(const CallDevice& device) {
  if (device.device() != Device::kCuda) return nullptr;
  static const GetCurrentStream get_current_stream = find_get_current_stream();
  require(get_current_stream != nullptr,
          "torch's current CUDA stream cannot be found: libtorch_cuda.so is not loaded or lacks "
          "aoti_torch_get_current_cuda_stream (torch 2.11 or later with CUDA has it)");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get_current_stream(device.index(), &stream));
  return stream;
}

}  // namespace minference::binding
