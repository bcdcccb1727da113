// Ops about vertical/slash lines without attention: estimation, and conversion to the block and
// column lists of the original implementation.
#include <torch/csrc/stable/library.h>

#include "attention_call.h"

namespace minference::binding {
namespace {

using Sizes = std::vector<std::int64_t>;

// Lines that estimation always ranks first make shorter lists than these pointless (vs_index.h).
constexpr std::int64_t kMinVertical = 30;
constexpr std::int64_t kMinSlash = 50;

/// Entries of a list that holds the lines of every head. Depends on shapes and sizes only: for
/// packed sequences `num_keys` counts all of them.
std::int64_t list_length(const Sizes& sizes, std::int64_t at_least, std::int64_t num_keys) {
  std::int64_t longest = at_least;
  for (const std::int64_t size : sizes) longest = std::max(longest, size);
  return std::min(longest, num_keys);
}

struct VsLines {
  Tensor vertical_idx;
  Tensor slash_idx;
};

VsLines estimate(AttentionCall& call, const Sizes& vertical_size, const Sizes& slash_size,
                 float* column_scores, float* slash_scores) {
  VsIndexParams params;
  params.vertical_size = call.per_head(vertical_size, "vertical_size");
  params.slash_size = call.per_head(slash_size, "slash_size");
  const std::int64_t num_keys = call.args.k.shape[2];
  params.vertical_count = list_length(vertical_size, kMinVertical, num_keys);
  params.slash_count = list_length(slash_size, kMinSlash, num_keys);
  params.column_scores = column_scores;
  params.slash_scores = slash_scores;

  const auto allocate_list = [&](std::int64_t count) {
    return allocate<3>({call.num_sequences(), call.num_heads(), count}, aoti_torch_dtype_int32(),
                       call.device());
  };
  VsLines lines{allocate_list(params.vertical_count), allocate_list(params.slash_count)};
  params.vertical_idx = static_cast<std::int32_t*>(lines.vertical_idx.data_ptr());
  params.slash_idx = static_cast<std::int32_t*>(lines.slash_idx.data_ptr());
  call.run(
      [&](std::size_t* bytes) {
        return estimate_vs_index_workspace_bytes(call.args, params, bytes);
      },
      [&](void* workspace, std::size_t bytes) {
        return minference::estimate_vs_index(call.args, params, workspace, bytes);
      });
  return lines;
}

std::tuple<Tensor, Tensor> estimate_vs_index_op(
    const Tensor& q, const Tensor& k, const Sizes& vertical_size, const Sizes& slash_size,
    std::optional<double> softmax_scale, const OptionalTensor& first_valid_key,
    const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_kv,
    const OptionalTensor& q_scale, const OptionalTensor& k_scale) {
  return named("estimate_vs_index", [&] {
    AttentionCall call(q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, q_scale,
                       k_scale);
    const VsLines lines = estimate(call, vertical_size, slash_size, nullptr, nullptr);
    return std::make_tuple(lines.vertical_idx, lines.slash_idx);
  });
}

std::tuple<Tensor, Tensor> estimate_vs_scores_op(const Tensor& q, const Tensor& k,
                                                 std::optional<double> softmax_scale,
                                                 const OptionalTensor& first_valid_key,
                                                 const OptionalTensor& cu_seqlens_q,
                                                 const OptionalTensor& cu_seqlens_kv,
                                                 const OptionalTensor& q_scale,
                                                 const OptionalTensor& k_scale) {
  return named("estimate_vs_scores", [&] {
    AttentionCall call(q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, q_scale,
                       k_scale);
    // A sequence may be shorter than its row of the result: the rest stays 0.
    const auto allocate_scores = [&] {
      return allocate<3>({call.num_sequences(), call.num_heads(), call.args.k.shape[2]},
                         aoti_torch_dtype_float32(), call.device());
    };
    const Tensor column_scores = allocate_scores();
    const Tensor slash_scores = allocate_scores();
    estimate(call, {0}, {0}, static_cast<float*>(column_scores.data_ptr()),
             static_cast<float*>(slash_scores.data_ptr()));
    return std::make_tuple(column_scores, slash_scores);
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> convert_vertical_slash_indexes_op(
    const Tensor& q_seqlens, const Tensor& kv_seqlens, const Tensor& vertical_indexes,
    const Tensor& slash_indexes, std::int64_t context_size, std::int64_t block_size_m,
    std::int64_t block_size_n, bool causal) {
  return named("convert_vertical_slash_indexes", [&] {
    constexpr std::int64_t kBlock = 64;
    const CallDevice device(vertical_indexes);
    require(block_size_m == kBlock && block_size_n == kBlock, "block_size_M and block_size_N are ",
            block_size_m, " and ", block_size_n, "; only 64 is supported");
    require(context_size >= 0 && context_size < (std::int64_t{1} << 31), "context_size is ",
            context_size, "; it must be in [0, 2^31)");

    ConvertVsIndexParams params;
    params.vertical_idx = index_view(vertical_indexes, "vertical_indexes", 3, device);
    params.slash_idx = index_view(slash_indexes, "slash_indexes", 3, device);
    const std::int64_t batch = params.vertical_idx.shape[0];
    const std::int64_t heads = params.vertical_idx.shape[1];
    const std::int64_t rows = (context_size + kBlock - 1) / kBlock;
    params.q_seqlens =
        int32_vector(q_seqlens, "q_seqlens", batch, "one entry per batch row", device);
    params.kv_seqlens =
        int32_vector(kv_seqlens, "kv_seqlens", batch, "one entry per batch row", device);
    params.num_row_blocks = rows;
    params.causal = causal;
    params.device = device.device();
    params.stream = current_stream(device);

    const std::int32_t int32 = aoti_torch_dtype_int32();
    const Tensor block_count = allocate<3>({batch, heads, rows}, int32, device);
    const Tensor column_count = allocate<3>({batch, heads, rows}, int32, device);
    const Tensor block_offset =
        allocate<4>({batch, heads, rows, params.slash_idx.shape[2]}, int32, device);
    const Tensor column_index =
        allocate<4>({batch, heads, rows, params.vertical_idx.shape[2]}, int32, device);
    const auto data = [](const Tensor& tensor) {
      return static_cast<std::int32_t*>(tensor.data_ptr());
    };
    params.block_count = data(block_count);
    params.block_offset = data(block_offset);
    params.column_count = data(column_count);
    params.column_index = data(column_index);
    run_in_workspace(
        device, [&](std::size_t* bytes) { return convert_vs_index_workspace_bytes(params, bytes); },
        [&](void* workspace, std::size_t bytes) {
          return convert_vs_index(params, workspace, bytes);
        });
    return std::make_tuple(block_count, block_offset, column_count, column_index);
  });
}

template <class Library>
void implement(Library& m) {
  m.impl("estimate_vs_index", TORCH_BOX(&estimate_vs_index_op));
  m.impl("estimate_vs_scores", TORCH_BOX(&estimate_vs_scores_op));
  m.impl("convert_vertical_slash_indexes", TORCH_BOX(&convert_vertical_slash_indexes_op));
}

}  // namespace
}  // namespace minference::binding

STABLE_TORCH_LIBRARY_IMPL(minference, CPU, m) { minference::binding::implement(m); }
STABLE_TORCH_LIBRARY_IMPL(minference, CUDA, m) { minference::binding::implement(m); }
