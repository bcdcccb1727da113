// What a block of threads works on at a time: two neighbouring row blocks of a head, or a part of
// their keys. Which task comes when, and what its walk is about.
#pragma once

#include <cstdint>

#include "device/piece_walk.cuh"
#include "device/sequence_items.cuh"

namespace minference::cuda {

struct Task {
  std::int32_t sequence_index;
  std::int32_t head;
  std::int32_t part;         ///< of the keys
  std::int32_t first_block;  ///< of the chunk's row blocks; negative: none
  std::int64_t item;
};

__host__ __device__ inline std::int64_t num_tasks(const AttentionFwdParams& params) {
  return params.partial.num_items * params.partial.num_parts * params.call.num_heads_q;
}

/// Longest first, neighbours side by side: kv heads one after the other, within one row blocks from
/// the last to the first, within those the query heads that share K and V.
__device__ inline Task find_task(const AttentionFwdParams& params, std::int64_t index) {
  const Call& call = params.call;
  const std::int32_t per_item = params.partial.num_parts * call.heads_per_kv;
  const std::int64_t per_kv_head = params.partial.num_items * per_item;
  const std::int32_t head_kv = static_cast<std::int32_t>(index / per_kv_head);
  index -= head_kv * per_kv_head;
  const std::int64_t item_from_last = index / per_item;
  const std::int32_t within = static_cast<std::int32_t>(index - item_from_last * per_item);
  Task task{};
  task.item = params.partial.num_items - 1 - item_from_last;
  task.head = head_kv * call.heads_per_kv + within % call.heads_per_kv;
  task.part = within / call.heads_per_kv;
  const Item item =
      find_item<RowsOf::kQueries>(call.sequences, params.plan.row_blocks, kTaskBlocks, task.item);
  task.sequence_index = item.sequence;
  task.first_block = static_cast<std::int32_t>(item.row < kNoRow ? item.row : -1);
  return task;
}

/// First of the task's rows in an array [num_parts, num_heads_q, num_items, 128].
__device__ inline std::int64_t partial_row(const AttentionFwdParams& params, const Task& task) {
  const PartialResults& partial = params.partial;
  const std::int64_t head = std::int64_t{task.part} * params.call.num_heads_q + task.head;
  return (head * partial.num_items + task.item) * kTaskRows;
}

/// First row of the gathered keys and values of the task's head, of those of all heads.
__device__ inline std::int64_t gathered_row(const AttentionFwdParams& params, const Task& task,
                                            const Sequence& sequence) {
  const Rows& rows = params.plan.vertical_rows;
  return task.head * rows.total + first_row(rows, task.sequence_index, sequence.kv_begin);
}

/// What the task's walk is about. `kHeadDim`: dimensions of a tile's rows.
template <int kHeadDim>
__device__ inline void describe_walk(const AttentionFwdParams& params, const Task& task,
                                     const Sequence& sequence, WalkSource* source) {
  const Call& call = params.call;
  const LayerPlan& plan = params.plan;
  source->head = plan.heads[std::int64_t{task.sequence_index} * call.num_heads_q + task.head];
  source->lines = lines_of(plan, source->head, call.mode, task.head, task.sequence_index, sequence);
  const std::int32_t num_blocks =
      static_cast<std::int32_t>(plan::num_row_blocks(sequence.row_end - sequence.row_begin));
  const std::int64_t first_list =
      task.head * plan.row_blocks.total +
      first_row(plan.row_blocks, task.sequence_index, sequence.q_begin) + task.first_block;
  for (int i = 0; i < kTaskBlocks; ++i) {
    source->lists[i] = RowBlockLists{};
    if (task.first_block + i >= num_blocks) continue;
    source->lists[i] = lists_of(plan, params.columns, source->head, call.mode, first_list + i);
  }
  source->num_keys = sequence.kv_len;
  source->is_gathered_whole = call.head_dim == kHeadDim;
  source->is_whole = source->is_gathered_whole && params.is_aligned;
}

}  // namespace minference::cuda
