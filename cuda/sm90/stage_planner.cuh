// The plan warp: takes tasks and turns their plans into stages, ahead of who loads and multiplies.
//
// A stage holds pieces that both row blocks need, or pieces of one alone, which the other one's
// warpgroup skips; what is left over at the end of a task shares stages. Who needs a stage and
// whether it has masks is told by its flags.
#pragma once

#include "device/head_scales.cuh"
#include "device/out_rows.cuh"
#include "sm90/attention_params.h"
#include "sm90/config.cuh"

namespace minference::cuda::sm90 {

template <class Config>
class StagePlanner {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ StagePlanner(const AttentionParams& params, Storage& shared)
      : params_(params.common), shared_(shared) {}

  __device__ void run() {
    const unsigned tasks = static_cast<unsigned>(num_tasks(params_));
    for (unsigned index = fetch(tasks); index < tasks; index = fetch(tasks)) {
      const Task task = find_task(params_, index);
      if (task.first_block < 0) continue;
      const Sequence sequence = sequence_at(params_.call.sequences, task.sequence_index);
      if (params_.partial.num_parts == 1) {
        clear_padding(params_, sequence, task.head, task.first_block, lane(), 32);
      }
      if (task.first_block * kRowBlock >= sequence.row_end - sequence.row_begin) continue;
      begin(task, sequence);
      plan_stages();
      context_.advance();
    }
    publish(Piece{}, 0, lane(), StageFlags::kEnd);
  }

 private:
  static constexpr int kPieces = Config::kPieces;
  static constexpr unsigned kLanesOfPieces = (1u << kPieces) - 1;

  __device__ static int lane() { return threadIdx.x % 32; }

  /// The next task's number; past the last one where there is none. The last block to be told so
  /// sets the count back for the next launch.
  __device__ unsigned fetch(unsigned tasks) const {
    unsigned index = 0;
    if (lane() == 0) {
      index = atomicAdd(params_.plan.next_task, 1u);
      if (index == tasks + gridDim.x - 1) *params_.plan.next_task = 0;
    }
    return __shfl_sync(kAllLanes, index, 0);
  }

  __device__ void begin(const Task& task, const Sequence& sequence) {
    const auto describe = [&](WalkSource* source) {
      describe_walk<Config::kHeadDim>(params_, task, sequence, source);
    };
    shared_.walk.begin(sequence, describe, task.first_block, task.part, params_.partial.num_parts);
    shared_.empty_context[context_.slot].wait(context_.empty_parity());
    if (lane() == 0) {
      TaskContext& context = shared_.contexts[context_.slot];
      context.task = task;
      context.sequence = sequence;
      context.rows = shared_.walk.rows();
      for (bool& has : context.has_infinities) has = false;
      context.head_kv = task.head / params_.call.heads_per_kv;
      if constexpr (Config::kIsFloat8) {
        const HeadScales& scales = params_.scales;
        context.scale_log2 = params_.scale_log2 * score_scale(scales, task.head, context.head_kv);
        context.value_scale = scale_of(scales.v, context.head_kv);
      }
    }
    first_flag_ = StageFlags::kFirst;
    first_row_ = sequence.kv_begin;
    first_gathered_ = static_cast<std::int32_t>(
        first_row(params_.plan.vertical_rows, task.sequence_index, sequence.kv_begin));
  }

  /// How many pieces of each list are in stages.
  struct Used {
    int shared = 0, first = 0, second = 0;
  };
  enum List { kShared, kFirstAlone, kSecondAlone };
  struct Place {
    int list, index;
  };

  __device__ void plan_stages() {
    auto& walk = shared_.walk;
    while (true) {
      if (walk.is_at_verticals()) {
        walk.find_vertical_pieces(0, 1);
        __syncwarp();
      }
      walk.decode();
      const bool is_over = walk.is_over();
      Used used;
      // Until the end a piece of every list is kept: the task's last stage has to be known as such.
      emit_full_stages(&used, is_over ? 0 : 1);
      if (is_over) {
        emit_rest(used);
        return;
      }
      walk.drop(kShared, used.shared);
      walk.drop(kFirstAlone, used.first);
      walk.drop(kSecondAlone, used.second);
    }
  }

  __device__ int num_left(const Used& used) const {
    const auto& walk = shared_.walk;
    return walk.num_listed(kShared) - used.shared + walk.num_listed(kFirstAlone) - used.first +
           walk.num_listed(kSecondAlone) - used.second;
  }

  /// Stages of pieces of one list, those of both row blocks first, then the others in turns.
  __device__ void emit_full_stages(Used* used, int num_kept) {
    int list = kShared;
    bool is_any = false;  // of the two lists for one row block
    while (true) {
      const int from = list == kShared       ? used->shared
                       : list == kFirstAlone ? used->first
                                             : used->second;
      if (shared_.walk.num_listed(list) - from - num_kept >= kPieces) {
        used->shared += list == kShared ? kPieces : 0;
        used->first += list == kFirstAlone ? kPieces : 0;
        used->second += list == kSecondAlone ? kPieces : 0;
        emit(kPieces, num_kept == 0 && num_left(*used) == 0,
             [&](int n) { return Place{list, from + n}; });
        is_any = true;
        if (list == kShared) continue;
      }
      if (list == kSecondAlone && !is_any) return;
      if (list != kFirstAlone) is_any = false;
      list = list == kFirstAlone ? kSecondAlone : kFirstAlone;
    }
  }

  /// What is left of a task: the first row block's pieces, then those of both, then the second
  /// one's, so that each row block's follow each other.
  __device__ void emit_rest(const Used& used) {
    const auto& walk = shared_.walk;
    const int total = num_left(used);
    if (total == 0 && first_flag_ == 0) return;
    const int first = walk.num_listed(kFirstAlone) - used.first;
    const int not_second = first + walk.num_listed(kShared) - used.shared;
    int begin = 0;
    do {
      const int count = total - begin < kPieces ? total - begin : kPieces;
      emit(count, begin + count == total, [&](int n) {
        const int i = begin + n;
        if (i < first) return Place{kFirstAlone, used.first + i};
        if (i < not_second) return Place{kShared, used.shared + i - first};
        return Place{kSecondAlone, used.second + i - not_second};
      });
      begin += count;
    } while (begin < total);
  }

  /// Hands over a stage of `count` pieces, the n-th at `place_of(n)`.
  template <class PlaceOf>
  __device__ void emit(int count, bool is_last, const PlaceOf& place_of) {
    Piece piece{kNoKeys, 0, {0, 0}};
    if (lane() < count) {
      const Place place = place_of(lane());
      piece = shared_.walk.listed(place.list, place.index);
    }
    std::uint32_t flags = first_flag_ | (is_last ? StageFlags::kLast : 0);
    first_flag_ = 0;
#pragma unroll
    for (int block = 0; block < kTaskBlocks; ++block) {
      const unsigned needed =
          __ballot_sync(kAllLanes, (piece.flags & Piece::kNeeded << block) != 0);
      const unsigned masked =
          __ballot_sync(kAllLanes, (piece.flags & Piece::kMasked << block) != 0);
      if (needed == 0) continue;
      flags |= StageFlags::kNeeded << block;
      if (needed != kLanesOfPieces || masked != 0) flags |= StageFlags::kMasked << block;
    }
    const bool is_gathered = piece.is_gathered();
    flags |= __ballot_sync(kAllLanes, is_gathered) * StageFlags::kGathered;
    // Rows in front of the tensor are loaded as zeros.
    const std::int32_t row = piece.row == kNoKeys
                                 ? -plan::kChunk
                                 : piece.row + (is_gathered ? first_gathered_ : first_row_);
    const std::int32_t next_row = __shfl_down_sync(kAllLanes, row, 1);
    const bool is_alike = __shfl_down_sync(kAllLanes, piece.source(), 1) == piece.source();
    const bool is_inner = lane() < kPieces - 1;
    const bool ascends =
        __all_sync(kAllLanes, !is_inner || (is_alike && next_row == row + plan::kChunk));
    const bool descends =
        __all_sync(kAllLanes, !is_inner || (is_alike && next_row == row - plan::kChunk));
    const bool is_whole = count == kPieces;
    if (is_whole && (ascends || descends)) flags |= StageFlags::kAdjacent;
    publish(piece, row, is_whole && descends ? kPieces - 1 - lane() : lane(), flags);
  }

  __device__ void publish(const Piece& piece, std::int32_t row, int place, std::uint32_t flags) {
    auto& planned = shared_.planned[to_.slot];
    shared_.empty_planned[to_.slot].wait(to_.empty_parity());
    if (lane() < kPieces) {
      planned.pieces[place] = piece;
      planned.rows[place] = row;
    }
    if (lane() == 0) planned.flags = flags;
    __syncwarp();
    if (lane() == 0) shared_.full_planned[to_.slot].arrive();
    to_.advance();
  }

  const AttentionFwdParams& params_;
  Storage& shared_;
  Ring<Config::kPlanned> to_;
  Ring<Config::kContexts> context_;
  std::uint32_t first_flag_ = 0;
  std::int32_t first_row_ = 0;  // of the sequence's keys, and of the head's gathered ones
  std::int32_t first_gathered_ = 0;
};

}  // namespace minference::cuda::sm90
