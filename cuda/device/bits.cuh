// Bit sets in device memory: 32-bit words, bit i of a set in word i / 32. A sequence's set holds
// kv_len + 129 bits, the last of them 0, so that a window may begin at any position of the plan, in
// groups of four words that are loaded and stored at once.
// Selection and build_plan write them, statistics and attention read them.
//
// Words that this block has changed with atomics are read past L1: an older copy may be there.
#pragma once

#include <cstdint>

#include "params.h"

namespace minference::cuda {

inline constexpr int kWordGroup = 4;
inline constexpr unsigned kAllLanes = 0xffffffff;  // of a warp

__host__ __device__ inline std::int64_t num_bit_words(std::int64_t kv_len) {
  return (kv_len + 2 * kRowBlock + 1 + 127 >> 7) * kWordGroup;
}

__device__ inline bool test_bit(const std::uint32_t* words, std::int32_t bit) {
  return (words[bit >> 5] >> (bit & 31) & 1) != 0;
}

/// Bits [begin, begin + 32) as a word; those before 0 are 0.
__device__ inline std::uint32_t bits32_at(const std::uint32_t* words, std::int32_t begin) {
  if (begin >= 0) {
    return __funnelshift_r(words[begin >> 5], words[(begin >> 5) + 1], begin & 31);
  }
  return begin > -32 ? words[0] << -begin : 0;
}

/// The same for [begin, begin + 64).
__device__ inline std::uint64_t bits_at(const std::uint32_t* words, std::int32_t begin) {
  return std::uint64_t{bits32_at(words, begin + 32)} << 32 | bits32_at(words, begin);
}

/// Sets the bits [begin, begin + 32) whose bit of `bits` is set; none of them may lie before 0.
__device__ inline void set_bits(std::uint32_t* words, std::int32_t begin, std::uint32_t bits) {
  if (begin < 0) {
    bits >>= -begin;
    begin = 0;
  }
  const int shift = begin & 31;
  const std::uint32_t low = bits << shift;
  const std::uint32_t high = shift == 0 ? 0 : bits >> (32 - shift);
  if (low != 0) atomicOr(words + (begin >> 5), low);
  if (high != 0) atomicOr(words + (begin >> 5) + 1, high);
}

/// A word of the cover of a set of slash lines: bit t is set iff a line lies in [t - 64, t - 1].
/// `lines`: the same word of the set of lines; the other two are the words before it.
__device__ inline std::uint32_t cover_word(std::uint32_t two_before, std::uint32_t before,
                                           std::uint32_t lines) {
  if (before != 0) return ~std::uint32_t{0};
  // Up to the highest line of the word two before, and above the lowest line of this word.
  const std::uint32_t up_to = two_before == 0 ? 0 : ~std::uint32_t{0} >> __clz(two_before);
  const std::uint32_t above = lines == 0 ? 0 : ~(lines ^ (lines - 1));
  return up_to | above;
}

}  // namespace minference::cuda
