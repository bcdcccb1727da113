// What a warp of the estimation (estimate.cuh) does with a tile of scores, in its registers, of 32
// keys x 64 row slots: pass 1 keeps every row's maximum and sum, pass 2 adds up probabilities along
// columns and diagonals.
//
// Lane (g, t) = (lane / 4, lane % 4) holds keys g + 8 a and row slots 8 n + 2 t + c, a < 4, n < 8,
// c < 2. All sums have a fixed order. Scores are raw; -inf where a row does not attend a key.
#pragma once

#include <cfloat>

#include "device/bits.cuh"
#include "device/exp2.cuh"
#include "params.h"

namespace minference::cuda {

inline constexpr int kTileKeys = 32;
inline constexpr int kKeysOfLane = 4;
inline constexpr int kRowOctets = kRowBlock / 8;

/// One warp's strip of one head.
struct WarpStrip {
  const EstimateParams& params;
  int lane;
  int strip_index;   ///< head * strips.total + strip; a strip takes over 2 KB, so 32 bits suffice
  int num_keys;      ///< of the strip, up to kv_len; of which the chunk may attend fewer
  int num_tiles;     ///< 0: nothing to do
  float scale_log2;  ///< of scores

  __device__ int group() const { return lane / 4; }
  __device__ int pair() const { return lane % 4 * 2; }  ///< first row slot of an octet
};

/// Scores of keys that a row slot does not attend become -inf. `first_key`: of the tile, over the
/// last key that slot 0 attends.
template <class Score>
__device__ void mask_tile(const WarpStrip& warp, int first_key, int first_valid_slot,
                          const Score& score) {
#pragma unroll
  for (int n = 0; n < kRowOctets; ++n) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int slot = n * 8 + warp.pair() + c;
#pragma unroll
      for (int a = 0; a < kKeysOfLane; ++a) {
        const int key = first_key + warp.group() + a * 8;
        if (key > slot || slot < first_valid_slot) score(a, n, c) = -INFINITY;
      }
    }
  }
}

/// Pass 1. Sums refer to a row's shift instead of its maximum. The shift follows the maximum only
/// when that has grown by more than kSlack: sums stay far from overflow, and rescaling is rare.
class RowStats {
 public:
  /// `shifts`: [64] of this warp in shared memory, all lanes' in common.
  __device__ RowStats(const WarpStrip& warp, float* shifts) : warp_(warp), shifts_(shifts) {
    // The lowest finite number: a row that has met no key yet must not give -inf - -inf.
    reinterpret_cast<float2*>(shifts)[warp.lane] = make_float2(-FLT_MAX, -FLT_MAX);
  }

  /// score(key of lane, row octet, c) of the tile.
  template <class Score>
  __device__ void add_tile(int /*tile*/, const Score& score) {
    const float scale = warp_.scale_log2;
    const float2* const shifts = reinterpret_cast<const float2*>(shifts_ + warp_.pair());
    float excess = -FLT_MAX;
#pragma unroll
    for (int n = 0; n < kRowOctets; ++n) {
      const float2 shift = shifts[n * 4];
      excess = fmaxf(excess, fmaf(largest(score, n, 0), scale, -shift.x));
      excess = fmaxf(excess, fmaf(largest(score, n, 1), scale, -shift.y));
    }
    if (__any_sync(kAllLanes, excess > kSlack)) raise_shifts(score);
#pragma unroll
    for (int n = 0; n < kRowOctets; ++n) {
      const float2 shift = shifts[n * 4];
#pragma unroll
      for (int a = 0; a < kKeysOfLane; ++a) {
        sums_[n][0] += exp2_approx(fmaf(score(a, n, 0), scale, -shift.x));
        sums_[n][1] += exp2_approx(fmaf(score(a, n, 1), scale, -shift.y));
      }
    }
  }

  __device__ void finish() {
    float4* const stats = reinterpret_cast<float4*>(  // [32]: two rows each
        warp_.params.strip_stats + std::int64_t{warp_.strip_index} * kRowBlock);
    const float2* const shifts = reinterpret_cast<const float2*>(shifts_ + warp_.pair());
#pragma unroll
    for (int n = 0; n < kRowOctets; ++n) {
      const float sum0 = over_groups(sums_[n][0]), sum1 = over_groups(sums_[n][1]);
      const float2 shift = shifts[n * 4];
      if (warp_.group() != n) continue;
      stats[n * 4 + warp_.lane % 4] =
          make_float4(sum0 == 0 ? -INFINITY : shift.x, sum0, sum1 == 0 ? -INFINITY : shift.y, sum1);
    }
  }

 private:
  static constexpr float kSlack = 8;

  template <class Score>
  __device__ static float largest(const Score& score, int n, int c) {
    return fmaxf(fmaxf(score(0, n, c), score(1, n, c)), fmaxf(score(2, n, c), score(3, n, c)));
  }

  /// Of the lanes that hold the same rows.
  __device__ static float over_groups(float x) {
    for (int offset = 4; offset < 32; offset *= 2) x += __shfl_xor_sync(kAllLanes, x, offset);
    return x;
  }

  template <class Score>
  __device__ void raise_shifts(const Score& score) {
#pragma unroll
    for (int n = 0; n < kRowOctets; ++n) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float* const shift = shifts_ + n * 8 + warp_.pair() + c;
        float top = largest(score, n, c) * warp_.scale_log2;
        for (int offset = 4; offset < 32; offset *= 2) {
          top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, offset));
        }
        const float before = *shift;
        const float after = fmaxf(before, top);
        sums_[n][c] *= exp2_approx(before - after);
        __syncwarp();
        if (warp_.group() == n) *shift = after;
      }
    }
    __syncwarp();
  }

  const WarpStrip& warp_;
  float* const shifts_;
  float sums_[kRowOctets][2] = {};
};

/// Pass 2. Diagonal d = row slot - key of a tile meets the next tile, 32 keys on, as d + 32: after
/// each tile the 32 highest diagonals are complete, the others are carried on in registers.
class LineSums {
 public:
  /// `row_stats`: [64][2] in shared memory of both warps of a head.
  __device__ LineSums(const WarpStrip& warp, float* row_stats)
      : warp_(warp), row_stats_(row_stats) {}

  template <class Score>
  __device__ void add_tile(int tile, const Score& score) {
    const float scale = warp_.scale_log2;
    const float4* const row_stats = reinterpret_cast<const float4*>(row_stats_ + warp_.pair() * 2);
    float columns[kKeysOfLane] = {};
#pragma unroll
    for (int n = 0; n < kRowOctets; ++n) {
      const float4 stats = row_stats[n * 4];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float max = c == 0 ? stats.x : stats.z;
        const float inverse_sum = c == 0 ? stats.y : stats.w;
#pragma unroll
        for (int a = 0; a < kKeysOfLane; ++a) {
          const float p = exp2_approx(fmaf(score(a, n, c), scale, -max));
          columns[a] = fmaf(p, inverse_sum, columns[a]);
          float& diagonal = diagonals_[n - a + kKeysOfLane - 1][c];
          diagonal = fmaf(p, inverse_sum, diagonal);
        }
      }
    }
    store_columns(tile, columns);
    store_diagonals(tile);
  }

  __device__ void finish() {
    // What is left belongs to 64 more diagonals.
    store_diagonals(warp_.num_tiles);
    store_diagonals(warp_.num_tiles + 1);
    // Entries that no tile reaches: past those of the strip's first key, and, where the chunk ends
    // before the strip, those of keys past it.
    float* const slot = slash_scores();
    const int size = warp_.params.scores.strip + kSlotTail;
    for (int i = warp_.num_keys + kRowBlock - 1 + warp_.lane; i < size; i += 32) slot[i] = 0;
    const int untouched = warp_.num_keys - warp_.num_tiles * kTileKeys - 1;
    for (int i = warp_.lane; i < untouched; i += 32) slot[i] = 0;
  }

 private:
  /// Adds over the four lanes of a key; lane (g, t) ends up with key g + 8 t.
  __device__ void store_columns(int tile, const float (&columns)[kKeysOfLane]) {
    const bool is_high = warp_.lane & 2, is_odd = warp_.lane & 1;
    const float sum0 = exchange(is_high, columns[0], columns[2], warp_.lane ^ 2);
    const float sum1 = exchange(is_high, columns[1], columns[3], warp_.lane ^ 2);
    const float sum = exchange(is_odd, sum0, sum1, warp_.lane ^ 1);
    column_scores()[tile * kTileKeys + warp_.group() + warp_.lane % 4 * 8] = sum;
  }

  /// Stores the tile's diagonals 32 to 63, one per lane, and moves the others up.
  ///
  /// diagonals_[e + 3][c] of lane (g, t) is the part of diagonal 8 e + f that it holds, where
  /// f = 2 t + c - g lies in (-8, 8). Lanes with negative f hold the same residue of 8 one octet
  /// further up. The eight lanes and values with equal residue are added by shuffles.
  __device__ void store_diagonals(int tile) {
    const int group = warp_.group(), t = warp_.lane % 4;
    float sums[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // c = 1 of lane g + 1 has the residue of c = 0.
      const float odd = is_negative(1) ? diagonals_[i + 8][1] : diagonals_[i + 7][1];
      sums[i] = is_negative(0) ? diagonals_[i + 8][0] : diagonals_[i + 7][0];
      sums[i] += __shfl_sync(kAllLanes, odd, (warp_.lane + 4) % 32);
    }
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float incomplete = is_negative(c) ? diagonals_[7][c] : 0.0f;
#pragma unroll
      for (int i = 6; i >= 0; --i) diagonals_[i + 4][c] = diagonals_[i][c];
      diagonals_[11][c] = incomplete;
#pragma unroll
      for (int i = 0; i < 4; ++i) diagonals_[i][c] = 0;
    }
    // Of the lanes with the same 2 t - g, t exchanges with t ^ 2, then with t ^ 1.
    const float sum0 = exchange(t & 2, sums[0], sums[2], warp_.lane ^ 18);
    const float sum1 = exchange(t & 2, sums[1], sums[3], warp_.lane ^ 18);
    const int partner = ((group + (t & 1 ? 6 : 2)) % 8) * 4 + (t ^ 1);
    const float sum = exchange(t & 1, sum0, sum1, partner);
    const int diagonal = 32 + t * 8 + (2 * t - group & 7);
    const int i = diagonal + warp_.num_keys - 1 - tile * kTileKeys;
    if (i >= 0) slash_scores()[i] = sum;
  }

  /// Two lanes, each with two values: this one keeps its second if `keeps_second`, and adds the
  /// partner's of the same position.
  __device__ static float exchange(bool keeps_second, float first, float second, int partner) {
    const float received = __shfl_sync(kAllLanes, keeps_second ? first : second, partner);
    return (keeps_second ? second : first) + received;
  }

  __device__ float* column_scores() const {  // [strip]
    const Scores& scores = warp_.params.scores;
    return scores.column_scores + std::int64_t{warp_.strip_index} * scores.strip;
  }
  __device__ float* slash_scores() const {  // [strip + 64]
    const Scores& scores = warp_.params.scores;
    return scores.slash_scores + std::int64_t{warp_.strip_index} * (scores.strip + kSlotTail);
  }

  __device__ bool is_negative(int c) const { return warp_.pair() + c < warp_.group(); }

  const WarpStrip& warp_;
  const float* const row_stats_;  ///< [64][2]
  float diagonals_[kRowOctets + kKeysOfLane][2] = {};
};

}  // namespace minference::cuda
