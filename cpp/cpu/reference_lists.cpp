// One walk over both lists: slash lines from the farthest to the nearest are ranges that move to
// the right, vertical lines are points, and a point is known to be loose once a range has passed
// it.
#include "cpu/reference_lists.h"

#include <algorithm>

namespace minference::cpu {
namespace {

constexpr std::int64_t kTile = 64;

}  // namespace

void reference_row_lists(const RowListInput& input, RowTiles* row) {
  // Where the row block ends in key positions, also for a partial last block: line s crosses the
  // keys [end - 64 - s, end - s).
  const std::int64_t end =
      input.row_begin + kTile + input.kv_len - (input.is_causal ? input.q_len : 0);
  const std::int32_t* const slash_end = std::partition_point(
      input.slash, input.slash + input.num_slash, [end](std::int32_t s) { return s < end; });
  const std::int32_t* const vertical_end =
      std::partition_point(input.vertical, input.vertical + input.num_vertical,
                           [end](std::int32_t v) { return v < end; });

  const std::int32_t* vertical = input.vertical;
  std::int32_t num_tiles = 0;
  std::int32_t num_columns = 0;
  std::int64_t tile_end = 0;  // of the last tile
  for (const std::int32_t* s = slash_end; s != input.slash;) {
    const std::int64_t piece_end = std::max<std::int64_t>(end - *--s, kTile);
    if (num_tiles != 0 && piece_end <= tile_end) continue;
    const bool extends = num_tiles != 0 && piece_end <= tile_end + kTile;
    const std::int64_t tile_begin = extends ? tile_end : piece_end - kTile;
    // Only lines nearer than the rows themselves (not causal) or an extension past the end get
    // here; all further tiles begin right of this one.
    if (tile_begin >= input.kv_len) break;
    while (vertical != vertical_end && *vertical < tile_begin) {
      row->columns[num_columns++] = *vertical++;
    }
    tile_end = tile_begin + kTile;
    while (vertical != vertical_end && *vertical < tile_end) ++vertical;
    row->tiles[num_tiles++] = static_cast<std::int32_t>(tile_begin);
  }
  while (vertical != vertical_end) row->columns[num_columns++] = *vertical++;
  row->num_tiles = num_tiles;
  row->num_columns = num_columns;
}

}  // namespace minference::cpu
