// What a row block of a head meets, whatever the pattern: spans of keys, chunks of the plan,
// vertical columns, key blocks; and which of its 64 rows attend a key of each, as a word with a bit
// per row. The statistics count these words; attention masks its scores by them.
//
// Same meaning as cpp/cpu/chunk_cursor.cpp. e is the key position just past the row block, also
// past a partial last one, and t = e - key. Rows that do not exist have bits as well: those who
// count rows mask them by num_rows.
#pragma once

#include <cstdint>

#include "device/bits.cuh"
#include "device/sequence.cuh"
#include "plan/reference_lists.h"

namespace minference::cuda {

inline constexpr std::uint64_t kAllRows = ~std::uint64_t{0};

/// Rows [0, count).
__device__ inline std::uint64_t first_rows(std::int64_t count) {
  if (count <= 0) return 0;
  return count >= kRowBlock ? kAllRows : (std::uint64_t{1} << count) - 1;
}

/// Without padding: it is copied through shared memory.
struct RowBlock {
  std::uint64_t all_keys_rows;  ///< dense: all; tri_shape: the last rows, which attend every key
  std::int32_t end;             ///< e
  std::int32_t key_end;         ///< min(e, kv_len): no row attends keys beyond
  std::int32_t num_rows;        ///< that exist
  std::int32_t sink;            ///< a_shape and tri_shape
  std::int32_t window;          ///< the same
  std::int32_t has_window;      ///< 1: some rows are those of a_shape
};

/// Row block `block` of the chunk of queries.
__device__ inline RowBlock row_block_at(const Sequence& sequence, const HeadPlan& plan,
                                        std::int32_t block) {
  const std::int32_t row = sequence.row_begin + block * kRowBlock;
  RowBlock at{};
  at.end = sequence.kv_len - sequence.q_len + row + kRowBlock;
  at.key_end = at.end < sequence.kv_len ? at.end : sequence.kv_len;
  at.num_rows = sequence.row_end - row < kRowBlock ? sequence.row_end - row : kRowBlock;
  at.sink = plan.size[0];
  at.window = plan.size[1];
  if (plan.kind == PatternKind::kDense) at.all_keys_rows = kAllRows;
  if (plan.kind == PatternKind::kTriShape) {
    const std::int32_t first_full_row = sequence.q_len - plan.size[2] - row;
    if (first_full_row < at.num_rows) at.all_keys_rows = ~first_rows(first_full_row);
  }
  at.has_window = (plan.kind == PatternKind::kAShape || plan.kind == PatternKind::kTriShape) &&
                  at.all_keys_rows != kAllRows;
  return at;
}

/// Rows at or after the key: i >= 64 - t.
__device__ inline std::uint64_t causal_rows(const RowBlock& block, std::int32_t key) {
  const std::int32_t t = block.end - key;
  if (t >= kRowBlock) return kAllRows;
  return t <= 0 ? 0 : kAllRows << (kRowBlock - t);
}

// ---- Spans: dense, a_shape, tri_shape -----------------------------------------------------------

inline constexpr int kMaxSpans = 2;

/// Contiguous keys, walked in steps of a chunk from `begin` on. Every chunk has a key that a row
/// attends.
struct Span {
  std::int32_t begin;
  std::int32_t end;
  std::int32_t
      full_begin;  ///< chunks in [full_begin, full_end) are whole, and attended by all rows
  std::int32_t full_end;
};

/// Span `index` < kMaxSpans of a head of dense, a_shape or tri_shape, disjoint and ascending; empty
/// if it ends where it begins.
__device__ inline Span span_of(const RowBlock& block, int index) {
  Span span{};
  const bool is_dense = block.all_keys_rows != 0;  // for one row is for the walk
  const std::int32_t sink_end = block.sink < block.key_end ? block.sink : block.key_end;
  const bool is_window = !is_dense && index == 1;
  if (is_window && block.window > 0) {
    // The farthest key of the window belongs to the first row.
    const std::int32_t window_begin = block.end - kRowBlock - (block.window - 1);
    span.begin = window_begin > sink_end ? window_begin : sink_end;
    span.end = block.key_end;
  } else if (index == 0) {
    span.end = is_dense ? block.key_end : sink_end;
  }
  if (span.end < span.begin) span.end = span.begin;
  // The first row attends keys up to e - 64, the last one lacks those before e - window.
  const std::int32_t whole =
      span.end < block.end - kRowBlock + 1 ? span.end : block.end - kRowBlock + 1;
  const std::int32_t lacked = block.end - block.window;
  span.full_begin = span.full_end = span.begin;
  if (is_window && lacked > span.begin) {
    span.full_begin += (lacked - span.begin + plan::kChunk - 1) / plan::kChunk * plan::kChunk;
  }
  const bool is_everyones = !(is_dense && block.has_window);
  if (is_everyones && whole > span.full_begin) {
    span.full_end = span.full_begin + (whole - span.full_begin) / plan::kChunk * plan::kChunk;
  } else {
    span.full_begin = span.begin;
  }
  return span;
}

/// Rows that attend a key by the row block's window, if it has one, and causality.
__device__ inline std::uint64_t attending_rows(const RowBlock& block, std::int32_t key) {
  std::uint64_t rows = kAllRows;
  if (block.has_window && key >= block.sink) {
    const std::int64_t t = block.end - key;
    rows = first_rows(block.window + kRowBlock - t) | block.all_keys_rows;
  }
  return rows & causal_rows(block, key);
}

/// Rows that attend a key of a span.
__device__ inline std::uint64_t span_rows(const RowBlock& block, const Span& span,
                                          std::int32_t key) {
  return key < span.end ? attending_rows(block, key) : 0;
}

// ---- Lines --------------------------------------------------------------------------------------

__device__ inline bool has_lines(const HeadPlan& plan) {
  return plan.kind == PatternKind::kVerticalSlash || plan.kind == PatternKind::kVerticalSlashIndex;
}

/// The lines of one head in a sequence.
struct Lines {
  const plan::PlanChunk* chunks;
  const std::int32_t* verticals;
  const std::uint32_t* covered;
  const std::uint32_t* slash_bits;
  const std::uint32_t* vertical_bits;
  std::int32_t num_chunks;
  std::int32_t num_vertical;
  SlashMode mode;
};

/// `index`: the sequence's.
__device__ inline Lines lines_of(const LayerPlan& layer, const HeadPlan& plan, SlashMode mode,
                                 std::int32_t head, std::int32_t index, const Sequence& sequence) {
  const std::int64_t words =
      head * layer.bit_words.total + first_row(layer.bit_words, index, sequence.kv_begin);
  return {.chunks = layer.chunks + head * layer.chunk_rows.total +
                    first_row(layer.chunk_rows, index, sequence.kv_begin),
          .verticals = layer.verticals + head * layer.vertical_rows.total +
                       first_row(layer.vertical_rows, index, sequence.kv_begin),
          .covered = layer.covered + words,
          .slash_bits = layer.slash_bits + words,
          .vertical_bits = layer.vertical_bits + words,
          .num_chunks = plan.num_chunks,
          .num_vertical = plan.num_vertical,
          .mode = mode};
}

/// Whether a row block meets a chunk; those after the first that it does not meet are farther.
__device__ inline bool meets(const RowBlock& block, const plan::PlanChunk& chunk) {
  return chunk.rel - (plan::kChunk - 1) <= block.end;
}

/// Mode kCover: whether all rows attend all valid columns.
__device__ inline bool is_everyones(const RowBlock& block, const plan::PlanChunk& chunk) {
  return chunk.rel - (plan::kChunk - 1) >= kRowBlock && chunk.rel <= block.end;
}

/// Rows that attend the key of a chunk's column in mode kCover.
__device__ inline std::uint64_t cover_rows(const RowBlock& block, const plan::PlanChunk& chunk,
                                           int column) {
  const std::int32_t key = block.end - chunk.rel + column;
  if ((chunk.valid >> column & 1) == 0 || key < 0 || key >= block.key_end) return 0;
  return causal_rows(block, key);
}

/// The same in mode kExact: of the keys that are no verticals, row i has offset t - 64 + i.
__device__ inline std::uint64_t exact_rows(const RowBlock& block, const plan::PlanChunk& chunk,
                                           int column, const std::uint32_t* slash_bits,
                                           const std::uint32_t* vertical_bits) {
  const std::int32_t key = block.end - chunk.rel + column;
  if ((chunk.valid >> column & 1) == 0 || key < 0 || key >= block.key_end) return 0;
  if (test_bit(vertical_bits, key)) return 0;
  return bits_at(slash_bits, block.end - key - kRowBlock);
}

// ---- Lists of row blocks ------------------------------------------------------------------------

__device__ inline bool has_tiles(const HeadPlan& plan) {
  return plan.kind == PatternKind::kBlockSparse || plan.kind == PatternKind::kBlockIndex;
}

/// Tiles of 64 keys and single columns of one row block.
struct RowBlockLists {
  const std::int32_t* tiles;
  std::int32_t num_tiles;
  std::int32_t keys_per_tile;   ///< tiles are numbered in steps of it: 64, or 1 in mode kReference
  const std::int32_t* columns;  ///< mode kReference
  std::int32_t num_columns;
};

/// `list`: which of all row blocks of all heads.
__device__ inline RowBlockLists lists_of(const LayerPlan& layer, const ColumnLists& columns,
                                         const HeadPlan& plan, SlashMode mode, std::int64_t list) {
  RowBlockLists lists{};
  const bool has_reference_lists = has_lines(plan) && mode == SlashMode::kReference;
  if (has_tiles(plan) || has_reference_lists) {
    lists.tiles = layer.tiles + list * layer.max_tiles;
    lists.num_tiles = layer.num_tiles[list];
    lists.keys_per_tile = kRowBlock;
  }
  if (has_reference_lists) {
    lists.keys_per_tile = 1;
    lists.columns = columns.columns + list * columns.max_columns;
    lists.num_columns = columns.num_columns[list];
  }
  return lists;
}

/// Whether an ascending list holds `value`.
__device__ inline bool holds(const std::int32_t* list, std::int32_t count, std::int32_t value) {
  const std::int64_t at = plan::count_below(list, count, value);
  return at < count && list[at] == value;
}

/// Whether a row block attends a vertical column: not where a slash line covers it, in mode
/// kReference only where it is listed, in mode kExact always, as slash lines leave it out.
__device__ inline bool is_vertical_attended(const RowBlock& block, const Lines& lines,
                                            const RowBlockLists& lists, std::int32_t key) {
  if (key >= block.key_end) return false;
  if (lines.mode == SlashMode::kCover) return !test_bit(lines.covered, block.end - key);
  return lines.mode == SlashMode::kExact || holds(lists.columns, lists.num_columns, key);
}

/// Rows that attend a key of a listed tile.
__device__ inline std::uint64_t tile_rows(const RowBlock& block, std::int32_t key) {
  return key < block.key_end ? causal_rows(block, key) : 0;
}

}  // namespace minference::cuda
