// The plan of one head as the CPU keeps it; its format: plan/format.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"
#include "minference/sparse_attention.h"
#include "plan/format.h"

namespace minference::cpu {

using plan::PlanChunk;

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

/// Fills chunks and bit sets of a vertical-slash plan from its lines. The bit sets' memory is
/// cleared here: covered of kv_len + 65, offsets of kv_len + 128, is_vertical of kv_len bits.
void build_vs_plan(std::int64_t kv_len, HeadPlan* plan);

/// What attention with a plan costs, in 64 x 32 pieces.
std::int64_t vs_pieces(const HeadPlan& plan, std::int64_t q_len, std::int64_t kv_len);

}  // namespace minference::cpu
