// Stands in for libtorch_cuda.so where torch has no CUDA: CUDA tensors, their copies and views, and
// the current stream, on whatever CUDA runtime the process has. Every other op of torch runs on
// copies in host memory. tests/test_torch_cuda.py builds it under that name and runs
// torch.ops.minference on such tensors in the emulator.
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/strides.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>

namespace {

const c10::Device kDevice(at::kCUDA, 0);

cudaStream_t current_stream = nullptr;
std::int64_t num_lookups = 0;

void require_ok(cudaError_t error) { TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

/// Elements from the first to the last, those between them too.
std::int64_t extent(c10::IntArrayRef size, c10::IntArrayRef stride) {
  if (std::count(size.begin(), size.end(), 0) > 0) return 0;
  std::int64_t extent = 1;
  for (std::size_t i = 0; i < size.size(); ++i) extent += (size[i] - 1) * stride[i];
  return extent;
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  const at::ScalarType type = c10::dtype_or_default(dtype);
  const std::size_t bytes = extent(size, stride) * c10::elementSize(type);
  void* data = nullptr;
  require_ok(cudaMalloc(&data, std::max<std::size_t>(bytes, 1)));
  return at::from_blob(
      data, size, stride, 0, [](void* memory) { cudaFree(memory); },
      at::TensorOptions().dtype(type).device(kDevice), kDevice);
}

at::Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout> layout, std::optional<at::Device> device,
                 std::optional<bool> pin_memory, std::optional<at::MemoryFormat>) {
  return empty_strided(size, c10::contiguous_strides(size), dtype, layout, device, pin_memory);
}

/// Tensors of equal shape, strides and type.
void copy_memory(const at::Tensor& to, const at::Tensor& from) {
  const std::size_t bytes = extent(to.sizes(), to.strides()) * to.element_size();
  if (bytes > 0) require_ok(cudaMemcpy(to.data_ptr(), from.data_ptr(), bytes, cudaMemcpyDefault));
}

/// The tensor in host memory, with the strides it has.
at::Tensor on_host(const at::Tensor& x) {
  if (x.is_cpu()) return x;
  const at::Tensor copy =
      at::empty_strided(x.sizes(), x.strides(), at::TensorOptions().dtype(x.dtype()));
  copy_memory(copy, x);
  return copy;
}

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool) {
  at::Tensor host = on_host(to);
  host.copy_(on_host(from));
  if (!to.is_cpu()) copy_memory(to, host);
  return to;
}

/// How the results of an op that ran on host memory come back. Some ops grow an empty tensor.
at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  at::Tensor result = to;
  if (from.sizes() != to.sizes()) {
    c10::TensorImpl* const impl = result.unsafeGetTensorImpl();
    impl->set_storage_keep_dtype(
        empty(from.sizes(), to.scalar_type(), {}, {}, {}, {}).unsafeGetTensorImpl()->storage());
    impl->set_sizes_contiguous(from.sizes());
  }
  return copy_(result, from, false);
}

/// Torch's own ops only: one of ours that has no kernel for CUDA must not run on the CPU instead.
void run_on_host(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string& name = op.operator_name().name;
  TORCH_CHECK(name.rfind("aten::", 0) == 0, name, " has no kernel for CUDA");
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

/// The one device is always current.
struct DeviceGuard final : c10::impl::NoOpDeviceGuardImpl<at::kCUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  c10::Stream getStream(c10::Device) const noexcept override {
    return c10::Stream(c10::Stream::DEFAULT, kDevice);
  }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(kDevice); }
};

/// Makes a stream of its own the current one.
void begin_stream() { require_ok(cudaStreamCreate(&current_stream)); }

std::int64_t stream_lookups() { return num_lookups; }

}  // namespace

extern "C" __attribute__((visibility("default"))) std::int32_t aoti_torch_get_current_cuda_stream(
    std::int32_t device_index, void** stream) {
  ++num_lookups;
  *stream = current_stream;
  return device_index == 0 ? 0 : 1;
}

C10_REGISTER_GUARD_IMPL(CUDA, DeviceGuard)

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_host>());
}

TORCH_LIBRARY(fake_cuda, m) {
  m.def("begin_stream() -> ()", begin_stream);
  m.def("stream_lookups() -> int", stream_lookups);
}
