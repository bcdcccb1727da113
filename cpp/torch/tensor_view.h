// Tensor -> the plain views of libminference, with the checks that only torch can make: rank,
// dtype, device, contiguity of the last axis. Shapes and values are core's business. Every check
// throws std::runtime_error with a sentence that names the argument, what was found and what is
// allowed; it does not use STD_TORCH_CHECK because that puts a source path in front of the user's
// sentence.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>

#include "minference/types.h"

namespace minference::binding {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

/// How q, k, v and out lie in memory.
enum class Layout {
  kBatched,  ///< [batch, heads, seq, head_dim]
  kPacked,   ///< [total tokens, heads, head_dim], sequences delimited by cu_seqlens_*
};

template <class... Parts>
void require(bool ok, const Parts&... parts) {
  if (ok) return;
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

/// A shape that becomes text only in the sentence of a check that fails.
struct ShapeText {
  const Tensor& tensor;

  friend std::ostream& operator<<(std::ostream& text, const ShapeText& shape) {
    text << '[';
    const char* separator = "";
    for (const std::int64_t size : shape.tensor.sizes()) {
      text << separator << size;
      separator = ", ";
    }
    return text << ']';
  }
};

/// The element type as Python writes it, where a mix-up is likely.
inline const char* dtype_text(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Float8_e4m3fn:
      return "float8_e4m3fn";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    default:
      return torch::headeronly::toString(type);
  }
}

/// The device all tensors of a call must share.
class CallDevice {
 public:
  explicit CallDevice(const Tensor& q) : type_(type_of(q)), index_(q.get_device_index()) {}
  static CallDevice cpu() { return {aoti_torch_device_type_cpu(), -1}; }

  void require_same(const Tensor& tensor, const char* name) const {
    require(type_of(tensor) == type_ && tensor.get_device_index() == index_, name,
            " is on another device than q; all tensors of a call must be on one device");
  }
  Device device() const {
    return type_ == aoti_torch_device_type_cuda() ? Device::kCuda : Device::kCpu;
  }
  std::int32_t type() const { return type_; }
  std::int32_t index() const { return index_; }

 private:
  CallDevice(std::int32_t type, std::int32_t index) : type_(type), index_(index) {}
  static std::int32_t type_of(const Tensor& tensor) {
    std::int32_t type = 0;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(tensor.get(), &type));
    return type;
  }

  std::int32_t type_;
  std::int32_t index_;
};

inline DType element_type(const Tensor& tensor, const char* name) {
  const ScalarType type = tensor.scalar_type();
  if (type == ScalarType::Float) return DType::kFloat32;
  if (type == ScalarType::BFloat16) return DType::kBFloat16;
  if (type == ScalarType::Half) return DType::kFloat16;
  require(type == ScalarType::Float8_e4m3fn, name, " has dtype ", dtype_text(type),
          "; float32, bfloat16, float16 and float8_e4m3fn are supported");
  return DType::kFloat8E4M3;
}

inline void require_last_axis_contiguous(const Tensor& tensor, const char* name) {
  const std::int64_t last = tensor.dim() - 1;
  require(tensor.size(last) <= 1 || tensor.stride(last) == 1, name, " has stride ",
          tensor.stride(last), " in its last axis; the last axis must be contiguous");
}

/// q, k, v or out. A packed tensor becomes a batch of one.
inline TensorView tensor_view(const Tensor& tensor, const char* name, Layout layout,
                              const CallDevice& device) {
  device.require_same(tensor, name);
  const bool packed = layout == Layout::kPacked;
  require(tensor.dim() == (packed ? 3 : 4), name, " has ", tensor.dim(), " dimensions, ",
          ShapeText{tensor}, "; ",
          packed ? "with cu_seqlens_q and cu_seqlens_kv it must have 3: [tokens, heads, head_dim]"
                 : "it must have 4: [batch, heads, seq, head_dim]");
  require_last_axis_contiguous(tensor, name);
  const auto size = tensor.sizes();
  const auto stride = tensor.strides();
  TensorView view;
  view.data = tensor.data_ptr();
  view.dtype = element_type(tensor, name);
  const int axis_of[4] = {packed ? -1 : 0, 1, packed ? 0 : 2, packed ? 2 : 3};
  for (int axis = 0; axis < 4; ++axis) {
    view.shape[axis] = axis_of[axis] < 0 ? 1 : size[axis_of[axis]];
    view.stride[axis] = axis_of[axis] < 0 ? 0 : stride[axis_of[axis]];
  }
  view.stride[3] = 1;
  return view;
}

inline void require_dtype(const Tensor& tensor, const char* name, ScalarType type,
                          const CallDevice& device) {
  device.require_same(tensor, name);
  require(tensor.scalar_type() == type, name, " has dtype ", dtype_text(tensor.scalar_type()),
          "; it must be ", dtype_text(type));
}

/// Index lists with `rank` axes. An absent tensor gives an empty view.
inline IndexView index_view(const OptionalTensor& tensor, const char* name, std::int64_t rank,
                            const CallDevice& device) {
  IndexView view;
  if (!tensor.has_value()) return view;
  require_dtype(*tensor, name, ScalarType::Int, device);
  require(tensor->dim() == rank, name, " has ", tensor->dim(), " dimensions, ", ShapeText{*tensor},
          "; it must have ", rank, ": ",
          rank == 3 ? "[sequences, heads, count]" : "[sequences, heads, row blocks, count]");
  require_last_axis_contiguous(*tensor, name);
  view.data = static_cast<const std::int32_t*>(tensor->data_ptr());
  const auto size = tensor->sizes();
  const auto stride = tensor->strides();
  for (std::int64_t axis = 0; axis < rank; ++axis) {
    view.shape[axis] = size[axis];
    view.stride[axis] = stride[axis];
  }
  view.stride[rank - 1] = 1;
  return view;
}

/// A contiguous vector; `count` and its `meaning` are what its length must be.
inline const void* vector_data(const Tensor& tensor, const char* name, ScalarType type,
                               std::int64_t count, const char* meaning, const CallDevice& device) {
  require_dtype(tensor, name, type, device);
  require(tensor.dim() == 1 && tensor.size(0) == count, name, " has shape ", ShapeText{tensor},
          "; it must be [", count, "] (", meaning, ")");
  require_last_axis_contiguous(tensor, name);
  return tensor.data_ptr();
}

inline const std::int32_t* int32_vector(const Tensor& tensor, const char* name, std::int64_t count,
                                        const char* meaning, const CallDevice& device) {
  return static_cast<const std::int32_t*>(
      vector_data(tensor, name, ScalarType::Int, count, meaning, device));
}

/// Factors of the heads of a tensor; null where there are none.
inline const float* head_scales(const OptionalTensor& scale, const char* name,
                                std::int64_t num_heads, const char* meaning,
                                const CallDevice& device) {
  if (!scale.has_value()) return nullptr;
  return static_cast<const float*>(
      vector_data(*scale, name, ScalarType::Float, num_heads, meaning, device));
}

}  // namespace minference::binding
