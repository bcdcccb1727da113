// The plan of one head, as both backends keep it: which keys each row block meets, in a form that
// does not grow with the number of row blocks.
//
// A slash line is a fixed distance from the diagonal. With e the key position just past a row block
// (row_begin + 64 + kv_len - q_len) and t = e - key, line s covers t in [s + 1, s + 64] for EVERY
// row block. So one list of chunks, sorted by t, serves them all: a row block takes the prefix with
// t <= e. Keys with t < 64 lie on the diagonal and need the causal mask; row i of the block attends
// key t iff i >= 64 - t.
#pragma once

#include <cstdint>

#include "plan/host_device.h"

namespace minference::plan {

inline constexpr int kRowBlock = 64;  // query rows that share a cover; keys of a key block
inline constexpr int kChunk = 32;     // columns of a chunk

/// 32 columns at keys [e - rel, e - rel + 32); bit c of `valid`: column c belongs to the cover.
struct PlanChunk {
  std::int32_t rel;
  std::uint32_t valid;
};

/// Columns and offsets that an estimation selects at least, and those that rank first.
inline constexpr std::int64_t kMinVertical = 30;
inline constexpr std::int64_t kMinSlash = 50;
inline constexpr std::int64_t kForcedVertical = 30;
inline constexpr std::int64_t kForcedSlash = 100;

/// Lines an estimation selects.
MINFERENCE_HOST_DEVICE inline std::int64_t num_estimated_vertical(std::int64_t vertical_size,
                                                                  std::int64_t kv_len) {
  const std::int64_t wanted = vertical_size > kMinVertical ? vertical_size : kMinVertical;
  return wanted < kv_len ? wanted : kv_len;
}
MINFERENCE_HOST_DEVICE inline std::int64_t num_estimated_slash(std::int64_t slash_size,
                                                               std::int64_t kv_len) {
  const std::int64_t wanted = slash_size > kMinSlash ? slash_size : kMinSlash;
  return wanted < kv_len ? wanted : kv_len;
}

/// Blocks of 64 query rows or keys.
MINFERENCE_HOST_DEVICE inline std::int64_t num_row_blocks(std::int64_t rows) {
  return (rows + kRowBlock - 1) / kRowBlock;
}

/// Chunks that a plan of `num_slash` lines can need.
MINFERENCE_HOST_DEVICE inline std::int64_t max_plan_chunks(std::int64_t num_slash,
                                                           std::int64_t kv_len) {
  // Every merged range wastes less than a chunk and is followed by a gap.
  const std::int64_t columns = kv_len + kRowBlock;
  const std::int64_t by_columns = columns / kChunk + columns / (kRowBlock + 1) + 2;
  return 2 * num_slash < by_columns ? 2 * num_slash : by_columns;
}

}  // namespace minference::plan
