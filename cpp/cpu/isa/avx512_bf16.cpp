// bfloat16 on AVX-512 BF16: one instruction multiplies 16 pairs and adds them to 16 floats.
#define MINFERENCE_LANES 16
#include "cpu/isa/estimate.h"
#include "cpu/isa/kernel_sets.h"
#include "cpu/isa/pair_dot.h"
#include "cpu/isa/row_dot.h"

namespace minference::cpu {
namespace {

inline constexpr int kTileRows = 8;  // rows of an accumulator tile, two vectors wide

/// acc[row][vector] += pair(row, i) . rhs[vector][i] over `pairs` pairs of one packed tile.
template <class Lhs>
inline void multiply_pairs(const Lhs& lhs, const std::uint32_t* rhs, int pairs,
                           VecF (&acc)[kTileRows][2]) {
  for (int i = 0; i < pairs; ++i) {
    const __m512bh right0 = (__m512bh)_mm512_loadu_si512(rhs + i * kLanes);
    const __m512bh right1 = (__m512bh)_mm512_loadu_si512(rhs + kTileElements + i * kLanes);
#pragma GCC unroll 8
    for (int row = 0; row < kTileRows; ++row) {
      std::int32_t pair;
      std::memcpy(&pair, lhs(row, i), sizeof(pair));
      const __m512bh left = (__m512bh)_mm512_set1_epi32(pair);
      acc[row][0] = bits_as<VecF>(_mm512_dpbf16_ps(bits_as<__m512>(acc[row][0]), left, right0));
      acc[row][1] = bits_as<VecF>(_mm512_dpbf16_ps(bits_as<__m512>(acc[row][1]), left, right1));
    }
  }
}

struct VectorPairDot : PairDot {
  static constexpr int kStageChunks = 4;
  struct Session {};

  static void scores(const ChunkKeys& chunk, const ChunkKeys& /*next*/, int head_dim,
                     const void* packed_query, int width, float* scores, void* staging) {
    std::int64_t stride;
    const std::uint16_t* const keys =
        chunk_keys(chunk.source, chunk.key_begin, head_dim, false, staging, &stride);
    const std::uint32_t* const query = static_cast<const std::uint32_t*>(packed_query);
    for (int lane = 0; lane < width; lane += 2 * kLanes) {
      for (int key = 0; key < kChunk; key += kTileRows) {
        VecF acc[kTileRows][2] = {};
        for (int d = 0; d < head_dim; d += 2 * kPairs) {
          const std::uint16_t* const rows = keys + key * stride + d;
          multiply_pairs([&](int row, int i) { return rows + row * stride + 2 * i; },
                         query + (d / (2 * kPairs) * kGroups + lane / kLanes) * kTileElements,
                         min_int(head_dim - d, 2 * kPairs) / 2, acc);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kTileRows; ++row) {
          store(scores + (key + row) * kRowBlock + lane, acc[row][0]);
          store(scores + (key + row) * kRowBlock + lane + kLanes, acc[row][1]);
        }
      }
    }
  }

  /// Adds chunks [begin, end) of the stage.
  static void accumulate(const RowBlockTask& task, const Stage& stage, int begin, int end,
                         int width, const Scratch<VectorPairDot>& scratch, float* out_t) {
    if (begin == end) return;
    ChunkValues values[kMaxStageChunks];
    stage_values(task, stage, begin, end, scratch, out_t, values);
    const std::uint32_t* const p = static_cast<const std::uint32_t*>(scratch.probabilities);
    for (int d = 0; d < task.head_dim; d += kTileRows) {
      for (int lane = 0; lane < width; lane += 2 * kLanes) {
        float* const out = out_t + d * kRowBlock + lane;
        VecF acc[kTileRows][2];
#pragma GCC unroll 8
        for (int row = 0; row < kTileRows; ++row) {
          acc[row][0] = load(out + row * kRowBlock);
          acc[row][1] = load(out + row * kRowBlock + kLanes);
        }
        for (int c = begin; c < end; ++c) {
          const std::uint16_t* const rows = values[c].rows + d * values[c].pitch;
          const std::int64_t pitch = values[c].pitch;
          multiply_pairs([&](int row, int i) { return rows + row * pitch + 2 * i; },
                         p + (c * kGroups + lane / kLanes) * kTileElements, kPairs, acc);
        }
#pragma GCC unroll 8
        for (int row = 0; row < kTileRows; ++row) {
          store(out + row * kRowBlock, acc[row][0]);
          store(out + row * kRowBlock + kLanes, acc[row][1]);
        }
      }
    }
  }
};

}  // namespace

const KernelTable kAvx512Bf16Kernels = {&kKernelOf<RowDot<float>>, &kKernelOf<VectorPairDot>,
                                        &kKernelOf<RowDot<Float16>>};

}  // namespace minference::cpu
