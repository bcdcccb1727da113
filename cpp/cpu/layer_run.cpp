// Memory and order of a call; the steps are in estimation.cpp (lines) and row_blocks.cpp
// (attention).
#include "cpu/layer_run.h"

#include <algorithm>

namespace minference::cpu {
namespace {

/// Memory that a group of units may take before another unit would make it larger than this.
constexpr std::size_t kGroupBytes = std::size_t{256} << 20;

std::int64_t num_words(std::int64_t num_bits) { return BitSet::num_words(num_bits); }

}  // namespace

LayerRun::LayerRun(const Problem& problem, const AttentionKernel& kernel, void* workspace)
    : problem_(problem),
      kernel_(kernel),
      workers_{std::max<std::int64_t>(1, problem.args.num_threads), problem.args.parallel_for},
      element_bytes_(problem.args.q.dtype == DType::kFloat32 ? 4 : 2) {
  measure();
  Arena arena(workspace, kAlignment);
  take_memory(&arena);
  workspace_bytes_ = arena.block_bytes();
}

void LayerRun::measure() {
  for (std::int64_t i = 0; i < problem_.num_sequences(); ++i) {
    const Sequence sequence = sequence_at(problem_, i);
    max_q_len_ = std::max(max_q_len_, sequence.q_len);
    max_kv_len_ = std::max(max_kv_len_, sequence.kv_len);
  }
  max_blocks_ = num_row_blocks(max_kv_len_);
  for (std::int64_t head = 0; head < problem_.num_heads_q(); ++head) {
    const HeadPattern pattern = problem_.patterns.at(head);
    switch (pattern.kind) {
      case PatternKind::kVerticalSlash:
        has_estimates_ = has_lines_ = true;
        max_vertical_ =
            std::max(max_vertical_, plan::num_estimated_vertical(pattern.size[0], max_kv_len_));
        max_slash_ = std::max(max_slash_, plan::num_estimated_slash(pattern.size[1], max_kv_len_));
        break;
      case PatternKind::kVerticalSlashIndex:
        has_lines_ = true;
        max_vertical_ = std::max(max_vertical_, problem_.vertical_idx.shape[2]);
        max_slash_ = std::max(max_slash_, problem_.slash_idx.shape[2]);
        break;
      case PatternKind::kBlockSparse:
        has_pooling_ = true;
        max_tiles_ = std::max(max_tiles_, std::min(pattern.size[0], max_blocks_));
        break;
      case PatternKind::kBlockIndex:
        max_tiles_ = std::max(max_tiles_, problem_.block_idx.shape[3]);
        break;
      case PatternKind::kDense:
      case PatternKind::kAShape:
      case PatternKind::kTriShape:
        break;
    }
  }
  if (has_lines_ && problem_.mode == SlashMode::kReference) {
    max_tiles_ = std::max(max_tiles_, max_slash_);
  }
  num_units_ = problem_.num_sequences() * problem_.num_heads_kv();
}

void LayerRun::take_memory(Arena* arena) {
  const int head_dim = problem_.head_dim();
  worker_scratch_ = arena->take<WorkerScratch>(workers_.count);
  for (std::int64_t i = 0; i < workers_.count; ++i) {
    WorkerScratch scratch;
    scratch.kernel = arena->take_bytes(kernel_.scratch_bytes(head_dim));
    scratch.tiles = arena->take<std::int32_t>(max_tiles_);
    scratch.columns =
        arena->take<std::int32_t>(problem_.mode == SlashMode::kReference ? max_vertical_ : 0);
    scratch.block_scores = arena->take<float>(has_pooling_ ? max_blocks_ : 0);
    if (worker_scratch_ != nullptr) worker_scratch_[i] = scratch;
  }
  Arena one_unit(nullptr, kAlignment);
  Unit measured;
  take_unit(&one_unit, &measured);
  const std::int64_t fitting = static_cast<std::int64_t>(kGroupBytes / (one_unit.used() + 1));
  units_per_group_ = std::clamp<std::int64_t>(fitting, 1, std::max<std::int64_t>(1, num_units_));
  units_ = arena->take<Unit>(units_per_group_);
  for (std::int64_t i = 0; i < units_per_group_; ++i) {
    Unit unit{};
    take_unit(arena, &unit);
    if (units_ != nullptr) units_[i] = unit;
  }
}

void LayerRun::take_unit(Arena* arena, Unit* unit) {
  const int head_dim = problem_.head_dim();
  if (problem_.needs_values && kernel_.needs_packed_v) {
    unit->packed_v =
        static_cast<std::uint16_t*>(arena->take_bytes(packed_v_bytes(max_kv_len_, head_dim)));
    unit->has_nonfinite = arena->take<std::uint8_t>(max_kv_len_ / kChunk + 1);
  }
  if (has_pooling_) unit->pooled_k = arena->take<float>(max_blocks_ * head_dim);
  unit->heads = arena->take<Head>(problem_.heads_per_kv());
  for (std::int64_t i = 0; i < problem_.heads_per_kv(); ++i) {
    Head head{};
    take_head(arena, &head);
    if (unit->heads != nullptr) unit->heads[i] = head;
  }
}

void LayerRun::take_head(Arena* arena, Head* head) {
  if (!has_lines_) return;
  const int head_dim = problem_.head_dim();
  head->plan.verticals = arena->take<std::int32_t>(max_vertical_);
  head->plan.slashes = arena->take<std::int32_t>(max_slash_);
  head->plan.chunks = arena->take<PlanChunk>(plan::max_plan_chunks(max_slash_, max_kv_len_));
  head->plan.covered.words = arena->take<std::uint64_t>(num_words(max_kv_len_ + kRowBlock + 1));
  if (problem_.mode == SlashMode::kExact) {
    head->plan.offsets.words = arena->take<std::uint64_t>(num_words(max_kv_len_ + 2 * kRowBlock));
    head->plan.is_vertical.words = arena->take<std::uint64_t>(num_words(max_kv_len_));
  }
  if (problem_.needs_values) {
    const std::int64_t rows = std::min(max_vertical_, max_kv_len_);
    const std::size_t row_bytes = element_bytes_ * head_dim;
    head->gathered_k = arena->take_bytes(rows * row_bytes);
    if (kernel_.needs_packed_v) {
      head->gathered_packed_v =
          static_cast<std::uint16_t*>(arena->take_bytes(packed_v_bytes(rows, head_dim)));
      head->gathered_nonfinite = arena->take<std::uint8_t>(rows / kChunk + 1);
    } else {
      head->gathered_v = arena->take_bytes(rows * row_bytes);
    }
  }
  if (!has_estimates_) return;
  const std::int64_t segments = num_key_segments(max_kv_len_);
  head->column_scores = arena->take<float>(max_kv_len_);
  head->slash_scores = arena->take<float>(segments * kSlashSlot);
  head->row_stats = arena->take<float>((segments + 1) * kStatsSlot);
}

std::int64_t LayerRun::estimation_bytes(std::int64_t kv_len) {
  const std::int64_t segments = num_key_segments(kv_len);
  const std::int64_t floats = kv_len + segments * kSlashSlot + (segments + 1) * kStatsSlot;
  return floats * static_cast<std::int64_t>(sizeof(float));
}

template <class Step>
void LayerRun::for_each_group(const Step& step) {
  for (std::int64_t begin = 0; begin < num_units_; begin += units_per_group_) {
    begin_group(begin, std::min(num_units_, begin + units_per_group_));
    step();
  }
}

void LayerRun::begin_group(std::int64_t unit_begin, std::int64_t unit_end) {
  group_size_ = unit_end - unit_begin;
  group_max_kv_ = 0;
  for (std::int64_t i = 0; i < group_size_; ++i) {
    Unit& unit = units_[i];
    unit.index_of_sequence = (unit_begin + i) / problem_.num_heads_kv();
    unit.head_kv = (unit_begin + i) % problem_.num_heads_kv();
    unit.sequence = sequence_at(problem_, unit.index_of_sequence);
    group_max_kv_ = std::max(group_max_kv_, unit.sequence.kv_len);
  }
}

bool LayerRun::begin_query_chunk(std::int64_t index) {
  is_first_query_chunk_ = index == 0;
  const std::int64_t step =
      has_estimates_ && problem_.estimate_every > 0
          ? std::min(problem_.estimate_every, std::max<std::int64_t>(max_q_len_, 1))
          : max_q_len_;
  bool has_rows = false;
  for (std::int64_t i = 0; i < group_size_; ++i) {
    Unit& unit = units_[i];
    const Sequence& sequence = unit.sequence;
    unit.row_begin = std::min(sequence.q_len, index * step);
    unit.row_end = std::min(sequence.q_len, unit.row_begin + step);
    unit.chunk_kv_len = sequence.kv_len - (sequence.q_len - unit.row_end);
    has_rows |= unit.row_begin < unit.row_end;
  }
  return has_rows;
}

LayerRun::HeadTask LayerRun::head_task(std::int64_t index) {
  Unit* const unit = &units_[index / problem_.heads_per_kv()];
  const std::int64_t head = index % problem_.heads_per_kv();
  return {unit, &unit->heads[head], unit->head_kv * problem_.heads_per_kv() + head};
}

const void* LayerRun::row_of(const TensorView& view, std::int64_t batch, std::int64_t head,
                             std::int64_t row) const {
  const std::int64_t offset = batch * view.stride[0] + head * view.stride[1] + row * view.stride[2];
  return static_cast<const char*>(view.data) + offset * static_cast<std::int64_t>(element_bytes_);
}

KeySource LayerRun::sequence_keys(const Unit& unit) const {
  const Sequence& sequence = unit.sequence;
  return {.k = row_of(problem_.args.k, sequence.batch, unit.head_kv, sequence.kv_begin),
          .v = problem_.args.v.data == nullptr
                   ? nullptr
                   : row_of(problem_.args.v, sequence.batch, unit.head_kv, sequence.kv_begin),
          .k_stride = problem_.args.k.stride[2],
          .v_stride = problem_.args.v.stride[2],
          .packed_v = unit.packed_v,
          .has_nonfinite = unit.has_nonfinite,
          .num_keys = sequence.kv_len};
}

void LayerRun::attention() {
  clear_padding_rows();
  for_each_group([&] {
    pack_values();
    pool_keys();
    for (std::int64_t chunk = 0; begin_query_chunk(chunk); ++chunk) {
      build_plans();
      gather_verticals();
      attend();
    }
  });
}

void LayerRun::plan_stats(PlanStats* stats) {
  const std::int64_t heads = problem_.num_heads_q();
  for (std::int64_t i = 0; i < problem_.num_sequences() * heads; ++i) {
    stats[i] = {};
    stats[i].is_dense = problem_.patterns.at(i % heads).kind == PatternKind::kDense ? 1 : 0;
  }
  for_each_group([&] {
    pool_keys();
    for (std::int64_t chunk = 0; begin_query_chunk(chunk); ++chunk) {
      build_plans();
      parallel_for(workers_, group_size_ * problem_.heads_per_kv(),
                   [&](std::int64_t index, std::int64_t worker) {
                     const HeadTask task = head_task(index);
                     add_stats(task, worker_scratch_[worker],
                               &stats[task.unit->index_of_sequence * heads + task.head_q]);
                   });
    }
  });
}

void LayerRun::estimate(const EstimatedLines& lines) {
  const std::int64_t heads = problem_.num_heads_q();
  const std::int64_t sequences = problem_.num_sequences();
  std::fill_n(lines.vertical_idx, sequences * heads * lines.vertical_count, -1);
  std::fill_n(lines.slash_idx, sequences * heads * lines.slash_count, -1);
  const auto clear_scores = [&](float* scores) {
    if (scores != nullptr) std::fill_n(scores, sequences * heads * problem_.seq_kv(), 0.0f);
  };
  clear_scores(lines.column_scores);
  clear_scores(lines.slash_scores);
  for_each_group([&] {
    if (!begin_query_chunk(0)) return;
    build_plans();
    parallel_for(workers_, group_size_ * problem_.heads_per_kv(),
                 [&](std::int64_t index, std::int64_t) {
                   const HeadTask task = head_task(index);
                   if (task.unit->row_begin == task.unit->row_end) return;
                   const Head& head = *task.head;
                   const std::int64_t slot = task.unit->index_of_sequence * heads + task.head_q;
                   std::copy_n(head.plan.verticals, head.plan.num_vertical,
                               lines.vertical_idx + slot * lines.vertical_count);
                   std::copy_n(head.plan.slashes, head.plan.num_slash,
                               lines.slash_idx + slot * lines.slash_count);
                   const auto copy_scores = [&](const float* from, float* to) {
                     if (to == nullptr) return;
                     std::copy_n(from, task.unit->chunk_kv_len, to + slot * problem_.seq_kv());
                   };
                   copy_scores(head.column_scores, lines.column_scores);
                   copy_scores(head.slash_scores, lines.slash_scores);
                 });
  });
}

std::size_t attention_workspace_bytes(const Problem& problem, const AttentionKernel& kernel) {
  return LayerRun(problem, kernel, nullptr).workspace_bytes();
}

void attention(const Problem& problem, const AttentionKernel& kernel, void* workspace) {
  LayerRun(problem, kernel, workspace).attention();
}

void plan_stats(const Problem& problem, const AttentionKernel& kernel, PlanStats* stats,
                void* workspace) {
  LayerRun(problem, kernel, workspace).plan_stats(stats);
}

void estimate(const Problem& problem, const AttentionKernel& kernel, const EstimatedLines& lines,
              void* workspace) {
  LayerRun(problem, kernel, workspace).estimate(lines);
}

Sequence sequence_at(const Problem& problem, std::int64_t index) {
  const AttentionArgs& args = problem.args;
  if (problem.is_packed()) {
    return {0, args.cu_seqlens_q[index], args.cu_seqlens_q[index + 1] - args.cu_seqlens_q[index],
            args.cu_seqlens_kv[index], args.cu_seqlens_kv[index + 1] - args.cu_seqlens_kv[index]};
  }
  const std::int64_t first = args.first_valid_key == nullptr ? 0 : args.first_valid_key[index];
  const std::int64_t q_begin =
      std::max<std::int64_t>(0, first - (problem.seq_kv() - problem.seq_q()));
  return {index, q_begin, problem.seq_q() - q_begin, first, problem.seq_kv() - first};
}

}  // namespace minference::cpu
