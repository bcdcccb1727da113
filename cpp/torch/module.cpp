// minference_ext._C: what this build is, what this machine can run and what the cost model says.
// No tensors and no torch: those are torch.ops.minference. A status other than kOk becomes
// ValueError (an argument is wrong) or RuntimeError, with the sentence of last_error().
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
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

minference::DType dtype_from_name(const std::string& name) {
  if (name == "float32") return minference::DType::kFloat32;
  if (name == "bfloat16") return minference::DType::kBFloat16;
  if (name == "float16") return minference::DType::kFloat16;
  throw py::value_error("dtype is '" + name + "'; it must be 'float32', 'bfloat16' or 'float16'");
}

std::string cpu_kernel_for(const std::string& dtype) {
  const char* name = nullptr;
  require_ok(minference::cpu_kernel_for(dtype_from_name(dtype), &name));
  return name;
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
  m.def("predict", &predict, py::arg("kind"), py::arg("sizes"), py::arg("q_len"), py::arg("kv_len"),
        "Cost of a head pattern before any data is seen.");
  m.def(
      "status_string",
      [](std::int32_t status) { return minference::status_string(static_cast<Status>(status)); },
      py::arg("status"), "Short name of a status code, e.g. 'invalid argument' for -1.",
      ReleaseGil());
}
