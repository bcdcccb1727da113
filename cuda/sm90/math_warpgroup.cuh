// A math warpgroup: 64 query rows, a row block. It takes the stages that its rows need, a stage
// ahead with the scores of what it multiplies with values:
//
//   S_j = Q K_j^T        wgmma, issued first
//   O += P_i V_i         wgmma, of the stage before; both run while
//   P_j = softmax(S_j)   is computed, once S_j is there
//
// The two warpgroups of a block take turns in issuing products, so that one's softmax falls into
// the other's products. Stages that only one of them needs are outside of the turns.
#pragma once

#include <cute/arch/copy_sm90_tma.hpp>
#include <utility>

#include "device/element.cuh"
#include "device/online_softmax.cuh"
#include "device/out_rows.cuh"
#include "sm90/attention_params.h"
#include "sm90/config.cuh"
#include "sm90/wgmma.cuh"

namespace minference::cuda::sm90 {

template <class Config>
class MathWarpgroup {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ MathWarpgroup(const AttentionParams& params, int block, Storage& shared)
      : params_(params), shared_(shared), block_(block) {}

  __device__ __forceinline__ void run() {
    if (Config::kTakesTurns && block_ == 1) pass_turn();
    while (true) {
      const StageFlags flags = next_flags();
      if (flags.is_end()) break;
      attend(flags);
      store();
      queries_.advance();
      context_.advance();
    }
    if (Config::kTakesTurns && block_ == 0) take_turn();  // the last one that was passed
    finish_store();
  }

 private:
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kKeys = Config::kKeys;
  using OutTile = typename Config::OutTile;

  /// What a stage of which values are still to be multiplied needs.
  struct Pending {
    typename Config::StageRing at;
    bool is_masked;        // for either warpgroup
    unsigned mask_parity;  // of barriers of stages that have masks
  };

  __device__ static unsigned lane() { return threadIdx.x % 32; }
  __device__ static unsigned warp() { return threadIdx.x / 32 % kWarpsOfGroup; }

  __device__ void take_turn() const { wait_named(kTurn + block_, 2 * kWarpgroup); }
  __device__ void pass_turn() const { arrive_named(kTurn + (block_ ^ 1), 2 * kWarpgroup); }
  __device__ void begin_turn(StageFlags flags) const {
    if (Config::kTakesTurns && flags.is_shared()) take_turn();
  }
  __device__ void end_turn(StageFlags flags) const {
    if (Config::kTakesTurns && flags.is_shared()) pass_turn();
  }

  /// Waits for the keys of the next stage.
  __device__ StageFlags next_flags() const {
    shared_.full_k[keys_.slot()].wait(keys_.parity());
    return StageFlags(shared_.flags[keys_.slot()]);
  }

  /// Goes past stages that this warpgroup does not need, from the one with `flags` on. Whether
  /// there is one that it needs.
  __device__ bool skip_to_needed(StageFlags* flags) {
    while (!flags->is_needed(block_)) {
      finish_keys(*flags);
      if (flags->is_last()) return false;
      *flags = next_flags();
    }
    return true;
  }

  /// The next stage, past those that this warpgroup does not need. Whether it needs the one it has
  /// found: values of the stage before must be done with before the load warp waits for their slot,
  /// which it does once it has loaded the keys kStages further on: this one would wait for it then.
  /// Of float8 the value warp waits for the slot, when at least as many keys are loaded.
  __device__ bool find_next(StageFlags* flags) {
    *flags = next_flags();
#pragma unroll 1
    for (int passed = 1; passed < Config::kStages; ++passed) {
      if (flags->is_needed(block_) || flags->is_last()) break;
      finish_keys(*flags);
      *flags = next_flags();
    }
    return flags->is_needed(block_);
  }

  __device__ float scale_log2() const {
    return Config::kIsFloat8 ? scale_log2_ : params_.common.scale_log2;
  }
  /// Of the task at context_.
  __device__ float value_scale() const {
    return Config::kIsFloat8 ? shared_.contexts[context_.slot].value_scale : 1.0f;
  }

  /// Done with the keys and masks of a stage.
  __device__ void finish_keys(StageFlags flags) {
    arrive_as_warp(shared_.empty_k[keys_.slot()]);
    if (flags.is_masked()) mask_parities_ ^= 1u << keys_.slot();
    keys_.advance();
  }

  __device__ __forceinline__ void attend(StageFlags flags) {
    shared_.full_q[queries_.slot].wait(queries_.parity);
    if constexpr (Config::kIsFloat8) scale_log2_ = shared_.contexts[context_.slot].scale_log2;
    softmax_ = OnlineSoftmax<1>();
#pragma unroll
    for (float& value : flat(out_)) value = 0;
    bool is_over = !skip_to_needed(&flags);
    while (!is_over) {
      Pending pending = begin_run(flags);
      while (true) {
        is_over = flags.is_last();
        if (is_over || !find_next(&flags)) break;
        continue_run(flags, &pending);
      }
      wait_for_values(pending);
      start_outputs(pending);
      finish_outputs(pending);
      if (!is_over) is_over = !skip_to_needed(&flags);
    }
    finish_store();
  }

  /// Weights of a stage without another one before it.
  __device__ __forceinline__ Pending begin_run(StageFlags flags) {
    const Pending pending = pending_of(flags);
    begin_turn(flags);
    start_scores();
    end_turn(flags);
    finish_store();
    std::uint32_t columns[2];
    load_masks(flags, columns);
    cute::warpgroup_wait<0>();
    finish_scores(flags, columns);
    float factors[2];
    if (softmax_.follow(scores_, scale_log2(), factors)) {
      OnlineSoftmax<1>::rescale(out_, factors);
    }
    softmax_.exponentiate(scores_, scale_log2());
    make_weights();
    return pending;
  }

  /// Weights of a stage while the one before it is multiplied with values.
  __device__ __forceinline__ void continue_run(StageFlags flags, Pending* pending) {
    const Pending next = pending_of(flags);
    wait_for_values(*pending);  // before its turn, which it would hold up
    begin_turn(flags);
    start_scores();
    start_outputs(*pending);
    end_turn(flags);
    std::uint32_t columns[2];
    load_masks(flags, columns);
    cute::warpgroup_wait<1>();
    finish_scores(flags, columns);
    float factors[2];
    const bool is_raised = softmax_.follow(scores_, scale_log2(), factors);
    softmax_.exponentiate(scores_, scale_log2());
    finish_outputs(*pending);
    if (is_raised) OnlineSoftmax<1>::rescale(out_, factors);
    make_weights();
    *pending = next;
  }

  /// Scores are there.
  __device__ __forceinline__ void finish_scores(StageFlags flags,
                                                const std::uint32_t (&columns)[2]) {
    fence(flat(scores_));
    finish_keys(flags);
    if (flags.is_masked(block_)) mask(columns);
  }

  __device__ __forceinline__ void start_scores() {
    using Instruction = typename Products<Config::kDType, kKeys>::OfRows;
    const Operand<typename Config::QueryTile, false> queries(shared_.q[queries_.slot][block_]);
    const Operand<typename Config::KeyTile, false> keys(shared_.k[keys_.slot()]);
    fence(flat(scores_));
    cute::warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < Config::kTileDims / kStepDims; ++step) {
      multiply_rows<Instruction>(flat(scores_), queries.step(step), keys.step(step), step == 0,
                                 std::make_index_sequence<kKeys / 2>{});
    }
    cute::warpgroup_commit_batch();
  }

  __device__ void wait_for_values(const Pending& pending) const {
    shared_.full_v[pending.at.barrier()].wait(pending.at.barrier_parity());
    if (!Config::kIsFloat8 && pending.is_masked) {
      shared_.values_finite[pending.at.slot()].wait(pending.mask_parity);
    }
  }

  __device__ __forceinline__ void start_outputs(const Pending& pending) {
    using Instruction =
        typename Products<Config::kIsValueBfloat16 ? DType::kBFloat16 : DType::kFloat16,
                          kHeadDim>::OfRegisters;
    const Operand<typename Config::ValueTile, true> values(shared_.v[pending.at.slot()]);
    fence(flat(out_));
    cute::warpgroup_arrive();
#pragma unroll
    for (int step = 0; step < kKeys / kStepDims; ++step) {
      multiply_registers<Instruction>(flat(out_), weights_[step], values.step(step),
                                      std::make_index_sequence<kHeadDim / 2>{});
    }
    cute::warpgroup_commit_batch();
  }

  __device__ __forceinline__ void finish_outputs(const Pending& pending) {
    cute::warpgroup_wait<0>();
    fence(flat(out_));
    arrive_as_warp(shared_.empty_v[pending.at.slot()]);
  }

  /// The stage at keys_.
  __device__ Pending pending_of(StageFlags flags) const {
    return {keys_, flags.is_masked(), mask_parities_ >> keys_.slot() & 1};
  }

  /// Which columns of the stage at keys_ this thread's rows attend.
  __device__ __forceinline__ void load_masks(StageFlags flags, std::uint32_t (&columns)[2]) const {
    if (!flags.is_masked(block_)) return;
    shared_.masks_made[keys_.slot()].wait(mask_parities_ >> keys_.slot() & 1);
    const auto& rows = shared_.masks[keys_.slot()].rows[block_];
    columns[0] = rows[16 * warp() + lane() / 4][lane() % 4];
    columns[1] = rows[16 * warp() + lane() / 4 + 8][lane() % 4];
  }

  __device__ __forceinline__ void mask(const std::uint32_t (&columns)[2]) {
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if ((columns[i / 2] >> (2 * n + i % 2) & 1) == 0) scores_[0][n][i] = -INFINITY;
      }
    }
  }

  __device__ __forceinline__ void make_weights() {
#pragma unroll
    for (int step = 0; step < kKeys / kStepDims; ++step) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const pair = scores_[0][2 * step + i / 2] + i % 2 * 2;
        weights_[step][i] = to_pair<Config::kIsValueBfloat16>(pair[0], pair[1]);
      }
    }
  }

  /// Adds infinities of values that were replaced to the rows that attend them.
  __device__ void add_infinities() {
    const unsigned row = 16 * warp() + lane() / 4;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const auto& at = shared_.infinities[block_][8 * n + lane() % 4 * 2 + i % 2];
        const unsigned bit = row % 32 + i / 2 * 8;
        if ((at.plus[row / 32] >> bit & 1) != 0) out_[0][n][i] += INFINITY;
        if ((at.minus[row / 32] >> bit & 1) != 0) out_[0][n][i] -= INFINITY;
      }
    }
  }

  /// Rows of out and lse, or of a part's results. Out goes through the rows of q, which nobody
  /// needs any more.
  __device__ __forceinline__ void store() {
    softmax_.finish();
    const TaskContext& context = shared_.contexts[context_.slot];
    const Task task = context.task;
    const Sequence sequence = context.sequence;
    const std::int32_t chunk_row =
        sequence.row_begin + (task.first_block + block_) * kRowBlock;  // of the sequence's
    const std::int32_t num_rows = sequence.row_end - chunk_row;        // may exceed the row block's
    const bool has_infinities = context.has_infinities[block_];
    if (has_infinities) add_infinities();
    const bool is_part = params_.common.partial.num_parts > 1;
    if (is_part) {
      store_part(partial_row(params_.common, task) + block_ * kRowBlock, num_rows);
    } else {
      wait_for_group();  // products of all its warps are over: these are their rows of q
      store_to_tile(sequence.batch, task.head, sequence.q_begin + chunk_row, num_rows);
      publish_to_async();
    }
    wait_for_group();
    if (!is_part) copy_out(sequence.batch, task.head, sequence.q_begin + chunk_row, num_rows);
    if (is_leader()) {
      if (has_infinities) shared_.empty_infinities[block_].arrive();
      shared_.empty_context[context_.slot].arrive();
    }
    stored_ = queries_.slot;
    if constexpr (Config::kQueryTiles == 1) finish_store();
  }

  __device__ bool is_leader() const { return threadIdx.x % kWarpgroup == 0; }
  __device__ void wait_for_group() const { wait_named(kOutRows + block_, kWarpgroup); }

  /// Divides by the sums; writes lse.
  __device__ __forceinline__ void store_to_tile(std::int32_t batch, std::int32_t head,
                                                std::int32_t row, std::int32_t num_rows) {
    float scales[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t own = 16 * warp() + lane() / 4 + 8 * i;
      const float sum = softmax_.sum(i);
      scales[i] = sum == 0 ? 0 : value_scale() / sum;
      float* const lse = lse_of(params_.common, batch, head, row + own);
      if (lse != nullptr && lane() % 4 == 0 && own < num_rows) {
        *lse = log_sum_exp(softmax_.shift(i), sum);
      }
    }
    const MatrixAddress<OutTile> to(cute::cast_smem_ptr_to_uint(shared_.q[queries_.slot][block_]),
                                    16 * warp() + lane() % 16, lane() / 16);
    cute::for_each(cute::make_int_sequence<kHeadDim / kStepDims>{}, [&](auto step) {
      std::uint32_t matrices[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* const pair = out_[0][2 * step + i / 2] + i % 2 * 2;
        matrices[i] =
            to_pair<Config::kIsOutBfloat16>(pair[0] * scales[i % 2], pair[1] * scales[i % 2]);
      }
      to.template store<step>(matrices);
    });
  }

  /// From the tile to out, whole row blocks by the copy engine.
  __device__ __forceinline__ void copy_out(std::int32_t batch, std::int32_t head, std::int32_t row,
                                           std::int32_t num_rows) const {
    const char* const tile = reinterpret_cast<const char*>(shared_.q[queries_.slot][block_]);
    if (params_.has_out && num_rows >= kRowBlock) {
      if (!is_leader()) return;
#pragma unroll
      for (int atom = 0; atom < OutTile::kAtoms; ++atom) {
        cute::SM90_TMA_STORE_4D::copy(&params_.out.map, tile + atom * OutTile::kAtomBytes,
                                      atom * OutTile::kAtomDims, row, head, batch);
      }
      cute::tma_store_arrive();
      return;
    }
    constexpr int kVectors = kHeadDim / kVectorDims;
    const AttentionFwdParams& params = params_.common;
    std::uint16_t* const out = row_of(params.out, batch, head, row);
#pragma unroll 1
    for (int i = threadIdx.x % kWarpgroup; i < kRowBlock * kVectors; i += kWarpgroup) {
      const int own = i / kVectors, dim = i % kVectors * kVectorDims;
      if (own >= num_rows || dim >= params.call.head_dim) continue;
      const uint4 vector =
          *reinterpret_cast<const uint4*>(tile + OutTile::offset(own, i % kVectors));
      store_vector(out + own * params.out.stride_token + dim, vector, params.is_out_aligned);
    }
    wait_for_group();
  }

  /// `row`: the row block's first in the array of results.
  __device__ __forceinline__ void store_part(std::int64_t row, std::int32_t num_rows) const {
    const PartialResults& partial = params_.common.partial;
    const int head_dim = params_.common.call.head_dim;
    const float scale = value_scale();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const std::int32_t own = 16 * warp() + lane() / 4 + 8 * i;
      if (own >= num_rows) continue;
      if (lane() % 4 == 0) {
        partial.shift[row + own] = softmax_.shift(i);
        partial.sum[row + own] = softmax_.sum(i);
      }
      float* const out = partial.out + (row + own) * head_dim + lane() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        if (n * 8 >= head_dim) continue;
        *reinterpret_cast<float2*>(out + n * 8) = {out_[0][n][2 * i] * scale,
                                                   out_[0][n][2 * i + 1] * scale};
      }
    }
  }

  /// Once the latest task's rows of q have been read for the last time, they may be loaded again.
  __device__ void finish_store() {
    if (stored_ == kNone) return;
    if (is_leader()) {
      cute::tma_store_wait<0>();
      shared_.empty_q[stored_].arrive();
    }
    stored_ = kNone;
  }

  static constexpr unsigned kNone = ~0u;

  const AttentionParams& params_;
  Storage& shared_;
  int block_;
  typename Config::StageRing keys_;
  Ring<Config::kQueryTiles> queries_;
  Ring<Config::kContexts> context_;
  unsigned mask_parities_ = 0;  // a bit per slot: of its next stage with masks
  unsigned stored_ = kNone;     // tile of q that out was written to
  float scale_log2_ = 0;        // of float8
  OnlineSoftmax<1> softmax_;
  float scores_[1][kKeys / 8][4];
  float out_[1][kHeadDim / 8][4];
  std::uint32_t weights_[kKeys / kStepDims][4];
};

}  // namespace minference::cuda::sm90
