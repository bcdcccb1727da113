// Writes rows of attention's results. Called by the kernels that finish them.
#pragma once

#include <cmath>
#include <cstdint>

#include "device/row_vectors.cuh"

namespace minference::cuda {

/// Eight elements, to any address if not `is_aligned` to 16 bytes.
__device__ inline void store_vector(std::uint16_t* to, const uint4& vector, bool is_aligned) {
  if (is_aligned) {
    *reinterpret_cast<uint4*>(to) = vector;
    return;
  }
  const std::uint32_t words[] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = static_cast<std::uint16_t>(words[i]);
    to[2 * i + 1] = static_cast<std::uint16_t>(words[i] >> 16);
  }
}

/// ln of a row's sum of exponentials; null: not wanted.
__device__ inline float* lse_of(const AttentionFwdParams& params, std::int32_t batch,
                                std::int32_t head, std::int32_t token) {
  if (params.lse == nullptr) return nullptr;
  return params.lse + batch * params.lse_stride[0] + head * params.lse_stride[1] +
         token * params.lse_stride[2];
}

/// `sum` of 2^(score - shift), scores in log2 units.
__device__ inline float log_sum_exp(float shift, float sum) {
  constexpr float kLn2 = 0.693147180559945f;
  return sum == 0 ? -INFINITY : (shift + log2f(sum)) * kLn2;
}

/// Query rows in front of a padded sequence are rows without keys. The tasks of its first chunk
/// share them: the one of row blocks from `first_block` on clears as many, and as many again where
/// chunks are shorter than the padding. By `num_threads` threads, of which this is one.
__device__ inline void clear_padding(const AttentionFwdParams& params, const Sequence& sequence,
                                     std::int32_t head, std::int32_t first_block,
                                     std::int32_t thread, std::int32_t num_threads) {
  const Sequences& all = params.call.sequences;
  if (all.cu_seqlens_q != nullptr || all.chunk_index > 0) return;
  const std::int32_t chunk_rows = all.chunk_rows > 0 ? all.chunk_rows : all.seq_q;
  const std::int64_t step = (std::int64_t{chunk_rows} + kTaskRows - 1) / kTaskRows * kTaskRows;
  const std::int32_t vectors = params.call.head_dim / kVectorDims;
  for (std::int64_t begin = std::int64_t{first_block} * kRowBlock; begin < sequence.q_begin;
       begin += step) {
    const std::int32_t left = sequence.q_begin - static_cast<std::int32_t>(begin);
    const std::int32_t num_rows = left < kTaskRows ? left : kTaskRows;
    for (std::int32_t i = thread; i < num_rows * vectors; i += num_threads) {
      const std::int32_t row = static_cast<std::int32_t>(begin) + i / vectors;
      store_vector(row_of(params.out, sequence.batch, head, row) + i % vectors * kVectorDims,
                   uint4{0, 0, 0, 0}, params.is_out_aligned);
      float* const lse = lse_of(params, sequence.batch, head, row);
      if (lse != nullptr && i % vectors == 0) *lse = -INFINITY;
    }
  }
}

}  // namespace minference::cuda
