// Joins the strips' row statistics: shift and 1 / sum of each estimating row over all keys. Runs
// between the two passes of the estimation (estimate.cuh). A strip's shift lies near its maximum.
//
// One block per sequence and query head; kParts threads share a row, strips in turn, and are added
// in a fixed order. Strips past the last key were never written and are not read. A strip in which
// a row attends nothing has shift -inf and sum 0, which must not become -inf - -inf.
#include "any/launch.h"
#include "device/dependent_launch.cuh"
#include "device/launch.cuh"
#include "device/sequence.cuh"

namespace minference::cuda {
namespace {

constexpr int kParts = 16;
constexpr int kThreads = kParts * kRowBlock;

/// Adds a sum that refers to its own shift. NaN stays NaN.
__device__ void add(float2 part, float2& total) {
  if (part.y == 0) return;
  if (part.x > total.x) {
    total = {part.x, total.y * exp2f(total.x - part.x) + part.y};
  } else {
    total.y += part.y * exp2f(part.x - total.x);
  }
}

__global__ void __launch_bounds__(kThreads)
    merge_row_stats(const __grid_constant__ EstimateParams params) {
  begin_kernel();
  __shared__ float2 parts[kParts][kRowBlock];
  const Call& call = params.call;
  const Scores& scores = params.scores;
  const int head = blockIdx.x % call.num_heads_q;
  const int index = blockIdx.x / call.num_heads_q;
  const Sequence sequence = sequence_at(call.sequences, index);
  if (!needs_estimate(call, pattern_of(params.patterns, head, sequence), sequence)) return;

  const int row = threadIdx.x % kRowBlock;
  const int part = threadIdx.x / kRowBlock;
  const int num_strips = (sequence.chunk_kv_len - 1) / scores.strip + 1;
  const float2* const stats =  // [num_strips, 64]
      params.strip_stats +
      (head * scores.strips.total + first_row(scores.strips, index, sequence.kv_begin)) * kRowBlock;

  float2 total{-INFINITY, 0};
#pragma unroll 4
  for (int strip = part; strip < num_strips; strip += kParts) {
    add(stats[std::int64_t{strip} * kRowBlock + row], total);
  }
  parts[part][row] = total;
  __syncthreads();
  if (part != 0) return;
  for (int i = 1; i < kParts; ++i) add(parts[i][row], total);
  const bool is_valid = row >= kRowBlock - (sequence.row_end - sequence.row_begin);
  params.row_stats[std::int64_t{blockIdx.x} * kRowBlock + row] =
      is_valid ? make_float2(total.x, 1.0f / total.y) : make_float2(0, 0);
}

}  // namespace

cudaError_t find_kernels() {
  cudaFuncAttributes attributes;  // any kernel will do: all are compiled for the same devices
  return cudaFuncGetAttributes(&attributes, merge_row_stats);
}

cudaError_t launch_merge_row_stats(const EstimateParams& params, cudaStream_t stream) {
  const Call& call = params.call;
  return launch(merge_row_stats, dim3(call.sequences.count * call.num_heads_q), kThreads, 0, stream,
                params);
}

}  // namespace minference::cuda
