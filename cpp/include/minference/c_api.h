// libminference from C99, and from whatever calls C: the same library, structs and results as the
// C++ headers, for an engine that has no C++ compiler. One call serves every pattern.
//
// Names follow from those of C++: minference::AttentionArgs is MinferenceAttentionArgs,
// minference::predict is minference_predict, PatternKind::kAShape is MINFERENCE_PATTERN_A_SHAPE.
// What they mean stands in the C++ header that each section names; cpp/core/c_api.cpp asserts that
// sizes, offsets and values are equal.
//
// Start every struct from its *_INIT: it sets the defaults and struct_size, by which a program
// compiled against this header works with later libraries. Functions return a status; one other
// than MINFERENCE_OK leaves a sentence in minference_last_error(). A pointer that is NULL where it
// must not be is MINFERENCE_INVALID_ARGUMENT.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(MINFERENCE_BUILD)
#define MINFERENCE_API __attribute__((visibility("default")))
#else
#define MINFERENCE_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

// ---- types.h ------------------------------------------------------------------------------------

typedef int32_t MinferenceStatus;
enum {
  MINFERENCE_OK = 0,
  MINFERENCE_INVALID_ARGUMENT = -1,
  MINFERENCE_UNSUPPORTED = -2,
  MINFERENCE_WORKSPACE_TOO_SMALL = -3,
  MINFERENCE_DEVICE_ERROR = -4,
  MINFERENCE_INTERNAL = -5
};

/// Short name of a status. Never NULL.
MINFERENCE_API const char* minference_status_string(MinferenceStatus status);
/// Sentence of this thread's latest failed call, valid until its next call. Never NULL.
MINFERENCE_API const char* minference_last_error(void);

typedef int32_t MinferenceDType;
enum {
  MINFERENCE_FLOAT32 = 0,
  MINFERENCE_BFLOAT16 = 1,
  MINFERENCE_FLOAT16 = 2,
  MINFERENCE_FLOAT8_E4M3 = 3
};

typedef int32_t MinferenceDevice;
enum { MINFERENCE_CPU = 1, MINFERENCE_CUDA = 2 };

/// The innermost axis is contiguous: stride[3] == 1.
typedef struct MinferenceTensorView {
  void* data;
  int64_t shape[4];
  int64_t stride[4];  ///< elements
  MinferenceDType dtype;
} MinferenceTensorView;
#define MINFERENCE_TENSOR_VIEW_INIT {NULL, {0, 0, 0, 0}, {0, 0, 0, 0}, MINFERENCE_FLOAT32}

/// [sequences, heads, count] or, for blocks, [sequences, heads, row blocks, count]; -1: no entry.
typedef struct MinferenceIndexView {
  const int32_t* data;
  int64_t shape[4];
  int64_t stride[4];  ///< elements
} MinferenceIndexView;
#define MINFERENCE_INDEX_VIEW_INIT {NULL, {0, 0, 0, 0}, {0, 0, 0, 0}}

/// An engine's threads: run() calls body(argument, worker) once for every worker in
/// [0, num_workers) and returns after all of them.
typedef struct MinferenceParallelFor {
  void (*run)(void* context, int64_t num_workers, void (*body)(void* argument, int64_t worker),
              void* argument);
  void* context;
} MinferenceParallelFor;
#define MINFERENCE_PARALLEL_FOR_INIT {NULL, NULL}

typedef struct MinferenceAttentionArgs {
  uint32_t struct_size;
  MinferenceDevice device;
  MinferenceTensorView q;  ///< [batch, num_heads_q, seq_q, head_dim]; head_dim % 8 == 0, <= 256
  MinferenceTensorView k;  ///< [batch, num_heads_kv, seq_kv, head_dim], dtype of q
  MinferenceTensorView v;  ///< [batch, num_heads_kv, seq_kv, head_dim], dtype of q
  /// [batch, num_heads_q, seq_q, head_dim], dtype of q, of float8 bfloat16
  MinferenceTensorView out;
  float* lse;                          ///< [batch, num_heads_q, seq_q], natural log; may be NULL
  int64_t lse_stride[3];               ///< elements
  const int32_t* first_valid_key;      ///< [batch], left padding; NULL: 0
  const int32_t* cu_seqlens_q;         ///< [num_sequences + 1], packed sequences; NULL: one per row
  const int32_t* cu_seqlens_kv;        ///< [num_sequences + 1], given together with cu_seqlens_q
  int64_t num_sequences;               ///< with cu_seqlens_*: how many
  double softmax_scale;                ///< 0: 1 / sqrt(head_dim)
  void* stream;                        ///< cudaStream_t of q's device; ignored on the CPU
  int32_t num_threads;                 ///< workers, at most 1024; 0: all cores
  MinferenceParallelFor parallel_for;  ///< run NULL: the library's own threads
  int32_t reserved_multiprocessors;    ///< that attention on sm_90 leaves free; 0: none
  const float* q_scale;                ///< [num_heads_q], factors of float8 q; NULL: 1
  const float* k_scale;                ///< [num_heads_kv], factors of float8 k; NULL: 1
  const float* v_scale;                ///< [num_heads_kv], factors of float8 v; NULL: 1
} MinferenceAttentionArgs;
#define MINFERENCE_ATTENTION_ARGS_INIT \
  {sizeof(MinferenceAttentionArgs),    \
   MINFERENCE_CPU,                     \
   MINFERENCE_TENSOR_VIEW_INIT,        \
   MINFERENCE_TENSOR_VIEW_INIT,        \
   MINFERENCE_TENSOR_VIEW_INIT,        \
   MINFERENCE_TENSOR_VIEW_INIT,        \
   NULL,                               \
   {0, 0, 0},                          \
   NULL,                               \
   NULL,                               \
   NULL,                               \
   0,                                  \
   0,                                  \
   NULL,                               \
   0,                                  \
   MINFERENCE_PARALLEL_FOR_INIT,       \
   0,                                  \
   NULL,                               \
   NULL,                               \
   NULL}

// ---- build_info.h -------------------------------------------------------------------------------

/// "major.minor.patch". Never NULL.
MINFERENCE_API const char* minference_version(void);
MINFERENCE_API int32_t minference_cpu_kernel_count(void);
/// `supported`: 1 if this machine can run the kernel, else 0. `index`: [0, cpu_kernel_count).
MINFERENCE_API MinferenceStatus minference_cpu_kernel_info(int32_t index, const char** name,
                                                           int32_t* supported);
/// The kernel that runs `dtype` here.
MINFERENCE_API MinferenceStatus minference_cpu_kernel_for(MinferenceDType dtype, const char** name);
/// 1 if this build holds CUDA kernels, else 0.
MINFERENCE_API int32_t minference_has_cuda(void);
/// What they were compiled for, e.g. "80;90a"; "" without CUDA kernels. Never NULL.
MINFERENCE_API const char* minference_cuda_architectures(void);

// ---- sparse_attention.h -------------------------------------------------------------------------

typedef int32_t MinferencePatternKind;
enum {
  MINFERENCE_PATTERN_DENSE = 0,           ///< sizes unused
  MINFERENCE_PATTERN_A_SHAPE = 1,         ///< size = {sink, window}, tokens
  MINFERENCE_PATTERN_TRI_SHAPE = 2,       ///< size = {sink, window, last}, tokens
  MINFERENCE_PATTERN_VERTICAL_SLASH = 3,  ///< size = {vertical_size, slash_size}, lines; estimated
  MINFERENCE_PATTERN_BLOCK_SPARSE = 4,  ///< size = {top_k}, key blocks of each row block; estimated
  MINFERENCE_PATTERN_VERTICAL_SLASH_INDEX = 5,  ///< lines from vertical_idx and slash_idx
  MINFERENCE_PATTERN_BLOCK_INDEX = 6            ///< key blocks from block_idx
};

typedef struct MinferenceHeadPattern {
  MinferencePatternKind kind;
  int64_t size[3];  ///< >= 0; top_k >= 1
} MinferenceHeadPattern;
#define MINFERENCE_HEAD_PATTERN_INIT {MINFERENCE_PATTERN_DENSE, {0, 0, 0}}

typedef int32_t MinferenceSlashMode;
enum { MINFERENCE_SLASH_COVER = 0, MINFERENCE_SLASH_EXACT = 1, MINFERENCE_SLASH_REFERENCE = 2 };

typedef struct MinferenceSparseAttentionParams {
  uint32_t struct_size;
  MinferenceSlashMode mode;
  const MinferenceHeadPattern* head_patterns;  ///< [num_heads_q]
  MinferenceIndexView vertical_idx;            ///< [sequences, num_heads_q, count], keys
  MinferenceIndexView slash_idx;               ///< [sequences, num_heads_q, count], offsets
  MinferenceIndexView block_idx;  ///< [sequences, num_heads_q, row blocks, count], key blocks
  int64_t estimate_every;         ///< queries, a multiple of 64; 0: one estimate per call
  int32_t dense_fallback;         ///< 1: estimated heads that cost as much as dense are dense
} MinferenceSparseAttentionParams;
#define MINFERENCE_SPARSE_ATTENTION_PARAMS_INIT \
  {sizeof(MinferenceSparseAttentionParams),     \
   MINFERENCE_SLASH_COVER,                      \
   NULL,                                        \
   MINFERENCE_INDEX_VIEW_INIT,                  \
   MINFERENCE_INDEX_VIEW_INIT,                  \
   MINFERENCE_INDEX_VIEW_INIT,                  \
   0,                                           \
   1}

/// MINFERENCE_OK if minference_sparse_attention would accept these arguments on this machine.
MINFERENCE_API MinferenceStatus minference_sparse_attention_supports(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params);
MINFERENCE_API MinferenceStatus minference_sparse_attention_workspace_bytes(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params,
    size_t* bytes);
/// `workspace`: `bytes` bytes, at least *_workspace_bytes, any alignment. Allocates nothing.
MINFERENCE_API MinferenceStatus minference_sparse_attention(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params,
    void* workspace, size_t bytes);

typedef struct MinferenceKernelInfo {
  uint32_t struct_size;
  char name[32];                ///< "sm90", "sm80", or that of a CPU kernel
  int32_t tile_rows;            ///< queries
  int32_t tile_keys;            ///< keys
  int32_t num_multiprocessors;  ///< that attention uses; 0 on the CPU
  char reason[256];             ///< a sentence
} MinferenceKernelInfo;
#define MINFERENCE_KERNEL_INFO_INIT {sizeof(MinferenceKernelInfo), "", 0, 0, 0, ""}

/// Which kernel minference_sparse_attention would run, and why. `info`: starts as
/// MINFERENCE_KERNEL_INFO_INIT.
MINFERENCE_API MinferenceStatus minference_attention_kernel(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params,
    MinferenceKernelInfo* info);

typedef struct MinferencePlanStats {
  int32_t is_dense;          ///< 1: computed dense
  int32_t num_vertical;      ///< lines
  int32_t num_slash;         ///< lines
  int32_t num_chunks;        ///< 32-column chunks that all row blocks share
  int64_t computed_pairs;    ///< (query, key) pairs in the pieces that are multiplied
  int64_t attended_pairs;    ///< (query, key) pairs in the softmax
  int64_t causal_pairs;      ///< (query, key) pairs of dense attention
  int64_t plan_bytes;        ///< bytes of the plan
  int64_t estimation_bytes;  ///< bytes of scratch of the estimation
} MinferencePlanStats;

/// `v`, `v_scale`, `out` and `lse` are not used. `stats`: [sequences, num_heads_q].
MINFERENCE_API MinferenceStatus minference_plan_stats_supports(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params);
MINFERENCE_API MinferenceStatus
minference_plan_stats_workspace_bytes(const MinferenceAttentionArgs* args,
                                      const MinferenceSparseAttentionParams* params, size_t* bytes);
MINFERENCE_API MinferenceStatus minference_plan_stats(const MinferenceAttentionArgs* args,
                                                      const MinferenceSparseAttentionParams* params,
                                                      MinferencePlanStats* stats, void* workspace,
                                                      size_t bytes);

typedef struct MinferencePrediction {
  uint32_t struct_size;
  int32_t is_dense;    ///< 1: dense attention is cheaper
  double cost_dense;   ///< 64 x 32 pieces of one head
  double cost_sparse;  ///< 64 x 32 pieces of one head
} MinferencePrediction;
#define MINFERENCE_PREDICTION_INIT {sizeof(MinferencePrediction), 0, 0, 0}

/// `q_len`, `kv_len`: tokens, q_len <= kv_len. `prediction`: starts as MINFERENCE_PREDICTION_INIT.
MINFERENCE_API MinferenceStatus minference_predict(const MinferenceHeadPattern* pattern,
                                                   int64_t q_len, int64_t kv_len,
                                                   MinferencePrediction* prediction);

// ---- vs_index.h ---------------------------------------------------------------------------------

typedef struct MinferenceVsIndexParams {
  uint32_t struct_size;
  const int64_t* vertical_size;  ///< [num_heads_q], lines
  const int64_t* slash_size;     ///< [num_heads_q], lines
  int32_t* vertical_idx;         ///< [sequences, num_heads_q, vertical_count] contiguous, keys
  int32_t* slash_idx;            ///< [sequences, num_heads_q, slash_count] contiguous, offsets
  int64_t vertical_count;        ///< >= min(kv_len, max(vertical_size, 30))
  int64_t slash_count;           ///< >= min(kv_len, max(slash_size, 50))
  float* column_scores;          ///< [sequences, num_heads_q, seq_kv] contiguous; may be NULL
  float* slash_scores;           ///< [sequences, num_heads_q, seq_kv] contiguous; may be NULL
} MinferenceVsIndexParams;
#define MINFERENCE_VS_INDEX_PARAMS_INIT \
  {sizeof(MinferenceVsIndexParams), NULL, NULL, NULL, NULL, 0, 0, NULL, NULL}

/// `v`, `v_scale`, `out` and `lse` are not used.
MINFERENCE_API MinferenceStatus minference_estimate_vs_index_supports(
    const MinferenceAttentionArgs* args, const MinferenceVsIndexParams* params);
MINFERENCE_API MinferenceStatus minference_estimate_vs_index_workspace_bytes(
    const MinferenceAttentionArgs* args, const MinferenceVsIndexParams* params, size_t* bytes);
MINFERENCE_API MinferenceStatus minference_estimate_vs_index(const MinferenceAttentionArgs* args,
                                                             const MinferenceVsIndexParams* params,
                                                             void* workspace, size_t bytes);

typedef struct MinferenceConvertVsIndexParams {
  uint32_t struct_size;
  const int32_t* q_seqlens;          ///< [batch], queries
  const int32_t* kv_seqlens;         ///< [batch], keys
  MinferenceIndexView vertical_idx;  ///< [batch, num_heads, count], keys
  MinferenceIndexView slash_idx;     ///< [batch, num_heads, count], offsets
  int64_t num_row_blocks;            ///< R >= ceil(q_len / 64) of every row
  int32_t causal;                    ///< 0: every key precedes every query
  int32_t* block_count;              ///< [batch, num_heads, R]
  int32_t* block_offset;             ///< [batch, num_heads, R, slash count], keys
  int32_t* column_count;             ///< [batch, num_heads, R]
  int32_t* column_index;             ///< [batch, num_heads, R, vertical count], keys
  MinferenceDevice device;
  void* stream;  ///< cudaStream_t; ignored on the CPU
} MinferenceConvertVsIndexParams;
#define MINFERENCE_CONVERT_VS_INDEX_PARAMS_INIT \
  {sizeof(MinferenceConvertVsIndexParams),      \
   NULL,                                        \
   NULL,                                        \
   MINFERENCE_INDEX_VIEW_INIT,                  \
   MINFERENCE_INDEX_VIEW_INIT,                  \
   0,                                           \
   1,                                           \
   NULL,                                        \
   NULL,                                        \
   NULL,                                        \
   NULL,                                        \
   MINFERENCE_CPU,                              \
   NULL}

MINFERENCE_API MinferenceStatus minference_convert_vs_index_workspace_bytes(
    const MinferenceConvertVsIndexParams* params, size_t* bytes);
/// On the CPU it runs on the calling thread.
MINFERENCE_API MinferenceStatus minference_convert_vs_index(
    const MinferenceConvertVsIndexParams* params, void* workspace, size_t bytes);

#ifdef __cplusplus
}
#endif
