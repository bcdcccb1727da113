// Attention of one layer: its index and plan, then one launch for all heads, and one more that puts
// parts together where a call has few tasks. With estimate_every once per chunk of queries.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

#include "choose.h"
#include "layer_index.h"
#include "minference/types.h"
#include "params.h"
#include "plan/problem.h"

namespace minference::cuda {

/// In how many parts the keys are cut so that `tasks` fill a device that runs `slots` at once.
std::int32_t num_key_parts(std::int64_t tasks, std::int64_t slots, std::int64_t seq_kv);

/// Blocks of a kernel that the device runs at once.
struct Slots {
  AttentionKernel kernel;
  std::int32_t count;
};

/// Those of the kernel that is chosen for a problem, on the current device.
Status count_slots(const plan::Problem& problem, const KernelChoice& choice,
                   const DeviceFacts& facts, Slots* slots);

class LayerAttention {
 public:
  LayerAttention(const plan::Problem& problem, const Slots& slots, void* workspace);

  std::size_t workspace_bytes() const { return workspace_bytes_; }
  /// Enqueues everything.
  Status run();
  /// Enqueues attention alone, over the plans of the latest chunk of queries, for who times it.
  Status attend();

  LayerIndex& index() { return index_; }

 private:
  LayerIndex index_;
  Slots slots_;
  AttentionFwdParams params_{};
  cudaStream_t stream_;
  std::size_t workspace_bytes_ = 0;
};

}  // namespace minference::cuda
