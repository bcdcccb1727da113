// What attention costs, in 64 x 32 pieces of one head: the same numbers on the host and in the
// kernels that build plans. All in closed form: a million tokens have 16,384 row blocks.
#pragma once

#include <cstdint>

#include "minference/sparse_attention.h"
#include "plan/format.h"
#include "plan/host_device.h"

namespace minference::plan {

// Costs are counted in hundredths of a dense piece: host and kernels must decide alike, and
// compilers may round products of doubles differently.
inline constexpr std::int64_t kDensePieceCost = 100;
/// A piece of a plan, with gathered columns, masks and unaligned chunks. Measured, over a dense
/// one: 1.0 to 1.1 in float32, 1.1 to 1.3 in bfloat16 on AMX.
inline constexpr std::int64_t kPlanPieceCost = 115;
/// Estimation, per chunk of keys: two passes over the keys, each half of attention's work, their
/// sums and the selection.
inline constexpr std::int64_t kEstimationCost = 250;
/// Pooling and ranking of key blocks, per piece of dense attention.
inline constexpr std::int64_t kRankingCost = 5;

/// Row blocks whose end e is at least `least`.
MINFERENCE_HOST_DEVICE inline std::int64_t row_blocks_reaching(std::int64_t least,
                                                               std::int64_t q_len,
                                                               std::int64_t kv_len) {
  const std::int64_t first_end = kRowBlock + kv_len - q_len;
  const std::int64_t skipped =
      least <= first_end ? 0 : (least - first_end + kRowBlock - 1) / kRowBlock;
  const std::int64_t blocks = num_row_blocks(q_len) - skipped;
  return blocks > 0 ? blocks : 0;
}

/// Sum over the row blocks [begin, end) of the chunks up to column min(e, kv_len, limit).
MINFERENCE_HOST_DEVICE inline std::int64_t pieces_up_to(std::int64_t limit, std::int64_t begin,
                                                        std::int64_t end, std::int64_t q_len,
                                                        std::int64_t kv_len) {
  if (limit > kv_len) limit = kv_len;
  const std::int64_t chunks_at_limit = (limit + kChunk - 1) / kChunk;
  // Blocks below `full` end before the limit: their chunks form an arithmetic series.
  const std::int64_t first_end = kRowBlock + kv_len - q_len;
  std::int64_t full = limit < first_end ? 0 : (limit - first_end) / kRowBlock + 1;
  if (full < begin) full = begin;
  if (full > end) full = end;
  const std::int64_t count = full - begin;
  const std::int64_t first_chunks = (first_end + begin * kRowBlock + kChunk - 1) / kChunk;
  const std::int64_t series = count * first_chunks + count * (count - 1) / 2 * (kRowBlock / kChunk);
  return series + (end - full) * chunks_at_limit;
}

MINFERENCE_HOST_DEVICE inline std::int64_t dense_pieces(std::int64_t q_len, std::int64_t kv_len) {
  return pieces_up_to(kv_len, 0, num_row_blocks(q_len), q_len, kv_len);
}

/// The row blocks that a chunk of a plan is computed for.
MINFERENCE_HOST_DEVICE inline std::int64_t chunk_pieces(const PlanChunk& chunk, std::int64_t q_len,
                                                        std::int64_t kv_len) {
  int last = kChunk - 1;  // its nearest column
  while ((chunk.valid >> last & 1) == 0) --last;
  return row_blocks_reaching(chunk.rel - last, q_len, kv_len);
}

/// Whether a plan of that many pieces costs as much as dense attention.
MINFERENCE_HOST_DEVICE inline bool plan_costs_dense(std::int64_t pieces, std::int64_t q_len,
                                                    std::int64_t kv_len) {
  return kPlanPieceCost * pieces >= kDensePieceCost * dense_pieces(q_len, kv_len);
}

/// Costs before any data is seen.
struct Costs {
  std::int64_t dense;
  std::int64_t sparse;
  MINFERENCE_HOST_DEVICE bool is_dense() const { return sparse >= dense; }
};

/// The cost of a pattern before any data is seen: lines that cluster well, plus the estimation.
MINFERENCE_HOST_DEVICE inline Costs predict(const HeadPattern& pattern, std::int64_t q_len,
                                            std::int64_t kv_len) {
  const std::int64_t blocks = num_row_blocks(q_len);
  const std::int64_t dense = kDensePieceCost * dense_pieces(q_len, kv_len);
  const auto size = [&](int i) { return pattern.size[i] < kv_len ? pattern.size[i] : kv_len; };
  std::int64_t columns = 0;          // of a row block far from the start
  std::int64_t last_begin = blocks;  // row blocks from here on attend every key
  std::int64_t before = 0;           // attention
  std::int64_t piece_cost = kDensePieceCost;
  switch (pattern.kind) {
    case PatternKind::kDense:
    case PatternKind::kVerticalSlashIndex:
    case PatternKind::kBlockIndex:
      return {dense, dense};
    case PatternKind::kAShape:
    case PatternKind::kTriShape:
      columns = size(0) + size(1) + kRowBlock;
      if (pattern.kind == PatternKind::kTriShape) {
        const std::int64_t first_row = q_len - size(2);  // a block is cheap if it ends by here
        last_begin = first_row > 0 ? first_row / kRowBlock : 0;
        if (last_begin > blocks) last_begin = blocks;
      }
      break;
    case PatternKind::kVerticalSlash:
      columns = num_estimated_vertical(size(0), kv_len) + num_estimated_slash(size(1), kv_len) +
                kRowBlock;
      before = kEstimationCost * ((kv_len + kChunk - 1) / kChunk);
      piece_cost = kPlanPieceCost;
      break;
    case PatternKind::kBlockSparse:
      columns = size(0) * kRowBlock;
      before = dense / kDensePieceCost * kRankingCost;
      break;
  }
  const std::int64_t pieces = pieces_up_to(columns, 0, last_begin, q_len, kv_len) +
                              pieces_up_to(kv_len, last_begin, blocks, q_len, kv_len);
  return {dense, before + piece_cost * pieces};
}

}  // namespace minference::plan
