// Puts together what the parts of the keys gave for each query row: out and lse. Called after
// attention of a call with few tasks, whose keys several blocks share.
//
//   out = sum_p 2^(shift_p - shift) out_p / sum,   sum = sum_p 2^(shift_p - shift) sum_p
#include <cfloat>

#include "any/launch.h"
#include "device/dependent_launch.cuh"
#include "device/element.cuh"
#include "device/exp2.cuh"
#include "device/launch.cuh"
#include "device/out_rows.cuh"
#include "device/sequence_items.cuh"

namespace minference::cuda {
namespace {

constexpr int kThreads = 256;

/// One block per item, 128 query rows, and head; a thread takes 8 dimensions of a row at a time.
template <bool kIsBfloat16>
__global__ void __launch_bounds__(kThreads)
    combine(const __grid_constant__ AttentionFwdParams params) {
  begin_kernel();
  const Call& call = params.call;
  const PartialResults& partial = params.partial;
  const Item item = find_item<RowsOf::kQueries>(call.sequences, params.plan.row_blocks, kTaskBlocks,
                                                std::int64_t{blockIdx.x});
  if (item.row >= kNoRow) return;
  const std::int32_t head = blockIdx.y;
  const Sequence sequence = sequence_at(call.sequences, item.sequence);
  clear_padding(params, sequence, head, static_cast<std::int32_t>(item.row), threadIdx.x, kThreads);
  const std::int64_t row_begin = sequence.row_begin + item.row * kRowBlock;
  const std::int64_t rows_left = sequence.row_end - row_begin;
  const std::int32_t num_rows =
      static_cast<std::int32_t>(rows_left < kTaskRows ? rows_left : kTaskRows);
  const std::int32_t vectors = call.head_dim / kVectorDims;
  const std::int64_t first = (head * partial.num_items + std::int64_t{blockIdx.x}) * kTaskRows;
  const std::int64_t part_rows = call.num_heads_q * partial.num_items * kTaskRows;
  for (std::int32_t i = threadIdx.x; i < num_rows * vectors; i += kThreads) {
    const std::int32_t own = i / vectors, dim = i % vectors * kVectorDims;
    const std::int64_t row_of_first = first + own;
    float shift = -INFINITY, sum = 0;
    for (std::int32_t part = 0; part < partial.num_parts; ++part) {
      const std::int64_t at = row_of_first + part * part_rows;
      if (partial.sum[at] != 0) shift = fmaxf(shift, partial.shift[at]);
    }
    float values[kVectorDims] = {};
    for (std::int32_t part = 0; part < partial.num_parts; ++part) {
      const std::int64_t at = row_of_first + part * part_rows;
      if (partial.sum[at] == 0) continue;  // no keys, no shift
      // Never 0: of an infinity that would make NaN.
      const float weight = fmaxf(exp2_approx(partial.shift[at] - shift), FLT_MIN);
      sum = fmaf(weight, partial.sum[at], sum);
      const float* const out = partial.out + at * call.head_dim + dim;
#pragma unroll
      for (int n = 0; n < kVectorDims; ++n) values[n] = fmaf(weight, out[n], values[n]);
    }
    const float scale = sum == 0 ? 0 : 1 / sum;
    std::uint32_t pairs[kVectorDims / 2];
#pragma unroll
    for (int n = 0; n < kVectorDims / 2; ++n) {
      pairs[n] = to_pair<kIsBfloat16>(values[2 * n] * scale, values[2 * n + 1] * scale);
    }
    const std::int32_t row = static_cast<std::int32_t>(sequence.q_begin + row_begin) + own;
    store_vector(row_of(params.out, sequence.batch, head, row) + dim,
                 uint4{pairs[0], pairs[1], pairs[2], pairs[3]}, params.is_out_aligned);
    float* const lse = lse_of(params, sequence.batch, head, row);
    if (lse != nullptr && dim == 0) *lse = log_sum_exp(shift, sum);
  }
}

}  // namespace

cudaError_t launch_combine(const AttentionFwdParams& params, cudaStream_t stream) {
  return launch(params.out.dtype == DType::kBFloat16 ? combine<true> : combine<false>,
                dim3(static_cast<unsigned>(params.partial.num_items), params.call.num_heads_q),
                kThreads, 0, stream, params);
}

}  // namespace minference::cuda
