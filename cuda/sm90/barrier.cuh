// Barriers in shared memory (mbarrier), named barriers, and rings of stages that barriers guard.
//
// CUTLASS's own wrappers are no barrier to the compiler: what is read after a wait has to be read
// after it, so these say that they change memory.
#pragma once

#include <cstdint>
#include <cute/arch/util.hpp>

namespace minference::cuda::sm90 {

/// A phase is over once as many arrivals were counted as init() says and all bytes announced have
/// landed. Phases have parity 0 and 1 in turn.
class Barrier {
 public:
  __device__ void init(unsigned arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(address()), "r"(arrivals)
                 : "memory");
  }
  __device__ void arrive(unsigned count = 1) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0], %1;" ::"r"(address()), "r"(count)
                 : "memory");
  }
  /// Arrives, and announces copies.
  __device__ void arrive_and_expect(unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address()),
                 "r"(bytes)
                 : "memory");
  }
  /// Until the phase of this parity is over; of the phase before the first one: not at all.
  __device__ void wait(unsigned parity) {
    asm volatile(
        "{\n"
        ".reg .pred is_over;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 is_over, [%0], %1, 10000000;\n"
        "@!is_over bra again;\n"
        "}" ::"r"(address()),
        "r"(parity)
        : "memory");
  }

  __device__ std::uint64_t* word() { return &word_; }

 private:
  __device__ unsigned address() const { return cute::cast_smem_ptr_to_uint(&word_); }

  std::uint64_t word_;
};

/// Once all lanes of a warp have come so far.
__device__ inline void arrive_as_warp(Barrier& barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) barrier.arrive();
}

/// Barrier `id` of the block's 16, of the `threads` that wait for it or arrive at it.
__device__ inline void wait_named(unsigned id, unsigned threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ inline void arrive_named(unsigned id, unsigned threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

/// Where one is in a ring of kSize.
template <int kSize>
struct Ring {
  unsigned slot = 0;
  unsigned parity = 0;  ///< of the round: what who waits for the slot to be filled asks for
  /// What who waits for it to be empty asks for: true of the first round from the start.
  __device__ unsigned empty_parity() const { return parity ^ 1; }
  __device__ void advance() {
    if (++slot == kSize) {
      slot = 0;
      parity ^= 1;
    }
  }
};

/// Stages, and two rounds of them: a slot has two barriers that say when it is filled, in turn, for
/// who does not wait for every stage. Of one barrier the phases before and after the one that is
/// waited for have the same parity, and the one before may still go on.
template <int kStages>
class TwoRounds {
 public:
  __device__ unsigned slot() const { return both_.slot % kStages; }
  __device__ unsigned parity() const { return both_.slot / kStages; }
  __device__ unsigned empty_parity() const { return parity() ^ 1; }
  /// Of the 2 kStages barriers.
  __device__ unsigned barrier() const { return both_.slot; }
  __device__ unsigned barrier_parity() const { return both_.parity; }
  __device__ void advance() { both_.advance(); }

 private:
  Ring<2 * kStages> both_;
};

/// Makes what this thread wrote to shared memory visible to copies and wgmma.
__device__ inline void publish_to_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace minference::cuda::sm90
