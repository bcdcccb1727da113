// What the walk (pair_walk.cuh) hands to the warps of attention: pieces of 32 keys, and stages of
// one or two of them.
#pragma once

#include <cstdint>

#include "params.h"

namespace minference::cuda {

/// 32 keys, rows [row, row + 32) of the sequence's or of the gathered ones.
struct alignas(16) Piece {
  std::int32_t row;
  std::uint32_t flags;
  std::uint32_t valid[kTaskBlocks];  ///< columns that some row of the row block attends

  // Flags. Those of a row block: << its number.
  static constexpr std::uint32_t kNeeded = 1;   ///< some row attends some column
  static constexpr std::uint32_t kMasked = 4;   ///< and not all rows all columns
  static constexpr std::uint32_t kHalf = 16;    ///< the first 16 columns are not attended
  static constexpr std::uint32_t kVaries = 64;  ///< rows attend different columns
  static constexpr std::uint32_t kGathered = 256;
  static constexpr std::uint32_t kWhole = 512;    ///< all of its rows exist and fill a tile's
  static constexpr std::uint32_t kTooFar = 1024;  ///< neither this piece nor those after it are met

  /// 0: of the sequence; 1: gathered
  __device__ unsigned source() const { return flags / kGathered % 2; }
  __device__ bool is_gathered() const { return source() != 0; }
  __device__ bool is_whole() const { return (flags & kWhole) != 0; }
  __device__ bool varies(int block) const { return (flags & kVaries << block) != 0; }
};

/// What a stage asks of the warps, in one register: for each of its pieces the lowest flags and
/// where it is, and which of two masks the stage has. 0: no stage.
class Stage {
 public:
  __device__ Stage() {}
  __device__ void add_piece(int n, unsigned place, std::uint32_t flags) {
    bits_ |= (flags & kFlags) << (kFlagBits * n) | place << (kPlaces + 8 * n);
  }
  __device__ void set_masks(unsigned masks) { bits_ |= masks << kMasks; }
  /// The same; what is derived from it is not taken from, or kept in, registers of other uses.
  __device__ Stage anew() const {
    Stage copy;
    asm volatile("mov.b32 %0, %1;" : "=r"(copy.bits_) : "r"(bits_));
    return copy;
  }

  __device__ bool exists() const { return bits_ << (32 - 2 * kFlagBits) != 0; }
  __device__ bool is_needed(int n, unsigned block) const { return has(n, Piece::kNeeded << block); }
  __device__ bool is_half(int n, unsigned block) const { return has(n, Piece::kHalf << block); }
  __device__ bool is_masked(unsigned n, unsigned block) const {
    return has(n, Piece::kMasked << block);
  }
  __device__ bool has_masked(unsigned block) const {
    return (bits_ & (Piece::kMasked | Piece::kMasked << kFlagBits) << block) != 0;
  }
  /// For either row block.
  __device__ bool is_needed(int n) const { return has(n, 3 * Piece::kNeeded); }
  __device__ bool is_masked(unsigned n) const { return has(n, 3 * Piece::kMasked); }
  __device__ bool has_masked() const {
    return (bits_ & (3 * Piece::kMasked | 3 * Piece::kMasked << kFlagBits)) != 0;
  }
  __device__ unsigned place(int n) const { return bits_ >> (kPlaces + 8 * n) & 0xff; }
  __device__ unsigned masks() const { return bits_ >> kMasks; }

 private:
  static constexpr int kFlagBits = 6, kPlaces = 2 * kFlagBits, kMasks = kPlaces + 16;
  static constexpr std::uint32_t kFlags = (1 << kFlagBits) - 1;

  __device__ bool has(unsigned n, std::uint32_t flags) const {
    return (bits_ & flags << (kFlagBits * n)) != 0;
  }

  std::uint32_t bits_ = 0;
};

}  // namespace minference::cuda
