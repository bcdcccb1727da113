// minference_ext._C: what this build is, what this machine can run, which kernel attends and what
// the cost model says. No torch: that is torch.ops.minference. A status other than kOk becomes
// ValueError (an argument is wrong) or RuntimeError, with the sentence of last_error().
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "minference/minference.h"

namespace py = pybind11;

namespace {

using minference::Status;
using ReleaseGil = py::call_guard<py::gil_scoped_release>;

void require_ok(Status status) {
  if (status == Status::kOk) return;
  if (status == Status::kInvalidArgument) throw py::value_error(minference::last_error());
  throw std::runtime_error(minference::last_error());
}

std::vector<std::pair<std::string, bool>> cpu_kernels() {
  std::vector<std::pair<std::string, bool>> kernels;
  for (std::int32_t index = 0; index < minference::cpu_kernel_count(); ++index) {
    const char* name = nullptr;
    std::int32_t supported = 0;
    require_ok(minference::cpu_kernel_info(index, &name, &supported));
    kernels.emplace_back(name, supported != 0);
  }
  return kernels;
}

/// `subject`: what has the dtype, for the sentence.
minference::DType dtype_from_name(const std::string& name, const std::string& subject) {
  if (name == "float32") return minference::DType::kFloat32;
  if (name == "bfloat16") return minference::DType::kBFloat16;
  if (name == "float16") return minference::DType::kFloat16;
  if (name == "float8_e4m3fn") return minference::DType::kFloat8E4M3;
  throw py::value_error(subject + " '" + name +
                        "'; it must be 'float32', 'bfloat16', 'float16' or 'float8_e4m3fn'");
}

std::string cpu_kernel_for(const std::string& dtype) {
  const char* name = nullptr;
  require_ok(minference::cpu_kernel_for(dtype_from_name(dtype, "dtype is"), &name));
  return name;
}

using Extents = std::array<std::int64_t, 4>;

/// A tensor: its address, shape and strides of [batch, heads, seq, head_dim], and dtype.
using Tensor = std::tuple<std::uintptr_t, Extents, Extents, std::string>;

minference::TensorView tensor_view(const Tensor& tensor, const std::string& name) {
  const auto& [address, shape, stride, dtype] = tensor;
  minference::TensorView view;
  view.data = reinterpret_cast<void*>(address);
  std::copy(shape.begin(), shape.end(), view.shape);
  std::copy(stride.begin(), stride.end(), view.stride);
  view.dtype = dtype_from_name(dtype, name + " has dtype");
  return view;
}

py::dict attention_kernel(bool is_cuda, const Tensor& q, const Tensor& k, const Tensor& v,
                          std::int32_t reserved_multiprocessors) {
  minference::AttentionArgs args;
  args.device = is_cuda ? minference::Device::kCuda : minference::Device::kCpu;
  args.q = args.out = tensor_view(q, "q");
  if (args.q.dtype == minference::DType::kFloat8E4M3) {
    args.out.dtype = minference::DType::kBFloat16;
  }
  args.k = tensor_view(k, "k");
  args.v = tensor_view(v, "v");
  args.reserved_multiprocessors = reserved_multiprocessors;
  const std::vector<minference::HeadPattern> dense(
      static_cast<std::size_t>(std::max<std::int64_t>(args.q.shape[1], 1)));
  minference::SparseAttentionParams params;
  params.head_patterns = dense.data();
  minference::KernelInfo info;
  {
    const py::gil_scoped_release release;
    require_ok(minference::attention_kernel(args, params, &info));
  }
  py::dict result;
  result["name"] = info.name;
  result["tile_rows"] = info.tile_rows;
  result["tile_keys"] = info.tile_keys;
  result["num_multiprocessors"] = info.num_multiprocessors;
  result["reason"] = info.reason;
  return result;
}

py::dict predict(std::int32_t kind, const std::vector<std::int64_t>& sizes, std::int64_t q_len,
                 std::int64_t kv_len) {
  minference::HeadPattern pattern{.kind = static_cast<minference::PatternKind>(kind)};
  if (sizes.size() > std::size(pattern.size)) {
    throw py::value_error("sizes has " + std::to_string(sizes.size()) +
                          " entries; a pattern has at most 3");
  }
  std::copy(sizes.begin(), sizes.end(), pattern.size);
  minference::Prediction prediction;
  {
    const py::gil_scoped_release release;
    require_ok(minference::predict(pattern, q_len, kv_len, &prediction));
  }
  py::dict result;
  result["is_dense"] = prediction.is_dense != 0;
  result["cost_dense"] = prediction.cost_dense;
  result["cost_sparse"] = prediction.cost_sparse;
  return result;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build information, capabilities and cost model of libminference.";
  m.def("version", &minference::version, "Version as 'major.minor.patch'.", ReleaseGil());
  m.def("cpu_kernels", &cpu_kernels,
        "CPU kernels from the best to the plainest: (name, whether this machine can run it).",
        ReleaseGil());
  m.def("cpu_kernel_for", &cpu_kernel_for, py::arg("dtype"),
        "Name of the CPU kernel that runs 'float32', 'bfloat16' or 'float16' here.", ReleaseGil());
  m.def("has_cuda", &minference::has_cuda, "Whether this build holds CUDA kernels.", ReleaseGil());
  m.def("cuda_architectures", &minference::cuda_architectures,
        "What the CUDA kernels were compiled for, e.g. '80;90a'; '' without CUDA kernels.",
        ReleaseGil());
  m.def("attention_kernel", &attention_kernel, py::arg("is_cuda"), py::arg("q"), py::arg("k"),
        py::arg("v"), py::arg("reserved_multiprocessors"),
        "Which kernel attends tensors (address, shape, strides, dtype), and why. None is read.");
  m.def("predict", &predict, py::arg("kind"), py::arg("sizes"), py::arg("q_len"), py::arg("kv_len"),
        "Cost of a head pattern before any data is seen.");
  m.def(
      "status_string",
      [](std::int32_t status) { return minference::status_string(static_cast<Status>(status)); },
      py::arg("status"), "Short name of a status code, e.g. 'invalid argument' for -1.",
      ReleaseGil());
}
