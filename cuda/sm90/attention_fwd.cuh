// Attention of a whole layer on wgmma and TMA, for sm_90a: every head by its plan, in one launch of
// as many blocks as there are multiprocessors. Launched by attention_fwd.cpp.
//
// A block takes one task after the other, 128 query rows of a head, and its warps have roles:
//
//   plan warp         stage_planner.cuh    tasks and plans -> stages
//   load warp         load_warp.cuh        stages -> q, K and V in shared memory
//   mask warp         mask_warp.cuh        stages with masks: who attends which column
//   value warp        value_warp.cuh       stages with masks: values that are not finite; of float8
//                                          all stages: values to float16
//   math warpgroups   math_warpgroup.cuh   scores, softmax, outputs; a row block of 64 rows each
//
// Barriers. Rings have a full and an empty one per slot:
//
//   ring             filled by     emptied by                            what
//   planned          plan warp     load, mask and value warp             stages ahead
//   context          plan warp     those, a thread per warpgroup         tasks; full with planned
//   q                load warp     a thread per warpgroup                queries; then out
//   k                load warp     math warps, mask warp                 keys, flags; masks
//   v                load warp     math warps (the load warp for those   values
//                                  that skip a stage), value warp
//   masks_made       mask warp     with k                                only of stages with masks
//   values_finite    value warp    with v                                only of stages with masks
//   infinities       value warp    a thread of the warpgroup             full with values_finite
// Of float8 other ones:
//   float8_v         load warp     value warp                            values as they come
//   v                value warp    math warps (the value warp for those  values, infinities
//                                  that skip a stage)
//
//   named barrier    of                          orders
//   kTurn            warpgroup, from the other   whose products start next
//   kOutRows         warpgroup                   its rows of out in shared memory
#pragma once

#include <cutlass/arch/reg_reconfig.h>

#include "device/dependent_launch.cuh"
#include "device/launch.cuh"
#include "sm90/attention_fwd.h"
#include "sm90/load_warp.cuh"
#include "sm90/mask_warp.cuh"
#include "sm90/math_warpgroup.cuh"
#include "sm90/stage_planner.cuh"
#include "sm90/value_warp.cuh"

namespace minference::cuda::sm90 {

template <class Config>
__device__ inline void init_barriers(typename Config::SharedStorage& shared) {
  constexpr unsigned kMathWarps = kTaskBlocks * kWarpsOfGroup;
  constexpr unsigned kReaders = 3;  // load, mask and value warp
  const auto init = [](auto& barriers, unsigned arrivals) {
    for (Barrier& barrier : barriers) barrier.init(arrivals);
  };
  init(shared.full_q, 1);
  init(shared.empty_q, kTaskBlocks);
  init(shared.full_k, 1);
  init(shared.empty_k, kMathWarps + 1);
  init(shared.full_v, 1);
  init(shared.empty_v, Config::kIsFloat8 ? kMathWarps : kMathWarps + 1);
  init(shared.masks_made, 1);
  init(shared.values_finite, 1);
  init(shared.full_planned, 1);
  init(shared.empty_planned, kReaders);
  init(shared.empty_infinities, 1);
  init(shared.empty_context, kReaders + kTaskBlocks);
  if constexpr (Config::kIsFloat8) {
    init(shared.full_float8_v, 1);
    init(shared.empty_float8_v, 1);
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, 1)
    attention_fwd(const __grid_constant__ AttentionParams params) {
  extern __shared__ __align__(1024) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<typename Config::SharedStorage*>(shared_memory);
  // One value for a warp, and known to be: wgmma must not look as if threads part ways.
  const int warp = __shfl_sync(kAllLanes, threadIdx.x / 32, 0);
  const int warpgroup = warp / kWarpsOfGroup;
  if (threadIdx.x == 0) {
    LoadWarp<Config>::prefetch(params);
    init_barriers<Config>(shared);
  }
  __syncthreads();
  wait_for_previous_kernel();
  if (warpgroup == 0) {
    cutlass::arch::warpgroup_reg_dealloc<Config::kLoadRegisters>();
    if (warp == kLoadWarp) {
      if (threadIdx.x == 0) LoadWarp<Config>(params, shared).run();
    } else if (warp == kPlanWarp) {
      StagePlanner<Config>(params, shared).run();
      let_next_kernel_start();
    } else if (warp == kMaskWarp) {
      MaskWarp<Config>(shared).run();
    } else {
      ValueWarp<Config>(params, shared).run();
    }
  } else {
    cutlass::arch::warpgroup_reg_alloc<Config::kMathRegisters>();
    MathWarpgroup<Config>(params, warpgroup - 1, shared).run();
  }
}

template <DType kDType, int kHeadDim>
cudaError_t AttentionFwd<kDType, kHeadDim>::launch(const AttentionFwdParams& common,
                                                   std::int32_t num_blocks, cudaStream_t stream) {
  using Config = AttentionConfig<kDType, kHeadDim>;
  const std::int64_t tasks = num_tasks(common);
  if (tasks == 0) return cudaSuccess;  // tensors without elements need not exist
  AttentionParams params;
  constexpr Boxes kBoxes = {.row_bytes = Config::KeyTile::kRowBytes,
                            .out_row_bytes = Config::OutTile::kRowBytes,
                            .stage_keys = Config::kKeys};
  const cudaError_t error = make_params(common, kBoxes, &params);
  if (error != cudaSuccess) return error;
  const unsigned blocks = static_cast<unsigned>(tasks < num_blocks ? tasks : num_blocks);
  return cuda::launch(attention_fwd<Config>, dim3(blocks), Config::kThreads,
                      sizeof(typename Config::SharedStorage), stream, params);
}

}  // namespace minference::cuda::sm90
