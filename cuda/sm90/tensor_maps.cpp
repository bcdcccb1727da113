// How copies address the tensors of a call: encoded by the driver, on the host, for every launch.
#include <cuda.h>
#include <cuda_runtime_api.h>

#include "sm90/attention_fwd.h"

namespace minference::cuda::sm90 {
namespace {

using Encode = decltype(&cuTensorMapEncodeTiled);

/// The driver's function: the library does not link the driver.
cudaError_t find_encode(Encode* encode) {
  constexpr unsigned kSince = 12000;  // CUDA version that has it
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                             kSince, cudaEnableDefault, &found);
  if (error != cudaSuccess) return error;
  if (found != cudaDriverEntryPointSuccess) return cudaErrorInsufficientDriver;
  *encode = reinterpret_cast<Encode>(function);
  return cudaSuccess;
}

/// Whether copies can follow a stride of out.
bool is_in_range(std::int64_t stride) {
  constexpr std::int64_t kElementBytes = 2;
  return stride >= 0 && stride < (std::int64_t{1} << 40) / kElementBytes;
}

CUtensorMapDataType map_type(DType dtype) {
  switch (dtype) {
    case DType::kBFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kFloat16:
      return CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
    case DType::kFloat8E4M3:
    case DType::kFloat32:  // refused before
      break;
  }
  return CU_TENSOR_MAP_DATA_TYPE_UINT8;
}

/// Extents of [batch, heads, tokens, head_dim].
struct Extents {
  std::int64_t batch;
  std::int64_t heads;
  std::int64_t tokens;
  std::int32_t head_dim;
};

class MapMaker {
 public:
  explicit MapMaker(Encode encode) : encode_(encode) {}

  cudaError_t error() const { return error_; }

  /// Boxes of `box_tokens` tokens, `box_bytes` of each. Not returned: GCC 12 has misaligned what it
  /// copies from.
  void make(const Tensor& tensor, const Extents& extents, std::int32_t box_bytes,
            std::int32_t box_tokens, TensorMap* made) {
    if (error_ != cudaSuccess) return;
    const int element_bytes = cuda::element_bytes(tensor.dtype);
    // An axis that is the same everywhere has one coordinate, as one of length 1 has.
    made->head_step = tensor.stride_head != 0;
    made->batch_step = tensor.stride_batch != 0;
    const auto extent = [](std::int64_t count, std::int64_t stride) {
      return static_cast<cuuint64_t>(stride == 0 || count < 1 ? 1 : count);
    };
    const cuuint64_t dims[] = {
        static_cast<cuuint64_t>(extents.head_dim), extent(extents.tokens, tensor.stride_token),
        extent(extents.heads, tensor.stride_head), extent(extents.batch, tensor.stride_batch)};
    const auto bytes = [&](std::int64_t stride) {  // of an axis of length 1 any will do
      return static_cast<cuuint64_t>(stride == 0 ? 16 : stride * element_bytes);
    };
    const cuuint64_t strides[] = {bytes(tensor.stride_token), bytes(tensor.stride_head),
                                  bytes(tensor.stride_batch)};
    const cuuint32_t box[] = {static_cast<cuuint32_t>(box_bytes / element_bytes),
                              static_cast<cuuint32_t>(box_tokens), 1, 1};
    const cuuint32_t steps[] = {1, 1, 1, 1};
    const CUresult result =
        encode_(&made->map, map_type(tensor.dtype), 4, tensor.data, dims, strides, box, steps,
                CU_TENSOR_MAP_INTERLEAVE_NONE,
                box_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
                extents.head_dim * element_bytes < 256 ? CU_TENSOR_MAP_L2_PROMOTION_L2_128B
                                                       : CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    if (result != CUDA_SUCCESS) error_ = cudaErrorInvalidValue;
  }

 private:
  Encode encode_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace

cudaError_t make_params(const AttentionFwdParams& common, const Boxes& boxes,
                        AttentionParams* params) {
  Encode encode = nullptr;
  const cudaError_t error = find_encode(&encode);
  if (error != cudaSuccess) return error;
  const Call& call = common.call;
  const LayerPlan& plan = common.plan;
  const std::int64_t batch = call.sequences.cu_seqlens_q != nullptr ? 1 : call.sequences.count;
  const Extents queries = {batch, call.num_heads_q, call.sequences.seq_q, call.head_dim};
  const Extents keys = {batch, call.num_heads_kv, call.sequences.seq_kv, call.head_dim};
  const Extents gathered = {1, call.num_heads_q, plan.vertical_rows.total, call.head_dim};
  MapMaker maker(encode);
  const auto make_key_maps = [&](const Tensor& tensor, const Extents& extents, KeyMaps* maps) {
    maker.make(tensor, extents, boxes.row_bytes, plan::kChunk, &maps->piece);
    maker.make(tensor, extents, boxes.row_bytes, boxes.stage_keys, &maps->stage);
  };
  const auto make_gathered_maps = [&](void* rows, KeyMaps* maps) {
    if (rows == nullptr || gathered.tokens == 0) return;
    const Tensor tensor = {.data = rows,
                           .stride_batch = 0,
                           .stride_head = gathered.tokens * call.head_dim,
                           .stride_token = call.head_dim,
                           .dtype = call.dtype};
    make_key_maps(tensor, gathered, maps);
  };
  *params = {};
  params->common = common;
  maker.make(common.q, queries, boxes.row_bytes, kRowBlock, &params->q);
  const Tensor& out = common.out;
  params->has_out = common.partial.num_parts == 1 && common.is_out_aligned &&
                    is_in_range(out.stride_batch) && is_in_range(out.stride_head) &&
                    is_in_range(out.stride_token);
  if (params->has_out) {
    maker.make(out, queries, boxes.out_row_bytes, kRowBlock, &params->out);
  }
  make_key_maps(common.k, keys, &params->k);
  make_key_maps(common.v, keys, &params->v);
  make_gathered_maps(plan.gathered_k, &params->gathered_k);
  make_gathered_maps(plan.gathered_v, &params->gathered_v);
  return maker.error();
}

}  // namespace minference::cuda::sm90
