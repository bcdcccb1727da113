#include "layer_index.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "any/launch.h"
#include "choose.h"
#include "device_error.h"

namespace minference::cuda {
namespace {

constexpr std::int64_t kMinStrip = 512;   // less, and a strip's statistics outweigh its scores
constexpr std::int64_t kMaxStrip = 2048;  // more, and a million tokens fill the machine unevenly
constexpr std::int64_t kStripsAimed = 128;

std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

/// Keys of a strip: enough strips to fill the machine, from the extent of k alone.
std::int32_t strip_length(std::int64_t seq_kv) {
  std::int64_t strip = kMinStrip;
  while (strip < kMaxStrip && strip * kStripsAimed < seq_kv) strip *= 2;
  return static_cast<std::int32_t>(strip);
}

Rows packed(std::int32_t divisor, std::int32_t slack, std::int32_t multiple) {
  return {.stride = 0, .divisor = divisor, .slack = slack, .total = 0, .multiple = multiple};
}

}  // namespace

Tensor device_tensor(const TensorView& view) {
  const auto stride = [&](int axis) { return view.shape[axis] > 1 ? view.stride[axis] : 0; };
  return {view.data, stride(0), stride(1), stride(2), view.dtype};
}

HeadScales head_scales(const AttentionArgs& args) {
  return {args.q_scale, args.k_scale, args.v_scale};
}

LayerIndex::LayerIndex(const plan::Problem& problem, void* workspace)
    : problem_(problem), stream_(static_cast<cudaStream_t>(problem.args.stream)) {
  measure();
  // Without memory nothing is launched, and the device of the tensors need not be current.
  DeviceFacts facts{};
  plan_.call.may_overlap =
      workspace != nullptr && device_facts(&facts) == Status::kOk && can_overlap_kernels(facts);
  plan::Arena arena(workspace, kAlignment);
  take_memory(&arena);
  workspace_bytes_ = arena.block_bytes();
}

void LayerIndex::measure() {
  const std::int64_t max_blocks = plan::num_row_blocks(problem_.seq_kv());
  Patterns& patterns = plan_.patterns;
  for (std::int64_t head = 0; head < problem_.num_heads_q(); ++head) {
    const HeadPattern pattern = problem_.patterns.at(head);
    patterns.kind[head] = static_cast<std::uint8_t>(pattern.kind);
    for (int i = 0; i < 3; ++i) {
      // Sizes past the sequence mean the whole sequence; those a pattern lacks are not read.
      patterns.size[head][i] = static_cast<std::int32_t>(
          std::clamp<std::int64_t>(pattern.size[i], 0, problem_.seq_kv()));
    }
    switch (pattern.kind) {
      case PatternKind::kVerticalSlash:
        has_estimates_ = has_lines_ = true;
        max_vertical_ = std::max(max_vertical_,
                                 plan::num_estimated_vertical(pattern.size[0], problem_.seq_kv()));
        max_slash_ =
            std::max(max_slash_, plan::num_estimated_slash(pattern.size[1], problem_.seq_kv()));
        break;
      case PatternKind::kVerticalSlashIndex:
        has_lines_ = true;
        max_vertical_ =
            std::max(max_vertical_, std::min(problem_.vertical_idx.shape[2], problem_.seq_kv()));
        max_slash_ = std::max(max_slash_, std::min(problem_.slash_idx.shape[2], problem_.seq_kv()));
        break;
      case PatternKind::kBlockSparse:
        has_pooling_ = has_tiles_ = true;
        max_tiles_ = std::max(max_tiles_, std::min(pattern.size[0], max_blocks));
        break;
      case PatternKind::kBlockIndex:
        has_tiles_ = true;
        max_tiles_ = std::max(max_tiles_, std::min(problem_.block_idx.shape[3], max_blocks));
        break;
      case PatternKind::kDense:
      case PatternKind::kAShape:
      case PatternKind::kTriShape:
        break;
    }
  }
  Call& call = plan_.call;
  call.sequences = {.first_valid_key = problem_.args.first_valid_key,
                    .cu_seqlens_q = problem_.args.cu_seqlens_q,
                    .cu_seqlens_kv = problem_.args.cu_seqlens_kv,
                    .count = static_cast<std::int32_t>(problem_.num_sequences()),
                    .seq_q = static_cast<std::int32_t>(problem_.seq_q()),
                    .seq_kv = static_cast<std::int32_t>(problem_.seq_kv()),
                    .chunk_rows = 0,
                    .chunk_index = 0};
  call.num_heads_q = static_cast<std::int32_t>(problem_.num_heads_q());
  call.num_heads_kv = static_cast<std::int32_t>(problem_.num_heads_kv());
  call.heads_per_kv = static_cast<std::int32_t>(problem_.heads_per_kv());
  call.head_dim = problem_.head_dim();
  call.dtype = problem_.args.q.dtype;
  call.may_fall_back = problem_.dense_fallback && problem_.mode == SlashMode::kCover;
  call.mode = problem_.mode;
  if (has_estimates_ && problem_.estimate_every > 0 && problem_.estimate_every < problem_.seq_q()) {
    call.sequences.chunk_rows = static_cast<std::int32_t>(problem_.estimate_every);
    num_query_chunks_ =
        static_cast<std::int32_t>(ceil_div(problem_.seq_q(), problem_.estimate_every));
  }
}

/// Rows in an array that all sequences share: `per_sequence` for each, or, where it takes less,
/// as many as a packed sequence's length makes necessary. `extent`: tokens of all sequences.
Rows LayerIndex::rows(std::int64_t extent, std::int64_t per_sequence, Rows packed) const {
  const std::int64_t count = problem_.num_sequences();
  const Rows strided = {
      .stride = per_sequence, .divisor = 0, .slack = 0, .total = count * per_sequence};
  if (!problem_.is_packed()) return strided;
  packed.total = (extent / packed.divisor + count * packed.slack) * packed.multiple;
  return packed.total < strided.total ? packed : strided;
}

void LayerIndex::take_memory(plan::Arena* arena) {
  const std::int64_t heads = problem_.num_heads_q();
  const std::int64_t count = problem_.num_sequences();
  const std::int64_t seq_kv = problem_.seq_kv();
  const std::int64_t head_dim = problem_.head_dim();
  LayerPlan& plan = plan_.plan;
  plan.heads = arena->take<HeadPlan>(count * heads);
  plan.next_task = arena->take<unsigned>(1);
  const std::int64_t chunk_rows = plan_.call.sequences.chunk_rows;
  const std::int64_t query_rows = chunk_rows > 0 ? chunk_rows : problem_.seq_q();
  plan.row_blocks =
      rows(problem_.seq_q(), plan::num_row_blocks(query_rows), packed(kRowBlock, 1, 1));

  Scores& scores = plan_.scores;
  scores.strip = strip_length(seq_kv);
  if (has_estimates_) {
    scores.strips =
        rows(seq_kv, 2 * ceil_div(seq_kv, 2 * scores.strip), packed(2 * scores.strip, 1, 2));
    const std::int64_t strips = heads * scores.strips.total;
    scores.column_scores = arena->take<float>(strips * scores.strip);
    scores.slash_scores = arena->take<float>(strips * (scores.strip + kSlotTail));
    estimate_.strip_stats = arena->take<float2>(strips * kRowBlock);
    estimate_.row_stats = arena->take<float2>(count * heads * kRowBlock);
  }
  if (has_lines_) {
    plan.vertical_rows =
        rows(seq_kv, round_up(max_vertical_, kGatherRows), packed(kGatherRows, 1, kGatherRows));
    plan.slash_rows = rows(seq_kv, max_slash_, packed(1, 0, 1));
    // A chunk per 32 columns and one per gap, which is at least 65 columns away from the next.
    plan.chunk_rows = rows(seq_kv, plan::max_plan_chunks(max_slash_, seq_kv), packed(21, 8, 1));
    // In groups of four words, as device/bits.cuh loads them.
    plan.bit_words = rows(seq_kv, 4 * ceil_div(seq_kv + 2 * kRowBlock + 1, 128), packed(128, 3, 4));
    plan.verticals = arena->take<std::int32_t>(heads * plan.vertical_rows.total);
    plan.slashes = arena->take<std::int32_t>(heads * plan.slash_rows.total);
    plan.chunks = arena->take<plan::PlanChunk>(heads * plan.chunk_rows.total);
    plan.covered = arena->take<std::uint32_t>(heads * plan.bit_words.total);
    plan.slash_bits = arena->take<std::uint32_t>(heads * plan.bit_words.total);
    plan.vertical_bits = arena->take<std::uint32_t>(heads * plan.bit_words.total);
    if (problem_.needs_values) {
      const std::size_t bytes =
          element_bytes(plan_.call.dtype) * heads * plan.vertical_rows.total * head_dim;
      plan.gathered_k = arena->take_bytes(bytes);
      plan.gathered_v = arena->take_bytes(bytes);
    }
  }
  const bool has_reference_lists = has_lines_ && problem_.mode == SlashMode::kReference;
  if (has_reference_lists) {
    max_tiles_ = std::max(max_tiles_, max_slash_);
    columns_.max_columns = static_cast<std::int32_t>(max_vertical_);
    columns_.columns = arena->take<std::int32_t>(heads * plan.row_blocks.total * max_vertical_);
    columns_.num_columns = arena->take<std::int32_t>(heads * plan.row_blocks.total);
  }
  if (has_tiles_ || has_reference_lists) {
    plan.max_tiles = static_cast<std::int32_t>(max_tiles_);
    plan.tiles = arena->take<std::int32_t>(heads * plan.row_blocks.total * max_tiles_);
    plan.num_tiles = arena->take<std::int32_t>(heads * plan.row_blocks.total);
  }
  Pooled& pooled = tiles_.pooled;
  if (has_pooling_) {
    pooled.query_blocks = plan.row_blocks;
    pooled.key_blocks = rows(seq_kv, plan::num_row_blocks(seq_kv), packed(kRowBlock, 1, 1));
    pooled.q = arena->take<float>(heads * pooled.query_blocks.total * head_dim);
    pooled.k = arena->take<float>(problem_.num_heads_kv() * pooled.key_blocks.total * head_dim);
  }

  plan_.vertical_idx = problem_.vertical_idx;
  plan_.slash_idx = problem_.slash_idx;
  estimate_.patterns = tiles_.patterns = plan_.patterns;
  estimate_.q = device_tensor(problem_.args.q);
  estimate_.k = device_tensor(problem_.args.k);
  estimate_.scale_log2 = problem_.scale_log2;
  estimate_.scales = head_scales(problem_.args);
  estimate_.is_aligned = has_aligned_rows(estimate_.q) && has_aligned_rows(estimate_.k);
  estimate_.scores = scores;
  tiles_.block_idx = problem_.block_idx;
  tiles_.plan = plan;
  set_query_chunk(0);
}

void LayerIndex::set_query_chunk(std::int32_t index) {
  plan_.call.sequences.chunk_index = index;
  estimate_.call = tiles_.call = plan_.call;
}

Status LayerIndex::estimate_scores() {
  if (!has_estimates_ || problem_.seq_q() == 0) return Status::kOk;
  Status status = launched(launch_row_stats(estimate_, stream_), "row_stats");
  if (status == Status::kOk) {
    status = launched(launch_merge_row_stats(estimate_, stream_), "merge_row_stats");
  }
  if (status == Status::kOk) status = launched(launch_line_sums(estimate_, stream_), "line_sums");
  return status;
}

Status LayerIndex::estimate(const plan::EstimatedLines& lines) {
  Status status = estimate_scores();
  if (status != Status::kOk) return status;
  PlanParams params = plan_;
  params.vertical_out = lines.vertical_idx;
  params.slash_out = lines.slash_idx;
  params.vertical_count = lines.vertical_count;
  params.slash_count = lines.slash_count;
  params.column_scores_out = lines.column_scores;
  params.slash_scores_out = lines.slash_scores;
  return launched(launch_select_lines(params, stream_), "select_lines");
}

Status LayerIndex::build(std::int32_t query_chunk) {
  set_query_chunk(query_chunk);
  Status status = estimate_scores();
  if (status == Status::kOk && has_pooling_) {
    PoolParams pool = {.call = plan_.call,
                       .patterns = plan_.patterns,
                       .q = estimate_.q,
                       .k = estimate_.k,
                       .pooled = tiles_.pooled};
    if (query_chunk > 0) pool.pooled.k = nullptr;  // the first chunk has pooled every key
    status = launched(launch_pool(pool, stream_), "pool");
  }
  if (status == Status::kOk && has_tiles_) {
    status = launched(launch_list_tiles(tiles_, stream_), "list_tiles");
  }
  if (status == Status::kOk && has_lines_) {
    status = launched(launch_select_lines(plan_, stream_), "select_lines");
  }
  if (status == Status::kOk) status = launched(launch_build_plan(plan_, stream_), "build_plan");
  if (status == Status::kOk && columns_.columns != nullptr) {
    const ReferenceParams lists = {.call = plan_.call, .plan = plan_.plan, .columns = columns_};
    status = launched(launch_reference_lists(lists, stream_), "reference_lists");
  }
  if (status == Status::kOk && plan_.plan.gathered_k != nullptr) {
    const GatherParams gather = {.call = plan_.call,
                                 .k = device_tensor(problem_.args.k),
                                 .v = device_tensor(problem_.args.v),
                                 .plan = plan_.plan};
    status = launched(launch_gather(gather, stream_), "gather");
  }
  return status;
}

Status LayerIndex::add_stats(PlanStats* stats) {
  const StatsParams params = {.call = plan_.call,
                              .patterns = plan_.patterns,
                              .plan = plan_.plan,
                              .columns = columns_,
                              .strip = plan_.scores.strip,
                              .stats = stats};
  return launched(launch_plan_stats(params, stream_), "plan_stats");
}

}  // namespace minference::cuda
