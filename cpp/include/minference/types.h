// Types shared by every op of libminference.so: status codes, tensors as pointers with strides, and
// the arguments all attention ops have in common.
//
// Conventions of the whole library:
//  * C++17, plain structs, no std types in signatures; nothing throws, prints or exits.
//  * Strides count elements, sizes in bytes say so in their name, positions count tokens.
//  * Memory is the caller's: `run` functions allocate nothing and never wait on a device.
//  * Structs of arguments start with `struct_size`; new members are only appended, past a struct's
//    padding, and 0 means "as before", so a client compiled against an older header keeps working.
//    Views and patterns, of which callers make arrays, do not change.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(MINFERENCE_BUILD)
#define MINFERENCE_API __attribute__((visibility("default")))
#else
#define MINFERENCE_API
#endif

namespace minference {

enum class Status : std::int32_t {
  kOk = 0,
  kInvalidArgument = -1,    ///< an argument breaks the op's contract; last_error() names it
  kUnsupported = -2,        ///< valid, but no kernel of this build or machine can run it
  kWorkspaceTooSmall = -3,  ///< `bytes` is less than `*_workspace_bytes` asked for
  kDeviceError = -4,        ///< the device's runtime reported an error
  kInternal = -5,           ///< a defect of the library
};

/// Short name of a status, e.g. "invalid argument". Never null.
MINFERENCE_API const char* status_string(Status status);

/// The sentence that explains the latest call on this thread that returned a status other than
/// kOk: which argument, what was found, what is allowed. Valid until this thread's next call.
MINFERENCE_API const char* last_error();

enum class DType : std::int32_t {
  kFloat32 = 0,
  kBFloat16 = 1,
  kFloat16 = 2,
  kFloat8E4M3 = 3,  ///< 4 bits of exponent, 3 of mantissa, up to 448, no infinity: e4m3fn
};

/// Values as in DLPack.
enum class Device : std::int32_t { kCpu = 1, kCuda = 2 };

/// A 4-D tensor in the caller's memory. The innermost axis must be contiguous (stride[3] == 1);
/// the others may have any stride. An axis of length 1 may have any stride.
struct TensorView {
  void* data = nullptr;
  std::int64_t shape[4] = {0, 0, 0, 0};
  std::int64_t stride[4] = {0, 0, 0, 0};  ///< elements
  DType dtype = DType::kFloat32;
};

/// Index lists [batch or num_sequences, num_heads_q, count] or, for block lists,
/// [batch or num_sequences, num_heads_q, num_row_blocks, count]; int32, innermost contiguous.
/// An entry of -1 means "no entry" and pads lists of different lengths.
struct IndexView {
  const std::int32_t* data = nullptr;
  std::int64_t shape[4] = {0, 0, 0, 0};
  std::int64_t stride[4] = {0, 0, 0, 0};  ///< elements
};

/// How an engine lends its threads. `run(context, num_workers, body, argument)` must call
/// body(argument, worker) once for every worker in [0, num_workers), in any order, on any threads,
/// and return after all of them have returned. Tile registers (AMX) of these threads, as of
/// OpenMP's and the calling one, are not preserved.
struct ParallelFor {
  void (*run)(void* context, std::int64_t num_workers, void (*body)(void*, std::int64_t),
              void* argument) = nullptr;
  void* context = nullptr;
};

/// What every attention op takes. Query row r of a sequence sits at position
/// r + (kv_len - q_len); attention is causal over those positions (bottom-right aligned).
///
/// A sequence is one batch row, or with `cu_seqlens_*` one slice of a packed batch. With
/// `first_valid_key` a batch row starts at its first valid key (left padding): the row gives the
/// same result as the unpadded row would. All positions, sizes and indices count from the
/// sequence's first valid key, and row blocks of 64 queries from its first valid query.
/// Query head h reads key/value head h / (num_heads_q / num_heads_kv): num_heads_kv >= 1 divides
/// num_heads_q. Every sequence has q_len <= kv_len. Query rows before the first valid key are rows
/// without keys. A NaN or infinity in a key or value reaches only rows that attend that key.
/// Anything else is kInvalidArgument, and nothing is written.
///
/// float8 is computed on CUDA devices of compute capability 9.0 alone, where head_dim is a multiple
/// of 16 and rows of q, k and v begin at multiples of 16 bytes; else it is kUnsupported. Scores are
/// products of float8, summed in accumulators that keep some 14 bits, and lse with them. Values and
/// probabilities are multiplied as float16, which holds every float8.
///
/// With device CUDA all memory but head_patterns and per-head sizes is memory of one GPU, that of
/// q, which is made current during the call. Calls enqueue on `stream`, can be captured in a CUDA
/// graph, and never read device memory: list entries out of range are ignored, and lengths that
/// break the rules above give undefined results, but nothing outside of the tensors is read or
/// written.
struct AttentionArgs {
  std::uint32_t struct_size = sizeof(AttentionArgs);
  Device device = Device::kCpu;
  TensorView q;  ///< [batch, num_heads_q, seq_q, head_dim]; head_dim % 8 == 0, <= 256
  TensorView k;  ///< [batch, num_heads_kv, seq_kv, head_dim], dtype of q
  TensorView v;  ///< [batch, num_heads_kv, seq_kv, head_dim], dtype of q
  /// [batch, num_heads_q, seq_q, head_dim], dtype of q, of float8 bfloat16; no overlap with q, k, v
  TensorView out;
  /// [batch, num_heads_q, seq_q], natural log; -inf for a row without keys; may be null
  float* lse = nullptr;
  std::int64_t lse_stride[3] = {0, 0, 0};  ///< elements
  /// [batch], 0..seq_kv; null: 0. Not together with cu_seqlens_*. On the op's device
  const std::int32_t* first_valid_key = nullptr;
  /// [num_sequences + 1] from 0 to seq_q, not decreasing; null: one sequence per batch row
  const std::int32_t* cu_seqlens_q = nullptr;
  /// [num_sequences + 1] from 0 to seq_kv; given together with cu_seqlens_q, batch == 1
  const std::int32_t* cu_seqlens_kv = nullptr;
  std::int64_t num_sequences = 0;  ///< with cu_seqlens_*: how many
  double softmax_scale = 0;        ///< in [2^-100, 2^100]; 0: 1 / sqrt(head_dim)
  void* stream = nullptr;          ///< cudaStream_t of q's device; ignored on the CPU
  std::int32_t num_threads = 0;    ///< CPU: workers to use, at most 1024; 0: all cores
  ParallelFor parallel_for;        ///< CPU: run == null: the library's own OpenMP threads
  /// CUDA: multiprocessors >= 0 that attention leaves free for kernels that run beside it, such as
  /// communication; at least one is used. Only the kernel of sm_90, which is persistent, honours
  /// it: that of sm_80 and those that make index and plan take whatever is free
  /// (attention_kernel() tells which runs). Ignored on the CPU
  std::int32_t reserved_multiprocessors = 0;
  /// Only with float8: what q, k and v of a head are multiplied by, on the op's device, contiguous;
  /// null: 1. Attention is that of q_scale * q, k_scale * k and v_scale * v. All are finite and >
  /// 0, and softmax_scale * q_scale * k_scale is in [2^-100, 2^100]; other results are undefined
  const float* q_scale = nullptr;  ///< [num_heads_q]
  const float* k_scale = nullptr;  ///< [num_heads_kv]
  const float* v_scale = nullptr;  ///< [num_heads_kv]
};

}  // namespace minference
