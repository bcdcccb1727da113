// The original implementation's lists for one block of 64 query rows: slash lines merged greedily,
// from the farthest one, to 64-wide key tiles in steps of 64, and the vertical lines outside of
// them as single columns. Used by mode kReference and by convert_vs_index, on the host and in
// kernels. Unlike the original, columns right of the last tile are kept: they need the causal mask,
// as the last tiles do.
#pragma once

#include <cstdint>

#include "plan/format.h"
#include "plan/host_device.h"

namespace minference::plan {

/// One row block of one head.
struct RowListInput {
  /// [num_vertical] keys in [0, kv_len), ascending; duplicates count once
  const std::int32_t* vertical = nullptr;
  std::int64_t num_vertical = 0;
  /// [num_slash] offsets >= 0, ascending; duplicates count once
  const std::int32_t* slash = nullptr;
  std::int64_t num_slash = 0;
  std::int64_t row_begin = 0;  ///< first query row, a multiple of 64
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  bool is_causal = true;  ///< false: every key precedes every query, offset = kv_len + row - key
};

/// Both lists ascending; no key is in two of their entries. Tiles begin left of kv_len and may end
/// right of it.
struct RowTiles {
  std::int32_t* tiles = nullptr;  ///< [num_slash] first key of each 64-wide tile
  std::int32_t num_tiles = 0;
  std::int32_t* columns = nullptr;  ///< [num_vertical] keys
  std::int32_t num_columns = 0;
};

/// How many of the leading entries of an ascending list are below `limit`.
MINFERENCE_HOST_DEVICE inline std::int64_t count_below(const std::int32_t* list, std::int64_t count,
                                                       std::int64_t limit) {
  std::int64_t low = 0, high = count;
  while (low < high) {
    const std::int64_t middle = low + (high - low) / 2;
    if (list[middle] < limit) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Fills `row`, whose arrays hold what the input's counts say. Linear in the lines that reach the
/// row block: one walk over both lists. Slash lines from the farthest to the nearest are ranges
/// that move to the right, vertical lines are points, and a point is known to be loose once a range
/// has passed it.
MINFERENCE_HOST_DEVICE inline void reference_row_lists(const RowListInput& input, RowTiles* row) {
  // Where the row block ends in key positions, also for a partial last block: line s crosses the
  // keys [end - 64 - s, end - s).
  const std::int64_t end =
      input.row_begin + kRowBlock + input.kv_len - (input.is_causal ? input.q_len : 0);
  const std::int64_t num_vertical = count_below(input.vertical, input.num_vertical, end);
  std::int64_t vertical = 0;
  std::int32_t num_tiles = 0;
  std::int32_t num_columns = 0;
  const auto take_columns_before = [&](std::int64_t key) {
    for (; vertical < num_vertical && input.vertical[vertical] < key; ++vertical) {
      const std::int32_t column = input.vertical[vertical];
      if (num_columns > 0 && row->columns[num_columns - 1] == column) continue;
      row->columns[num_columns++] = column;
    }
  };
  std::int64_t tile_end = 0;  // of the last tile
  for (std::int64_t s = count_below(input.slash, input.num_slash, end); s > 0;) {
    std::int64_t piece_end = end - input.slash[--s];
    if (piece_end < kRowBlock) piece_end = kRowBlock;
    if (num_tiles != 0 && piece_end <= tile_end) continue;
    const bool extends = num_tiles != 0 && piece_end <= tile_end + kRowBlock;
    const std::int64_t tile_begin = extends ? tile_end : piece_end - kRowBlock;
    // Only lines nearer than the rows themselves (not causal) or an extension past the end get
    // here; all further tiles begin right of this one.
    if (tile_begin >= input.kv_len) break;
    take_columns_before(tile_begin);
    tile_end = tile_begin + kRowBlock;
    while (vertical < num_vertical && input.vertical[vertical] < tile_end) ++vertical;
    row->tiles[num_tiles++] = static_cast<std::int32_t>(tile_begin);
  }
  take_columns_before(end);
  row->num_tiles = num_tiles;
  row->num_columns = num_columns;
}

}  // namespace minference::plan
