// The value warp: replaces values that are not finite in stages with masks.
//
// 0 * NaN is NaN: those values become 0 before anybody multiplies. Which rows attend an infinity or
// NaN is kept until the end of the task, when it is added to them as it is: a probability that is 0
// would make NaN of an infinity.
#pragma once

#include "device/element.cuh"
#include "sm90/attention_params.h"
#include "sm90/config.cuh"

namespace minference::cuda::sm90 {

template <class Config>
class ValueWarp {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ ValueWarp(const AttentionParams& params, Storage& shared)
      : params_(params.common), shared_(shared) {}

  __device__ void run() {
    Ring<Config::kPlanned> planned;
    Ring<Config::kContexts> context;
    typename Config::StageRing stage;
    while (true) {
      shared_.full_planned[planned.slot].wait(planned.parity);
      const auto& at = shared_.planned[planned.slot];
      const StageFlags flags(at.flags);
      if (flags.is_end()) return;
      // Waits for and lets go of every stage, as the mask warp does.
      shared_.full_v[stage.barrier()].wait(stage.barrier_parity());
      if (flags.is_masked()) {
#pragma unroll 1
        for (int n = 0; n < Config::kPieces; ++n) {
          const Piece& piece = at.pieces[n];
          if (!has_masked_values(piece, flags)) continue;
          const std::uint32_t columns = replace_nonfinite(stage.slot(), n);
          if (columns != 0) note_infinities(piece, columns, &shared_.contexts[context.slot]);
        }
        publish_to_async();
        arrive_as_warp(shared_.values_finite[stage.slot()]);
      }
      arrive_as_warp(shared_.empty_v[stage.slot()]);
      arrive_as_warp(shared_.empty_planned[planned.slot]);
      if (flags.is_last()) {
        arrive_as_warp(shared_.empty_context[context.slot]);
        context.advance();
        noting_ = 0;
      }
      planned.advance();
      stage.advance();
    }
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  /// Whether some row of a row block that needs the stage lacks a column of a piece with keys.
  __device__ static bool has_masked_values(const Piece& piece, StageFlags flags) {
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

  /// Of piece `n` of a slot. Which columns had some.
  __device__ std::uint32_t replace_nonfinite(unsigned slot, int n) const {
    using Tile = typename Config::KeyTile;
    constexpr int kVectors = plan::kChunk * Tile::kAtomVectors;  // of a piece and an atom
    std::uint32_t columns = 0;
#pragma unroll 1
    for (int atom = 0; atom < Tile::kAtoms; ++atom) {
      char* const rows = reinterpret_cast<char*>(shared_.v[slot]) + atom * Tile::kAtomBytes +
                         n * plan::kChunk * Tile::kRowBytes;
      uint4* const vectors = reinterpret_cast<uint4*>(rows);
      // All are read before any is looked at, and nearly always that is all there is to do.
      uint4 found[kVectors / 32];
#pragma unroll
      for (int i = 0; i < kVectors / 32; ++i) found[i] = vectors[32 * i + lane()];
      bool is_any = false;
#pragma unroll
      for (const uint4& vector : found) is_any |= has_any(vector);
      if (!__any_sync(kAllLanes, is_any)) continue;
#pragma unroll 1
      for (int i = lane(); i < kVectors; i += 32) {
        if (replace_in(&vectors[i])) columns |= 1u << i / Tile::kAtomVectors;
      }
    }
    return __reduce_or_sync(kAllLanes, columns);
  }

  /// Of columns with some, for the rows that attend them. Values are read again.
  __device__ void note_infinities(const Piece& piece, std::uint32_t columns, TaskContext* context) {
#pragma unroll 1
    for (std::uint32_t rest = columns; rest != 0; rest &= rest - 1) {
      const int column = __ffs(rest) - 1;
      const std::uint16_t* const values = value_row(*context, piece, column);
#pragma unroll 1
      for (int block = 0; block < kTaskBlocks; ++block) {
        const std::uint64_t rows = context->rows.attending(piece, block, column);
        if (rows == 0) continue;
        begin_notes(block, context);
#pragma unroll 1
        for (int dim = lane(); dim < params_.call.head_dim; dim += 32) {
          const std::uint16_t value = values[dim];
          if (!has_nonfinite<Config::kIsBfloat16>(value)) continue;
          const float as_float = to_float<Config::kIsBfloat16>(value);
          auto& noted = shared_.infinities[block][dim];
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const std::uint32_t word = static_cast<std::uint32_t>(rows >> 32 * half);
            if (!(as_float < 0)) noted.plus[half] |= word;  // NaN is both
            if (!(as_float > 0)) noted.minus[half] |= word;
          }
        }
      }
    }
  }

  /// The first time in a task: clears the notes, once those of an earlier task are done with.
  __device__ void begin_notes(int block, TaskContext* context) {
    if ((noting_ >> block & 1) != 0) return;
    noting_ |= 1u << block;
    shared_.empty_infinities[block].wait(~parities_ >> block & 1);
    parities_ ^= 1u << block;
    for (int dim = lane(); dim < Config::kHeadDim; dim += 32) shared_.infinities[block][dim] = {};
    if (lane() == 0) context->has_infinities[block] = true;
  }

  __device__ const std::uint16_t* value_row(const TaskContext& context, const Piece& piece,
                                            int column) const {
    const Task& task = context.task;
    if (piece.is_gathered()) {
      const std::int64_t row = gathered_row(params_, task, context.sequence) + piece.row + column;
      return static_cast<const std::uint16_t*>(params_.plan.gathered_v) +
             row * params_.call.head_dim;
    }
    return row_of(params_.v, context.sequence.batch, context.head_kv,
                  context.sequence.kv_begin + piece.row + column);
  }

  __device__ static bool has_any(const uint4& vector) {
    constexpr bool kIsBfloat16 = Config::kIsBfloat16;
    return has_nonfinite<kIsBfloat16>(vector.x) || has_nonfinite<kIsBfloat16>(vector.y) ||
           has_nonfinite<kIsBfloat16>(vector.z) || has_nonfinite<kIsBfloat16>(vector.w);
  }

  /// Whether there was anything to replace.
  __device__ static bool replace_in(uint4* vector) {
    if (!has_any(*vector)) return false;
    auto* const elements = reinterpret_cast<std::uint16_t*>(vector);
#pragma unroll 1
    for (int i = 0; i < kVectorDims; ++i) {
      if (has_nonfinite<Config::kIsBfloat16>(elements[i])) elements[i] = 0;
    }
    return true;
  }

  const AttentionFwdParams& params_;
  Storage& shared_;
  unsigned noting_ = 0;    // a bit per row block: the task has infinities
  unsigned parities_ = 0;  // the same: of their next round
};

}  // namespace minference::cuda::sm90
