// Attention of row blocks: online softmax over stages of chunks, the same for every instruction
// set.
//
//   S^T = K Q^T        Dot::scores       [32 keys][64 queries] per chunk, float
//   P^T = exp2(S^T)    here              running maximum and sum per query (lane)
//   O^T += V^T P^T     Dot::accumulate   [head_dim][64 queries], float
//
// `Dot` says how the two products are computed and in which formats Q and P lie.
#pragma once

#include <cmath>
#include <limits>

#include "cpu/isa/simd.h"
#include "cpu/kernels.h"

namespace minference::cpu {
namespace {

inline constexpr float kNegativeInfinity = -std::numeric_limits<float>::infinity();

/// A maximum this much (log2) above the one in use moves it. Below, probabilities up to 2^8 cost no
/// precision in float or bfloat16, and the accumulator need not be rescaled.
inline constexpr float kRescaleThreshold = 8.0f;

inline std::size_t align_up(std::size_t bytes) {
  return (bytes + kAlignment - 1) / kAlignment * kAlignment;
}

inline int min_int(std::int64_t a, int b) { return a < b ? static_cast<int>(a) : b; }

/// The parts of a worker's scratch, in order.
template <class Dot>
struct Scratch {
  void* query[kMaxTasks];
  void* staging;
  float* scores;            // [kChunk][kRowBlock]
  void* probabilities;      // of a stage's chunks, format of Dot
  float* out_t[kMaxTasks];  // [padded head_dim][kRowBlock]
  std::size_t bytes;

  Scratch(void* base, int head_dim) {
    char* const begin = static_cast<char*>(base);
    std::size_t used = 0;
    const auto take = [&](std::size_t part_bytes) {
      char* const part = begin + used;
      used += align_up(part_bytes);
      return part;
    };
    for (void*& task_query : query) task_query = take(Dot::query_bytes(head_dim));
    staging = take(Dot::staging_bytes(head_dim));
    scores = reinterpret_cast<float*>(take(kChunk * kRowBlock * sizeof(float)));
    probabilities =
        take(std::size_t{Dot::kStageChunks} * kChunk * kRowBlock * Dot::kProbabilityBytes);
    for (float*& task_out : out_t) {
      task_out = reinterpret_cast<float*>(
          take(std::size_t(padded_head_dim(head_dim)) * kRowBlock * sizeof(float)));
    }
    bytes = used;
  }
};

template <class Dot>
std::size_t scratch_bytes(int head_dim) {
  return Scratch<Dot>(nullptr, head_dim).bytes;
}

/// The kChunk keys from key_begin on; beyond the source's ends they count as 0.
struct ChunkKeys {
  const KeySource& source;
  std::int64_t key_begin;
};

inline void apply_row_masks(const std::uint64_t* row_mask, int width, float* scores) {
  for (int key = 0; key < kChunk; ++key) {
    const std::uint64_t mask = row_mask[key];
    if (mask == ~std::uint64_t{0}) continue;
    for (int lane = 0; lane < width; lane += kLanes) {
      float* const s = scores + key * kRowBlock + lane;
      store(s, select(static_cast<std::uint32_t>(mask >> lane), load(s), splat(kNegativeInfinity)));
    }
  }
}

/// Per query: maximum in use and sum of exponentials relative to it.
struct OnlineSoftmax {
  alignas(kAlignment) float row_max[kRowBlock];
  alignas(kAlignment) float row_sum[kRowBlock];
  alignas(kAlignment) float chunk_max[kRowBlock];

  OnlineSoftmax() {
    for (int i = 0; i < kRowBlock; ++i) {
      row_max[i] = kNegativeInfinity;
      row_sum[i] = 0.0f;
    }
  }

  /// Takes a chunk's maxima. True if one exceeds the maximum in use by more than the threshold:
  /// then settle_max() has to follow before the chunk is exponentiated.
  bool exceeds_max(const float* scores, float scale_log2, int width) {
    const float threshold = kRescaleThreshold / scale_log2;
    VecI exceeds = {};
    for (int lane = 0; lane < width; lane += kLanes) {
      VecF even = load(scores + lane);
      VecF odd = load(scores + kRowBlock + lane);
      for (int key = 2; key < kChunk; key += 2) {
        even = max_or_second(load(scores + key * kRowBlock + lane), even);
        odd = max_or_second(load(scores + (key + 1) * kRowBlock + lane), odd);
      }
      even = max_or_second(odd, even);
      store(chunk_max + lane, even);
      exceeds |= even > load(row_max + lane) + threshold;
    }
    return any(exceeds);
  }

  /// Moves the maxima that the chunk exceeds by more than the threshold and rescales what was
  /// summed.
  void settle_max(float scale_log2, int head_dim, int width, float* out_t) {
    const float threshold = kRescaleThreshold / scale_log2;
    for (int lane = 0; lane < width; lane += kLanes) {
      const VecF old_max = load(row_max + lane);
      const VecF new_max = load(chunk_max + lane);
      const VecI moves = new_max > old_max + threshold;
      if (!any(moves)) continue;
      const VecF settled = moves ? new_max : old_max;
      const VecF factor = moves ? exp2<5>((old_max - settled) * scale_log2) : splat(1.0f);
      store(row_max + lane, settled);
      store(row_sum + lane, load(row_sum + lane) * factor);
      if (!any(old_max != splat(kNegativeInfinity))) continue;  // nothing is summed yet
      for (int d = 0; d < head_dim; ++d) {
        float* const o = out_t + d * kRowBlock + lane;
        store(o, load(o) * factor);
      }
    }
  }

  /// Exponentiates a chunk into Dot's probability format and adds to the sums. `row_mask` as in
  /// Chunk.
  template <class Dot>
  void exponentiate(const float* scores, const std::uint64_t* row_mask, float scale_log2, int width,
                    int chunk, void* probabilities) {
    constexpr int kVectors = 2;  // of a row at a time
    for (int lane = 0; lane < width; lane += kVectors * kLanes) {
      VecF shift[kVectors];
      VecF sum[kVectors];
      for (int i = 0; i < kVectors; ++i) {
        shift[i] = shift_of(row_max + lane + i * kLanes, scale_log2);
        sum[i] = load(row_sum + lane + i * kLanes);
      }
      for (int key = 0; key < kChunk; key += 2) {
        const float* const s = scores + key * kRowBlock + lane;
        VecF p[2 * kVectors];
        for (int i = 0; i < kVectors; ++i) {
          p[2 * i] = load(s + i * kLanes) * scale_log2 - shift[i];
          p[2 * i + 1] = load(s + kRowBlock + i * kLanes) * scale_log2 - shift[i];
        }
        exp2<Dot::kExpDegree>(p);
        if (row_mask != nullptr) {
          for (int i = 0; i < 2 * kVectors; ++i) {
            const std::uint64_t mask = row_mask[key + i % 2] >> (lane + i / 2 * kLanes);
            p[i] = select(static_cast<std::uint32_t>(mask), p[i], splat(0.0f));
          }
        }
        for (int i = 0; i < kVectors; ++i) {
          sum[i] += p[2 * i] + p[2 * i + 1];
          Dot::store_probabilities(p[2 * i], p[2 * i + 1], chunk, key, lane + i * kLanes,
                                   probabilities);
        }
      }
      for (int i = 0; i < kVectors; ++i) store(row_sum + lane + i * kLanes, sum[i]);
    }
  }

  /// The maximum in use, scaled. A row that has met no key keeps -inf; its scores are all -inf,
  /// too, and must become 0.
  static VecF shift_of(const float* max, float scale_log2) {
    const VecF m = load(max);
    return (m == splat(kNegativeInfinity) ? splat(0.0f) : m) * scale_log2;
  }
};

/// out[row] = out_t[:, row] / row_sum[row]; rows that met no key get 0 and -inf.
template <class Element>
void write_rows(const RowBlockTask& task, const OnlineSoftmax& softmax, const float* out_t) {
  for (int row = 0; row < task.num_rows; row += kLanes) {
    const VecF sum = load(softmax.row_sum + row);
    const VecF inverse = sum == splat(0.0f) ? splat(0.0f) : 1.0f / sum;
    const int rows = min_int(task.num_rows - row, kLanes);
    for (int d = 0; d < task.head_dim; d += kLanes) {
      VecF tile[kLanes];
      for (int i = 0; i < kLanes; ++i) tile[i] = load(out_t + (d + i) * kRowBlock + row) * inverse;
      transpose(tile);
      const int count = min_int(task.head_dim - d, kLanes);
      for (int i = 0; i < rows; ++i) {
        Element* const out = static_cast<Element*>(task.out) + (row + i) * task.out_stride + d;
        if (count == kLanes) {
          narrow(out, tile[i]);
        } else {
          narrow_part(out, tile[i], count);
        }
      }
    }
  }
  if (task.lse == nullptr) return;
  constexpr float kLn2 = 0.693147180559945309f;
  for (int row = 0; row < task.num_rows; row += kLanes) {
    const VecF sum = load(softmax.row_sum + row);
    const VecF log2_sum = load(softmax.row_max + row) * task.scale_log2 + log2(sum);
    const VecF lse = sum == splat(0.0f) ? splat(kNegativeInfinity) : kLn2 * log2_sum;
    const int rows = min_int(task.num_rows - row, kLanes);
    for (int i = 0; i < rows; ++i) task.lse[(row + i) * task.lse_stride] = lse[i];
  }
}

/// The chunks of one stage of one row block.
template <class Dot>
void attend_stage(const RowBlockTask& task, const Stage& stage, const Scratch<Dot>& scratch,
                  const void* query, float* out_t, int width, OnlineSoftmax* softmax) {
  const auto keys_of = [&task](const Chunk& chunk) {
    return ChunkKeys{chunk.is_gathered ? task.gathered : task.sequence, chunk.key_begin};
  };
  int begin = 0;  // chunks before it are in out_t
  for (int c = 0; c < stage.num_chunks; ++c) {
    const Chunk& chunk = stage.chunks[c];
    const ChunkKeys keys = keys_of(chunk);
    // What the next stage begins with is not known here; mostly it goes on where this one ends.
    const ChunkKeys next = c + 1 < stage.num_chunks
                               ? keys_of(stage.chunks[c + 1])
                               : ChunkKeys{keys.source, keys.key_begin + kChunk};
    Dot::scores(keys, next, task.head_dim, query, width, scratch.scores, scratch.staging);
    if (chunk.row_mask != nullptr) apply_row_masks(chunk.row_mask, width, scratch.scores);
    if (softmax->exceeds_max(scratch.scores, task.scale_log2, width)) {
      // What waits has probabilities relative to the old maximum.
      Dot::accumulate(task, stage, begin, c, width, scratch, out_t);
      begin = c;
      softmax->settle_max(task.scale_log2, task.head_dim, width, out_t);
    }
    softmax->exponentiate<Dot>(scratch.scores, chunk.row_mask, task.scale_log2, width, c,
                               scratch.probabilities);
  }
  Dot::accumulate(task, stage, begin, stage.num_chunks, width, scratch, out_t);
}

template <class Dot>
void attend(const RowBlockTask* tasks, int num_tasks, void* scratch_memory) {
  using Element = typename Dot::Element;
  const int head_dim = tasks[0].head_dim;
  const Scratch<Dot> scratch(scratch_memory, head_dim);
  [[maybe_unused]] const typename Dot::Session session;
  OnlineSoftmax softmax[kMaxTasks];
  for (int i = 0; i < num_tasks; ++i) {
    const RowBlockTask& task = tasks[i];
    Dot::pack_query(static_cast<const Element*>(task.q), task.q_stride, task.num_rows, head_dim,
                    scratch.query[i]);
    std::memset(scratch.out_t[i], 0,
                std::size_t(padded_head_dim(head_dim)) * kRowBlock * sizeof(float));
  }
  Stage stage;
  for (bool has_chunks = true; has_chunks;) {
    has_chunks = false;
    for (int i = 0; i < num_tasks; ++i) {
      const RowBlockTask& task = tasks[i];
      if (!task.next_stage(task.cursor, Dot::kStageChunks, &stage)) continue;
      const int width = (task.num_rows + Dot::kQueryStep - 1) / Dot::kQueryStep * Dot::kQueryStep;
      attend_stage<Dot>(task, stage, scratch, scratch.query[i], scratch.out_t[i], width,
                        &softmax[i]);
      has_chunks = true;
    }
  }
  for (int i = 0; i < num_tasks; ++i) write_rows<Element>(tasks[i], softmax[i], scratch.out_t[i]);
}

}  // namespace
}  // namespace minference::cpu
