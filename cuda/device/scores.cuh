// Reads the scores of a head's columns or offsets from the strips that line_sums wrote (Scores in
// params.h). Every reader uses this, so that an offset has one score: the part in the strip of its
// nearest key plus, for 63 offsets of a strip, that of the strip before.
//
// Scores are read in the order of keys, 512 at a time, coalesced for both lists. Entry x is column
// x, or the offset chunk_kv_len - 1 - x, whose nearest key is x: offsets run backwards.
#pragma once

#include <cmath>
#include <cstdint>

#include "params.h"

namespace minference::cuda {

inline constexpr int kPiece = 512;  // entries that a warp reads at once; divides a strip
inline constexpr int kPieceGroups = kPiece / 32;

/// The scores of a head in a sequence, but for its lowest lines.
template <bool kIsSlash>
struct ScoreList {
  const float* data;  ///< column or slash scores of the sequence's first strip
  std::int32_t strip;
  std::int32_t kv_len;
  std::int32_t num_lines;    ///< chunk_kv_len
  std::int32_t num_skipped;  ///< lines below are left out

  /// `first_strip`: first_row(scores.strips, ...).
  __device__ static ScoreList of(const Scores& scores, std::int32_t head, std::int64_t first_strip,
                                 const Sequence& sequence, std::int32_t num_skipped) {
    const std::int64_t row = head * scores.strips.total + first_strip;
    const float* const data = kIsSlash ? scores.slash_scores + row * (scores.strip + kSlotTail)
                                       : scores.column_scores + row * scores.strip;
    return {data, scores.strip, sequence.kv_len, sequence.chunk_kv_len, num_skipped};
  }

  __device__ std::int32_t num_pieces() const { return (num_lines - 1) / kPiece + 1; }

  __device__ bool holds(std::int32_t x) const {
    return static_cast<std::uint32_t>(line_of(x) - num_skipped) <
           static_cast<std::uint32_t>(num_lines - num_skipped);
  }

  /// The column or offset of entry x.
  __device__ std::int32_t line_of(std::int32_t x) const { return kIsSlash ? num_lines - 1 - x : x; }
  /// The lowest line of the 32 entries from x on; negative where they pass the last offset.
  __device__ std::int32_t first_line(std::int32_t x) const {
    return kIsSlash ? num_lines - 32 - x : x;
  }
  /// From bits by entry to bits by line.
  __device__ static std::uint32_t by_line(std::uint32_t bits) {
    return kIsSlash ? __brev(bits) : bits;
  }

  /// values[j]: score of entry piece * 512 + 32 * j + lane, -inf if not held.
  __device__ void load(std::int32_t piece, int lane, float (&values)[kPieceGroups]) const {
    constexpr int kStep = kIsSlash ? -32 : 32;
    const std::int32_t first = piece * kPiece;
    const std::int32_t strip_begin = first & ~(strip - 1);
    const float* from = data + first + lane;
    if constexpr (kIsSlash) {
      const std::int32_t strip_keys = kv_len - strip_begin < strip ? kv_len - strip_begin : strip;
      from = slot_of(strip_begin) + (strip_keys + kSlotTail - 2 - (first - strip_begin) - lane);
    }
    if (holds(first) && holds(first + kPiece - 1)) {
#pragma unroll
      for (int j = 0; j < kPieceGroups; ++j) values[j] = from[kStep * j];
    } else {
#pragma unroll
      for (int j = 0; j < kPieceGroups; ++j) {
        values[j] = holds(first + 32 * j + lane) ? from[kStep * j] : -INFINITY;
      }
    }
    if constexpr (kIsSlash) {
      if (first != strip_begin || first == 0) return;
      const float* const before = slot_of(strip_begin - strip) + (kSlotTail - 2) - lane;
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int i = 32 * j + lane;
        if (i <= kSlotTail - 2 && holds(first + i)) values[j] += before[-32 * j];
      }
    }
  }

  /// Parts of the offsets in the strip that begins at key `strip_begin`.
  __device__ const float* slot_of(std::int32_t strip_begin) const {
    return data + std::int64_t{strip_begin >> (__ffs(strip) - 1)} * (strip + kSlotTail);
  }
};

}  // namespace minference::cuda
