// Stands in for libtorch_cuda.so where torch has no CUDA: enough of it to make CUDA tensors, copy
// them and tell the current stream, on whatever CUDA runtime the process has.
// tests/test_torch_cuda.py builds it under that name and runs torch.ops.minference on such tensors
// in the emulator.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>
#include <cuda_runtime_api.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdint>

namespace {

cudaStream_t current_stream = nullptr;
std::int64_t num_lookups = 0;

void require_ok(cudaError_t error) { TORCH_CHECK(error == cudaSuccess, cudaGetErrorString(error)); }

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> device, std::optional<bool>) {
  std::int64_t extent = 1;
  for (std::size_t i = 0; i < size.size(); ++i) extent += (size[i] - 1) * stride[i];
  if (std::count(size.begin(), size.end(), 0) > 0) extent = 0;
  void* data = nullptr;
  const std::size_t bytes = extent * c10::elementSize(*dtype);
  require_ok(cudaMalloc(&data, std::max<std::size_t>(bytes, 1)));
  const at::Device here(at::kCUDA, 0);
  return at::from_blob(
      data, size, stride, 0, [](void* memory) { cudaFree(memory); },
      at::TensorOptions().dtype(*dtype).device(here), here);
}

void copy_storage(const at::Tensor& to, const at::Tensor& from) {
  TORCH_CHECK(to.sizes() == from.sizes() && to.strides() == from.strides() &&
              to.dtype() == from.dtype());
  std::int64_t extent = 1;
  for (std::int64_t i = 0; i < to.dim(); ++i) extent += (to.size(i) - 1) * to.stride(i);
  if (to.numel() == 0) return;
  require_ok(
      cudaMemcpy(to.data_ptr(), from.data_ptr(), extent * to.element_size(), cudaMemcpyDefault));
}

at::Tensor& copy_(at::Tensor& to, const at::Tensor& from, bool) {
  copy_storage(to, from);
  return to;
}

at::Tensor to_cuda(const at::Tensor& x) {
  const at::Tensor copy = empty_strided(x.sizes(), x.strides(), x.scalar_type(), {}, {}, {});
  copy_storage(copy, x);
  return copy;
}

at::Tensor to_cpu(const at::Tensor& x) {
  const at::Tensor copy = at::empty(x.sizes(), at::TensorOptions().dtype(x.dtype()));
  copy_storage(copy, x);
  return copy;
}

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

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty_strided", empty_strided);
  m.impl("copy_", copy_);
}

TORCH_LIBRARY(fake_cuda, m) {
  m.def("to_cuda(Tensor x) -> Tensor", to_cuda);
  m.def("to_cpu(Tensor x) -> Tensor", to_cpu);
  m.def("begin_stream() -> ()", begin_stream);
  m.def("stream_lookups() -> int", stream_lookups);
}
