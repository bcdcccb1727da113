// Which attention kernel serves a call: the one place that decides, for running, sizing the
// workspace and telling why.
#pragma once

#include <cstdint>

#include "minference/types.h"
#include "plan/problem.h"

namespace minference::cuda {

enum class AttentionKernel {
  kSm80,  ///< cp.async and mma.sync
  kSm90,  ///< TMA and wgmma, persistent
};

/// "sm80" or "sm90".
const char* kernel_name(AttentionKernel kernel);

/// What of a device and of this build decides.
struct DeviceFacts {
  std::int32_t major, minor;  ///< compute capability
  std::int32_t num_multiprocessors;
  std::int32_t max_shared_bytes;  ///< of a thread block that asks for it
  bool has_sm90a_code;            ///< of this build
};

/// Those of the current device.
Status device_facts(DeviceFacts* facts);

/// Whether a kernel may start while the one before it ends. It has to wait for that one itself
/// then, which code for sm_90a does; on newer devices that for sm_80 runs, which does not.
bool can_overlap_kernels(const DeviceFacts& facts);

struct KernelChoice {
  AttentionKernel kernel;
  std::int32_t tile_rows;     ///< query rows of a task
  std::int32_t tile_keys;     ///< keys of a stage
  std::int32_t num_reserved;  ///< multiprocessors left free
  char reason[256];           ///< a sentence: what decided
};

/// The kernel that attends `problem`, whose dtype is not float32, on such a device: float8 can be
/// attended by that of sm_90 alone. Reads pointers and strides of q, k and v, no memory; null
/// counts as aligned.
KernelChoice choose_kernel(const plan::Problem& problem, const DeviceFacts& facts);

}  // namespace minference::cuda
