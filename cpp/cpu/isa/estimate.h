// Estimation of vertical and slash lines without a 64 x N matrix: the last queries meet all keys
// twice, first for each row's maximum and sum, then for the probabilities' sums over columns and
// over diagonals (MInference, algorithm 2).
#pragma once

#include "cpu/isa/attend.h"

namespace minference::cpu {
namespace {

/// Rows that attend `key`: row r is query first_row + r. Keys past the segment belong to another
/// task.
inline std::uint64_t estimating_rows(const EstimateTask& task, std::int64_t key) {
  if (key >= task.key_end) return 0;
  const std::int64_t first_row = task.sequence.num_keys - task.num_rows;
  return key <= first_row ? ~std::uint64_t{0} : ~std::uint64_t{0} << (key - first_row);
}

/// Scores of 32 keys, -inf where the row does not attend. Returns the masks as in Chunk.
template <class Dot>
const std::uint64_t* estimation_scores(const EstimateTask& task, const Scratch<Dot>& scratch,
                                       std::int64_t key_begin, int width, std::uint64_t* masks) {
  const ChunkKeys keys = {task.sequence, key_begin}, next = {task.sequence, key_begin + kChunk};
  Dot::scores(keys, next, task.head_dim, scratch.query[0], width, scratch.scores, scratch.staging);
  const std::int64_t last = key_begin + kChunk - 1;
  if (last <= task.sequence.num_keys - task.num_rows && last < task.key_end) return nullptr;
  for (int i = 0; i < kChunk; ++i) masks[i] = estimating_rows(task, key_begin + i);
  apply_row_masks(masks, width, scratch.scores);
  return masks;
}

/// p[n] = 2^(score * scale - shift) of keys key + n and 16 rows, 0 where the row does not attend.
template <class Dot>
void estimation_exponentials(const Scratch<Dot>& scratch, const std::uint64_t* row_mask,
                             float scale_log2, VecF shift, int key, int lane, VecF (&p)[4]) {
  const float* const s = scratch.scores + key * kRowBlock + lane;
  for (int n = 0; n < 4; ++n) p[n] = load(s + n * kRowBlock) * scale_log2 - shift;
  exp2<Dot::kExpDegree>(p);
  for (int n = 0; n < 4 && row_mask != nullptr; ++n) {
    p[n] = select(static_cast<std::uint32_t>(row_mask[key + n] >> lane), p[n], splat(0.0f));
  }
}

template <class Dot>
int begin_estimation(const EstimateTask& task, const Scratch<Dot>& scratch) {
  Dot::pack_query(static_cast<const typename Dot::Element*>(task.q), task.q_stride, task.num_rows,
                  task.head_dim, scratch.query[0]);
  return (task.num_rows + Dot::kQueryStep - 1) / Dot::kQueryStep * Dot::kQueryStep;
}

template <class Dot>
void row_stats(const EstimateTask& task) {
  const Scratch<Dot> scratch(task.scratch, task.head_dim);
  [[maybe_unused]] const typename Dot::Session session;
  const int width = begin_estimation(task, scratch);
  OnlineSoftmax softmax;
  for (std::int64_t key = task.key_begin; key < task.key_end; key += kChunk) {
    std::uint64_t masks[kChunk];
    const std::uint64_t* const row_mask = estimation_scores(task, scratch, key, width, masks);
    if (softmax.exceeds_max(scratch.scores, task.scale_log2, width)) {
      softmax.settle_max(task.scale_log2, 0, width, nullptr);
    }
    for (int lane = 0; lane < width; lane += kLanes) {
      const VecF shift = OnlineSoftmax::shift_of(softmax.row_max + lane, task.scale_log2);
      VecF sum = load(softmax.row_sum + lane);
      for (int i = 0; i < kChunk; i += 4) {
        VecF p[4];
        estimation_exponentials(scratch, row_mask, task.scale_log2, shift, i, lane, p);
        sum += (p[0] + p[1]) + (p[2] + p[3]);
      }
      store(softmax.row_sum + lane, sum);
    }
  }
  for (int row = 0; row < kRowBlock; ++row) {
    task.row_max[row] = softmax.row_max[row] * task.scale_log2;
    task.row_sum[row] = softmax.row_sum[row];
  }
}

/// Sums over rows of each of 32 keys' probabilities.
inline void sum_columns(const float* probabilities, int width, float* sums) {
  for (int key = 0; key < kChunk; key += kLanes) {
    VecF tile[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const float* const p = probabilities + (key + i) * kRowBlock;
      tile[i] = load(p);
      for (int lane = kLanes; lane < width; lane += kLanes) tile[i] += load(p + lane);
    }
    transpose(tile);
    VecF sum = tile[0];
    for (int i = 1; i < kLanes; ++i) sum += tile[i];
    store(sums + key, sum);
  }
}

template <class Dot>
void line_sums(const EstimateTask& task) {
  constexpr int kSkewWidth = kRowBlock + kChunk;
  const Scratch<Dot> scratch(task.scratch, task.head_dim);
  [[maybe_unused]] const typename Dot::Session session;
  const int width = begin_estimation(task, scratch);
  alignas(kAlignment) float inverse[kRowBlock] = {};
  alignas(kAlignment) float row_max[kRowBlock] = {};
  for (int row = 0; row < task.num_rows; ++row) {
    inverse[row] = 1.0f / task.row_sum[row];
    row_max[row] = task.row_max[row];
  }
  const std::int64_t num_keys = task.key_end - task.key_begin;
  std::memset(task.diagonal_sums, 0, (num_keys + kRowBlock) * sizeof(float));
  // Row i of `skewed` holds key i's probabilities shifted right by 31 - i, so that its columns are
  // diagonals. What lies outside of the shifted rows stays 0.
  alignas(kAlignment) float skewed[kChunk * kSkewWidth] = {};
  float* const probabilities = scratch.scores;
  for (std::int64_t key = task.key_begin; key < task.key_end; key += kChunk) {
    std::uint64_t masks[kChunk];
    const std::uint64_t* const row_mask = estimation_scores(task, scratch, key, width, masks);
    for (int lane = 0; lane < width; lane += kLanes) {
      const VecF max = load(row_max + lane);
      const VecF factor = load(inverse + lane);
      for (int i = 0; i < kChunk; i += 4) {
        float* const first = probabilities + i * kRowBlock + lane;
        VecF p[4];
        estimation_exponentials(scratch, row_mask, task.scale_log2, max, i, lane, p);
        for (int n = 0; n < 4; ++n) {
          p[n] *= factor;
          store(first + n * kRowBlock, p[n]);
          store(skewed + (i + n) * kSkewWidth + (kChunk - 1 - i - n) + lane, p[n]);
        }
      }
    }
    alignas(kAlignment) float columns[kChunk];
    sum_columns(probabilities, width, columns);
    const int valid = min_int(task.key_end - key, kChunk);
    std::memcpy(task.column_sums + (key - task.key_begin), columns, valid * sizeof(float));

    // Entry 0 of the skewed row belongs to the chunk's last key; a partial chunk has fewer keys.
    const std::int64_t first = task.key_end - key - kChunk;
    alignas(kAlignment) float diagonals[kSkewWidth];
    for (int lane = 0; lane < kSkewWidth; lane += kLanes) {
      VecF sum = load(skewed + lane);
      for (int i = 1; i < kChunk; ++i) sum += load(skewed + i * kSkewWidth + lane);
      store(diagonals + lane, sum);
    }
    for (int i = first < 0 ? static_cast<int>(-first) : 0; i < kSkewWidth; ++i) {
      task.diagonal_sums[first + i] += diagonals[i];
    }
  }
}

/// mean[d] over rows.
template <class T>
void mean_rows(const void* x, std::int64_t stride, int num_rows, int head_dim, float* mean) {
  const T* const rows = static_cast<const T*>(x);
  const float inverse = 1.0f / static_cast<float>(num_rows);
  for (int d = 0; d < head_dim; d += kLanes) {
    const int count = min_int(head_dim - d, kLanes);
    VecF sum = splat(0.0f);
    for (int row = 0; row < num_rows; ++row) {
      const T* const from = rows + row * stride + d;
      sum += count == kLanes ? widen(from) : widen_part(from, count);
    }
    sum *= inverse;
    std::memcpy(mean + d, &sum, count * sizeof(float));
  }
}

inline void dot_rows(const float* a, const float* b, std::int64_t num_rows, int head_dim,
                     float* dot) {
  for (std::int64_t row = 0; row < num_rows; ++row) {
    VecF sum = splat(0.0f);
    int d = 0;
    for (; d + kLanes <= head_dim; d += kLanes) sum += load(a + d) * load(b + row * head_dim + d);
    if (d < head_dim) {
      sum += widen_part(a + d, head_dim - d) * widen_part(b + row * head_dim + d, head_dim - d);
    }
    dot[row] = horizontal_sum(sum);
  }
}

/// The table entry of a kernel.
template <class Dot>
inline constexpr AttentionKernel kKernelOf = {
    .needs_packed_v = Dot::kNeedsPackedV,
    .scratch_bytes = scratch_bytes<Dot>,
    .attend = attend<Dot>,
    .row_stats = row_stats<Dot>,
    .line_sums = line_sums<Dot>,
    .pack_v = Dot::kPackV,
    .mean_rows = mean_rows<typename Dot::Element>,
    .dot_rows = dot_rows,
};

}  // namespace
}  // namespace minference::cpu
