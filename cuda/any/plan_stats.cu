// PlanStats of every head: walks the plan of every row block as attention does and counts the
// pieces of 64 x 32 it would multiply and the rows that attend a key. Called for the op plan_stats,
// per chunk of queries; pairs add up over the chunks, the first of which sets them.
//
// Same numbers as LayerRun::add_stats on the CPU, but for the bytes, which are those of this
// backend. Integer sums: the order does not matter.
#include <cub/block/block_reduce.cuh>

#include "any/launch.h"
#include "device/bits.cuh"
#include "device/dependent_launch.cuh"
#include "device/launch.cuh"
#include "device/plan_walk.cuh"
#include "device/sequence.cuh"

namespace minference::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kChunk = plan::kChunk;

using Sum = cub::BlockReduce<std::int64_t, kThreads>;

/// What a thread has counted.
struct Tally {
  std::int64_t pieces;
  std::int64_t attended;
  std::int64_t listed;  // tiles and columns

  __device__ void add(std::int64_t num_pieces, std::int64_t pairs) {
    pieces += num_pieces;
    attended += pairs;
  }
};

/// Counts a chunk unless no row attends any of its columns. rows(column): those who attend.
template <class Rows>
__device__ void add_columns(const RowBlock& block, const Rows& rows, Tally* tally) {
  const std::uint64_t existing = first_rows(block.num_rows);
  std::uint64_t any = 0;
  std::int32_t pairs = 0;
#pragma unroll 1
  for (int column = 0; column < kChunk; ++column) {
    const std::uint64_t attending = rows(column);
    any |= attending;
    pairs += __popcll(attending & existing);
  }
  if (any != 0) tally->add(1, pairs);
}

/// A warp counts the spans of a row block.
__device__ void add_spans(const RowBlock& block, int lane, Tally* tally) {
  for (int index = 0; index < kMaxSpans; ++index) {
    const Span span = span_of(block, index);
    const std::int32_t num_chunks = (span.end - span.begin + kChunk - 1) / kChunk;
    const std::int32_t num_full = (span.full_end - span.full_begin) / kChunk;
    const std::int32_t before = (span.full_begin - span.begin) / kChunk;
    if (lane == 0) {
      tally->add(num_full, std::int64_t{num_full} * kChunk * block.num_rows);
    }
    for (std::int32_t i = lane; i < num_chunks - num_full; i += 32) {
      const std::int32_t key = span.begin + kChunk * (i < before ? i : i + num_full);
      add_columns(block, [&](int column) { return span_rows(block, span, key + column); }, tally);
    }
  }
}

/// A warp counts the chunks and vertical columns of a row block.
__device__ void add_lines(const RowBlock& block, const Lines& lines, const RowBlockLists& lists,
                          int lane, Tally* tally) {
  const std::int32_t num_chunks = lines.mode == SlashMode::kReference ? 0 : lines.num_chunks;
  for (std::int32_t i = lane; i < num_chunks; i += 32) {
    const plan::PlanChunk chunk = lines.chunks[i];
    if (!meets(block, chunk)) break;
    if (lines.mode == SlashMode::kExact) {
      const auto rows = [&](int column) {
        return exact_rows(block, chunk, column, lines.slash_bits, lines.vertical_bits);
      };
      add_columns(block, rows, tally);
    } else if (is_everyones(block, chunk)) {
      tally->add(1, std::int64_t{__popc(chunk.valid)} * block.num_rows);
    } else {
      add_columns(block, [&](int column) { return cover_rows(block, chunk, column); }, tally);
    }
  }
  const std::uint64_t existing = first_rows(block.num_rows);
  for (std::int32_t first = 0; first < lines.num_vertical; first += 32) {
    if (lines.verticals[first] >= block.key_end) break;
    const std::int32_t i = first + lane;
    const bool is_attended =
        i < lines.num_vertical && is_vertical_attended(block, lines, lists, lines.verticals[i]);
    const std::uint64_t rows = is_attended ? causal_rows(block, lines.verticals[i]) : 0;
    const bool is_met = __any_sync(~0u, rows != 0);
    tally->add(is_met && lane == 0 ? 1 : 0, __popcll(rows & existing));
  }
}

/// A warp counts the listed tiles of a row block.
__device__ void add_tiles(const RowBlock& block, const RowBlockLists& lists, int lane,
                          Tally* tally) {
  if (lane == 0) tally->listed += lists.num_tiles + lists.num_columns;
  for (std::int32_t half = lane; half < 2 * lists.num_tiles; half += 32) {
    const std::int32_t key = lists.tiles[half / 2] * lists.keys_per_tile + half % 2 * kChunk;
    if (key + kChunk <= block.end - kRowBlock + 1) {
      tally->add(1, std::int64_t{kChunk} * block.num_rows);
    } else {
      add_columns(block, [&](int column) { return tile_rows(block, key + column); }, tally);
    }
  }
}

/// What attention reads of the plan: mode kExact tests lines, mode kCover the cover, mode
/// kReference has lists.
__device__ std::int64_t plan_bytes(const HeadPlan& plan, SlashMode mode, const Sequence& sequence,
                                   std::int32_t num_blocks, std::int64_t num_listed) {
  constexpr std::int64_t kWordsOfChunk = sizeof(plan::PlanChunk) / sizeof(std::int32_t);
  std::int64_t words = plan.num_vertical;
  if (has_tiles(plan)) words += num_listed + num_blocks;
  if (has_lines(plan) && mode == SlashMode::kReference) {
    words += num_listed + 2 * num_blocks;
  } else if (has_lines(plan)) {
    words += num_bit_words(sequence.kv_len) * (mode == SlashMode::kExact ? 2 : 1) +
             plan.num_chunks * kWordsOfChunk;
  }
  return sizeof(HeadPlan) + words * std::int64_t{sizeof(std::int32_t)};
}

/// Scores and statistics of an even number of strips, and the bit sets of the lines.
__device__ std::int64_t estimation_bytes(std::int64_t strip, const Sequence& sequence) {
  const std::int64_t strips = (sequence.chunk_kv_len + 2 * strip - 1) / (2 * strip) * 2;
  const std::int64_t scores = strips * (2 * strip + kSlotTail);
  return scores * std::int64_t{sizeof(float)} +
         (strips + 1) * kRowBlock * std::int64_t{sizeof(float2)} +
         2 * num_bit_words(sequence.kv_len) * std::int64_t{sizeof(std::uint32_t)};
}

/// One block per sequence and head, a warp per row block.
__global__ void __launch_bounds__(kThreads, 1)
    plan_stats(const __grid_constant__ StatsParams params) {
  begin_kernel();
  __shared__ Sum::TempStorage shared[3];
  const std::int32_t unit = static_cast<std::int32_t>(blockIdx.x);
  const std::int32_t index = unit / params.call.num_heads_q;
  const std::int32_t head = unit % params.call.num_heads_q;
  const Sequence sequence = sequence_at(params.call.sequences, index);
  const LayerPlan& layer = params.plan;
  const HeadPlan& plan = layer.heads[unit];
  PlanStats& stats = params.stats[unit];
  const bool is_first = params.call.sequences.chunk_index == 0;
  const std::int64_t num_rows = sequence.row_end - sequence.row_begin;
  if (num_rows == 0) {
    const auto kind = static_cast<PatternKind>(params.patterns.kind[head]);
    if (is_first && threadIdx.x == 0) {
      stats = {};
      stats.is_dense = kind == PatternKind::kDense ? 1 : 0;
    }
    return;
  }
  const Lines lines = lines_of(layer, plan, params.call.mode, head, index, sequence);
  const std::int64_t first_block =
      head * layer.row_blocks.total + first_row(layer.row_blocks, index, sequence.q_begin);
  const std::int32_t num_blocks = static_cast<std::int32_t>(plan::num_row_blocks(num_rows));
  const int lane = threadIdx.x % 32;
  Tally tally{};
  for (std::int32_t i = threadIdx.x / 32; i < num_blocks; i += kWarps) {
    const RowBlock block = row_block_at(sequence, plan, i);
    const RowBlockLists lists =
        lists_of(layer, params.columns, plan, params.call.mode, first_block + i);
    add_tiles(block, lists, lane, &tally);
    if (has_lines(plan)) {
      add_lines(block, lines, lists, lane, &tally);
    } else if (!has_tiles(plan)) {
      add_spans(block, lane, &tally);
    }
  }
  tally.pieces = Sum(shared[0]).Sum(tally.pieces);
  tally.attended = Sum(shared[1]).Sum(tally.attended);
  tally.listed = Sum(shared[2]).Sum(tally.listed);
  if (threadIdx.x != 0) return;
  if (is_first) stats = {};
  stats.is_dense = plan.kind == PatternKind::kDense ? 1 : 0;
  stats.num_vertical = plan.num_vertical;
  stats.num_slash = plan.num_slash;
  stats.num_chunks = plan.num_chunks;
  stats.computed_pairs += tally.pieces * kChunk * kRowBlock;
  stats.attended_pairs += tally.attended;
  const std::int64_t first_keys = sequence.chunk_kv_len - num_rows + 1;  // of the first row
  stats.causal_pairs += num_rows * first_keys + num_rows * (num_rows - 1) / 2;
  stats.plan_bytes = plan_bytes(plan, params.call.mode, sequence, num_blocks, tally.listed);
  stats.estimation_bytes = plan.is_estimated != 0 ? estimation_bytes(params.strip, sequence) : 0;
}

}  // namespace

cudaError_t launch_plan_stats(const StatsParams& params, cudaStream_t stream) {
  const unsigned units =
      static_cast<unsigned>(params.call.sequences.count) * params.call.num_heads_q;
  return launch(plan_stats, dim3(units), kThreads, 0, stream, params);
}

}  // namespace minference::cuda
