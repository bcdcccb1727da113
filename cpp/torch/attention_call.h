// One call of an op: the arguments all ops share as AttentionArgs, memory from torch's allocator,
// and Status as an exception. An op adds its own parameters and runs.
#pragma once

#include <sys/mman.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <string>
#include <tuple>
#include <vector>

#include "current_stream.h"
#include "minference/minference.h"
#include "tensor_view.h"

namespace minference::binding {

inline void require_ok(Status status) {
  if (status != Status::kOk) throw std::runtime_error(last_error());
}

template <std::size_t kRank>
using Extents = std::array<std::int64_t, kRank>;

/// Strides of a contiguous tensor, an axis of length 0 counting as 1 as in torch.
template <std::size_t kRank>
Extents<kRank> contiguous_stride(const Extents<kRank>& size) {
  Extents<kRank> stride{};
  std::int64_t step = 1;
  for (std::size_t axis = kRank; axis-- > 0; step *= std::max<std::int64_t>(size[axis], 1)) {
    stride[axis] = step;
  }
  return stride;
}

/// Asks for huge pages below a large new CPU tensor: torch maps it afresh for every call, and 4 KiB
/// pages would cost as much as a sparse kernel's arithmetic. Advice only; a refusal changes
/// nothing.
inline void advise_huge_pages(const Tensor& tensor, std::size_t bytes) {
  constexpr std::uintptr_t kHugePage = std::uintptr_t{2} << 20;
  if (bytes < 4 * kHugePage) return;
  const auto begin = reinterpret_cast<std::uintptr_t>(tensor.data_ptr());
  const std::uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const std::uintptr_t last = (begin + bytes) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
}

/// Uninitialised memory on the call's device. The shim call underneath torch::stable::empty: it
/// takes strides, and its result is no view of a second tensor as empty().transpose() would be.
template <std::size_t kRank>
Tensor allocate(const Extents<kRank>& size, const Extents<kRank>& stride, std::int32_t dtype,
                const CallDevice& device) {
  AtenTensorHandle handle = nullptr;
  require(aoti_torch_empty_strided(kRank, size.data(), stride.data(), dtype, device.type(),
                                   device.index(), &handle) == TORCH_SUCCESS,
          "torch cannot allocate ", size[0] * stride[0], " elements of a result or workspace");
  Tensor tensor(handle);
  if (device.device() == Device::kCpu) {
    std::size_t bytes = tensor.element_size();
    for (const std::int64_t extent : size) bytes *= static_cast<std::size_t>(extent);
    advise_huge_pages(tensor, bytes);
  }
  return tensor;
}

template <std::size_t kRank>
Tensor allocate(const Extents<kRank>& size, std::int32_t dtype, const CallDevice& device) {
  return allocate<kRank>(size, contiguous_stride<kRank>(size), dtype, device);
}

/// `run(workspace, bytes)` with as much memory as `workspace_bytes(&bytes)` asks for.
template <class WorkspaceBytes, class Run>
void run_in_workspace(const CallDevice& device, WorkspaceBytes workspace_bytes, Run run) {
  std::size_t bytes = 0;
  require_ok(workspace_bytes(&bytes));
  const auto size = static_cast<std::int64_t>(bytes);
  const Tensor workspace = allocate<1>({size}, aoti_torch_dtype_uint8(), device);
  require_ok(run(workspace.data_ptr(), bytes));
}

class AttentionCall {
 public:
  AttentionCall(const Tensor& q, const Tensor& k, std::optional<double> softmax_scale,
                const OptionalTensor& first_valid_key, const OptionalTensor& cu_seqlens_q,
                const OptionalTensor& cu_seqlens_kv, const OptionalTensor& q_scale,
                const OptionalTensor& k_scale)
      : device_(q),
        layout_(cu_seqlens_q.has_value() || cu_seqlens_kv.has_value() ? Layout::kPacked
                                                                      : Layout::kBatched) {
    args.device = device_.device();
    args.stream = current_stream(device_);
    args.num_threads = static_cast<std::int32_t>(torch::stable::get_num_threads());
    if (layout_ == Layout::kPacked) set_sequences(cu_seqlens_q, cu_seqlens_kv);
    args.q = tensor_view(q, "q", layout_, device_);
    args.k = tensor_view(k, "k", layout_, device_);
    if (softmax_scale.has_value()) {
      require(std::isfinite(*softmax_scale) && *softmax_scale > 0, "softmax_scale is ",
              *softmax_scale, "; it must be finite and > 0, or None for 1 / sqrt(head_dim)");
      args.softmax_scale = *softmax_scale;
    }
    if (first_valid_key.has_value()) {
      require(layout_ == Layout::kBatched,
              "first_valid_key is given together with cu_seqlens_*; packed sequences have no "
              "padding");
      args.first_valid_key = int32_vector(*first_valid_key, "first_valid_key", args.q.shape[0],
                                          "one entry per batch row", device_);
    }
    args.q_scale =
        head_scales(q_scale, "q_scale", args.q.shape[1], "one entry per head of q", device_);
    args.k_scale =
        head_scales(k_scale, "k_scale", args.k.shape[1], "one entry per head of k", device_);
  }

  void reserve(std::int64_t multiprocessors) {
    require(multiprocessors == static_cast<std::int32_t>(multiprocessors),
            "reserved_multiprocessors is ", multiprocessors, "; it must be in [0, 2^31)");
    args.reserved_multiprocessors = static_cast<std::int32_t>(multiprocessors);
  }

  void set_value(const Tensor& v, const OptionalTensor& v_scale) {
    args.v = tensor_view(v, "v", layout_, device_);
    args.v_scale =
        head_scales(v_scale, "v_scale", args.v.shape[1], "one entry per head of v", device_);
  }

  void set_outputs(const Tensor& out, const Tensor& lse) {
    args.out = tensor_view(out, "out", layout_, device_);
    require_dtype(lse, "lse", ScalarType::Float, device_);
    const std::int64_t* q = args.q.shape;
    const std::int64_t packed = layout_ == Layout::kPacked ? 1 : 0;
    bool fits = lse.dim() == 3 - packed;
    for (std::int64_t axis = 0; fits && axis < lse.dim(); ++axis) {
      fits = lse.size(axis) == q[axis + packed];
      args.lse_stride[axis + packed] = lse.stride(axis);
    }
    require(fits, "lse has shape ", ShapeText{lse}, "; it must be ",
            packed ? "[heads, tokens]" : "[batch, heads, seq]", " of q");
    args.lse = static_cast<float*>(lse.data_ptr());
  }

  /// (out, lse). out is [batch, heads, seq, head_dim] over memory that is contiguous as
  /// [batch, seq, heads, head_dim]: what the next projection reads. Of float8 q it is bfloat16.
  /// fake.py says the same.
  std::tuple<Tensor, Tensor> allocate_outputs(const Tensor& q) const {
    const auto [batch, heads, seq, dim] = args.q.shape;
    std::int32_t dtype = aoti_torch_dtype_bfloat16();
    if (args.q.dtype != DType::kFloat8E4M3) {
      TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(q.get(), &dtype));
    }
    const std::int32_t lse_dtype = aoti_torch_dtype_float32();
    if (layout_ == Layout::kPacked) {
      return {allocate<3>({seq, heads, dim}, dtype, device_),
              allocate<2>({heads, seq}, lse_dtype, device_)};
    }
    const Extents<4> stride = contiguous_stride<4>({batch, seq, heads, dim});
    return {allocate<4>({batch, heads, seq, dim}, {stride[0], stride[2], stride[1], stride[3]},
                        dtype, device_),
            allocate<3>({batch, heads, seq}, lse_dtype, device_)};
  }

  /// One size per query head from a list of one or of num_heads() sizes. The pointer lives as long
  /// as this call.
  const std::int64_t* per_head(const std::vector<std::int64_t>& sizes, const char* name) {
    const auto count = static_cast<std::int64_t>(sizes.size());
    require(count == 1 || count == num_heads(), name, " has ", count,
            " entries; it must be one int, or one per query head (", num_heads(), ")");
    if (count == num_heads()) return sizes_.emplace_back(sizes).data();
    return sizes_.emplace_back(num_heads(), sizes[0]).data();
  }

  /// Patterns from rows (kind, size0, size1, size2). The pointer lives as long as this call.
  const HeadPattern* head_patterns(const std::vector<std::int64_t>& rows) {
    require(static_cast<std::int64_t>(rows.size()) == 4 * num_heads(), "head_patterns has ",
            rows.size(), " ints; it must have 4 (kind, size0, size1, size2) per query head (",
            4 * num_heads(), ")");
    patterns_.reserve(rows.size() / 4);
    for (std::size_t i = 0; i < rows.size(); i += 4) {
      require(rows[i] == static_cast<std::int32_t>(rows[i]), "head_patterns has kind ", rows[i],
              "; kinds are the values of PatternKind");
      patterns_.push_back({.kind = static_cast<PatternKind>(rows[i]),
                           .size = {rows[i + 1], rows[i + 2], rows[i + 3]}});
    }
    return patterns_.data();
  }

  template <class WorkspaceBytes, class Run>
  void run(WorkspaceBytes workspace_bytes, Run run_op) const {
    run_in_workspace(device_, workspace_bytes, run_op);
  }

  std::int64_t num_heads() const { return args.q.shape[1]; }
  std::int64_t num_sequences() const {
    return layout_ == Layout::kPacked ? args.num_sequences : args.q.shape[0];
  }
  const CallDevice& device() const { return device_; }

  AttentionArgs args;

 private:
  void set_sequences(const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_kv) {
    require(cu_seqlens_q.has_value() && cu_seqlens_kv.has_value(),
            cu_seqlens_q.has_value() ? "cu_seqlens_kv" : "cu_seqlens_q",
            " is missing; cu_seqlens_q and cu_seqlens_kv must be given together");
    const std::int64_t count = cu_seqlens_q->numel();
    require(count >= 1, "cu_seqlens_q is empty; it must hold the number of sequences + 1 entries");
    args.cu_seqlens_q =
        int32_vector(*cu_seqlens_q, "cu_seqlens_q", count, "the number of sequences + 1", device_);
    args.cu_seqlens_kv = int32_vector(*cu_seqlens_kv, "cu_seqlens_kv", count,
                                      "as many entries as cu_seqlens_q", device_);
    args.num_sequences = count - 1;
  }

  CallDevice device_;
  Layout layout_;
  std::vector<std::vector<std::int64_t>> sizes_;
  std::vector<HeadPattern> patterns_;
};

/// `body()`, with "op: " in front of what it throws.
template <class Body>
auto named(const char* op, Body body) {
  try {
    return body();
  } catch (const std::runtime_error& error) {
    throw std::runtime_error(std::string(op) + ": " + error.what());
  }
}

}  // namespace minference::binding
