// The value warp: makes the values of stages ready to be multiplied, finite_values.cuh, or of
// float8 float8_values.cuh.
#pragma once

#include <type_traits>

#include "sm90/finite_values.cuh"
#include "sm90/float8_values.cuh"
#include "sm90/infinity_notes.cuh"

namespace minference::cuda::sm90 {

template <class Config>
class ValueWarp {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ ValueWarp(const AttentionParams& params, Storage& shared)
      : shared_(shared), values_(shared), notes_(params, shared) {}

  __device__ void run() {
    Ring<Config::kPlanned> planned;
    Ring<Config::kContexts> context;
    while (true) {
      shared_.full_planned[planned.slot].wait(planned.parity);
      const auto& at = shared_.planned[planned.slot];
      const StageFlags flags(at.flags);
      if (flags.is_end()) return;
      values_.take(at, flags, &shared_.contexts[context.slot], &notes_);
      arrive_as_warp(shared_.empty_planned[planned.slot]);
      if (flags.is_last()) {
        arrive_as_warp(shared_.empty_context[context.slot]);
        context.advance();
        notes_.end_task();
      }
      planned.advance();
    }
  }

 private:
  Storage& shared_;
  std::conditional_t<Config::kIsFloat8, Float8Values<Config>, FiniteValues<Config>> values_;
  InfinityNotes<Config> notes_;
};

}  // namespace minference::cuda::sm90
