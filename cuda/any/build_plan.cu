// The plan of every head: what kind of attention it gets, and for lines the cover of its offsets,
// as a bit set and as chunks of 32 columns that all row blocks share. Called once per layer, or per
// chunk of queries, after select_lines. Same plan as cpp/cpu/plan.cpp.
//
// A word of the cover follows from three words of the set of offsets, and a word of the cover
// meets at most two chunks: no walk over the lines, whose number does not matter. What a chunk
// needs from afar is where its run of columns began, as chunks begin at multiples of 32 from there:
// a scan tells.
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "any/launch.h"
#include "device/bits.cuh"
#include "device/dependent_launch.cuh"
#include "device/launch.cuh"
#include "device/sequence.cuh"

namespace minference::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWords = kWordGroup;  // of the cover, per thread and step
constexpr std::uint32_t kFull = ~std::uint32_t{0};

using Scan = cub::BlockScan<std::int32_t, kThreads, cub::BLOCK_SCAN_WARP_SCANS>;
using Sum = cub::BlockReduce<std::int64_t, kThreads>;

struct Shared {
  Scan::TempStorage run_scan;
  Scan::TempStorage count_scan;
  Sum::TempStorage sum;
};

struct Later {
  __device__ std::int32_t operator()(std::int32_t a, std::int32_t b) const { return a > b ? a : b; }
};

/// Where the lines of a head are, and where its plan goes.
struct HeadMemory {
  const std::uint32_t* slash_bits;
  const std::int32_t* verticals;
  std::uint32_t* covered;
  std::int64_t num_words;
  plan::PlanChunk* chunks;
  std::int64_t max_chunks;
};

/// Bits that are set in a row from bit 0 on.
__device__ int leading_run(std::uint32_t bits) { return bits == kFull ? 32 : __ffs(~bits) - 1; }

/// The bit, if any, where a run of columns begins: runs are 64 long or more, so there is one at
/// most.
__device__ std::uint32_t run_begin(std::uint32_t before, std::uint32_t word) {
  return word & ~(word << 1 | before >> 31);
}

/// Where chunks begin in a word of the cover; `run`: where the run that reaches into it began.
__device__ std::uint32_t chunk_begins(std::uint32_t before, std::uint32_t word, std::int32_t run) {
  const bool continues = (before >> 31 & word & 1) != 0;
  const int phase = run & 31;
  const std::uint32_t next = continues && phase < leading_run(word) ? 1u << phase : 0;
  return next | run_begin(before, word);
}

/// The words first - 3 to first + kWords of the set of offsets; 0 outside of it. All threads of a
/// block hold consecutive groups.
__device__ void load_lines(const HeadMemory& head, std::int64_t first,
                           std::uint32_t (&lines)[kWords + 4]) {
  const auto group_at = [&](std::int64_t at) {
    const bool is_inside = at >= 0 && at < head.num_words;
    return is_inside ? *reinterpret_cast<const uint4*>(head.slash_bits + at) : uint4{};
  };
  const int lane = threadIdx.x % 32;
  const uint4 own = group_at(first);
  uint4 before{0, __shfl_up_sync(kFull, own.y, 1), __shfl_up_sync(kFull, own.z, 1),
               __shfl_up_sync(kFull, own.w, 1)};
  std::uint32_t after = __shfl_down_sync(kFull, own.x, 1);
  if (lane == 0) before = group_at(first - kWords);
  if (lane == 31) after = group_at(first + kWords).x;
  const std::uint32_t words[] = {before.y, before.z, before.w, own.x, own.y, own.z, own.w, after};
#pragma unroll
  for (int i = 0; i < kWords + 4; ++i) lines[i] = words[i];
}

/// Fills cover and chunks. Returns the pieces of this thread's chunks.
__device__ std::int64_t build_cover(const HeadMemory& head, std::int64_t q_len, std::int64_t kv_len,
                                    Shared& shared, std::int32_t* num_chunks) {
  std::int32_t last_run = 0;
  std::int32_t count = 0;
  std::int64_t pieces = 0;
  for (std::int64_t step = 0; step < head.num_words; step += kThreads * kWords) {
    const std::int64_t first = step + kWords * std::int64_t{threadIdx.x};
    // The cover of words first - 1 to first + kWords.
    std::uint32_t lines[kWords + 4];  // from word first - 3 on
    load_lines(head, first, lines);
    std::uint32_t cover[kWords + 2];
    cover[0] = first == 0 ? 0 : cover_word(lines[0], lines[1], lines[2]);
#pragma unroll
    for (int i = 1; i < kWords + 2; ++i) {
      cover[i] = cover_word(lines[i], lines[i + 1], lines[i + 2]);
    }
    if (first < head.num_words) {
      *reinterpret_cast<uint4*>(head.covered + first) =
          uint4{cover[1], cover[2], cover[3], cover[4]};
    }
    std::int32_t run = 0;  // where the last run that begins here or before does
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const std::uint32_t begin = run_begin(cover[i], cover[i + 1]);
      if (begin != 0) run = static_cast<std::int32_t>(32 * (first + i)) + __ffs(begin) - 1;
    }
    std::int32_t latest;
    Scan(shared.run_scan).ExclusiveScan(run, run, last_run, Later{}, latest);
    last_run = Later{}(last_run, latest);
    std::uint32_t begins[kWords];
    std::int32_t sum = 0;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      begins[i] = chunk_begins(cover[i], cover[i + 1], run);
      sum += __popc(begins[i]);
      const std::uint32_t begin = run_begin(cover[i], cover[i + 1]);
      if (begin != 0) run = static_cast<std::int32_t>(32 * (first + i)) + __ffs(begin) - 1;
    }
    std::int32_t slot, total;
    Scan(shared.count_scan).ExclusiveSum(sum, slot, total);
    slot += count;
    count += total;
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      for (std::uint32_t rest = begins[i]; rest != 0; rest &= rest - 1, ++slot) {
        const int bit = __ffs(rest) - 1;
        const int columns = leading_run(__funnelshift_r(cover[i + 1], cover[i + 2], bit));
        const std::int32_t near = static_cast<std::int32_t>(32 * (first + i)) + bit;
        const plan::PlanChunk chunk{near + columns - 1, kFull >> (32 - columns)};
        if (slot < head.max_chunks) head.chunks[slot] = chunk;
        pieces += plan::row_blocks_reaching(near, q_len, kv_len);
      }
    }
    __syncthreads();
  }
  *num_chunks = count;
  return pieces;
}

/// One block per sequence and head.
__global__ void __launch_bounds__(kThreads, 1)
    build_plan(const __grid_constant__ PlanParams params) {
  begin_kernel();
  __shared__ Shared shared;
  const std::int32_t unit = static_cast<std::int32_t>(blockIdx.x);
  if (unit == 0 && threadIdx.x == 0) *params.plan.next_task = 0;
  const std::int32_t index = unit / params.call.num_heads_q;
  const std::int32_t head = unit % params.call.num_heads_q;
  const Sequence sequence = sequence_at(params.call.sequences, index);
  const HeadPattern pattern = pattern_of(params.patterns, head, sequence);
  const LayerPlan& plan = params.plan;
  const bool is_estimated = needs_estimate(params.call, pattern, sequence);
  const bool has_lines = is_estimated || (pattern.kind == PatternKind::kVerticalSlashIndex &&
                                          sequence.row_begin < sequence.row_end);
  const std::int64_t q_len = sequence.row_end - sequence.row_begin;
  HeadPlan& built = plan.heads[unit];
  std::int32_t num_chunks = 0;
  std::int64_t pieces = 0;
  if (has_lines) {
    const std::int64_t words =
        head * plan.bit_words.total + first_row(plan.bit_words, index, sequence.kv_begin);
    const std::int64_t first_chunk = first_row(plan.chunk_rows, index, sequence.kv_begin);
    const HeadMemory memory = {.slash_bits = plan.slash_bits + words,
                               .verticals = plan.verticals + head * plan.vertical_rows.total +
                                            first_row(plan.vertical_rows, index, sequence.kv_begin),
                               .covered = plan.covered + words,
                               .num_words = num_bit_words(sequence.kv_len),
                               .chunks = plan.chunks + head * plan.chunk_rows.total + first_chunk,
                               .max_chunks = plan.chunk_rows.total - first_chunk};
    pieces = build_cover(memory, q_len, sequence.chunk_kv_len, shared, &num_chunks);
    for (std::int64_t i = threadIdx.x; i * plan::kChunk < built.num_vertical; i += kThreads) {
      pieces += plan::row_blocks_reaching(std::int64_t{memory.verticals[i * plan::kChunk]} + 1,
                                          q_len, sequence.chunk_kv_len);
    }
    pieces = Sum(shared.sum).Sum(pieces);
  }
  if (threadIdx.x != 0) return;
  const bool is_dense =
      pattern.kind == PatternKind::kVerticalSlash &&
      (!is_estimated ||
       (params.call.may_fall_back && plan::plan_costs_dense(pieces, q_len, sequence.chunk_kv_len)));
  built.kind = is_dense ? PatternKind::kDense : pattern.kind;
  for (int i = 0; i < 3; ++i) built.size[i] = static_cast<std::int32_t>(pattern.size[i]);
  if (!has_lines) built.num_vertical = built.num_slash = 0;
  built.num_chunks = num_chunks;
  built.is_estimated = is_estimated ? 1 : 0;
  built.pieces = pieces;
}

}  // namespace

cudaError_t launch_build_plan(const PlanParams& params, cudaStream_t stream) {
  const unsigned units =
      static_cast<unsigned>(params.call.sequences.count) * params.call.num_heads_q;
  return launch(build_plan, dim3(units), kThreads, 0, stream, params);
}

}  // namespace minference::cuda
