// What the value warp keeps of values that are not finite, and replace by 0: which rows attend an
// infinity, of which NaN is both. At the end of the task it is added to them as it is: a
// probability that is 0 would make NaN of an infinity.
#pragma once

#include "device/element.cuh"
#include "sm90/attention_params.h"
#include "sm90/config.cuh"

namespace minference::cuda::sm90 {

/// Whether some row of a row block that needs the stage lacks a column of a piece with keys.
__device__ inline bool has_masked_values(const Piece& piece, StageFlags flags) {
  if (piece.row == kNoKeys) return false;
  bool is_masked = false;
#pragma unroll
  for (int block = 0; block < kTaskBlocks; ++block) {
    const bool is_plain = (piece.flags & Piece::kNeeded << block) != 0 &&
                          (piece.flags & Piece::kMasked << block) == 0;
    is_masked |= flags.is_needed(block) && !is_plain;
  }
  return is_masked;
}

/// As one warp.
template <class Config>
class InfinityNotes {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ InfinityNotes(const AttentionParams& params, Storage& shared)
      : params_(params.common), shared_(shared) {}

  /// Of columns of a piece with some, for the rows that attend them. Values are read again.
  __device__ void add(const Piece& piece, std::uint32_t columns, TaskContext* context) {
#pragma unroll 1
    for (std::uint32_t rest = columns; rest != 0; rest &= rest - 1) {
      const int column = __ffs(rest) - 1;
      const Element* const values = value_row(*context, piece, column);
#pragma unroll 1
      for (int block = 0; block < kTaskBlocks; ++block) {
        const std::uint64_t rows = context->rows.attending(piece, block, column);
        if (rows == 0) continue;
        begin(block, context);
#pragma unroll 1
        for (int dim = lane(); dim < params_.call.head_dim; dim += 32) {
          const Signs signs = signs_of(values[dim]);
          auto& noted = shared_.infinities[block][dim];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const std::uint32_t word = static_cast<std::uint32_t>(rows >> 32 * half);
            if (signs.plus) noted.plus[half] |= word;
            if (signs.minus) noted.minus[half] |= word;
          }
        }
      }
    }
  }

  __device__ void end_task() { noting_ = 0; }

 private:
  using Element = std::conditional_t<Config::kIsFloat8, std::uint8_t, std::uint16_t>;

  /// Of the infinities that a value counts as.
  struct Signs {
    bool plus, minus;
  };

  __device__ static int lane() { return threadIdx.x % 32; }

  __device__ static Signs signs_of(Element value) {
    if constexpr (Config::kIsFloat8) {
      const bool is_nan = float8_nans(value) != 0;
      return {is_nan, is_nan};
    } else {
      constexpr bool kIsBfloat16 = Config::kIsValueBfloat16;
      if (!has_nonfinite<kIsBfloat16>(value)) return {false, false};
      const float as_float = to_float<kIsBfloat16>(value);
      return {!(as_float < 0), !(as_float > 0)};
    }
  }

  /// The first time in a task: clears the notes, once those of an earlier task are done with.
  __device__ void begin(int block, TaskContext* context) {
    if ((noting_ >> block & 1) != 0) return;
    noting_ |= 1u << block;
    shared_.empty_infinities[block].wait(~parities_ >> block & 1);
    parities_ ^= 1u << block;
    for (int dim = lane(); dim < Config::kHeadDim; dim += 32) shared_.infinities[block][dim] = {};
    if (lane() == 0) context->has_infinities[block] = true;
  }

  __device__ const Element* value_row(const TaskContext& context, const Piece& piece,
                                      int column) const {
    const Task& task = context.task;
    if (piece.is_gathered()) {
      const std::int64_t row = gathered_row(params_, task, context.sequence) + piece.row + column;
      return static_cast<const Element*>(params_.plan.gathered_v) + row * params_.call.head_dim;
    }
    return row_of<Element>(params_.v, context.sequence.batch, context.head_kv,
                           context.sequence.kv_begin + piece.row + column);
  }

  const AttentionFwdParams& params_;
  Storage& shared_;
  unsigned noting_ = 0;    // a bit per row block: the task has infinities
  unsigned parities_ = 0;  // the same: of their next round
};

}  // namespace minference::cuda::sm90
