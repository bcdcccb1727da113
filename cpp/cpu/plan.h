// The plan of one head: which keys each row block meets, in a form that does not grow with the
// number of row blocks.
//
// A slash line is a fixed distance from the diagonal. With e the key position just past a row block
// (row_begin + 64 + kv_len - q_len) and t = e - key, line s covers t in [s + 1, s + 64] for EVERY
// row block. So one list of chunks, sorted by t, serves them all: a row block takes the prefix with
// t <= e. Keys with t < 64 lie on the diagonal and need the causal mask; row i of the block attends
// key t iff i >= 64 - t.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"
#include "minference/sparse_attention.h"

namespace minference::cpu {

/// 32 columns at keys [e - rel, e - rel + 32); bit c of `valid`: column c belongs to the cover.
struct PlanChunk {
  std::int32_t rel;
  std::uint32_t valid;
};

/// Set bits by position, 64 to a word.
struct BitSet {
  std::uint64_t* words = nullptr;

  bool test(std::int64_t bit) const { return (words[bit >> 6] >> (bit & 63) & 1) != 0; }
  void set(std::int64_t bit) { words[bit >> 6] |= std::uint64_t{1} << (bit & 63); }
  /// Sets [begin, end).
  void set_range(std::int64_t begin, std::int64_t end);
  /// Bits [bit, bit + 64) as a word; reads the word after as well.
  std::uint64_t window(std::int64_t bit) const {
    const std::uint64_t low = words[bit >> 6] >> (bit & 63);
    return (bit & 63) == 0 ? low : low | words[(bit >> 6) + 1] << (64 - (bit & 63));
  }
  static std::int64_t num_words(std::int64_t num_bits) { return (num_bits + 63) / 64 + 1; }
};

struct HeadPlan {
  PatternKind kind;  ///< as asked, or kDense after the fallback
  SlashMode mode;
  std::int64_t size[3];     ///< of the pattern: {sink, window, last} or {top_k}
  std::int32_t* verticals;  ///< [num_vertical] ascending, unique
  std::int32_t* slashes;    ///< [num_slash] offsets ascending, unique
  PlanChunk* chunks;        ///< [num_chunks] by rel
  BitSet covered;  ///< bit t: column t of every row block is in the cover; t in [1, kv_len + 64)
  BitSet offsets;  ///< mode kExact: bit 64 + o: offset o is a line
  BitSet is_vertical;  ///< mode kExact: bit v
  std::int32_t num_vertical;
  std::int32_t num_slash;
  std::int32_t num_chunks;
};

/// Chunks that a plan of `num_slash` lines can need.
std::int64_t max_plan_chunks(std::int64_t num_slash, std::int64_t kv_len);

/// Fills chunks and bit sets of a vertical-slash plan from its lines. The bit sets' memory is
/// cleared here: covered of kv_len + 65, offsets of kv_len + 128, is_vertical of kv_len bits.
void build_vs_plan(std::int64_t kv_len, HeadPlan* plan);

/// What attention with a plan costs, in 64 x 32 pieces.
std::int64_t dense_pieces(std::int64_t q_len, std::int64_t kv_len);
std::int64_t vs_pieces(const HeadPlan& plan, std::int64_t q_len, std::int64_t kv_len);

/// Time of a piece of a plan over that of a dense one, with gathered columns, masks and unaligned
/// chunks: 1.0 to 1.1 in float32, 1.1 to 1.3 in bfloat16 on AMX, where it was measured.
constexpr double kPlanPieceCost = 1.15;

/// The cost of a pattern before any data is seen: lines that cluster well, plus the estimation.
double predicted_pieces(const HeadPattern& pattern, std::int64_t q_len, std::int64_t kv_len);

}  // namespace minference::cpu
