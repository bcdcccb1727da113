// The pieces of a walk (device/piece_walk.cuh) as a stream of stages that two row blocks work on
// together: 64 keys each (32 with kPiecesOfStage 1). One warp decodes, all warps of the block of
// threads read the stages.
//
// Pieces that one row block meets alone go side by side into stages of which each row block
// multiplies its half, so that neither waits.
#pragma once

#include <cstdint>

#include "device/piece_walk.cuh"

namespace minference::cuda {

template <int kPiecesOfStage, int kLanes>
class PairWalk : private PieceWalk<kPiecesOfStage == 1 ? 1 : 3, kLanes> {
  static constexpr int kLists = kPiecesOfStage == 1 ? 1 : 3;
  using Walk = PieceWalk<kLists, kLanes>;
  using Walk::kCapacity;
  using Walk::kMaxWaiting;

 public:
  /// As PieceWalk's. All threads of the block call it, then wait for each other.
  template <class Describe>
  __device__ void begin(const Sequence& sequence, const Describe& describe,
                        std::int32_t first_block, std::int32_t part, std::int32_t num_parts) {
    if (threadIdx.x >= 32) return;
    Walk::begin(sequence, describe, first_block, part, num_parts);
    if (threadIdx.x == 0) num_shared_stages_ = num_stages_ = 0;
  }

  /// The stage after `latest`, the first one after none; none at the end. All threads of the block
  /// call it. Where stages are decoded, which replaces those there were, they wait for each other.
  __device__ Stage next(const Stage& latest) {
    int number = latest.exists() ? number_of(latest) + 1 : 0;
    if (number == num_stages_) {
      plan_stages();
      number = 0;
    }
    Stage stage;
    if (num_stages_ == 0) return stage;
    const int single = number - num_shared_stages_;
#pragma unroll
    for (int n = 0; n < kPiecesOfStage; ++n) {
      const int place =
          kLists == 1 || single < 0 ? number * kPiecesOfStage + n : (n + 1) * kCapacity + single;
      stage.add_piece(n, place, this->listed(0, place).flags);
    }
    stage.set_masks(latest.masks() ^ 1);
    return stage;
  }

  __device__ const Piece& piece(const Stage& stage, int n) const {
    return this->listed(0, stage.place(n));
  }

  using Walk::rows;
  using Walk::source;

 private:
  /// Decodes further stages; none at the end.
  __device__ void plan_stages() {
    while (true) {
      const bool is_over = this->is_over(), is_gathered = this->is_at_verticals();
      __syncthreads();
      if (is_gathered) {
        this->find_vertical_pieces(threadIdx.x / 32, blockDim.x / 32);
        __syncthreads();
      }
      if (threadIdx.x < 32) {
        drop_used();
        if (!is_over) this->decode();
        make_stages(this->is_over());
      }
      __syncthreads();
      if (is_over || num_stages_ > 0) return;
    }
  }

  __device__ void drop_used() {
    const int shared = num_shared_stages_, single = num_stages_ - num_shared_stages_;
#pragma unroll
    for (int list = 0; list < kLists; ++list) {
      this->drop(list, list == 0 ? shared * kPiecesOfStage : single);
    }
  }

  /// Of the stages that were decoded with it.
  __device__ int number_of(const Stage& stage) const {
    const int place = stage.place(0);
    return kLists == 1 || place < kCapacity ? place / kPiecesOfStage
                                            : place - kCapacity + num_shared_stages_;
  }

  /// Pairs up pieces; at the end also those without a partner.
  __device__ void make_stages(bool is_end) {
    const int lane = threadIdx.x;
    const int more = is_end ? kPiecesOfStage - 1 : 0;
    const int shared = (this->num_listed(0) + more) / kPiecesOfStage;
    int single = 0;
    if constexpr (kLists == 3) {
      const int first = this->num_listed(1), second = this->num_listed(2);
      const int fewer = first < second ? first : second, larger = first < second ? second : first;
      single = is_end || larger - fewer <= kMaxWaiting ? (is_end ? larger : fewer)
                                                       : larger - kMaxWaiting;
      // Partners that do not exist.
      if (lane == 0 && shared * kPiecesOfStage > this->num_listed(0)) {
        this->listed(0, this->num_listed(0)) = {};
      }
      for (int i = first + lane; i < single; i += 32) this->listed(1, i) = {};
      for (int i = second + lane; i < single; i += 32) this->listed(2, i) = {};
    }
    if (lane == 0) {
      num_shared_stages_ = shared;
      num_stages_ = shared + single;
    }
  }

  std::int32_t num_shared_stages_, num_stages_;
};

}  // namespace minference::cuda
