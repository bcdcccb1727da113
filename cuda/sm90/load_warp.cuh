// The load warp: copies queries, keys and values of the planned stages to shared memory (TMA). One
// thread does it all.
//
// Keys run ahead of values by a stage, as scores run ahead of outputs. A stage's slots are taken
// again once both warpgroups have let go of them; for a warpgroup that does not need a stage this
// warp lets go of the values. Of float8, values go to the value warp, which does that then.
#pragma once

#include <cute/arch/copy_sm90_desc.hpp>
#include <cute/arch/copy_sm90_tma.hpp>

#include "sm90/attention_params.h"
#include "sm90/config.cuh"

namespace minference::cuda::sm90 {

template <class Config>
class LoadWarp {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ LoadWarp(const AttentionParams& params, Storage& shared)
      : params_(params), shared_(shared) {}

  __device__ static void prefetch(const AttentionParams& params) {
    for (const KeyMaps* maps : {&params.k, &params.v}) {
      cute::prefetch_tma_descriptor(&maps->piece.map);
      cute::prefetch_tma_descriptor(&maps->stage.map);
    }
    cute::prefetch_tma_descriptor(&params.q.map);
  }

  __device__ void run() {
    Stage previous{};
    while (true) {
      shared_.full_planned[planned_.slot].wait(planned_.parity);
      Stage stage{planned_.slot, context_.slot, StageFlags(shared_.planned[planned_.slot].flags)};
      // With one tile of queries the task before has to come to its end first.
      if (Config::kQueryTiles == 1 && stage.flags.is_first()) load_pending_values(&previous);
      if (stage.flags.is_first()) load_queries(shared_.contexts[context_.slot]);
      const unsigned slot = keys_.slot;
      shared_.empty_k[slot].wait(keys_.empty_parity());
      shared_.flags[slot] = stage.flags.bits();
      if (stage.flags.is_needed()) {
        shared_.full_k[slot].arrive_and_expect(Config::kKeyBytes);
        load(stage, params_.k, params_.gathered_k, shared_.k[slot], shared_.full_k[slot]);
      } else {
        shared_.full_k[slot].arrive();
      }
      keys_.advance();
      load_pending_values(&previous);
      if (stage.flags.is_end()) return;
      previous = stage;
      planned_.advance();
      if (stage.flags.is_last()) context_.advance();
    }
  }

 private:
  struct Stage {
    unsigned planned = 0;
    unsigned context = 0;
    StageFlags flags{0};
  };

  __device__ void load_queries(const TaskContext& context) {
    const unsigned slot = queries_.slot;
    shared_.empty_q[slot].wait(queries_.empty_parity());
    shared_.full_q[slot].arrive_and_expect(Config::kQueryBytes);
    const Sequence& sequence = context.sequence;
    const std::int32_t row =
        sequence.q_begin + sequence.row_begin + context.task.first_block * kRowBlock;
#pragma unroll
    for (int block = 0; block < kTaskBlocks; ++block) {
      load_box<typename Config::QueryTile>(
          params_.q, shared_.q[slot][block], 0, shared_.full_q[slot], row + block * kRowBlock,
          context.task.head, sequence.batch, cute::TMA::CacheHintSm90::EVICT_FIRST);
    }
    queries_.advance();
  }

  /// Of the stage whose keys were loaded before, unless they are.
  __device__ void load_pending_values(Stage* stage) {
    if (stage->flags.bits() == 0) return;
    load_values(*stage);
    *stage = {};
  }

  __device__ void load_values(const Stage& stage) {
    if constexpr (Config::kIsFloat8) {
      const unsigned slot = float8_values_.slot;
      shared_.empty_float8_v[slot].wait(float8_values_.empty_parity());
      load_values(stage, shared_.float8_v[slot], shared_.full_float8_v[slot]);
      float8_values_.advance();
    } else {
      const unsigned slot = values_.slot();
      shared_.empty_v[slot].wait(values_.empty_parity());
      load_values(stage, shared_.v[slot], shared_.full_v[values_.barrier()]);
#pragma unroll
      for (int block = 0; block < kTaskBlocks; ++block) {
        if (!stage.flags.is_needed(block)) shared_.empty_v[slot].arrive(kWarpsOfGroup);
      }
      values_.advance();
    }
    shared_.empty_planned[stage.planned].arrive();
    if (stage.flags.is_last()) shared_.empty_context[stage.context].arrive();
  }

  __device__ void load_values(const Stage& stage, std::uint16_t* tile, Barrier& full) const {
    if (stage.flags.is_needed()) {
      full.arrive_and_expect(Config::kKeyBytes);
      load(stage, params_.v, params_.gathered_v, tile, full);
    } else {
      full.arrive();
    }
  }

  /// Keys or values of a stage.
  __device__ void load(const Stage& stage, const KeyMaps& maps, const KeyMaps& gathered,
                       std::uint16_t* tile, Barrier& barrier) const {
    const TaskContext& context = shared_.contexts[stage.context];
    const auto& rows = shared_.planned[stage.planned].rows;
    const std::int32_t head = context.task.head, head_kv = context.head_kv;
    const std::int32_t batch = context.sequence.batch;
    const auto load_pieces = [&](int n, const TensorMap& map, const TensorMap& gathered_map) {
      const bool is_gathered = stage.flags.is_gathered(n);
      load_box<typename Config::KeyTile>(is_gathered ? gathered_map : map, tile, n * plan::kChunk,
                                         barrier, rows[n], is_gathered ? head : head_kv,
                                         is_gathered ? 0 : batch,
                                         cute::TMA::CacheHintSm90::EVICT_LAST);
    };
    if (stage.flags.is_adjacent()) {
      load_pieces(0, maps.stage, gathered.stage);
      return;
    }
#pragma unroll
    for (int n = 0; n < Config::kPieces; ++n) load_pieces(n, maps.piece, gathered.piece);
  }

  /// All dimensions of some rows, to the tile's rows from `tile_row` on.
  template <class Tile>
  __device__ static void load_box(const TensorMap& from, std::uint16_t* tile, int tile_row,
                                  Barrier& barrier, std::int32_t row, std::int32_t head,
                                  std::int32_t batch, cute::TMA::CacheHintSm90 hint) {
    constexpr int kBoxDims = Tile::kRowBytes / Config::kElementBytes;
#pragma unroll
    for (int atom = 0; atom < Tile::kAtoms; ++atom) {
      char* const to =
          reinterpret_cast<char*>(tile) + atom * Tile::kAtomBytes + tile_row * Tile::kRowBytes;
      cute::SM90_TMA_LOAD_4D::copy(&from.map, barrier.word(), static_cast<std::uint64_t>(hint), to,
                                   atom * kBoxDims, row, head * from.head_step,
                                   batch * from.batch_step);
    }
  }

  const AttentionParams& params_;
  Storage& shared_;
  Ring<Config::kPlanned> planned_;
  Ring<Config::kContexts> context_;
  Ring<Config::kQueryTiles> queries_;
  Ring<Config::kStages> keys_;
  typename Config::StageRing values_;
  Ring<Config::kFloat8Stages> float8_values_;
};

}  // namespace minference::cuda::sm90
