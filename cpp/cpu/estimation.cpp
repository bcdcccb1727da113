// The lines of a call's heads: estimated from the prompt or read from the caller's lists, then
// turned into plans.
#include <algorithm>
#include <cmath>

#include "cpu/layer_run.h"
#include "cpu/select.h"
#include "plan/cost.h"

namespace minference::cpu {
EstimateTask LayerRun::estimate_task(const HeadTask& task, std::int64_t segment,
                                     void* scratch) const {
  const Unit& unit = *task.unit;
  const Head& head = *task.head;
  const int num_rows =
      static_cast<int>(std::min<std::int64_t>(kRowBlock, unit.row_end - unit.row_begin));
  const std::int64_t first_row = unit.sequence.q_begin + unit.row_end - num_rows;
  EstimateTask estimate{};
  estimate.q = row_of(problem_.args.q, unit.sequence.batch, task.head_q, first_row);
  estimate.q_stride = problem_.args.q.stride[2];
  estimate.num_rows = num_rows;
  estimate.head_dim = problem_.head_dim();
  estimate.scale_log2 = problem_.scale_log2;
  estimate.sequence = sequence_keys(unit);
  estimate.sequence.num_keys = unit.chunk_kv_len;
  estimate.key_begin = segment * kKeySegment;
  estimate.key_end = std::min(unit.chunk_kv_len, estimate.key_begin + kKeySegment);
  float* const stats = head.row_stats + segment * kStatsSlot;
  estimate.row_max = stats;
  estimate.row_sum = stats + kRowBlock;
  estimate.column_sums = head.column_scores + estimate.key_begin;
  // The last segment holds the smallest offsets: slots in descending order of segments let
  // merge_slash_scores join them in place.
  const std::int64_t slot = num_key_segments(unit.chunk_kv_len) - 1 - segment;
  estimate.diagonal_sums = head.slash_scores + slot * kSlashSlot;
  estimate.scratch = scratch;
  return estimate;
}

/// Calls step(head task, segment, worker) for the heads to estimate. The heads of a unit meet a
/// segment of K in a row: it is read from memory once.
template <class Step>
void LayerRun::for_each_segment(const Step& step) {
  const std::int64_t segments = num_key_segments(group_max_kv_);
  const std::int64_t heads = problem_.heads_per_kv();
  parallel_for(workers_, group_size_ * segments, [&](std::int64_t index, std::int64_t worker) {
    const std::int64_t unit = index / segments;
    const std::int64_t segment = index % segments;
    if (segment >= num_key_segments(units_[unit].chunk_kv_len)) return;
    for (std::int64_t i = 0; i < heads; ++i) {
      const HeadTask task = head_task(unit * heads + i);
      if (task.head->needs_estimate) step(task, segment, worker);
    }
  });
}

void LayerRun::estimate_scores() {
  for_each_segment([&](const HeadTask& task, std::int64_t segment, std::int64_t worker) {
    kernel_.row_stats(estimate_task(task, segment, worker_scratch_[worker].kernel));
  });
  parallel_for(workers_, group_size_ * problem_.heads_per_kv(),
               [&](std::int64_t index, std::int64_t) {
                 const HeadTask task = head_task(index);
                 if (task.head->needs_estimate) merge_row_stats(*task.unit, *task.head);
               });
  for_each_segment([&](const HeadTask& task, std::int64_t segment, std::int64_t worker) {
    EstimateTask estimate = estimate_task(task, segment, worker_scratch_[worker].kernel);
    estimate.row_max =
        task.head->row_stats + num_key_segments(task.unit->chunk_kv_len) * kStatsSlot;
    estimate.row_sum = estimate.row_max + kRowBlock;
    kernel_.line_sums(estimate);
  });
}

void LayerRun::merge_row_stats(const Unit& unit, const Head& head) {
  const std::int64_t segments = num_key_segments(unit.chunk_kv_len);
  float* const total = head.row_stats + segments * kStatsSlot;
  for (int row = 0; row < kRowBlock; ++row) {
    float max = head.row_stats[row];
    for (std::int64_t s = 1; s < segments; ++s) {
      max = std::max(max, head.row_stats[s * kStatsSlot + row]);
    }
    float sum = 0;
    for (std::int64_t s = 0; s < segments; ++s) {
      const float* const part = head.row_stats + s * kStatsSlot;
      const float part_sum = part[kRowBlock + row];
      if (part_sum != 0) sum += part_sum * std::exp2(part[row] - max);
    }
    total[row] = max;
    total[kRowBlock + row] = sum;
  }
}

void LayerRun::merge_slash_scores(const Unit& unit, Head* head) {
  const std::int64_t num_rows = std::min<std::int64_t>(kRowBlock, unit.row_end - unit.row_begin);
  const std::int64_t segments = num_key_segments(unit.chunk_kv_len);
  float* const scores = head->slash_scores;
  for (std::int64_t slot = 0; slot < segments; ++slot) {
    const std::int64_t segment = segments - 1 - slot;
    const std::int64_t key_begin = segment * kKeySegment;
    const std::int64_t key_end = std::min(unit.chunk_kv_len, key_begin + kKeySegment);
    const std::int64_t first_offset = unit.chunk_kv_len - num_rows - (key_end - 1);
    const float* const part = scores + slot * kSlashSlot;
    // The lowest 63 offsets also end the slot before. Writing never passes reading.
    const std::int64_t shared = slot == 0 ? 0 : kRowBlock - 1;
    for (std::int64_t i = 0; i < key_end - key_begin + kRowBlock; ++i) {
      const std::int64_t offset = first_offset + i;
      if (offset < 0 || offset >= unit.chunk_kv_len) continue;
      scores[offset] = i < shared ? scores[offset] + part[i] : part[i];
    }
  }
}

std::int32_t LayerRun::read_lines(const IndexView& view, const HeadTask& task,
                                  std::int32_t* lines) const {
  const std::int32_t* const from =
      view.data + task.unit->index_of_sequence * view.stride[0] + task.head_q * view.stride[1];
  return sort_unique(from, view.shape[2], lines);
}

void LayerRun::choose_lines(const HeadTask& task) {
  const Unit& unit = *task.unit;
  HeadPlan& plan = task.head->plan;
  if (!task.head->needs_estimate) {
    plan.num_vertical = read_lines(problem_.vertical_idx, task, plan.verticals);
    plan.num_slash = read_lines(problem_.slash_idx, task, plan.slashes);
    return;
  }
  merge_slash_scores(unit, task.head);
  const HeadPattern pattern = problem_.patterns.at(task.head_q);
  const std::int64_t verticals = plan::num_estimated_vertical(pattern.size[0], unit.chunk_kv_len);
  const std::int64_t slashes = plan::num_estimated_slash(pattern.size[1], unit.chunk_kv_len);
  select_top_k(task.head->column_scores, unit.chunk_kv_len, verticals, plan::kForcedVertical,
               plan.verticals);
  select_top_k(task.head->slash_scores, unit.chunk_kv_len, slashes, plan::kForcedSlash,
               plan.slashes);
  plan.num_vertical = static_cast<std::int32_t>(verticals);
  plan.num_slash = static_cast<std::int32_t>(slashes);
}

bool LayerRun::must_plan(const HeadTask& task) const {
  return is_first_query_chunk_ ||
         problem_.patterns.at(task.head_q).kind == PatternKind::kVerticalSlash;
}

void LayerRun::build_plans() {
  const std::int64_t num_heads = group_size_ * problem_.heads_per_kv();
  const bool may_fall_back = problem_.dense_fallback && problem_.mode == SlashMode::kCover;
  bool any_needs_estimate = false;
  for (std::int64_t index = 0; index < num_heads; ++index) {
    const HeadTask task = head_task(index);
    if (!must_plan(task)) continue;
    const Unit& unit = *task.unit;
    const HeadPattern pattern = problem_.patterns.at(task.head_q);
    HeadPlan& plan = task.head->plan;
    plan.kind = pattern.kind;
    plan.mode = problem_.mode;
    // Sizes past the sequence mean the whole sequence.
    for (int i = 0; i < 3; ++i) plan.size[i] = std::min(pattern.size[i], unit.sequence.kv_len);
    plan.num_vertical = plan.num_slash = plan.num_chunks = 0;
    const std::int64_t q_len = unit.row_end - unit.row_begin;
    if (pattern.kind == PatternKind::kVerticalSlash && may_fall_back &&
        plan::predict(pattern, q_len, unit.chunk_kv_len).is_dense()) {
      plan.kind = PatternKind::kDense;
    }
    task.head->needs_estimate = plan.kind == PatternKind::kVerticalSlash && q_len > 0;
    any_needs_estimate |= task.head->needs_estimate;
  }
  if (!has_lines_) return;
  if (any_needs_estimate) estimate_scores();
  parallel_for(workers_, num_heads, [&](std::int64_t index, std::int64_t) {
    const HeadTask task = head_task(index);
    HeadPlan& plan = task.head->plan;
    const Unit& unit = *task.unit;
    if (!must_plan(task) || unit.row_begin == unit.row_end ||
        (plan.kind != PatternKind::kVerticalSlash &&
         plan.kind != PatternKind::kVerticalSlashIndex)) {
      return;
    }
    choose_lines(task);
    build_vs_plan(unit.sequence.kv_len, &plan);
    const std::int64_t q_len = unit.row_end - unit.row_begin;
    if (may_fall_back && plan.kind == PatternKind::kVerticalSlash &&
        plan::plan_costs_dense(vs_pieces(plan, q_len, unit.chunk_kv_len), q_len,
                               unit.chunk_kv_len)) {
      plan.kind = PatternKind::kDense;
    }
  });
}

}  // namespace minference::cpu
