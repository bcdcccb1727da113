// What the value warp does with float8: turns the values of every stage into float16, which holds
// every float8. In stages with masks those that are not finite become 0, as in finite_values.cuh.
#pragma once

#include "device/element.cuh"
#include "sm90/config.cuh"
#include "sm90/infinity_notes.cuh"

namespace minference::cuda::sm90 {

template <class Config>
class Float8Values {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ explicit Float8Values(Storage& shared) : shared_(shared) {}

  /// The next stage. For a warpgroup that does not need it, lets go of its values.
  __device__ void take(const typename Config::PlannedStage& at, StageFlags flags,
                       TaskContext* context, InfinityNotes<Config>* notes) {
    shared_.full_float8_v[from_.slot].wait(from_.parity);
    shared_.empty_v[to_.slot()].wait(to_.empty_parity());
#pragma unroll 1
    for (int n = 0; n < Config::kPieces && flags.is_needed(); ++n) {
      const Piece& piece = at.pieces[n];
      const bool is_masked = flags.is_masked() && has_masked_values(piece, flags);
      const std::uint32_t columns =
          convert(shared_.float8_v[from_.slot], shared_.v[to_.slot()], n, is_masked);
      if (columns != 0) notes->add(piece, columns, context);
    }
    publish_to_async();
    arrive_as_warp(shared_.full_v[to_.barrier()]);
    arrive_as_warp(shared_.empty_float8_v[from_.slot]);
#pragma unroll
    for (int block = 0; block < kTaskBlocks; ++block) {
      if (!flags.is_needed(block) && lane() == 0) shared_.empty_v[to_.slot()].arrive(kWarpsOfGroup);
    }
    from_.advance();
    to_.advance();
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  /// Piece `n` of a stage. If it is masked, NaN becomes 0: which columns had some.
  __device__ static std::uint32_t convert(const std::uint16_t* from, std::uint16_t* to, int n,
                                          bool is_masked) {
    using From = typename Config::KeyTile;
    using To = typename Config::ValueTile;
    constexpr int kOctet = 8;  // rows, of 64 dimensions: 16 float8 for each lane
    // Eight lanes take four vectors of two rows that differ by 5: neither reading nor writing do
    // they meet a bank twice.
    const unsigned row = lane() / 8 ^ (lane() % 8 < 4 ? 0 : 5);
    const unsigned vector = lane() % 4;
    const char* const source =
        reinterpret_cast<const char*>(from) + n * plan::kChunk * From::kRowBytes;
    char* const target = reinterpret_cast<char*>(to) + n * plan::kChunk * To::kRowBytes;
    std::uint32_t columns = 0;
#pragma unroll
    for (int octet = 0; octet < plan::kChunk / kOctet; ++octet) {
#pragma unroll
      for (int dims64 = 0; dims64 < Config::kHeadDim / 64; ++dims64) {
        uint4 values = *reinterpret_cast<const uint4*>(
            source + From::offset(row, 4 * dims64 + vector) + octet * kOctet * From::kRowBytes);
        if (is_masked && drop_nans(&values)) columns |= 1u << (octet * kOctet + row);
        char* const out = target + octet * kOctet * To::kRowBytes;
        *reinterpret_cast<uint4*>(out + To::offset(row, 8 * dims64 + 2 * vector)) =
            to_float16(values.x, values.y);
        *reinterpret_cast<uint4*>(out + To::offset(row, 8 * dims64 + 2 * vector + 1)) =
            to_float16(values.z, values.w);
      }
    }
    return is_masked ? __reduce_or_sync(kAllLanes, columns) : 0;
  }

  __device__ static uint4 to_float16(std::uint32_t first, std::uint32_t second) {
    const uint2 low = float8_to_float16(first), high = float8_to_float16(second);
    return {low.x, low.y, high.x, high.y};
  }

  /// Whether there was any.
  __device__ static bool drop_nans(uint4* values) {
    bool is_any = false;
    for (std::uint32_t* four : {&values->x, &values->y, &values->z, &values->w}) {
      const std::uint32_t nans = float8_nans(*four);
      is_any |= nans != 0;
      *four &= ~((nans >> 7) * 0xff);
    }
    return is_any;
  }

  Storage& shared_;
  Ring<Config::kFloat8Stages> from_;
  typename Config::StageRing to_;
};

}  // namespace minference::cuda::sm90
