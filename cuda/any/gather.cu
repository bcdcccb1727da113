// Copies the keys and values of every head's vertical lines into compact arrays, so that attention
// reads them as plain tiles. Called once the plans exist.
//
// Rows past the last line, up to a multiple of kGatherRows, are zeroed: attention masks them, but
// 0 * NaN would still be NaN.
#include "any/launch.h"
#include "device/dependent_launch.cuh"
#include "device/launch.cuh"
#include "device/row_vectors.cuh"
#include "device/sequence_items.cuh"

namespace minference::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kRowsPerBlock = 32;
constexpr int kLoadsInFlight = 4;

/// Rows that the sequence may use of an array over keys.
__device__ std::int64_t row_capacity(const Rows& rows, std::int32_t index,
                                     const Sequence& sequence) {
  if (rows.divisor == 0) return rows.stride;
  return first_row(rows, index + 1, sequence.kv_begin + sequence.kv_len) -
         first_row(rows, index, sequence.kv_begin);
}

/// The lines of one head: `num_rows` of them from `lines` on, then zeros up to `num_rows_out`.
struct GatheredRows {
  const std::int32_t* lines;
  std::int32_t num_keys;  ///< lines at or past it, as overlapping sequences leave them, are zeros
  std::int32_t num_rows;
  std::int32_t num_rows_out;
  std::int32_t vectors_per_row;
};

template <bool kIsAligned>
__device__ void copy_rows(const GatheredRows& rows, const std::uint16_t* first_key,
                          std::int64_t stride, uint4* out) {
  const std::int32_t num_vectors = rows.num_rows_out * rows.vectors_per_row;
  for (std::int32_t begin = threadIdx.x; begin < num_vectors; begin += kThreads * kLoadsInFlight) {
    uint4 vectors[kLoadsInFlight];
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const std::int32_t index = begin + i * kThreads;
      const std::int32_t row = index / rows.vectors_per_row;
      vectors[i] = uint4{0, 0, 0, 0};
      if (row < rows.num_rows) {
        const std::int32_t column = (index - row * rows.vectors_per_row) * kVectorDims;
        const std::int32_t line = rows.lines[row];
        if (static_cast<std::uint32_t>(line) >= static_cast<std::uint32_t>(rows.num_keys)) continue;
        vectors[i] = load_vector<kIsAligned>(first_key + line * stride + column);
      }
    }
#pragma unroll
    for (int i = 0; i < kLoadsInFlight; ++i) {
      const std::int32_t index = begin + i * kThreads;
      if (index < num_vectors) out[index] = vectors[i];
    }
  }
}

template <bool kIsAligned>
__global__ void __launch_bounds__(kThreads)
    gather_verticals(const __grid_constant__ GatherParams params) {
  begin_kernel();
  const Call& call = params.call;
  const LayerPlan& plan = params.plan;
  const Rows& array = plan.vertical_rows;
  const Item item =
      find_item<RowsOf::kKeys>(call.sequences, array, kRowsPerBlock, std::int64_t{blockIdx.x});
  const Sequence sequence = sequence_at(call.sequences, item.sequence);
  if (sequence.row_begin == sequence.row_end) return;
  const std::int32_t head = blockIdx.y;
  const HeadPlan& head_plan = plan.heads[std::int64_t{item.sequence} * call.num_heads_q + head];
  if (head_plan.kind != PatternKind::kVerticalSlash &&
      head_plan.kind != PatternKind::kVerticalSlashIndex) {
    return;
  }
  const std::int64_t lines = head_plan.num_vertical;
  std::int64_t end = (lines + kGatherRows - 1) / kGatherRows * kGatherRows;
  const std::int64_t capacity = row_capacity(array, item.sequence, sequence);
  if (end > capacity) end = capacity;
  if (item.row >= end) return;

  const std::int64_t row =
      head * array.total + first_row(array, item.sequence, sequence.kv_begin) + item.row;
  const std::int64_t rows_left = lines - item.row;
  const std::int64_t rows_left_out = end - item.row;
  const GatheredRows rows{
      .lines = plan.verticals + row,
      .num_keys = sequence.kv_len,
      .num_rows = static_cast<std::int32_t>(rows_left < kRowsPerBlock ? rows_left : kRowsPerBlock),
      .num_rows_out =
          static_cast<std::int32_t>(rows_left_out < kRowsPerBlock ? rows_left_out : kRowsPerBlock),
      .vectors_per_row = call.head_dim / kVectorDims};
  const std::int64_t out = row * rows.vectors_per_row;
  const std::int32_t head_kv = head / call.heads_per_kv;
  copy_rows<kIsAligned>(rows, row_of(params.k, sequence.batch, head_kv, sequence.kv_begin),
                        params.k.stride_token, static_cast<uint4*>(plan.gathered_k) + out);
  if (params.v.data == nullptr || plan.gathered_v == nullptr) return;
  copy_rows<kIsAligned>(rows, row_of(params.v, sequence.batch, head_kv, sequence.kv_begin),
                        params.v.stride_token, static_cast<uint4*>(plan.gathered_v) + out);
}

}  // namespace

cudaError_t launch_gather(const GatherParams& of_any, cudaStream_t stream) {
  GatherParams params = of_any;
  Call& call = params.call;
  call.head_dim = call.head_dim * element_bytes(call.dtype) / 2;
  params.k = in_two_bytes(params.k);
  params.v = in_two_bytes(params.v);
  const std::int64_t items =
      num_items(params.plan.vertical_rows, call.sequences.count, kRowsPerBlock);
  const bool copies_values = params.v.data != nullptr && params.plan.gathered_v != nullptr;
  const bool uses_vectors =
      has_aligned_rows(params.k) && (!copies_values || has_aligned_rows(params.v));
  return launch(uses_vectors ? gather_verticals<true> : gather_verticals<false>,
                dim3(static_cast<unsigned>(items), call.num_heads_q), kThreads, 0, stream, params);
}

}  // namespace minference::cuda
