// What one CPU kernel offers and what it is given: plain structs between the planner, which knows
// patterns, and the per-ISA translation units in isa/, which know instructions.
//
// A kernel attends row blocks of 64 query rows of one head, each against its own stages of 32-key
// chunks, up to kMaxTasks of them in turns. Scores are kept transposed, S^T[key][query]: a vector
// holds 16 queries of one key, so the softmax needs no shuffles and every mask is one 64-bit word
// per key.
#pragma once

#include <cstddef>
#include <cstdint>

#include "minference/types.h"
#include "plan/format.h"

namespace minference::cpu {

inline constexpr int kMaxTasks = 4;  // row blocks that a worker attends in turns
using plan::kChunk;                  // keys of a chunk
using plan::kRowBlock;               // query rows of a task
using plan::num_row_blocks;

inline constexpr int kMaxStageChunks = 8;  // chunks whose softmax is taken together
inline constexpr int kMaxHeadDim = 256;
inline constexpr int kPackSegment = 256;  // keys of a segment of transposed values
inline constexpr int kPackPitch =
    kPackSegment + kChunk;                // any chunk that starts in a segment lies in it
inline constexpr int kKeySegment = 4096;  // keys of one estimation task
inline constexpr std::size_t kAlignment = 64;

/// 32 consecutive keys of a source. Keys outside of [0, num_keys) are masked and never read.
struct Chunk {
  std::int64_t key_begin;
  /// [kChunk], bit r: row r attends the key; null: all rows, all keys
  const std::uint64_t* row_mask;
  bool is_gathered;  ///< source: the head's gathered verticals, else the sequence
};

struct Stage {
  int num_chunks;
  Chunk chunks[kMaxStageChunks];
  std::uint64_t masks[kMaxStageChunks][kChunk];
};

/// Keys and values of one kv head of one sequence (or of gathered lines).
struct KeySource {
  const void* k;  ///< [num_keys, head_dim], rows k_stride elements apart
  const void* v;  ///< the same, rows v_stride elements apart; not read if packed_v is set
  std::int64_t k_stride;
  std::int64_t v_stride;
  const std::uint16_t* packed_v;      ///< made by pack_v; null for kernels that read rows of v
  const std::uint8_t* has_nonfinite;  ///< per kChunk keys, made by pack_v
  std::int64_t num_keys;
};

struct RowBlockTask {
  const void* q;  ///< [num_rows, head_dim], rows q_stride elements apart
  std::int64_t q_stride;
  void* out;  ///< [num_rows, head_dim], rows out_stride elements apart
  std::int64_t out_stride;
  float* lse;  ///< [num_rows], lse_stride elements apart; may be null
  std::int64_t lse_stride;
  int num_rows;  ///< 1..kRowBlock
  int head_dim;
  float scale_log2;  ///< softmax_scale * log2(e)
  KeySource sequence;
  KeySource gathered;
  bool (*next_stage)(void* cursor, int max_chunks, Stage* stage);  ///< false: no more chunks
  void* cursor;
};

/// The estimating rows (last queries) of one head against the keys of one segment.
struct EstimateTask {
  const void* q;  ///< [num_rows, head_dim], the last rows of the chunk of queries
  std::int64_t q_stride;
  int num_rows;  ///< 1..kRowBlock
  int head_dim;
  float scale_log2;
  KeySource sequence;
  std::int64_t key_begin;  ///< keys [key_begin, key_end) of the sequence, at most kKeySegment
  std::int64_t key_end;
  float* row_max;      ///< [kRowBlock], log2 units: written by row_stats, read by line_sums
  float* row_sum;      ///< [kRowBlock]: sum of exp2(score - row_max); same
  float* column_sums;  ///< [key_end - key_begin], written by line_sums
  /// [key_end - key_begin + kRowBlock], by offset ascending from that of row 0 and key key_end - 1;
  /// negative offsets hold 0
  float* diagonal_sums;
  void* scratch;
};

struct PackTask {
  const void* v;  ///< [.., head_dim], rows v_stride elements apart
  std::int64_t v_stride;
  const std::int32_t* rows;  ///< key n is row rows[n] of v; null: row n
  std::int64_t num_keys;
  std::int64_t segment_begin;  ///< segments [segment_begin, segment_end) of kPackSegment keys
  std::int64_t segment_end;
  int head_dim;
  std::uint16_t* packed_v;
  std::uint8_t* has_nonfinite;
};

/// One dtype on one instruction set.
struct AttentionKernel {
  bool needs_packed_v;
  std::size_t (*scratch_bytes)(int head_dim);
  /// Attends 1..kMaxTasks row blocks stage by stage in turns: neighbours meet nearly the same keys,
  /// which the second of them finds in the cache. `scratch`: scratch_bytes, aligned to kAlignment.
  void (*attend)(const RowBlockTask* tasks, int num_tasks, void* scratch);
  void (*row_stats)(const EstimateTask& task);
  void (*line_sums)(const EstimateTask& task);
  void (*pack_v)(const PackTask& task);  ///< null unless needs_packed_v
  /// mean[d] = mean of num_rows rows of x
  void (*mean_rows)(const void* x, std::int64_t stride, int num_rows, int head_dim, float* mean);
  /// dot[n] = a . b[n], rows of b head_dim apart
  void (*dot_rows)(const float* a, const float* b, std::int64_t num_rows, int head_dim, float* dot);
};

inline int padded_head_dim(int head_dim) { return (head_dim + 31) / 32 * 32; }

inline std::int64_t num_pack_segments(std::int64_t num_keys) {
  return (num_keys + kPackSegment - 1) / kPackSegment;
}

inline std::size_t packed_v_bytes(std::int64_t num_keys, int head_dim) {
  return static_cast<std::size_t>(num_pack_segments(num_keys)) * padded_head_dim(head_dim) *
         kPackPitch * sizeof(std::uint16_t);
}

/// A named set of kernels, one per dtype of the CPU, and whether this machine runs it.
struct KernelSet {
  const char* name;
  bool (*is_supported)();
  const AttentionKernel* const* kernels;  ///< in the order of DType, up to kFloat16
};

/// Best first.
int num_kernel_sets();
const KernelSet& kernel_set(int index);

}  // namespace minference::cpu
