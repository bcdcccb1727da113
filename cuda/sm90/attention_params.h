// What the attention kernel for Hopper gets on top of params.h: how copies address the tensors.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "params.h"

namespace minference::cuda::sm90 {

/// Boxes of a tensor [batch, heads, tokens, head_dim] that one copy moves: 128 (or 64) bytes of
/// some tokens, zeros where the tensor ends.
struct TensorMap {
  CUtensorMap map;
  /// 0 along an axis that is the same everywhere (a stride of 0), else 1: what to multiply a
  /// coordinate by.
  std::int32_t head_step;
  std::int32_t batch_step;
};

/// Keys or values: boxes of a piece, and of a stage.
struct KeyMaps {
  TensorMap piece;
  TensorMap stage;
};

struct AttentionParams {
  AttentionFwdParams common;
  TensorMap q;
  TensorMap out;  ///< boxes of a row block
  bool has_out;   ///< whether copies can address out, and `out` is valid
  KeyMaps k, v;
  KeyMaps gathered_k, gathered_v;  ///< tokens: rows of one head; valid if the plan has some
};

}  // namespace minference::cuda::sm90
