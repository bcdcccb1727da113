// Attention of one layer: its index and plan, then one launch for all heads, and one more that puts
// parts together where a call has few tasks. With estimate_every once per chunk of queries.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

#include "layer_index.h"
#include "minference/types.h"
#include "params.h"
#include "plan/problem.h"

namespace minference::cuda {

/// In how many parts the keys are cut so that `tasks` fill a device that runs `slots` at once.
std::int32_t num_key_parts(std::int64_t tasks, std::int64_t slots, std::int64_t seq_kv);

class LayerAttention {
 public:
  /// `slots`: blocks that the device runs at once.
  LayerAttention(const plan::Problem& problem, std::int32_t slots, void* workspace);

  std::size_t workspace_bytes() const { return workspace_bytes_; }
  /// Enqueues everything.
  Status run();
  /// Enqueues attention alone, over the plans of the latest chunk of queries, for who times it.
  Status attend();

  LayerIndex& index() { return index_; }

 private:
  LayerIndex index_;
  AttentionFwdParams params_{};
  cudaStream_t stream_;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace minference::cuda
