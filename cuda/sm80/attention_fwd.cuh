// Attention of a whole layer on mma.sync: every head by its plan, in one launch. Launched by
// attention_fwd.cu; serves every architecture from sm_80 on.
//
// A block owns 128 query rows of a head, two row blocks, and takes the stages that its walk
// (device/pair_walk.cuh) finds: 64 keys each, and 32 rows a warp (32 keys and 16 rows with head
// dimension 256, config.cuh). Per stage
//
//   S = Q K^T          registers, fp32
//   mask, softmax      device/online_softmax.cuh
//   O += P V           P from S's registers
//
// K and V have one tile each in shared memory. While a stage's scores are multiplied its V is on
// the way, and the next stage's K from then on: what one block of a multiprocessor waits for, the
// other has its time for.
// A warp skips the pieces that none of its rows attends. Pieces of which its rows attend all
// columns take no mask; for the others a word per column and row block says who attends.
//
// 0 * NaN is NaN: before values of a masked piece are multiplied, those that are not finite are
// replaced by 0 and afterwards added to the rows that attend them.
//
//   barrier             where                      what it orders
//   top of a stage      after K's copies landed    K for all; V's tile and the masks are free
//   middle of a stage   after V's copies landed    V for all; K's tile is free
//   in plan_stages      before, between, after     stages that others read; gathered columns that
//                                                  all warps find; the stages that come instead
//   after the scan      masked pieces only         whether values are finite, for all
//   after replacement   values that are not        V's tile and the columns replaced, for all
#pragma once

#include "device/dependent_launch.cuh"
#include "device/element.cuh"
#include "device/launch.cuh"
#include "device/online_softmax.cuh"
#include "device/out_rows.cuh"
#include "device/row_vectors.cuh"
#include "device/task.cuh"
#include "sm80/attention_fwd.h"
#include "sm80/config.cuh"

namespace minference::cuda::sm80 {

template <class Config>
class AttentionBlock {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ AttentionBlock(const AttentionFwdParams& params, Storage& shared)
      : params_(params), shared_(shared) {}

  __device__ __forceinline__ void run(const Task& task, const Sequence& sequence) {
    begin(task, sequence);
    Stage stage;
    do {  // once without a stage, to find the first
      wait_for_copies<0>();
      __syncthreads();
      if (stage.exists()) start_copy(shared_.values, shared_address(shared_.v), stage);
      const Stage next = shared_.walk.next(stage);
      const bool needs_first = stage.is_needed(0, block());
      const bool needs_second = kPieces == 2 && stage.is_needed(1, block());
      if (needs_first && needs_second) {
        if (stage.is_half(0, block())) {
          attend<3>(1, stage, next);
        } else {
          attend<4>(0, stage, next);
        }
      } else if (needs_first || needs_second) {
        const int first = needs_first ? 0 : 1;
        if (stage.is_half(first, block())) {
          attend<1>(2 * first + 1, stage, next);
        } else {
          attend<2>(2 * first, stage, next);
        }
      } else {
        finish_loads(next);
        settle_nonfinite(stage);
      }
      if (next.has_masked()) make_masks(next);
      stage = next;
    } while (stage.exists());
    store();
  }

 private:
  static constexpr bool kIsBfloat16 = Config::kIsBfloat16;
  static constexpr int kHeadDim = Config::kHeadDim;
  static constexpr int kKeys = Config::kKeys;
  static constexpr int kPieces = Config::kPieces;
  static constexpr int kPieceKeys = plan::kChunk;
  static constexpr int kMatrices = Config::kMatrices;
  static constexpr int kVectorsOfRow = kHeadDim / kVectorDims;
  using KeyTile = typename Config::KeyTile;
  using QueryTile = typename Config::QueryTile;

  __device__ static unsigned shared_address(const void* data) {
    return cute::cast_smem_ptr_to_uint(data);
  }
  __device__ static unsigned lane() { return thread_index() % 32; }
  __device__ static unsigned warp() { return thread_index() / 32; }
  /// The warp's row block, and its first row in it.
  __device__ static unsigned block() { return warp() / Config::kWarpsOfBlock; }
  __device__ static unsigned first_row() {
    return warp() % Config::kWarpsOfBlock * Config::kRowsOfWarp;
  }

  /// Sources of keys and values, the walk, and q on its way.
  __device__ void begin(const Task& task, const Sequence& sequence) {
    const Call& call = params_.call;
    const LayerPlan& plan = params_.plan;
    const auto describe = [&](WalkSource* source) {
      describe_walk<kHeadDim>(params_, task, sequence, source);
    };
    shared_.walk.begin(sequence, describe, task.first_block, task.part, params_.partial.num_parts);

    if (threadIdx.x == 0) {
      shared_.task = task;
      shared_.sequence = sequence;
      const std::int32_t head_kv = task.head / call.heads_per_kv;
      const std::int64_t gathered = gathered_row(params_, task, sequence) * call.head_dim;
      for (const bool is_value : {false, true}) {
        const Tensor& tensor = is_value ? params_.v : params_.k;
        const void* const rows = is_value ? plan.gathered_v : plan.gathered_k;
        SourceRows(&sources)[2] = is_value ? shared_.values : shared_.keys;
        sources[0] = {.data = row_of(tensor, sequence.batch, head_kv, sequence.kv_begin),
                      .stride = tensor.stride_token,
                      .num_rows = sequence.kv_len,
                      .is_aligned = params_.is_aligned};
        sources[1] = {.data = static_cast<const std::uint16_t*>(rows) + gathered,
                      .stride = call.head_dim,
                      .num_rows = shared_.walk.source().head.num_vertical,
                      .is_aligned = true};
      }
    }
    const std::int32_t row = sequence.row_begin + task.first_block * kRowBlock;
    const SourceRows queries = {
        .data = row_of(params_.q, sequence.batch, task.head, sequence.q_begin + row),
        .stride = params_.q.stride_token,
        .num_rows = sequence.row_end - row,
        .is_aligned = params_.is_aligned};
    const TileCopy<QueryTile, Config::kThreads> copy(shared_address(shared_.q));
    const bool is_whole = params_.is_aligned && call.head_dim == kHeadDim;
    if (is_whole && queries.num_rows >= Config::kRows) {
      copy.template whole_rows<Config::kRows>(queries, 0, 0);
    } else {
      copy.template any_rows<Config::kRows>(queries, 0, 0, call.head_dim);
    }
    commit_copies();
  }

  /// Starts to copy the keys or values of a stage.
  __device__ void start_copy(const SourceRows (&sources)[2], unsigned tile,
                             const Stage& stage) const {
    const TileCopy<KeyTile, Config::kThreads> copy(tile);
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      if (!stage.is_needed(n)) continue;
      const Piece& piece = shared_.walk.piece(stage, n);
      const SourceRows& source = sources[piece.source()];
      if (piece.is_whole()) {
        copy.template whole_rows<kPieceKeys>(source, piece.row, n * kPieceKeys);
      } else {
        copy.template any_rows<kPieceKeys>(source, piece.row, n * kPieceKeys,
                                           params_.call.head_dim);
      }
    }
    commit_copies();
  }

  /// Says who attends which column of a stage.
  __device__ void make_masks(const Stage& stage) const {
    auto& masks = shared_.masks[stage.masks()];
    const unsigned thread = thread_index();
    if (thread < kTaskBlocks * kKeys) {
      const unsigned of_block = thread / kKeys, column = thread % kKeys;
      const Piece& piece = shared_.walk.piece(stage, column / kPieceKeys);
      const std::uint64_t rows =
          shared_.walk.rows().attending(piece, of_block, column % kPieceKeys);
      masks.rows[of_block][0][column] = static_cast<std::uint32_t>(rows);
      masks.rows[of_block][1][column] = static_cast<std::uint32_t>(rows >> 32);
    }
    if (thread < kPieces) {
      shared_.pieces[stage.masks()][thread] = shared_.walk.piece(stage, thread);
    }
  }

  /// Waits for the values of a stage and starts to copy the keys of the next one.
  __device__ void finish_loads(const Stage& next) const {
    wait_for_copies<0>();
    __syncthreads();
    if (next.exists()) start_copy(shared_.keys, shared_address(shared_.k), next.anew());
  }

  /// One stage of this warp: `kColumns16` times 16 columns, from the `first16`-th on.
  template <int kColumns16>
  __device__ __forceinline__ void attend(int first16, const Stage& stage, const Stage& next) {
    using cute::for_each;
    using cute::make_int_sequence;
    const unsigned offset = first16 * 16 * KeyTile::kRowBytes;
    float scores[kMatrices][2 * kColumns16][4] = {};
    const unsigned lane_of_warp = lane();
    const MatrixAddress<QueryTile> q(shared_address(shared_.q),
                                     warp() * Config::kRowsOfWarp + lane_of_warp % 16,
                                     lane_of_warp / 16);
    const MatrixAddress<KeyTile> keys(shared_address(shared_.k) + offset,
                                      lane_of_warp % 8 + lane_of_warp / 16 * 8,
                                      lane_of_warp / 8 % 2);
    for_each(make_int_sequence<kHeadDim / kStepDims>{}, [&](auto step) {
      std::uint32_t queries[kMatrices][4];
      for_each(make_int_sequence<kMatrices>{},
               [&](auto m) { q.template load<16 * m, step>(queries[m]); });
      for_each(make_int_sequence<kColumns16>{}, [&](auto n) {
        std::uint32_t matrices[4];
        keys.template load<16 * n, step>(matrices);
        for_each(make_int_sequence<kMatrices>{}, [&](auto m) {
          multiply(queries[m], matrices[0], matrices[1], scores[m][2 * n]);
          multiply(queries[m], matrices[2], matrices[3], scores[m][2 * n + 1]);
        });
      });
    });

    finish_loads(next);
    if (stage.has_masked(block())) {
      for_each(make_int_sequence<kColumns16>{}, [&](auto n) {
        if (stage.is_masked((first16 + n) / 2, block())) {
          mask<n>(stage.anew(), first16 + n, scores);
        }
      });
    }
    softmax_.add(scores, params_.scale_log2, out_);
    std::uint32_t weights[kColumns16][kMatrices][4];
    for_each(make_int_sequence<kColumns16>{}, [&](auto n) {
      for_each(make_int_sequence<kMatrices>{}, [&](auto m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* const pair = scores[m][2 * n + i / 2] + i % 2 * 2;
          weights[n][m][i] = to_pair<kIsBfloat16>(pair[0], pair[1]);
        }
      });
    });

    settle_nonfinite(stage);
    const unsigned lane_again = lane();
    const MatrixAddress<KeyTile> values(shared_address(shared_.v) + offset, lane_again % 16,
                                        lane_again / 16);
    for_each(make_int_sequence<kColumns16>{}, [&](auto n) {
      for_each(make_int_sequence<kHeadDim / kStepDims>{}, [&](auto step) {
        std::uint32_t matrices[4];
        values.template load_transposed<16 * n, step>(matrices);
        for_each(make_int_sequence<kMatrices>{}, [&](auto m) {
          multiply(weights[n][m], matrices[0], matrices[1], out_[m][2 * step]);
          multiply(weights[n][m], matrices[2], matrices[3], out_[m][2 * step + 1]);
        });
      });
    });
  }

  __device__ static void multiply(const std::uint32_t (&a)[4], std::uint32_t b0, std::uint32_t b1,
                                  float (&c)[4]) {
    Config::Mma::fma(c[0], c[1], c[2], c[3], a[0], a[1], a[2], a[3], b0, b1, c[0], c[1], c[2],
                     c[3]);
  }

  /// Scores of 16 columns, the kFirst-th of `scores`, become -inf where a row does not attend.
  /// `column16`: which they are of the stage's.
  template <int kFirst, int kColumns8>
  __device__ void mask(const Stage& stage, int column16,
                       float (&scores)[kMatrices][kColumns8][4]) const {
    const std::uint32_t* const rows =
        shared_.masks[stage.masks()].rows[block()][first_row() / 32] + column16 * 16;
    const unsigned shift = first_row() % 32 + lane() / 4;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const uint2 words = reinterpret_cast<const uint2*>(rows)[n * 4 + lane() % 4];
      const std::uint32_t bits[] = {words.x >> shift, words.y >> shift};
#pragma unroll
      for (int m = 0; m < kMatrices; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          if ((bits[i % 2] >> (16 * m + i / 2 * 8) & 1) == 0) {
            scores[m][2 * kFirst + n][i] = -INFINITY;
          }
        }
      }
    }
  }

  /// Vector `i` of a piece's values.
  __device__ uint4& value_vector(int piece, int i) const {
    constexpr int kOfAtom = kPieceKeys * KeyTile::kRowBytes / 16;
    char* const atom = reinterpret_cast<char*>(shared_.v) + i / kOfAtom * KeyTile::kAtomBytes +
                       piece * kPieceKeys * KeyTile::kRowBytes;
    return reinterpret_cast<uint4*>(atom)[i % kOfAtom];
  }

  /// Values that are not finite, of pieces with a mask for either row block: replaces them by 0 and
  /// adds them to the rows that attend them.
  __device__ __forceinline__ void settle_nonfinite(const Stage& stage) {
    constexpr int kVectors = kPieceKeys * kVectorsOfRow;
    if (!stage.has_masked()) return;
    bool is_found = false;
    if (threadIdx.x < kPieces) shared_.nonfinite[threadIdx.x] = 0;
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      if (!stage.is_masked(n)) continue;
#pragma unroll 1
      for (int i = thread_index(); i < kVectors; i += Config::kThreads) {
        const uint4 vector = value_vector(n, i);
        is_found |= has_nonfinite<kIsBfloat16>(vector.x) || has_nonfinite<kIsBfloat16>(vector.y) ||
                    has_nonfinite<kIsBfloat16>(vector.z) || has_nonfinite<kIsBfloat16>(vector.w);
      }
    }
    if (!__syncthreads_or(is_found)) return;
#pragma unroll 1
    for (int i = thread_index(); i < kPieces * kVectors; i += Config::kThreads) {
      const int n = i / kVectors;
      if (!stage.is_masked(n)) continue;
      auto* const elements = reinterpret_cast<std::uint16_t*>(&value_vector(n, i % kVectors));
#pragma unroll 1
      for (int j = 0; j < kVectorDims; ++j) {
        if (!has_nonfinite<kIsBfloat16>(elements[j])) continue;
        elements[j] = 0;
        const int column = i % kVectors * 16 / KeyTile::kRowBytes % kPieceKeys;
        atomicOr(&shared_.nonfinite[n], 1u << column);
      }
    }
    __syncthreads();
#pragma unroll
    for (int n = 0; n < kPieces; ++n) {
      if (stage.is_masked(n)) add_nonfinite(stage, n);
    }
  }

  /// Adds the values that were replaced, read again, to the rows that attend them: as they are,
  /// where a probability that is 0 would make NaN of an infinity.
  __device__ __forceinline__ void add_nonfinite(const Stage& stage, int piece) {
    const Piece& at = shared_.pieces[stage.masks()][piece];
    const SourceRows& source = shared_.values[at.source()];
    const auto& rows = shared_.masks[stage.masks()].rows[block()][first_row() / 32];
#pragma unroll 1
    for (std::uint32_t rest = shared_.nonfinite[piece]; rest != 0; rest &= rest - 1) {
      const int column = __ffs(rest) - 1;
      const std::uint32_t attending =
          rows[piece * kPieceKeys + column] >> (first_row() % 32 + lane() / 4);
      const std::uint16_t* const values = source.data + (at.row + column) * source.stride;
#pragma unroll 1
      for (int first_dim = 0; first_dim < params_.call.head_dim; first_dim += 32) {
        const int dim = first_dim + static_cast<int>(lane());
        const std::uint16_t value = dim < params_.call.head_dim ? values[dim] : 0;
        unsigned dims = __ballot_sync(kAllLanes, has_nonfinite<kIsBfloat16>(value));
#pragma unroll 1
        for (; dims != 0; dims &= dims - 1) {
          const int of_lane = __ffs(dims) - 1;
          const float added = to_float<kIsBfloat16>(__shfl_sync(kAllLanes, value, of_lane));
          add_to_column(first_dim + of_lane, attending, added);
        }
      }
    }
  }

  /// Adds to dimension `dim` of the lane's rows that `attending` has a bit for: those of the first
  /// are bits 0, 8, 16 and so on.
  __device__ __forceinline__ void add_to_column(int dim, std::uint32_t attending, float added) {
    if (lane() % 4 != dim % 8 / 2) return;
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (dim != n * 8 + dim % 8 / 2 * 2 + i % 2) continue;
#pragma unroll
        for (int m = 0; m < kMatrices; ++m) {
          if ((attending >> (16 * m + i / 2 * 8) & 1) != 0) out_[m][n][i] += added;
        }
      }
    }
  }

  /// Rows of out and lse, or of a part's results.
  __device__ __forceinline__ void store() {
    softmax_.finish();
    const Task task = shared_.task;
    const Sequence sequence = shared_.sequence;
    const std::int32_t first = warp() * Config::kRowsOfWarp;  // of the task's rows
    const std::int32_t task_row = sequence.row_begin + task.first_block * kRowBlock;
    const std::int32_t num_rows = sequence.row_end - task_row - first;  // may exceed the warp's
    if (params_.partial.num_parts > 1) {
      store_part(task, first, num_rows);
      return;
    }
    const std::int32_t row = sequence.q_begin + task_row + first;  // of the tensors
    char* const rows = reinterpret_cast<char*>(shared_.q);
#pragma unroll
    for (int i = 0; i < 2 * kMatrices; ++i) {
      const int own = 16 * (i / 2) + i % 2 * 8 + lane() / 4;
      const float sum = softmax_.sum(i);
      const float scale = sum == 0 ? 0 : 1 / sum;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        const float* const pair = out_[i / 2][n] + i % 2 * 2;
        *reinterpret_cast<std::uint32_t*>(rows + QueryTile::offset(first + own, n) +
                                          lane() % 4 * 4) =
            to_pair<kIsBfloat16>(pair[0] * scale, pair[1] * scale);
      }
      float* const lse = lse_of(params_, sequence.batch, task.head, row + own);
      if (lse != nullptr && lane() % 4 == 0 && own < num_rows) {
        *lse = log_sum_exp(softmax_.shift(i), sum);
      }
    }
    __syncwarp();
    std::uint16_t* const out = row_of(params_.out, sequence.batch, task.head, row);
#pragma unroll 4
    for (int i = lane(); i < Config::kRowsOfWarp * kVectorsOfRow; i += 32) {
      const int own = i / kVectorsOfRow, dim = i % kVectorsOfRow * kVectorDims;
      if (own >= num_rows || dim >= params_.call.head_dim) continue;
      const uint4 vector =
          *reinterpret_cast<const uint4*>(rows + QueryTile::offset(first + own, i % kVectorsOfRow));
      store_vector(out + own * params_.out.stride_token + dim, vector, params_.is_out_aligned);
    }
  }

  __device__ void store_part(const Task& task, std::int32_t first, std::int32_t num_rows) const {
    const PartialResults& partial = params_.partial;
    const std::int64_t row = partial_row(params_, task) + first;
#pragma unroll
    for (int i = 0; i < 2 * kMatrices; ++i) {
      const int own = 16 * (i / 2) + i % 2 * 8 + lane() / 4;
      if (own >= num_rows) continue;
      if (lane() % 4 == 0) {
        partial.shift[row + own] = softmax_.shift(i);
        partial.sum[row + own] = softmax_.sum(i);
      }
      float* const out = partial.out + (row + own) * params_.call.head_dim + lane() % 4 * 2;
#pragma unroll
      for (int n = 0; n < kHeadDim / 8; ++n) {
        if (n * 8 >= params_.call.head_dim) continue;
        *reinterpret_cast<float2*>(out + n * 8) = {out_[i / 2][n][i % 2 * 2],
                                                   out_[i / 2][n][i % 2 * 2 + 1]};
      }
    }
  }

  const AttentionFwdParams& params_;
  Storage& shared_;
  OnlineSoftmax<kMatrices> softmax_;
  float out_[kMatrices][kHeadDim / 8][4] = {};
};

template <class Config>
__global__ void __launch_bounds__(Config::kThreads, Config::kBlocksPerSm)
    attention_fwd(const __grid_constant__ AttentionFwdParams params) {
  begin_kernel();
  extern __shared__ __align__(128) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<typename Config::SharedStorage*>(shared_memory);
  const Task task = find_task(params, blockIdx.x);
  const Sequence sequence = sequence_at(params.call.sequences, task.sequence_index);
  if (task.first_block < 0) return;
  if (params.partial.num_parts == 1) {
    clear_padding(params, sequence, task.head, task.first_block, threadIdx.x, Config::kThreads);
  }
  if (task.first_block * kRowBlock >= sequence.row_end - sequence.row_begin) return;
  AttentionBlock<Config>(params, shared).run(task, sequence);
}

template <bool kIsBfloat16, int kHeadDim>
cudaError_t AttentionFwd<kIsBfloat16, kHeadDim>::launch(const AttentionFwdParams& params,
                                                        cudaStream_t stream) {
  using Config = AttentionConfig<kIsBfloat16, kHeadDim>;
  return cuda::launch(attention_fwd<Config>, dim3(static_cast<unsigned>(num_tasks(params))),
                      Config::kThreads, sizeof(typename Config::SharedStorage), stream, params);
}

template <bool kIsBfloat16, int kHeadDim>
cudaError_t AttentionFwd<kIsBfloat16, kHeadDim>::count_blocks_per_sm(int* blocks) {
  using Config = AttentionConfig<kIsBfloat16, kHeadDim>;
  constexpr int kSharedBytes = sizeof(typename Config::SharedStorage);
  int device = 0, shared_bytes = 0, reserved_bytes = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error =
        cudaDeviceGetAttribute(&shared_bytes, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
  }
  if (error == cudaSuccess) {
    error =
        cudaDeviceGetAttribute(&reserved_bytes, cudaDevAttrReservedSharedMemoryPerBlock, device);
  }
  if (error != cudaSuccess) return error;
  const int fitting = shared_bytes / (kSharedBytes + reserved_bytes);
  *blocks = fitting < 1 ? 1 : fitting < Config::kBlocksPerSm ? fitting : Config::kBlocksPerSm;
  return cudaSuccess;
}

}  // namespace minference::cuda::sm80
