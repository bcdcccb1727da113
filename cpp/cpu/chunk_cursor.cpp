#include "cpu/chunk_cursor.h"

#include <algorithm>

namespace minference::cpu {
namespace {

constexpr std::uint64_t kAllRows = ~std::uint64_t{0};

/// Rows [0, count).
std::uint64_t first_rows(std::int64_t count) {
  if (count <= 0) return 0;
  return count >= kRowBlock ? kAllRows : (std::uint64_t{1} << count) - 1;
}

}  // namespace

ChunkCursor::ChunkCursor(const HeadPlan& plan, const RowLists& lists, std::int64_t row_begin,
                         std::int64_t q_len, std::int64_t kv_len)
    : plan_(plan),
      lists_(lists),
      end_(row_begin + kRowBlock + kv_len - q_len),
      key_end_(std::min(end_, kv_len)),
      all_keys_rows_(0),
      has_lines_(plan.kind == PatternKind::kVerticalSlash ||
                 plan.kind == PatternKind::kVerticalSlashIndex) {
  PatternKind kind = plan.kind;
  if (kind == PatternKind::kTriShape) {
    const std::int64_t num_rows = std::min<std::int64_t>(kRowBlock, q_len - row_begin);
    const std::int64_t first_full_row = q_len - plan.size[2] - row_begin;
    if (first_full_row < num_rows) all_keys_rows_ = ~first_rows(first_full_row);
    kind = all_keys_rows_ == 0 ? PatternKind::kAShape : PatternKind::kDense;
  }
  if (kind == PatternKind::kDense) {
    add_span(0, key_end_, false);
  } else if (kind == PatternKind::kAShape) {
    const std::int64_t sink_end = std::min(plan.size[0], key_end_);
    add_span(0, sink_end, false);
    if (plan.size[1] > 0) {
      // The farthest key of the window belongs to the block's first row.
      const std::int64_t window_begin = end_ - kRowBlock - (plan.size[1] - 1);
      add_span(std::max(sink_end, window_begin), key_end_, true);
    }
  }
}

void ChunkCursor::add_span(std::int64_t begin, std::int64_t end, bool is_window) {
  if (begin >= end) return;
  if (num_spans_ == 0) span_key_ = begin;
  spans_[num_spans_++] = {begin, end, is_window};
}

bool ChunkCursor::next(int max_chunks, Stage* stage) {
  stage->num_chunks = 0;
  while (stage->num_chunks < max_chunks && add_next(stage)) {
  }
  return stage->num_chunks > 0;
}

bool ChunkCursor::add_next(Stage* stage) {
  if (span_ < num_spans_) {
    const Span& span = spans_[span_];
    add_span_chunk(span_key_, span, stage);
    span_key_ += kChunk;
    if (span_key_ >= span.end && ++span_ < num_spans_) span_key_ = spans_[span_].begin;
    return true;
  }
  if (tile_ < 2 * lists_.num_tiles) {
    const std::int64_t tile_begin = lists_.tiles[tile_ / 2];
    add_tile_half(tile_begin + tile_ % 2 * kChunk, tile_begin + kRowBlock, stage);
    ++tile_;
    return true;
  }
  if (!has_lines_) return false;
  if (plan_.mode != SlashMode::kReference && chunk_ < plan_.num_chunks) {
    const PlanChunk chunk = plan_.chunks[chunk_];
    if (chunk.rel - (kChunk - 1) <= end_) {
      ++chunk_;
      add_plan_chunk(chunk, stage);
      return true;
    }
    chunk_ = plan_.num_chunks;
  }
  if (vertical_ < plan_.num_vertical && plan_.verticals[vertical_] < key_end_) {
    add_vertical_chunk(vertical_, stage);
    vertical_ += kChunk;
    return true;
  }
  return false;
}

std::uint64_t ChunkCursor::causal_rows(std::int64_t key) const {
  const std::int64_t t = end_ - key;
  if (t >= kRowBlock) return kAllRows;
  return t <= 0 ? 0 : kAllRows << (kRowBlock - t);
}

template <class RowMask>
void ChunkCursor::add_masked(std::int64_t key_begin, bool is_gathered, const RowMask& row_mask,
                             Stage* stage) {
  const int index = stage->num_chunks;
  std::uint64_t* const masks = stage->masks[index];
  std::uint64_t any = 0;
  std::uint64_t all = kAllRows;
  for (int column = 0; column < kChunk; ++column) {
    masks[column] = row_mask(column);
    any |= masks[column];
    all &= masks[column];
  }
  if (any == 0) return;
  stage->chunks[index] = {key_begin, all == kAllRows ? nullptr : masks, is_gathered};
  ++stage->num_chunks;
}

void ChunkCursor::add_span_chunk(std::int64_t key_begin, const Span& span, Stage* stage) {
  const std::int64_t chunk_end = key_begin + kChunk;
  const bool is_below_diagonal = chunk_end <= end_ - kRowBlock + 1;
  // The first row that lacks a key of the window is the block's last one.
  const bool is_inside_window = !span.is_window || end_ - key_begin <= plan_.size[1];
  const bool is_everyones =
      plan_.kind != PatternKind::kTriShape || all_keys_rows_ == 0 || all_keys_rows_ == kAllRows;
  if (chunk_end <= span.end && is_below_diagonal && is_inside_window && is_everyones) {
    stage->chunks[stage->num_chunks++] = {key_begin, nullptr, false};
    return;
  }
  add_masked(
      key_begin, false,
      [&](int column) {
        const std::int64_t key = key_begin + column;
        if (key >= span.end) return std::uint64_t{0};
        std::uint64_t rows = kAllRows;
        if (span.is_window || (!is_everyones && key >= plan_.size[0])) {
          rows = first_rows(plan_.size[1] + kRowBlock - (end_ - key));
        }
        return (rows | all_keys_rows_) & causal_rows(key);
      },
      stage);
}

void ChunkCursor::add_plan_chunk(const PlanChunk& chunk, Stage* stage) {
  const std::int64_t key_begin = end_ - chunk.rel;
  const bool is_exact = plan_.mode == SlashMode::kExact;
  const bool is_below_diagonal = chunk.rel - (kChunk - 1) >= kRowBlock;
  if (!is_exact && is_below_diagonal && key_begin >= 0 && chunk.valid == ~std::uint32_t{0}) {
    stage->chunks[stage->num_chunks++] = {key_begin, nullptr, false};
    return;
  }
  add_masked(
      key_begin, false,
      [&](int column) {
        const std::int64_t key = key_begin + column;
        if ((chunk.valid >> column & 1) == 0 || key < 0 || key >= key_end_) return std::uint64_t{0};
        if (!is_exact) return causal_rows(key);
        // Row i has offset t - 64 + i; bit 64 + o of `offsets` stands for offset o.
        return plan_.is_vertical.test(key) ? std::uint64_t{0} : plan_.offsets.window(end_ - key);
      },
      stage);
}

void ChunkCursor::add_tile_half(std::int64_t key_begin, std::int64_t tile_end, Stage* stage) {
  add_masked(
      key_begin, false,
      [&](int column) {
        const std::int64_t key = key_begin + column;
        return key < tile_end && key < key_end_ ? causal_rows(key) : std::uint64_t{0};
      },
      stage);
}

void ChunkCursor::add_vertical_chunk(std::int32_t first, Stage* stage) {
  add_masked(
      first, true,
      [&](int column) {
        const std::int32_t index = first + column;
        if (index >= plan_.num_vertical) return std::uint64_t{0};
        const std::int64_t key = plan_.verticals[index];
        if (key >= key_end_) return std::uint64_t{0};
        if (plan_.mode == SlashMode::kCover && plan_.covered.test(end_ - key)) {
          return std::uint64_t{0};
        }
        if (plan_.mode == SlashMode::kReference) {
          while (column_ < lists_.num_columns && lists_.columns[column_] < key) ++column_;
          if (column_ == lists_.num_columns || lists_.columns[column_] != key) {
            return std::uint64_t{0};
          }
        }
        return causal_rows(key);
      },
      stage);
}

}  // namespace minference::cpu
