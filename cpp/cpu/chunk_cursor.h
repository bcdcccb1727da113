// Walks the chunks of one row block, whatever the head's pattern: what a kernel's next_stage calls.
#pragma once

#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/plan.h"

namespace minference::cpu {

/// Lists of one row block that are made on the fly in a worker's scratch.
struct RowLists {
  std::int32_t* tiles;    ///< key positions where 64-wide tiles begin, disjoint
  std::int32_t* columns;  ///< mode kReference: single columns, ascending, a subset of the verticals
  std::int32_t num_tiles;
  std::int32_t num_columns;
};

class ChunkCursor {
 public:
  /// Row block at query row `row_begin` of a sequence of q_len queries and kv_len keys.
  ChunkCursor(const HeadPlan& plan, const RowLists& lists, std::int64_t row_begin,
              std::int64_t q_len, std::int64_t kv_len);

  /// Fills `stage` with up to max_chunks further chunks; false if there are none.
  bool next(int max_chunks, Stage* stage);

  static bool next_stage(void* cursor, int max_chunks, Stage* stage) {
    return static_cast<ChunkCursor*>(cursor)->next(max_chunks, stage);
  }

 private:
  /// Contiguous keys [begin, end) walked in steps of a chunk.
  struct Span {
    std::int64_t begin;
    std::int64_t end;
    bool is_window;  ///< rows attend only keys nearer than the window
  };

  void add_span(std::int64_t begin, std::int64_t end, bool is_window);
  bool add_next(Stage* stage);
  /// Appends the chunk unless no row attends any of its columns.
  template <class RowMask>
  void add_masked(std::int64_t key_begin, bool is_gathered, const RowMask& row_mask, Stage* stage);
  void add_span_chunk(std::int64_t key_begin, const Span& span, Stage* stage);
  void add_plan_chunk(const PlanChunk& chunk, Stage* stage);
  void add_tile_half(std::int64_t key_begin, std::int64_t tile_end, Stage* stage);
  void add_vertical_chunk(std::int32_t first, Stage* stage);

  /// Rows i >= 64 - t: those at or after the key.
  std::uint64_t causal_rows(std::int64_t key) const;

  const HeadPlan& plan_;
  const RowLists& lists_;
  std::int64_t end_;             // e: the key position just past the row block
  std::int64_t key_end_;         // min(e, kv_len): keys beyond are not attended by any row
  std::uint64_t all_keys_rows_;  // tri_shape: rows of this block that attend every key
  Span spans_[2];
  int num_spans_ = 0;
  int span_ = 0;
  std::int64_t span_key_ = 0;
  std::int32_t chunk_ = 0;
  std::int32_t tile_ = 0;  // counts halves of tiles
  std::int32_t vertical_ = 0;
  std::int32_t column_ = 0;
  bool has_lines_;  // walks the plan's chunks and verticals
};

}  // namespace minference::cpu
