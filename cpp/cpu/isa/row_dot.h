// Products with float multiply-add, for float, bfloat16 and float16 on any instruction set.
// K and V are read row by row as they lie in memory (16-bit types are widened one chunk at a time).
#pragma once

#include "cpu/isa/attend.h"

namespace minference::cpu {
namespace {

/// Rows `key_begin ..` of a source as float: 32 rows, 0 outside of the source.
template <class T>
struct ChunkRows {
  const float* rows;
  std::int64_t stride;

  ChunkRows(const void* base, std::int64_t base_stride, std::int64_t num_keys,
            std::int64_t key_begin, int head_dim, bool must_copy, float* staging) {
    const T* const first = static_cast<const T*>(base) + key_begin * base_stride;
    const bool is_inside = key_begin >= 0 && key_begin + kChunk <= num_keys;
    if constexpr (sizeof(T) == sizeof(float)) {
      if (is_inside && !must_copy) {
        rows = reinterpret_cast<const float*>(first);
        stride = base_stride;
        return;
      }
    }
    for (int key = 0; key < kChunk; ++key) {
      float* const to = staging + key * head_dim;
      if (key_begin + key < 0 || key_begin + key >= num_keys) {
        std::memset(to, 0, head_dim * sizeof(float));
        continue;
      }
      const T* const from = first + key * base_stride;
      int d = 0;
      for (; d + kLanes <= head_dim; d += kLanes) store(to + d, widen(from + d));
      if (d < head_dim) {
        const VecF part = widen_part(from + d, head_dim - d);
        std::memcpy(to + d, &part, (head_dim - d) * sizeof(float));
      }
    }
    rows = staging;
    stride = head_dim;
  }
};

/// acc[row][vector] += sum over k of lhs(row, k) * rhs[k][vector]: kRows rows, two vectors.
template <int kRows, class Lhs>
inline void multiply_tile(const Lhs& lhs, const float* rhs, int depth, VecF (&acc)[kRows][2]) {
  for (int k = 0; k < depth; ++k) {
    const VecF right0 = load(rhs + k * kRowBlock);
    const VecF right1 = load(rhs + k * kRowBlock + kLanes);
#pragma GCC unroll 16
    for (int row = 0; row < kRows; ++row) {
      const VecF left = splat(lhs(row, k));
      acc[row][0] += left * right0;
      acc[row][1] += left * right1;
    }
  }
}

template <class T>
struct RowDot {
  using Element = T;
  static constexpr int kStageChunks = 2;
  static constexpr int kExpDegree = 5;
  static constexpr int kQueryStep = 2 * kLanes;
  static constexpr int kProbabilityBytes = 4;  // per element of [chunk][kChunk][kRowBlock]
  static constexpr bool kNeedsPackedV = false;
  static constexpr void (*kPackV)(const PackTask&) = nullptr;
  static constexpr int kTileRows = kLanes == 16 ? 8 : 4;  // 2 * kTileRows accumulators in registers

  struct Session {};

  static std::size_t query_bytes(int head_dim) {
    return std::size_t(padded_head_dim(head_dim)) * kRowBlock * sizeof(float);
  }
  static std::size_t staging_bytes(int head_dim) {
    return std::size_t{kChunk} * head_dim * sizeof(float);
  }

  /// packed[d][row] = q[row][d]; rows past num_rows are 0.
  static void pack_query(const T* q, std::int64_t q_stride, int num_rows, int head_dim,
                         void* packed) {
    float* const to = static_cast<float*>(packed);
    for (int row = 0; row < kRowBlock; row += kLanes) {
      for (int d = 0; d < head_dim; d += kLanes) {
        const int count = min_int(head_dim - d, kLanes);
        VecF tile[kLanes] = {};
        for (int i = 0; i < kLanes && row + i < num_rows; ++i) {
          const T* const from = q + (row + i) * q_stride + d;
          tile[i] = count == kLanes ? widen(from) : widen_part(from, count);
        }
        transpose(tile);
        for (int i = 0; i < count; ++i) store(to + (d + i) * kRowBlock + row, tile[i]);
      }
    }
  }

  static void scores(const ChunkKeys& chunk, const ChunkKeys& /*next*/, int head_dim,
                     const void* packed_query, int width, float* scores, void* staging) {
    const ChunkRows<T> keys(chunk.source.k, chunk.source.k_stride, chunk.source.num_keys,
                            chunk.key_begin, head_dim, false, static_cast<float*>(staging));
    const float* const query = static_cast<const float*>(packed_query);
    for (int lane = 0; lane < width; lane += 2 * kLanes) {
      for (int key = 0; key < kChunk; key += kTileRows) {
        const float* const rows = keys.rows + key * keys.stride;
        const std::int64_t stride = keys.stride;
        VecF acc[kTileRows][2] = {};
        multiply_tile([&](int row, int d) { return rows[row * stride + d]; }, query + lane,
                      head_dim, acc);
#pragma GCC unroll 16
        for (int row = 0; row < kTileRows; ++row) {
          store(scores + (key + row) * kRowBlock + lane, acc[row][0]);
          store(scores + (key + row) * kRowBlock + lane + kLanes, acc[row][1]);
        }
      }
    }
  }

  static void store_probabilities(VecF even, VecF odd, int chunk, int key, int lane,
                                  void* probabilities) {
    float* const p = static_cast<float*>(probabilities) + (chunk * kChunk + key) * kRowBlock + lane;
    store(p, even);
    store(p + kRowBlock, odd);
  }

  /// Sets values that are not finite to 0 and says whether there were any.
  static bool take_nonfinite(float* values, int head_dim) {
    VecI found = {};
    for (int i = 0; i < kChunk * head_dim; i += kLanes) {
      const VecF x = load(values + i);
      const VecI is_finite = x - x == splat(0.0f);
      found |= ~is_finite;
      store(values + i, is_finite ? x : splat(0.0f));
    }
    return any(found);
  }

  /// A key that a row does not attend has probability 0, but 0 * NaN is NaN: in masked chunks the
  /// values that are not finite are multiplied for attending rows only.
  static void add_nonfinite(const Chunk& chunk, const KeySource& source, int head_dim,
                            const float* probabilities, float* out_t) {
    for (int key = 0; key < kChunk; ++key) {
      if (chunk.row_mask[key] == 0) continue;
      const T* const values =
          static_cast<const T*>(source.v) + (chunk.key_begin + key) * source.v_stride;
      for (int d = 0; d < head_dim; ++d) {
        const float value = widen_part(values + d, 1)[0];
        if (std::isfinite(value)) continue;
        for (int row = 0; row < kRowBlock; ++row) {
          if ((chunk.row_mask[key] >> row & 1) == 0) continue;
          out_t[d * kRowBlock + row] += probabilities[key * kRowBlock + row] * value;
        }
      }
    }
  }

  /// Adds chunks [begin, end) of the stage.
  static void accumulate(const RowBlockTask& task, const Stage& stage, int begin, int end,
                         int width, const Scratch<RowDot>& scratch, float* out_t) {
    const int head_dim = task.head_dim;
    for (int c = begin; c < end; ++c) {
      const Chunk& chunk = stage.chunks[c];
      const KeySource& source = chunk.is_gathered ? task.gathered : task.sequence;
      const float* const p =
          static_cast<const float*>(scratch.probabilities) + c * kChunk * kRowBlock;
      const bool is_masked = chunk.row_mask != nullptr;
      const ChunkRows<T> values(source.v, source.v_stride, source.num_keys, chunk.key_begin,
                                head_dim, is_masked, static_cast<float*>(scratch.staging));
      if (is_masked && take_nonfinite(static_cast<float*>(scratch.staging), head_dim)) {
        add_nonfinite(chunk, source, head_dim, p, out_t);
      }
      for (int d = 0; d < head_dim; d += kTileRows) {
        const float* const rows = values.rows + d;
        const std::int64_t stride = values.stride;
        for (int lane = 0; lane < width; lane += 2 * kLanes) {
          VecF acc[kTileRows][2];
#pragma GCC unroll 16
          for (int row = 0; row < kTileRows; ++row) {
            acc[row][0] = load(out_t + (d + row) * kRowBlock + lane);
            acc[row][1] = load(out_t + (d + row) * kRowBlock + lane + kLanes);
          }
          multiply_tile([&](int row, int key) { return rows[key * stride + row]; }, p + lane,
                        kChunk, acc);
#pragma GCC unroll 16
          for (int row = 0; row < kTileRows; ++row) {
            store(out_t + (d + row) * kRowBlock + lane, acc[row][0]);
            store(out_t + (d + row) * kRowBlock + lane + kLanes, acc[row][1]);
          }
        }
      }
    }
  }
};

}  // namespace
}  // namespace minference::cpu
