// Programmatic dependent launch: the blocks of a kernel may be placed while the one before it in
// the stream ends (device/launch.cuh). Nothing on architectures before sm_90, where kernels never
// overlap.
#pragma once

namespace minference::cuda {

/// Until all kernels before are over and what they wrote can be read.
__device__ inline void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the next kernel start, if it was launched to overlap, once every block has called this.
__device__ inline void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/// Both: what kernels that do little before they read do first.
__device__ inline void begin_kernel() {
  wait_for_previous_kernel();
  let_next_kernel_start();
}

}  // namespace minference::cuda
