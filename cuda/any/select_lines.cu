// The lines of every head: a bit set and an ascending list of its columns and of its offsets, from
// the scores of the estimation (device/top_k.cuh) or from the caller's lists, which may hold
// anything: entries that name no key are ignored, duplicates count once. Called once per layer, or
// per chunk of queries; for estimate_vs_index it also writes what the caller asked for.
#include "any/launch.h"
#include "device/bits.cuh"
#include "device/dependent_launch.cuh"
#include "device/launch.cuh"
#include "device/scores.cuh"
#include "device/sequence.cuh"
#include "device/top_k.cuh"

namespace minference::cuda {
namespace {

constexpr int kThreads = kSelectThreads;

/// One list of one head of one sequence.
struct Job {
  Sequence sequence;
  std::int32_t index;  ///< of the sequence
  std::int32_t head;
  bool is_estimated;
  bool is_given;
  std::int32_t num_forced;  ///< lowest lines, which are chosen whatever their scores
  std::int32_t num_chosen;  ///< of an estimation, those included
  std::uint32_t* words;     ///< the bit set
  std::int64_t num_words;
  std::int32_t* list;
  std::int64_t capacity;
};

/// In shared memory, the job too: kept in registers by every thread it would spill.
struct Shared {
  Job job;
  TopKMemory top_k;
};

template <bool kIsSlash>
__device__ Job job_of(const PlanParams& params, std::int32_t unit) {
  const LayerPlan& plan = params.plan;
  Job job{};
  job.index = unit / params.call.num_heads_q;
  job.head = unit % params.call.num_heads_q;
  job.sequence = sequence_at(params.call.sequences, job.index);
  const HeadPattern pattern = pattern_of(params.patterns, job.head, job.sequence);
  job.is_estimated = needs_estimate(params.call, pattern, job.sequence);
  job.is_given = pattern.kind == PatternKind::kVerticalSlashIndex &&
                 job.sequence.row_begin < job.sequence.row_end;
  const std::int64_t n = job.sequence.chunk_kv_len;
  const std::int64_t chosen = kIsSlash ? plan::num_estimated_slash(pattern.size[1], n)
                                       : plan::num_estimated_vertical(pattern.size[0], n);
  const std::int64_t forced = kIsSlash ? plan::kForcedSlash : plan::kForcedVertical;
  job.num_chosen = static_cast<std::int32_t>(chosen);
  job.num_forced = static_cast<std::int32_t>(forced < chosen ? forced : chosen);
  job.words = (kIsSlash ? plan.slash_bits : plan.vertical_bits) + job.head * plan.bit_words.total +
              first_row(plan.bit_words, job.index, job.sequence.kv_begin);
  job.num_words = num_bit_words(job.sequence.kv_len);
  const Rows& rows = kIsSlash ? plan.slash_rows : plan.vertical_rows;
  const std::int64_t first = first_row(rows, job.index, job.sequence.kv_begin);
  job.list = (kIsSlash ? plan.slashes : plan.verticals) + job.head * rows.total + first;
  job.capacity = rows.total - first;
  return job;
}

template <bool kIsSlash>
__device__ ScoreList<kIsSlash> scores_of(const PlanParams& params, const Job& job,
                                         std::int32_t num_skipped) {
  const std::int64_t strip = first_row(params.scores.strips, job.index, job.sequence.kv_begin);
  return ScoreList<kIsSlash>::of(params.scores, job.head, strip, job.sequence, num_skipped);
}

template <bool kIsSlash>
__device__ void choose_lines(const PlanParams& params, Shared& shared) {
  const Job& job = shared.job;
  const std::int32_t forced_here = job.num_forced - 32 * static_cast<std::int32_t>(threadIdx.x);
  if (forced_here > 0) {
    atomicOr(job.words + threadIdx.x, forced_here >= 32 ? ~0u : (1u << forced_here) - 1);
  }
  if (job.num_chosen == job.num_forced) return;
  mark_top_k(scores_of<kIsSlash>(params, job, job.num_forced), job.num_chosen - job.num_forced,
             job.words, shared.top_k);
}

__device__ void read_lines(const IndexView& view, const Job& job) {
  const std::int32_t* const lines =
      view.data + job.index * view.stride[0] + job.head * view.stride[1];
  for (std::int64_t i = threadIdx.x; i < view.shape[2]; i += kThreads) {
    const std::int32_t line = lines[i];
    if (line >= 0 && line < job.sequence.kv_len) {
      atomicOr(job.words + (line >> 5), 1u << (line & 31));
    }
  }
}

/// Writes the positions of set bits, ascending, as far as they fit; returns their number.
__device__ std::int32_t list_bits(const Job& job, SelectScan::TempStorage& scan) {
  std::int64_t count = 0;
  for (std::int64_t tile = 0; tile < job.num_words; tile += kThreads * kWordGroup) {
    const std::int64_t first = tile + kWordGroup * std::int64_t{threadIdx.x};
    std::uint32_t bits[kWordGroup];
    std::int32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kWordGroup; ++i) {
      bits[i] = first < job.num_words ? __ldcg(job.words + first + i) : 0;
      sum += __popc(bits[i]);
    }
    std::int32_t before, total;
    SelectScan(scan).ExclusiveSum(sum, before, total);
    __syncthreads();
    std::int64_t slot = count + before;
    count += total;
#pragma unroll
    for (int i = 0; i < kWordGroup; ++i) {
      for (std::uint32_t rest = bits[i]; rest != 0 && slot < job.capacity; rest &= rest - 1) {
        job.list[slot++] = static_cast<std::int32_t>(32 * (first + i)) + __ffs(rest) - 1;
      }
    }
  }
  return static_cast<std::int32_t>(count < job.capacity ? count : job.capacity);
}

/// Copies the scores for the caller; 0 where there are none.
template <bool kIsSlash>
__device__ void copy_scores(const PlanParams& params, const Job& job, float* to) {
  const std::int32_t n = job.is_estimated ? job.sequence.chunk_kv_len : 0;
  for (std::int64_t i = n + std::int64_t{threadIdx.x}; i < params.call.sequences.seq_kv;
       i += kThreads) {
    to[i] = 0;
  }
  if (n == 0) return;
  const auto list = scores_of<kIsSlash>(params, job, 0);
  const int lane = threadIdx.x % 32;
  for (std::int32_t piece = threadIdx.x / 32; piece < list.num_pieces(); piece += kSelectWarps) {
    float values[kPieceGroups];
    list.load(piece, lane, values);
#pragma unroll
    for (int j = 0; j < kPieceGroups; ++j) {
      const std::int32_t x = piece * kPiece + 32 * j + lane;
      if (list.holds(x)) to[list.line_of(x)] = values[j];
    }
  }
}

template <bool kIsSlash>
__device__ void select_list(const PlanParams& params, std::int32_t unit, Shared& shared) {
  if (threadIdx.x == 0) shared.job = job_of<kIsSlash>(params, unit);
  __syncthreads();
  const Job& job = shared.job;
  std::int32_t count = 0;
  if (job.is_estimated || job.is_given) {
    for (std::int64_t i = threadIdx.x; i < job.num_words; i += kThreads) job.words[i] = 0;
    __syncthreads();
    if (job.is_given) {
      read_lines(kIsSlash ? params.slash_idx : params.vertical_idx, job);
    } else {
      choose_lines<kIsSlash>(params, shared);
    }
    __syncthreads();
    count = list_bits(job, shared.top_k.scan);
    __syncthreads();
  }
  if (threadIdx.x == 0) {
    HeadPlan& plan = params.plan.heads[unit];
    (kIsSlash ? plan.num_slash : plan.num_vertical) = count;
  }
  std::int32_t* const lines_out = kIsSlash ? params.slash_out : params.vertical_out;
  if (lines_out != nullptr) {
    const std::int64_t extent = kIsSlash ? params.slash_count : params.vertical_count;
    for (std::int64_t i = threadIdx.x; i < extent; i += kThreads) {
      lines_out[unit * extent + i] = i < count ? job.list[i] : -1;
    }
  }
  float* const scores_out = kIsSlash ? params.slash_scores_out : params.column_scores_out;
  if (scores_out != nullptr) {
    copy_scores<kIsSlash>(params, job,
                          scores_out + std::int64_t{unit} * params.call.sequences.seq_kv);
  }
}

/// Two blocks per sequence and head: columns, offsets.
__global__ void __launch_bounds__(kThreads, 1)
    select_lines(const __grid_constant__ PlanParams params) {
  begin_kernel();
  extern __shared__ __align__(16) unsigned char memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  const std::int32_t unit = static_cast<std::int32_t>(blockIdx.x / 2);
  if (blockIdx.x % 2 == 0) {
    select_list<false>(params, unit, shared);
  } else {
    select_list<true>(params, unit, shared);
  }
}

}  // namespace

cudaError_t launch_select_lines(const PlanParams& params, cudaStream_t stream) {
  const unsigned units =
      static_cast<unsigned>(params.call.sequences.count) * params.call.num_heads_q;
  return launch(select_lines, dim3(2 * units), kThreads, sizeof(Shared), stream, params);
}

}  // namespace minference::cuda
