// The steps of a call that touch values: packing, gathering, and attention row block by row block.
#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>

#include "cpu/layer_run.h"
#include "cpu/select.h"
#include "plan/reference_lists.h"

namespace minference::cpu {
namespace {

constexpr std::int64_t kSegmentsPerTask = 4;  // of pack_v
constexpr std::int64_t kTasksPerWorker = 8;   // of attend, at least, before tasks grow
constexpr std::int64_t kBlocksPerTask = 64;   // of pool_keys

bool has_lines(const HeadPlan& plan) {
  return plan.kind == PatternKind::kVerticalSlash || plan.kind == PatternKind::kVerticalSlashIndex;
}

}  // namespace

void LayerRun::pack_values() {
  if (!kernel_.needs_packed_v) return;
  const std::int64_t tasks_per_unit =
      (num_pack_segments(group_max_kv_) + kSegmentsPerTask - 1) / kSegmentsPerTask;
  parallel_for(workers_, group_size_ * tasks_per_unit, [&](std::int64_t index, std::int64_t) {
    const Unit& unit = units_[index / tasks_per_unit];
    const std::int64_t segments = num_pack_segments(unit.sequence.kv_len);
    const std::int64_t begin = std::min(segments, index % tasks_per_unit * kSegmentsPerTask);
    const KeySource keys = sequence_keys(unit);
    kernel_.pack_v({.v = keys.v,
                    .v_stride = keys.v_stride,
                    .rows = nullptr,
                    .num_keys = keys.num_keys,
                    .segment_begin = begin,
                    .segment_end = std::min(segments, begin + kSegmentsPerTask),
                    .head_dim = problem_.head_dim(),
                    .packed_v = unit.packed_v,
                    .has_nonfinite = unit.has_nonfinite});
  });
}

void LayerRun::pool_keys() {
  if (!has_pooling_) return;
  const std::int64_t tasks_per_unit =
      (num_row_blocks(group_max_kv_) + kBlocksPerTask - 1) / kBlocksPerTask;
  parallel_for(workers_, group_size_ * tasks_per_unit, [&](std::int64_t index, std::int64_t) {
    const Unit& unit = units_[index / tasks_per_unit];
    const KeySource keys = sequence_keys(unit);
    const std::int64_t begin = index % tasks_per_unit * kBlocksPerTask;
    const std::int64_t end = std::min(num_row_blocks(keys.num_keys), begin + kBlocksPerTask);
    for (std::int64_t block = begin; block < end; ++block) {
      const std::int64_t key = block * kRowBlock;
      const char* const rows = static_cast<const char*>(keys.k) +
                               key * keys.k_stride * static_cast<std::int64_t>(element_bytes_);
      kernel_.mean_rows(rows, keys.k_stride,
                        static_cast<int>(std::min<std::int64_t>(kRowBlock, keys.num_keys - key)),
                        problem_.head_dim(), unit.pooled_k + block * problem_.head_dim());
    }
  });
}

void LayerRun::gather_verticals() {
  if (!has_lines_) return;
  parallel_for(workers_, group_size_ * problem_.heads_per_kv(),
               [&](std::int64_t index, std::int64_t) {
                 const HeadTask task = head_task(index);
                 if (has_lines(task.head->plan) && must_plan(task)) gather(task);
               });
}

void LayerRun::gather(const HeadTask& task) {
  const KeySource keys = sequence_keys(*task.unit);
  Head& head = *task.head;
  const std::size_t row_bytes = element_bytes_ * problem_.head_dim();
  const auto copy_rows = [&](const void* from, std::int64_t stride, void* to) {
    for (std::int32_t i = 0; i < head.plan.num_vertical; ++i) {
      const std::int64_t offset =
          head.plan.verticals[i] * stride * static_cast<std::int64_t>(element_bytes_);
      std::memcpy(static_cast<char*>(to) + i * row_bytes, static_cast<const char*>(from) + offset,
                  row_bytes);
    }
  };
  copy_rows(keys.k, keys.k_stride, head.gathered_k);
  if (!kernel_.needs_packed_v) {
    copy_rows(keys.v, keys.v_stride, head.gathered_v);
    return;
  }
  kernel_.pack_v({.v = keys.v,
                  .v_stride = keys.v_stride,
                  .rows = head.plan.verticals,
                  .num_keys = head.plan.num_vertical,
                  .segment_begin = 0,
                  .segment_end = num_pack_segments(head.plan.num_vertical),
                  .head_dim = problem_.head_dim(),
                  .packed_v = head.gathered_packed_v,
                  .has_nonfinite = head.gathered_nonfinite});
}

RowLists LayerRun::row_lists(const HeadTask& task, std::int64_t row_block,
                             const WorkerScratch& scratch) const {
  const Unit& unit = *task.unit;
  const HeadPlan& plan = task.head->plan;
  const Sequence& sequence = unit.sequence;
  const std::int64_t row_begin = row_block * kRowBlock;
  const std::int64_t key_end =
      std::min(row_begin + kRowBlock + sequence.kv_len - sequence.q_len, sequence.kv_len);
  const std::int64_t num_blocks = num_row_blocks(key_end);  // that hold a key some row may attend
  RowLists lists{scratch.tiles, scratch.columns, 0, 0};
  if (plan.kind == PatternKind::kBlockIndex) {
    const IndexView& view = problem_.block_idx;
    const std::int32_t* const listed = view.data + unit.index_of_sequence * view.stride[0] +
                                       task.head_q * view.stride[1] + row_block * view.stride[2];
    lists.num_tiles = sort_unique(listed, view.shape[3], lists.tiles);
    while (lists.num_tiles > 0 && lists.tiles[lists.num_tiles - 1] >= num_blocks) {
      --lists.num_tiles;
    }
  } else if (plan.kind == PatternKind::kBlockSparse) {
    alignas(kAlignment) float mean_q[kMaxHeadDim];
    const int rows =
        static_cast<int>(std::min<std::int64_t>(kRowBlock, sequence.q_len - row_begin));
    const TensorView& q = problem_.args.q;
    kernel_.mean_rows(row_of(q, sequence.batch, task.head_q, sequence.q_begin + row_begin),
                      q.stride[2], rows, problem_.head_dim(), mean_q);
    kernel_.dot_rows(mean_q, unit.pooled_k, num_blocks, problem_.head_dim(), scratch.block_scores);
    lists.num_tiles = static_cast<std::int32_t>(std::min(plan.size[0], num_blocks));
    select_top_k(scratch.block_scores, num_blocks, lists.num_tiles, 0, lists.tiles);
  } else if (has_lines(plan) && plan.mode == SlashMode::kReference) {
    minference::plan::RowTiles tiles{.tiles = scratch.tiles, .columns = scratch.columns};
    minference::plan::reference_row_lists({.vertical = plan.verticals,
                                           .num_vertical = plan.num_vertical,
                                           .slash = plan.slashes,
                                           .num_slash = plan.num_slash,
                                           .row_begin = row_begin,
                                           .q_len = sequence.q_len,
                                           .kv_len = sequence.kv_len},
                                          &tiles);
    lists.num_tiles = tiles.num_tiles;
    lists.num_columns = tiles.num_columns;
    return lists;
  } else {
    return lists;
  }
  for (std::int32_t i = 0; i < lists.num_tiles; ++i) lists.tiles[i] *= kRowBlock;
  return lists;
}

void LayerRun::attend() {
  // Tasks in the order: unit, row blocks from the last (longest), heads of the unit. Several row
  // blocks make a task where there are more than enough of them for every worker.
  const std::int64_t heads = problem_.heads_per_kv();
  std::int64_t num_blocks = 0;
  for (std::int64_t i = 0; i < group_size_; ++i) {
    num_blocks += num_row_blocks(units_[i].row_end - units_[i].row_begin) * heads;
  }
  const std::int64_t blocks_per_task =
      std::clamp<std::int64_t>(num_blocks / (kTasksPerWorker * workers_.count), 1, kMaxTasks);
  std::int64_t num_tasks = 0;
  for (std::int64_t i = 0; i < group_size_; ++i) {
    const std::int64_t blocks = num_row_blocks(units_[i].row_end - units_[i].row_begin);
    units_[i].task_begin = num_tasks;
    num_tasks += (blocks + blocks_per_task - 1) / blocks_per_task * heads;
  }
  parallel_for(workers_, num_tasks, [&](std::int64_t index, std::int64_t worker) {
    const Unit* const after = std::upper_bound(
        units_, units_ + group_size_, index,
        [](std::int64_t task, const Unit& unit) { return task < unit.task_begin; });
    Unit* const unit = units_ + (after - units_) - 1;
    const std::int64_t within = index - unit->task_begin;
    const std::int64_t head = within % heads;
    const HeadTask task{unit, &unit->heads[head], unit->head_kv * heads + head};
    const std::int64_t first_block = unit->row_begin / kRowBlock;
    const std::int64_t block_end = num_row_blocks(unit->row_end) - within / heads * blocks_per_task;
    const std::int64_t block_begin = std::max(first_block, block_end - blocks_per_task);
    attend_row_blocks(task, block_begin, block_end, worker_scratch_[worker]);
  });
}

void LayerRun::attend_row_blocks(const HeadTask& task, std::int64_t block_begin,
                                 std::int64_t block_end, const WorkerScratch& scratch) const {
  const Sequence& sequence = task.unit->sequence;
  const HeadPlan& plan = task.head->plan;
  // The scratch holds the lists of one row block.
  const bool has_row_lists = plan.kind == PatternKind::kBlockSparse ||
                             plan.kind == PatternKind::kBlockIndex ||
                             (has_lines(plan) && plan.mode == SlashMode::kReference);
  const std::int64_t step = has_row_lists ? 1 : kMaxTasks;
  for (std::int64_t block = block_begin; block < block_end; block += step) {
    RowLists lists[kMaxTasks];
    std::optional<ChunkCursor> cursors[kMaxTasks];
    RowBlockTask tasks[kMaxTasks];
    int count = 0;
    for (; count < step && block + count < block_end; ++count) {
      const std::int64_t row_block = block + count;
      lists[count] = row_lists(task, row_block, scratch);
      cursors[count].emplace(plan, lists[count], row_block * kRowBlock, sequence.q_len,
                             sequence.kv_len);
      tasks[count] = row_block_task(task, row_block);
      tasks[count].next_stage = ChunkCursor::next_stage;
      tasks[count].cursor = &*cursors[count];
    }
    kernel_.attend(tasks, count, scratch.kernel);
  }
}

RowBlockTask LayerRun::row_block_task(const HeadTask& task, std::int64_t row_block) const {
  const Unit& unit = *task.unit;
  const Head& head = *task.head;
  const AttentionArgs& args = problem_.args;
  const Sequence& sequence = unit.sequence;
  const std::int64_t row_begin = row_block * kRowBlock;
  const std::int64_t row = sequence.q_begin + row_begin;
  RowBlockTask block{};
  block.q = row_of(args.q, sequence.batch, task.head_q, row);
  block.q_stride = args.q.stride[2];
  block.out = const_cast<void*>(row_of(args.out, sequence.batch, task.head_q, row));
  block.out_stride = args.out.stride[2];
  block.lse = lse_row(sequence.batch, task.head_q, row);
  block.lse_stride = args.lse_stride[2];
  block.num_rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, unit.row_end - row_begin));
  block.head_dim = problem_.head_dim();
  block.scale_log2 = problem_.scale_log2;
  block.sequence = sequence_keys(unit);
  block.gathered = {.k = head.gathered_k,
                    .v = head.gathered_v,
                    .k_stride = problem_.head_dim(),
                    .v_stride = problem_.head_dim(),
                    .packed_v = head.gathered_packed_v,
                    .has_nonfinite = head.gathered_nonfinite,
                    .num_keys = head.plan.num_vertical};
  return block;
}

float* LayerRun::lse_row(std::int64_t batch, std::int64_t head, std::int64_t row) const {
  const AttentionArgs& args = problem_.args;
  if (args.lse == nullptr) return nullptr;
  return args.lse + batch * args.lse_stride[0] + head * args.lse_stride[1] +
         row * args.lse_stride[2];
}

void LayerRun::clear_padding_rows() const {
  if (problem_.args.first_valid_key == nullptr) return;
  const std::int64_t heads = problem_.num_heads_q();
  parallel_for(workers_, problem_.batch() * heads, [&](std::int64_t index, std::int64_t) {
    const Sequence sequence = sequence_at(problem_, index / heads);
    const std::int64_t head = index % heads;
    for (std::int64_t row = 0; row < sequence.q_begin; ++row) {
      std::memset(const_cast<void*>(row_of(problem_.args.out, sequence.batch, head, row)), 0,
                  element_bytes_ * problem_.head_dim());
      float* const lse = lse_row(sequence.batch, head, row);
      if (lse != nullptr) *lse = -std::numeric_limits<float>::infinity();
    }
  });
}

void LayerRun::add_stats(const HeadTask& task, const WorkerScratch& scratch,
                         PlanStats* stats) const {
  const Unit& unit = *task.unit;
  const Sequence& sequence = unit.sequence;
  const HeadPlan& plan = task.head->plan;
  if (unit.row_begin == unit.row_end) return;
  stats->is_dense = plan.kind == PatternKind::kDense ? 1 : 0;
  stats->num_vertical = plan.num_vertical;
  stats->num_slash = plan.num_slash;
  stats->num_chunks = plan.num_chunks;
  stats->plan_bytes = sizeof(HeadPlan) + plan.num_vertical * sizeof(std::int32_t) +
                      plan.num_chunks * sizeof(PlanChunk);
  if (has_lines(plan)) {
    stats->plan_bytes += BitSet::num_words(sequence.kv_len + kRowBlock + 1) * sizeof(std::uint64_t);
  }
  stats->estimation_bytes = task.head->needs_estimate ? estimation_bytes(unit.chunk_kv_len) : 0;
  Stage stage;
  for (std::int64_t row = unit.row_begin; row < unit.row_end; row += kRowBlock) {
    const int rows = static_cast<int>(std::min<std::int64_t>(kRowBlock, unit.row_end - row));
    const std::uint64_t existing = ~std::uint64_t{0} >> (kRowBlock - rows);
    const RowLists lists = row_lists(task, row / kRowBlock, scratch);
    ChunkCursor cursor(plan, lists, row, sequence.q_len, sequence.kv_len);
    while (cursor.next(kMaxStageChunks, &stage)) {
      stats->computed_pairs += std::int64_t{stage.num_chunks} * kChunk * kRowBlock;
      for (int c = 0; c < stage.num_chunks; ++c) {
        const std::uint64_t* const masks = stage.chunks[c].row_mask;
        if (masks == nullptr) {
          stats->attended_pairs += std::int64_t{kChunk} * rows;
          continue;
        }
        for (int key = 0; key < kChunk; ++key) {
          stats->attended_pairs += __builtin_popcountll(masks[key] & existing);
        }
      }
    }
    const std::int64_t first_keys = row + sequence.kv_len - sequence.q_len + 1;
    stats->causal_pairs += rows * first_keys + std::int64_t{rows} * (rows - 1) / 2;
  }
}

}  // namespace minference::cpu
