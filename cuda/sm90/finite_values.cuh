// What the value warp does with 16-bit values: replaces those that are not finite in stages with
// masks. 0 * NaN is NaN: those values become 0 before anybody multiplies, and are noted.
#pragma once

#include "device/element.cuh"
#include "sm90/config.cuh"
#include "sm90/infinity_notes.cuh"

namespace minference::cuda::sm90 {

template <class Config>
class FiniteValues {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ explicit FiniteValues(Storage& shared) : shared_(shared) {}

  /// The next stage. Waits for and lets go of every one, as the mask warp does.
  __device__ void take(const typename Config::PlannedStage& at, StageFlags flags,
                       TaskContext* context, InfinityNotes<Config>* notes) {
    shared_.full_v[stage_.barrier()].wait(stage_.barrier_parity());
    if (flags.is_masked()) {
#pragma unroll 1
      for (int n = 0; n < Config::kPieces; ++n) {
        const Piece& piece = at.pieces[n];
        if (!has_masked_values(piece, flags)) continue;
        const std::uint32_t columns = replace_nonfinite(stage_.slot(), n);
        if (columns != 0) notes->add(piece, columns, context);
      }
      publish_to_async();
      arrive_as_warp(shared_.values_finite[stage_.slot()]);
    }
    arrive_as_warp(shared_.empty_v[stage_.slot()]);
    stage_.advance();
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  /// Of piece `n` of a slot. Which columns had some.
  __device__ std::uint32_t replace_nonfinite(unsigned slot, int n) const {
    using Tile = typename Config::KeyTile;
    constexpr int kVectors = plan::kChunk * Tile::kAtomVectors;  // of a piece and an atom
    std::uint32_t columns = 0;
#pragma unroll 1
    for (int atom = 0; atom < Tile::kAtoms; ++atom) {
      char* const rows = reinterpret_cast<char*>(shared_.v[slot]) + atom * Tile::kAtomBytes +
                         n * plan::kChunk * Tile::kRowBytes;
      uint4* const vectors = reinterpret_cast<uint4*>(rows);
      // All are read before any is looked at, and nearly always that is all there is to do.
      uint4 found[kVectors / 32];
#pragma unroll
      for (int i = 0; i < kVectors / 32; ++i) found[i] = vectors[32 * i + lane()];
      bool is_any = false;
#pragma unroll
      for (const uint4& vector : found) is_any |= has_any(vector);
      if (!__any_sync(kAllLanes, is_any)) continue;
#pragma unroll 1
      for (int i = lane(); i < kVectors; i += 32) {
        if (replace_in(&vectors[i])) columns |= 1u << i / Tile::kAtomVectors;
      }
    }
    return __reduce_or_sync(kAllLanes, columns);
  }

  __device__ static bool has_any(const uint4& vector) {
    constexpr bool kIsBfloat16 = Config::kIsValueBfloat16;
    return has_nonfinite<kIsBfloat16>(vector.x) || has_nonfinite<kIsBfloat16>(vector.y) ||
           has_nonfinite<kIsBfloat16>(vector.z) || has_nonfinite<kIsBfloat16>(vector.w);
  }

  /// Whether there was anything to replace.
  __device__ static bool replace_in(uint4* vector) {
    if (!has_any(*vector)) return false;
    auto* const elements = reinterpret_cast<std::uint16_t*>(vector);
#pragma unroll 1
    for (int i = 0; i < kVectorDims; ++i) {
      if (has_nonfinite<Config::kIsValueBfloat16>(elements[i])) elements[i] = 0;
    }
    return true;
  }

  Storage& shared_;
  typename Config::StageRing stage_;
};

}  // namespace minference::cuda::sm90
