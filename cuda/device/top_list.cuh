// The k largest of a stream of scores, by one warp: a list in shared memory of those that may still
// be among them. When it is full, the k largest stay and later ones must be larger than these.
// Used by list_tiles.cu.
//
// The stream comes in the order of the indices and the list keeps it. So of equal scores the first
// ones stay, the list is sorted in the end, and nothing depends on the list's size. NaN is below
// everything.
#pragma once

#include <cstdint>

namespace minference::cuda {

/// Orders as the floats do; NaN is below everything. The same as cpu/select.cpp.
__device__ inline std::uint32_t order_key(float score) {
  if (score != score) return 0;
  const std::uint32_t bits = __float_as_uint(score);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

/// The number whose order_key() this is, or a NaN.
__device__ inline float score_of_key(std::uint32_t key) {
  return __uint_as_float((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

struct TopList {
  std::uint32_t* keys;     ///< [capacity], shared memory; order_key() of scores
  std::uint16_t* indices;  ///< [capacity]
  std::int32_t capacity;   ///< at least k + 32, or all there will be
  std::int32_t k;          ///< >= 1
  std::int32_t count;
  std::uint32_t least;  ///< keys below are not among the k largest

  /// Adds every lane's (key, index), indices ascending by lane; `exists` may differ by lane.
  __device__ void add(std::uint32_t key, std::int32_t index, bool exists) {
    constexpr std::uint32_t kAll = 0xffffffffu;
    std::uint32_t votes = __ballot_sync(kAll, exists && key >= least);
    if (votes == 0) return;
    if (count + __popc(votes) > capacity) {
      keep_largest();
      votes = __ballot_sync(kAll, exists && key >= least);
    }
    const unsigned lane = threadIdx.x % 32;
    if ((votes >> lane & 1) != 0) {
      const std::int32_t at = count + __popc(votes & ((1u << lane) - 1));
      keys[at] = key;
      indices[at] = static_cast<std::uint16_t>(index);
    }
    count += __popc(votes);
    __syncwarp();
  }

  /// Drops all but the k largest. count > k.
  __device__ void keep_largest() {
    constexpr std::uint32_t kAll = 0xffffffffu;
    const unsigned lane = threadIdx.x % 32;
    const std::uint32_t limit = kth_largest();
    std::int32_t ties = k - count_from(limit + 1);  // that stay
    std::int32_t kept = 0;
    for (std::int32_t begin = 0; begin < count; begin += 32) {
      const std::int32_t at = begin + static_cast<std::int32_t>(lane);
      const bool exists = at < count;
      const std::uint32_t key = exists ? keys[at] : 0;
      const std::uint16_t index = exists ? indices[at] : 0;
      const std::uint32_t before = (1u << lane) - 1;
      const std::uint32_t tied = __ballot_sync(kAll, exists && key == limit);
      const bool stays = exists && (key > limit || (key == limit && __popc(tied & before) < ties));
      const std::uint32_t staying = __ballot_sync(kAll, stays);
      __syncwarp();
      if (stays) {  // not past `at`: what is overwritten has been read
        keys[kept + __popc(staying & before)] = key;
        indices[kept + __popc(staying & before)] = index;
      }
      __syncwarp();
      ties -= __popc(tied);
      kept += __popc(staying);
    }
    count = k;
    least = limit + 1;
  }

 private:
  /// How many keys are at least `limit`.
  __device__ std::int32_t count_from(std::uint32_t limit) const {
    std::int32_t found = 0;
    for (std::int32_t i = threadIdx.x % 32; i < count; i += 32) found += keys[i] >= limit ? 1 : 0;
    return __reduce_add_sync(0xffffffffu, found);
  }

  /// The largest number that k keys reach, or a smaller one that no more than k keys reach.
  __device__ std::uint32_t kth_largest() const {
    std::uint32_t all = 0xffffffffu;
    std::uint32_t any = 0;
    for (std::int32_t i = threadIdx.x % 32; i < count; i += 32) {
      all &= keys[i];
      any |= keys[i];
    }
    all = __reduce_and_sync(0xffffffffu, all);
    const std::uint32_t differing = __reduce_or_sync(0xffffffffu, any) ^ all;
    if (differing == 0) return all;
    const int highest = 31 - __clz(differing);
    std::uint32_t limit = highest == 31 ? 0 : all >> (highest + 1) << (highest + 1);
    for (int bit = highest; bit >= 0; --bit) {
      const std::uint32_t candidate = limit | 1u << bit;
      const std::int32_t reach = count_from(candidate);
      if (reach < k) continue;
      limit = candidate;
      if (reach == k) break;
    }
    return limit;
  }
};

}  // namespace minference::cuda
