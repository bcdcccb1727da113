// Declares what attention_fwd.cpp calls and instances/attention_fwd_*.cu compile: attention for one
// dtype and padded head dimension. The definitions, in attention_fwd.cuh, need CuTe.
#pragma once

#include <driver_types.h>

#include <cstdint>

#include "sm90/attention_params.h"

namespace minference::cuda::sm90 {

/// `kHeadDim`: call.head_dim padded up.
template <DType kDType, int kHeadDim>
struct AttentionFwd {
  static cudaError_t launch(const AttentionFwdParams& common, std::int32_t num_blocks,
                            cudaStream_t stream);
};

/// What copies move at once: rows of a row block (q, out), a piece or a stage (K, V).
struct Boxes {
  std::int32_t row_bytes;      ///< of q, K and V: 128 or 64
  std::int32_t out_row_bytes;  ///< of out
  std::int32_t stage_keys;
};

/// Parameters of the kernel: the tensors' maps, as the driver encodes them.
cudaError_t make_params(const AttentionFwdParams& common, const Boxes& boxes,
                        AttentionParams* params);

}  // namespace minference::cuda::sm90
