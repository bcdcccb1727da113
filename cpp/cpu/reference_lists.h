// The original implementation's lists for one block of 64 query rows: slash lines merged greedily,
// from the farthest one, to 64-wide key tiles in steps of 64, and the vertical lines outside of
// them as single columns. Used by mode kReference and by convert_vs_index. Unlike the original,
// columns right of the last tile are kept: they need the causal mask, as the last tiles do.
#pragma once

#include <cstdint>

namespace minference::cpu {

/// One row block of one head.
struct RowListInput {
  const std::int32_t* vertical =
      nullptr;  ///< [num_vertical] keys in [0, kv_len), ascending, unique
  std::int64_t num_vertical = 0;
  const std::int32_t* slash = nullptr;  ///< [num_slash] offsets >= 0, ascending, unique
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

/// Fills `row`, whose arrays hold what the input's counts say. Linear in the lines that reach the
/// row block.
void reference_row_lists(const RowListInput& input, RowTiles* row);

}  // namespace minference::cpu
