// Exact top-k of a head's scores by radix select, by one block of kSelectThreads threads: marks the
// k highest lines in a bit set. Called by any/select_lines.cu. Same choice as cpp/cpu/select.cpp:
// the lowest lines rank first, NaN last, ties go to the lowest line.
//
// A line's rank is unique: 32 bits that order as the floats do, above 32 bits that order by line.
// Digits of 12 bits narrow down the ranks among which the k-th is until their lines fit in shared
// memory, as a rule after one pass over the scores; a second pass marks what ranks above them.
// Compaction depends on timing, but what it collects is a set: the result does not.
#pragma once

#include <cub/block/block_scan.cuh>

#include "device/bits.cuh"
#include "device/scores.cuh"

namespace minference::cuda {

inline constexpr int kSelectThreads = 1024;
inline constexpr int kSelectWarps = kSelectThreads / 32;
inline constexpr int kDigitBits = 12;
inline constexpr int kBins = 1 << kDigitBits;
inline constexpr int kBinsPerThread = kBins / kSelectThreads;
inline constexpr int kHistograms = 2;  // for even and odd lanes, which collide less
inline constexpr int kMaxCandidates = 8192;
inline constexpr std::int32_t kFirstStage = 2 * kSelectWarps;  // pieces to count without a floor
inline constexpr std::uint64_t kRankEnd = ~std::uint64_t{0};   // above all ranks

using SelectScan = cub::BlockScan<std::int32_t, kSelectThreads, cub::BLOCK_SCAN_WARP_SCANS>;

/// The bin that holds the wanted rank.
struct FoundDigit {
  std::int32_t digit;  ///< -1: fewer are counted than wanted
  std::int32_t count;  ///< ranks in it
  std::int32_t above;  ///< ranks in higher bins
};

/// Where a bin lies in the histogram: a gap after every 16 keeps threads that read four bins each
/// from meeting in a bank.
__device__ inline std::uint32_t slot_of(std::uint32_t bin) { return bin + (bin >> 4); }

struct TopKMemory {
  std::uint32_t histogram[kBins + kBins / 16][kHistograms];
  std::uint64_t candidates[kMaxCandidates];
  SelectScan::TempStorage scan;
  std::int32_t num_candidates;
  FoundDigit found;
};

/// The ranks [low, end): `count` lines, the highest `wanted` of which are chosen, as are all that
/// rank above.
struct Candidates {
  std::uint64_t low;
  std::uint64_t end;
  std::int32_t count;
  std::int32_t wanted;
  int shift;  ///< bits in which the ranks differ

  __device__ bool hold(std::uint64_t rank) const { return rank >= low && rank < end; }
  __device__ int next_shift() const { return shift > kDigitBits ? shift - kDigitBits : 0; }
  __device__ bool are_chosen() const { return count == wanted; }
  __device__ bool must_narrow() const { return count > kMaxCandidates && !are_chosen(); }
  __device__ void narrow(const FoundDigit& found) {
    shift = next_shift();
    low += static_cast<std::uint64_t>(found.digit) << shift;
    end = low + (std::uint64_t{1} << shift);
    count = found.count;
    wanted -= found.above;
  }
};

/// Orders as the floats do; NaN is below everything. Never 0, which stands for no score.
__device__ inline std::uint32_t order_key(float score) {
  const std::uint32_t bits = __float_as_uint(score);
  const std::uint32_t sign = static_cast<std::uint32_t>(static_cast<std::int32_t>(bits) >> 31);
  return score != score ? 1 : bits ^ (sign | 0x80000000u);
}

/// The score of a key; NaN for keys that no score has.
__device__ inline float score_of(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key ^ 0x80000000u : ~key);
}

__device__ inline std::uint64_t rank_of(std::uint32_t key, std::int32_t line) {
  return std::uint64_t{key} << 32 | ~static_cast<std::uint32_t>(line);
}

__device__ inline std::int32_t line_of_rank(std::uint64_t rank) {
  return static_cast<std::int32_t>(~static_cast<std::uint32_t>(rank));
}

__device__ inline void clear_histogram(TopKMemory& memory) {
  std::uint32_t* const bins = &memory.histogram[0][0];
  const int count = sizeof(memory.histogram) / sizeof(bins[0]);
  for (int i = threadIdx.x; i < count; i += kSelectThreads) bins[i] = 0;
  __syncthreads();
}

/// The bin of the rank that `wanted` - 1 counted ones exceed. Begins and ends with a barrier.
__device__ inline FoundDigit find_digit(TopKMemory& memory, std::int32_t wanted) {
  __syncthreads();
  if (threadIdx.x == 0) memory.found.digit = -1;
  std::int32_t counts[kBinsPerThread];
  std::int32_t sum = 0;
  const int first = kBins - 1 - kBinsPerThread * static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    counts[i] = 0;
#pragma unroll
    for (int copy = 0; copy < kHistograms; ++copy) {
      counts[i] += static_cast<std::int32_t>(memory.histogram[slot_of(first - i)][copy]);
    }
    sum += counts[i];
  }
  std::int32_t above;
  SelectScan(memory.scan).ExclusiveSum(sum, above);
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kBinsPerThread; ++i) {
    if (above < wanted && above + counts[i] >= wanted) {
      memory.found = {first - i, counts[i], above};
    }
    above += counts[i];
  }
  __syncthreads();
  return memory.found;
}

/// Calls visit(entry, key) for the entries of the pieces whose key is at least `lowest_key`, and
/// some others: all lanes of a warp together, 32 consecutive entries to a warp. Key 0: none.
/// Most entries are left out, so nothing is computed for them but one comparison of floats; where
/// that cannot tell (NaN, zeros, a key no score has) the entry is visited.
template <bool kIsSlash, class Visit>
__device__ void visit_scores(const ScoreList<kIsSlash>& list, std::int32_t piece_begin,
                             std::int32_t piece_end, std::uint32_t lowest_key, const Visit& visit) {
  const float lowest = score_of(lowest_key);
  const int lane = threadIdx.x % 32;
  for (std::int32_t piece = piece_begin + static_cast<std::int32_t>(threadIdx.x / 32);
       piece < piece_end; piece += kSelectWarps) {
    float values[kPieceGroups];
    list.load(piece, lane, values);
#pragma unroll
    for (int j = 0; j < kPieceGroups; ++j) {
      const bool may_reach = !(values[j] < lowest);
      if (!__any_sync(~0u, may_reach)) continue;
      const std::int32_t x = piece * kPiece + 32 * j + lane;
      visit(x, may_reach && list.holds(x) ? order_key(values[j]) : 0);
    }
  }
}

/// Narrows all lines to those that share the highest digit of the wanted rank. Once `wanted` lines
/// are known to reach a bin, lower ones need no counting: of a long list, few do.
template <bool kIsSlash>
__device__ void narrow_all(const ScoreList<kIsSlash>& list, TopKMemory& memory, Candidates* left) {
  constexpr int kShift = 32 - kDigitBits;
  const int copy = threadIdx.x % kHistograms;
  const std::int32_t num_pieces = list.num_pieces();
  std::uint32_t floor = 0;
  clear_histogram(memory);
  for (std::int32_t begin = 0, stage = kFirstStage;; stage *= 4) {
    const std::int32_t end = stage < num_pieces - begin ? begin + stage : num_pieces;
    visit_scores(list, begin, end, floor, [&](std::int32_t, std::uint32_t key) {
      if (key != 0) atomicAdd(&memory.histogram[slot_of(key >> kShift)][copy], 1u);
    });
    const FoundDigit found = find_digit(memory, left->wanted);
    if (end == num_pieces) {
      left->narrow(found);
      return;
    }
    if (found.digit > 0) floor = static_cast<std::uint32_t>(found.digit) << kShift;
    begin = end;
  }
}

/// Narrows the candidates by a further digit, reading all scores.
template <bool kIsSlash>
__device__ void narrow_in_list(const ScoreList<kIsSlash>& list, TopKMemory& memory,
                               Candidates* left) {
  const int copy = threadIdx.x % kHistograms;
  clear_histogram(memory);
  const auto lowest_key = static_cast<std::uint32_t>(left->low >> 32);
  visit_scores(list, 0, list.num_pieces(), lowest_key, [&](std::int32_t x, std::uint32_t key) {
    const std::uint64_t rank = rank_of(key, list.line_of(x));
    if (key != 0 && left->hold(rank)) {
      atomicAdd(&memory.histogram[slot_of((rank - left->low) >> left->next_shift())][copy], 1u);
    }
  });
  left->narrow(find_digit(memory, left->wanted));
}

/// Marks what ranks above the candidates. Those are marked too if all of them are chosen, else
/// collected in shared memory. Ends with a barrier.
template <bool kIsSlash>
__device__ void mark_lines(const ScoreList<kIsSlash>& list, const Candidates& left,
                           std::uint32_t* words, TopKMemory& memory) {
  const int lane = threadIdx.x % 32;
  const auto lowest_key = static_cast<std::uint32_t>(left.low >> 32);
  const std::uint64_t chosen = left.are_chosen() ? left.low : left.end;
  if (threadIdx.x == 0) memory.num_candidates = 0;
  __syncthreads();
  visit_scores(list, 0, list.num_pieces(), lowest_key, [&](std::int32_t x, std::uint32_t key) {
    const std::uint64_t rank = rank_of(key, list.line_of(x));
    const std::uint32_t lines = __ballot_sync(~0u, key != 0 && rank >= chosen);
    if (lane == 0 && lines != 0) set_bits(words, list.first_line(x), list.by_line(lines));
    const bool is_candidate = key != 0 && rank >= left.low && rank < chosen;
    const std::uint32_t candidates = __ballot_sync(~0u, is_candidate);
    if (candidates == 0) return;
    std::int32_t slot = 0;
    if (lane == 0) slot = atomicAdd(&memory.num_candidates, __popc(candidates));
    slot = __shfl_sync(~0u, slot, 0) + __popc(candidates & ((1u << lane) - 1));
    if (is_candidate) memory.candidates[slot] = rank;
  });
  __syncthreads();
}

/// Marks those of the collected candidates that are chosen.
__device__ inline void mark_candidates(Candidates left, std::uint32_t* words, TopKMemory& memory) {
  const std::int32_t num = left.count;
  while (!left.are_chosen()) {
    clear_histogram(memory);
    for (int i = threadIdx.x; i < num; i += kSelectThreads) {
      const std::uint64_t rank = memory.candidates[i];
      if (left.hold(rank)) {
        atomicAdd(
            &memory.histogram[slot_of((rank - left.low) >> left.next_shift())][i % kHistograms],
            1u);
      }
    }
    left.narrow(find_digit(memory, left.wanted));
  }
  for (int i = threadIdx.x; i < num; i += kSelectThreads) {
    const std::uint64_t rank = memory.candidates[i];
    const std::int32_t line = line_of_rank(rank);
    if (rank >= left.low) atomicOr(words + (line >> 5), 1u << (line & 31));
  }
}

/// Sets the bits of the `wanted` highest lines of the list, which holds more or as many.
template <bool kIsSlash>
__device__ void mark_top_k(const ScoreList<kIsSlash>& list, std::int32_t wanted,
                           std::uint32_t* words, TopKMemory& memory) {
  Candidates left{0, kRankEnd, list.num_lines - list.num_skipped, wanted, 64};
  if (left.must_narrow()) narrow_all(list, memory, &left);
  while (left.must_narrow()) narrow_in_list(list, memory, &left);
  mark_lines(list, left, words, memory);
  if (!left.are_chosen()) mark_candidates(left, words, memory);
}

}  // namespace minference::cuda
