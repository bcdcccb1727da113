// What kernels get: plain structs of pointers, strides and counts, shape beside each pointer.
// Everything that depends on lengths in device memory is found by the kernels
// (device/sequence.cuh); launch shapes and memory follow from the tensors' extents alone, so a
// captured graph may be replayed with other lengths, lists and contents.
//
// Sequences share arrays. Where array rows belong to a sequence, a `Rows` says where they begin.
#pragma once

#include <vector_types.h>

#include <cstdint>

#include "minference/sparse_attention.h"
#include "plan/format.h"

namespace minference::cuda {

inline constexpr int kRowBlock = plan::kRowBlock;
inline constexpr int kMaxHeads = 256;  ///< query heads of a call: their patterns are arguments
inline constexpr int kMaxHeadDim = 256;
inline constexpr int kSlotTail = kRowBlock;  ///< offsets that a strip shares with the next one
inline constexpr int kGatherRows = 128;      ///< gathered keys are padded to this with zero rows

/// Where the rows that belong to a sequence begin in an array that all sequences share: at
/// s * stride in a batch; in a packed batch, where lengths are in device memory and a stride for
/// the longest possible sequence would be wasteful, at (begin / divisor + s * slack) * multiple,
/// `begin` the first key (or query, where the array is one of query rows) of the sequence.
struct Rows {
  std::int64_t stride;  ///< used where divisor is 0
  std::int32_t divisor;
  std::int32_t slack;
  std::int64_t total;  ///< rows of all sequences
  std::int32_t multiple = 1;
};

/// The sequences of a call, or with estimate_every one chunk of the queries of each.
struct Sequences {
  const std::int32_t* first_valid_key;  ///< [count], null: 0
  const std::int32_t* cu_seqlens_q;     ///< [count + 1], null: one sequence per batch row
  const std::int32_t* cu_seqlens_kv;    ///< [count + 1], null with cu_seqlens_q
  std::int32_t count;
  std::int32_t seq_q;        ///< extent of q
  std::int32_t seq_kv;       ///< extent of k
  std::int32_t chunk_rows;   ///< queries of a chunk, a multiple of 64; 0: all queries, one chunk
  std::int32_t chunk_index;  ///< which chunk
};

/// One sequence, as device/sequence.cuh finds it. Positions in 32 bits, products in 64.
struct Sequence {
  std::int32_t batch;      ///< batch row of q, k
  std::int32_t q_begin;    ///< first row of q
  std::int32_t q_len;      ///< of the whole sequence
  std::int32_t kv_begin;   ///< first row of k
  std::int32_t kv_len;     ///< of the whole sequence
  std::int32_t row_begin;  ///< queries [row_begin, row_end) of the sequence: the chunk
  std::int32_t row_end;
  std::int32_t chunk_kv_len;  ///< keys up to the chunk's last query
};

inline constexpr int kRowAlignment = 16;  ///< bytes: of vectors, and of what TMA can address

/// float32 is refused.
constexpr int element_bytes(DType dtype) { return dtype == DType::kFloat8E4M3 ? 1 : 2; }

/// [batch, heads, tokens, head_dim], fp16, bf16 or e4m3, innermost contiguous.
struct Tensor {
  void* data;
  std::int64_t stride_batch;  ///< elements, as all strides; 0 along an axis of length 1
  std::int64_t stride_head;
  std::int64_t stride_token;
  DType dtype;
};

/// Whether every row begins at a multiple of 16 bytes.
inline bool has_aligned_rows(const Tensor& tensor) {
  const std::int64_t elements = kRowAlignment / element_bytes(tensor.dtype);
  return reinterpret_cast<std::uintptr_t>(tensor.data) % kRowAlignment == 0 &&
         tensor.stride_batch % elements == 0 && tensor.stride_head % elements == 0 &&
         tensor.stride_token % elements == 0;
}

/// Float8 as half as many elements of two bytes, for who does not tell them apart.
inline Tensor in_two_bytes(Tensor tensor) {
  if (tensor.dtype != DType::kFloat8E4M3) return tensor;
  return {tensor.data, tensor.stride_batch / 2, tensor.stride_head / 2, tensor.stride_token / 2,
          DType::kFloat16};
}

/// What a head's float8 values are multiplied by; null: 1. All null with other dtypes.
struct HeadScales {
  const float* q;  ///< [num_heads_q]
  const float* k;  ///< [num_heads_kv]
  const float* v;  ///< [num_heads_kv]
};

/// The patterns of all heads, by value: a kernel argument outlives the call, host memory may not.
struct Patterns {
  std::int32_t size[kMaxHeads][3];
  std::uint8_t kind[kMaxHeads];  ///< PatternKind
};

/// What all kernels of a call share.
struct Call {
  Sequences sequences;
  std::int32_t num_heads_q;
  std::int32_t num_heads_kv;
  std::int32_t heads_per_kv;
  std::int32_t head_dim;
  DType dtype;         ///< of q, k and v
  bool may_fall_back;  ///< dense_fallback, and mode kCover
  bool may_overlap;    ///< kernels may start while those before them end
  SlashMode mode;
};

// ---- Estimation ---------------------------------------------------------------------------------

/// Scores lie in strips of `strip` keys, so that one warp can own one. A sequence has an even
/// number of strips; strips past its last key hold nothing. `head` is a query head, s a strip's
/// number among all sequences' (strips.begin + key / strip):
///   column sum of key j          column_scores[(head * strips.total + s) * strip + j % strip]
///   part of the sum of offset o  slash_scores[(head * strips.total + s) * (strip + 64) + i]
///     with i = o - (chunk_kv_len - 64 - (strip_end - 1)), strip_end = min(kv_len, end of the
///     strip) An offset's sum is that of its parts in the strips of keys chunk_kv_len - 64 - o (or
///     0) and chunk_kv_len - 1 - o, one or two; i < 0 or negative offsets do not occur or hold 0.
struct Scores {
  Rows strips;
  std::int32_t strip;    ///< keys of a strip: a power of two, 512 to 2048
  float* column_scores;  ///< [num_heads_q, strips.total, strip]
  float* slash_scores;   ///< [num_heads_q, strips.total, strip + 64]
};

struct EstimateParams {
  Call call;
  Patterns patterns;
  Tensor q;
  Tensor k;
  float scale_log2;  ///< softmax_scale * log2(e)
  HeadScales scales;
  bool is_aligned;  ///< every row of q and k begins at a multiple of 16 bytes
  Scores scores;
  /// [num_heads_q, strips.total, 64]: shifts near a strip's maxima (in log2 units, at most 8 below
  /// score * scale_log2) and sums of exp2(score * scale_log2 - shift), per estimating row
  float2* strip_stats;
  float2* row_stats;  ///< [count, num_heads_q, 64]: shift and 1 / sum over all strips
};

// ---- Selection and plan -------------------------------------------------------------------------

/// What attention has to know of a head.
struct HeadPlan {
  PatternKind kind;      ///< as asked, or kDense where that is cheaper
  std::int32_t size[3];  ///< of the pattern, at most kv_len
  std::int32_t num_vertical;
  std::int32_t num_slash;
  std::int32_t num_chunks;
  std::int32_t is_estimated;  ///< 1: lines come from the estimation (not predicted dense)
  std::int64_t pieces;        ///< of the vertical-slash plan, 64 x 32 each
};

/// The plans of a layer in device memory. Row blocks count from the chunk's first query.
struct LayerPlan {
  HeadPlan* heads;          ///< [count, num_heads_q]
  Rows vertical_rows;       ///< of verticals, gathered_k and gathered_v; multiples of kGatherRows
  std::int32_t* verticals;  ///< [num_heads_q, vertical_rows.total] ascending, unique
  void* gathered_k;         ///< [num_heads_q, vertical_rows.total, head_dim], zero past the last
  void* gathered_v;         ///< the same; null if values are not needed
  Rows slash_rows;
  std::int32_t* slashes;  ///< [num_heads_q, slash_rows.total] ascending, unique
  Rows chunk_rows;
  plan::PlanChunk* chunks;    ///< [num_heads_q, chunk_rows.total] by rel
  Rows bit_words;             ///< 32-bit words of the bit sets of a sequence: kv_len + 129 bits
  std::uint32_t* covered;     ///< [num_heads_q, bit_words.total]; bit t: column t is in the cover
  std::uint32_t* slash_bits;  ///< the same; bit o: offset o is a line
  std::uint32_t* vertical_bits;  ///< the same; bit v: key v is a line
  Rows row_blocks;               ///< row blocks of a sequence's queries, or of a chunk of them
  std::int32_t max_tiles;        ///< tiles of 64 keys that a row block has, at most
  /// [num_heads_q, row_blocks.total, max_tiles] ascending: key blocks; of lines in mode kReference
  /// the tiles' first keys
  std::int32_t* tiles;
  std::int32_t* num_tiles;  ///< [num_heads_q, row_blocks.total]
  /// How many tasks the blocks of a persistent kernel have taken; 0 between launches.
  unsigned* next_task;
};

/// Mode kReference: the keys of a head's verticals that are in no tile of the row block. A struct
/// apart: kernels that rank blocks have no room for more arguments.
struct ColumnLists {
  std::int32_t* columns;      ///< [num_heads_q, row_blocks.total, max_columns] ascending
  std::int32_t* num_columns;  ///< [num_heads_q, row_blocks.total]
  std::int32_t max_columns;
};

struct PlanParams {
  Call call;
  Patterns patterns;
  Scores scores;                      ///< of the heads that estimate
  IndexView vertical_idx, slash_idx;  ///< [count, num_heads_q, n], of heads of kVerticalSlashIndex
  LayerPlan plan;
  // What estimate_vs_index returns; null where nobody asks.
  std::int32_t* vertical_out;  ///< [count, num_heads_q, vertical_count], -1 past the last
  std::int32_t* slash_out;     ///< [count, num_heads_q, slash_count]
  std::int64_t vertical_count;
  std::int64_t slash_count;
  float* column_scores_out;  ///< [count, num_heads_q, seq_kv], 0 past the last key
  float* slash_scores_out;   ///< the same
};

struct GatherParams {
  Call call;
  Tensor k, v;  ///< v.data null: keys only
  LayerPlan plan;
};

// ---- Attention ----------------------------------------------------------------------------------

/// What a block of threads works on: neighbouring row blocks of a head, and their query rows.
inline constexpr int kTaskBlocks = 2;
inline constexpr int kTaskRows = kTaskBlocks * kRowBlock;

/// Where a call with few tasks keeps what the parts of the keys gave, one after the other; items
/// are two row blocks of LayerPlan::row_blocks each.
struct PartialResults {
  std::int32_t num_parts;  ///< 1: none, attention writes out and lse itself
  std::int64_t num_items;
  float* out;    ///< [num_parts, num_heads_q, num_items, 128, head_dim], not divided by the sum
  float* shift;  ///< [num_parts, num_heads_q, num_items, 128]; log2 units
  float* sum;    ///< the same; of 2^(score - shift)
};

struct AttentionFwdParams {
  Call call;
  Tensor q, k, v;
  LayerPlan plan;
  ColumnLists columns;
  Tensor out;                  ///< of q's dtype, of float8 bf16
  float* lse;                  ///< null: not wanted
  std::int64_t lse_stride[3];  ///< batch, heads, tokens
  float scale_log2;            ///< softmax_scale * log2(e)
  HeadScales scales;
  bool is_aligned;      ///< rows of q, k and v begin at multiples of 16 bytes
  bool is_out_aligned;  ///< rows of out do
  PartialResults partial;
};

// ---- Block lists --------------------------------------------------------------------------------

/// Means of 64 rows each, over the rows that exist.
struct Pooled {
  Rows query_blocks;  ///< as LayerPlan::row_blocks
  Rows key_blocks;
  float* q;  ///< [num_heads_q, query_blocks.total, head_dim]; of heads of kBlockSparse
  float* k;  ///< [num_heads_kv, key_blocks.total, head_dim]; launch_pool skips what is null here,
             ///< as the keys of a later chunk of queries, which the first chunk's launch has pooled
};

struct PoolParams {
  Call call;
  Patterns patterns;
  Tensor q, k;
  Pooled pooled;
};

/// What launch_list_tiles can do: key blocks of the longest sequence, and the lesser of that number
/// and the top_k of any head of kBlockSparse. More: cudaErrorNotSupported.
inline constexpr int kMaxKeyBlocks = 65536;
inline constexpr int kMaxTopBlocks = 16384;

struct TileParams {
  Call call;
  Patterns patterns;
  Pooled pooled;
  IndexView block_idx;  ///< [count, num_heads_q, row blocks, n], of heads of kBlockIndex
  LayerPlan plan;
};

/// Mode kReference: lists of every row block of the heads with lines.
struct ReferenceParams {
  Call call;
  LayerPlan plan;
  ColumnLists columns;
};

/// Any lines to lists of every row block, as ConvertVsIndexParams has them. `sorted_*`: workspace,
/// lists of the power of two that holds their entries.
struct ConvertParams {
  const std::int32_t* q_seqlens;   ///< [batch]
  const std::int32_t* kv_seqlens;  ///< [batch]
  IndexView vertical_idx;          ///< [batch, num_heads, count]
  IndexView slash_idx;             ///< the same
  std::int64_t num_row_blocks;
  bool is_causal;
  std::int32_t* sorted_vertical;  ///< [batch, num_heads, vertical_capacity]
  std::int32_t* sorted_slash;     ///< [batch, num_heads, slash_capacity]
  std::int64_t vertical_capacity;
  std::int64_t slash_capacity;
  std::int32_t* block_count;   ///< [batch, num_heads, num_row_blocks]
  std::int32_t* block_offset;  ///< [batch, num_heads, num_row_blocks, slash count]
  std::int32_t* column_count;  ///< as block_count
  std::int32_t* column_index;  ///< [batch, num_heads, num_row_blocks, vertical count]
};

struct StatsParams {
  Call call;
  Patterns patterns;
  LayerPlan plan;
  ColumnLists columns;
  std::int32_t strip;
  PlanStats* stats;  ///< [count, num_heads_q]
};

}  // namespace minference::cuda
