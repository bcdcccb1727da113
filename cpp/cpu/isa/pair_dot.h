// What the two kernels with bfloat16 dot products share. Both multiply pairs: a 32-bit element of
// an operand holds two neighbours of the summed axis.
//
//   Q packed as  [head_dim / 32][4 groups][16 pairs of d][16 queries]      32-bit elements
//   P packed as  [chunk][4 groups][16 pairs of keys][16 queries]           32-bit elements
//   K            as it lies in memory: pairs of d are neighbours
//   V packed as  [segment of 256 keys][padded head_dim][256 + 32 keys]     pairs of keys are
//   neighbours
//
// The last 32 keys of a segment's rows repeat the next segment's first, so that the 32 keys of a
// chunk are contiguous wherever it begins.
#pragma once

#include "cpu/isa/attend.h"

namespace minference::cpu {
namespace {

static_assert(kLanes == 16, "bfloat16 dot products exist for 512-bit vectors here");

inline constexpr int kPairs = 16;                      // pairs of a 32-wide step of the summed axis
inline constexpr int kGroups = kRowBlock / kLanes;     // groups of 16 queries
inline constexpr int kTileElements = kPairs * kLanes;  // 32-bit elements of a packed tile

/// Values of one chunk: [padded head_dim] rows of 32 keys, `pitch` elements apart.
struct ChunkValues {
  const std::uint16_t* rows;
  std::int64_t pitch;
};

inline bool is_nonfinite_bits(std::uint16_t bits) { return (bits & 0x7f80u) == 0x7f80u; }

inline float bfloat16_value(std::uint16_t bits) {
  const std::uint32_t wide = std::uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof(value));
  return value;
}

/// `count` 16-bit elements, zero-extended; the other lanes are 0.
inline VecU widened_bits(const std::uint16_t* from, int count) {
  if (count == kLanes) return __builtin_convertvector(load_as<VecH>(from), VecU);
  VecH part = {};
  std::memcpy(&part, from, count * sizeof(std::uint16_t));
  return __builtin_convertvector(part, VecU);
}

/// Packs V for the kernels above.
inline void pack_v(const PackTask& task) {
  const std::uint16_t* const v = static_cast<const std::uint16_t*>(task.v);
  const int padded_dim = padded_head_dim(task.head_dim);
  const auto row_of = [&](std::int64_t key) {
    return v + (task.rows == nullptr ? key : task.rows[key]) * task.v_stride;
  };
  for (std::int64_t segment = task.segment_begin; segment < task.segment_end; ++segment) {
    std::uint16_t* const to = task.packed_v + segment * padded_dim * kPackPitch;
    for (int column = 0; column < kPackPitch; column += kChunk) {
      const std::int64_t key_begin = segment * kPackSegment + column;
      if (key_begin >= task.num_keys + kChunk) break;  // no chunk reaches so far
      VecI nonfinite = {};
      for (int d = 0; d < padded_dim; d += kLanes) {
        const int count = min_int(task.head_dim - d, kLanes);
        VecU tile[kLanes] = {};
        for (int pair = 0; pair < kPairs && count > 0; ++pair) {
          const std::int64_t key = key_begin + 2 * pair;
          VecU even = {}, odd = {};
          if (key < task.num_keys) even = widened_bits(row_of(key) + d, count);
          if (key + 1 < task.num_keys) odd = widened_bits(row_of(key + 1) + d, count);
          nonfinite |= (even & 0x7f80u) == 0x7f80u;
          nonfinite |= (odd & 0x7f80u) == 0x7f80u;
          tile[pair] = even | (odd << 16);
        }
        transpose(tile);
        for (int i = 0; i < kLanes; ++i) store(to + (d + i) * kPackPitch + column, tile[i]);
      }
      if (column < kPackSegment && key_begin < task.num_keys) {
        task.has_nonfinite[key_begin / kChunk] = any(nonfinite) ? 1 : 0;
      }
    }
  }
}

struct PairDot {
  using Element = BFloat16;
  static constexpr int kExpDegree = 4;
  static constexpr int kQueryStep = 32;
  static constexpr int kProbabilityBytes = 2;
  static constexpr bool kNeedsPackedV = true;
  static constexpr void (*kPackV)(const PackTask&) = pack_v;

  static std::size_t query_bytes(int head_dim) {
    return std::size_t(padded_head_dim(head_dim)) * kRowBlock * sizeof(std::uint16_t);
  }
  /// One chunk of K, or one chunk of V for each chunk of a stage.
  static std::size_t staging_bytes(int head_dim) {
    return std::size_t{kMaxStageChunks} * chunk_elements(head_dim) * sizeof(std::uint16_t);
  }
  static std::int64_t chunk_elements(int head_dim) {
    return std::int64_t{kChunk} * padded_head_dim(head_dim);
  }

  static void pack_query(const BFloat16* q, std::int64_t q_stride, int num_rows, int head_dim,
                         void* packed) {
    std::uint32_t* to = static_cast<std::uint32_t*>(packed);
    for (int d = 0; d < head_dim; d += 2 * kPairs) {
      const int bytes = min_int(head_dim - d, 2 * kPairs) * 2;
      for (int group = 0; group < kGroups; ++group, to += kTileElements) {
        VecU tile[kLanes] = {};
        for (int i = 0; i < kLanes && group * kLanes + i < num_rows; ++i) {
          const BFloat16* const from = q + (group * kLanes + i) * q_stride + d;
          if (bytes == 64) {
            tile[i] = load_as<VecU>(from);
          } else {
            std::memcpy(&tile[i], from, bytes);
          }
        }
        transpose(tile);
        for (int i = 0; i < kPairs; ++i) store(to + i * kLanes, tile[i]);
      }
    }
  }

  /// Rows of K for a chunk, `stride` elements apart: the source itself, or a copy padded with zeros
  /// if the chunk reaches past the source or `must_pad` and head_dim is no multiple of 32.
  static const std::uint16_t* chunk_keys(const KeySource& source, std::int64_t key_begin,
                                         int head_dim, bool must_pad, void* staging,
                                         std::int64_t* stride) {
    const std::uint16_t* const base = static_cast<const std::uint16_t*>(source.k);
    const bool is_inside = key_begin >= 0 && key_begin + kChunk <= source.num_keys;
    const int padded_dim = padded_head_dim(head_dim);
    if (is_inside && !(must_pad && padded_dim != head_dim)) {
      *stride = source.k_stride;
      return base + key_begin * source.k_stride;
    }
    std::uint16_t* const copy = static_cast<std::uint16_t*>(staging);
    std::memset(copy, 0, std::size_t(chunk_elements(head_dim)) * sizeof(std::uint16_t));
    for (std::int64_t key = 0; key < kChunk; ++key) {
      if (key_begin + key < 0 || key_begin + key >= source.num_keys) continue;
      std::memcpy(copy + key * padded_dim, base + (key_begin + key) * source.k_stride,
                  head_dim * sizeof(std::uint16_t));
    }
    *stride = padded_dim;
    return copy;
  }

  static void store_probabilities(VecF even, VecF odd, int chunk, int key, int lane,
                                  void* probabilities) {
    std::uint32_t* const to = static_cast<std::uint32_t*>(probabilities) +
                              (chunk * kGroups + lane / kLanes) * kTileElements + key / 2 * kLanes;
    // Rounded to nearest, ties away from 0. The converting instruction and the permutation
    // that it needs keep the port they run on busy for longer than these four take.
    const VecU low = (bits_as<VecU>(even) + 0x8000u) >> 16;
    const VecU high = bits_as<VecU>(odd) + 0x8000u;
    constexpr __mmask32 kHighHalves = 0xAAAAAAAAu;
    store(to, _mm512_mask_mov_epi16(bits_as<__m512i>(low), kHighHalves, bits_as<__m512i>(high)));
  }

  static ChunkValues values_at(const KeySource& source, std::int64_t key, int head_dim) {
    const std::int64_t segment = key / kPackSegment;
    return {source.packed_v + segment * padded_head_dim(head_dim) * kPackPitch + key % kPackSegment,
            kPackPitch};
  }

  /// Values of chunks [begin, end) of the stage. Where a row must not meet a value that is not
  /// finite (its probability is 0, but 0 * NaN is NaN) such values are taken out and multiplied
  /// here, for attending rows only.
  template <class Dot>
  static void stage_values(const RowBlockTask& task, const Stage& stage, int begin, int end,
                           const Scratch<Dot>& scratch, float* out_t, ChunkValues* values) {
    const int padded_dim = padded_head_dim(task.head_dim);
    for (int c = begin; c < end; ++c) {
      const Chunk& chunk = stage.chunks[c];
      const KeySource& source = chunk.is_gathered ? task.gathered : task.sequence;
      const bool must_clean =
          chunk.row_mask != nullptr && touches_nonfinite(source, chunk.key_begin);
      if (chunk.key_begin >= 0 && !must_clean) {
        values[c] = values_at(source, chunk.key_begin, task.head_dim);
        continue;
      }
      std::uint16_t* const copy =
          static_cast<std::uint16_t*>(scratch.staging) + c * chunk_elements(task.head_dim);
      const int skipped = chunk.key_begin < 0 ? static_cast<int>(-chunk.key_begin) : 0;
      const ChunkValues from = values_at(source, chunk.key_begin + skipped, task.head_dim);
      for (int d = 0; d < padded_dim; ++d) {
        std::uint16_t* const row = copy + d * kChunk;
        std::memset(row, 0, skipped * sizeof(std::uint16_t));
        std::memcpy(row + skipped, from.rows + d * from.pitch,
                    (kChunk - skipped) * sizeof(std::uint16_t));
        if (!must_clean) continue;
        for (int key = 0; key < kChunk; ++key) {
          if (!is_nonfinite_bits(row[key])) continue;
          add_value(bfloat16_value(row[key]), chunk.row_mask[key], c, key, scratch.probabilities,
                    out_t + d * kRowBlock);
          row[key] = 0;
        }
      }
      values[c] = {copy, kChunk};
    }
  }

  static bool touches_nonfinite(const KeySource& source, std::int64_t key_begin) {
    const std::int64_t first = key_begin < 0 ? 0 : key_begin / kChunk;
    std::int64_t last = (key_begin + kChunk - 1) / kChunk;
    if (last > (source.num_keys - 1) / kChunk) last = (source.num_keys - 1) / kChunk;
    return source.has_nonfinite[first] != 0 || source.has_nonfinite[last] != 0;
  }

  static void add_value(float value, std::uint64_t row_mask, int chunk, int key,
                        const void* probabilities, float* out_row) {
    const std::uint16_t* const p = static_cast<const std::uint16_t*>(probabilities);
    for (int row = 0; row < kRowBlock; ++row) {
      if ((row_mask >> row & 1) == 0) continue;
      const int tile = chunk * kGroups + row / kLanes;
      const int element = tile * kTileElements + key / 2 * kLanes + row % kLanes;
      out_row[row] += bfloat16_value(p[2 * element + key % 2]) * value;
    }
  }
};

}  // namespace
}  // namespace minference::cpu
