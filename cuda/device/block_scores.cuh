// Scores of row blocks against key blocks, mean . mean, in fp32 quality on tensor cores. Used by
// list_tiles.cu, which consumes them tile by tile: the scores of a million tokens fit no memory.
//
// An fp32 number is split into two tf32 numbers; three of the four products are summed. A split
// infinity is no number, so a score that comes out as NaN has to be computed again (plain_score).
// The 16 means of a step are not multiplied in their order: a lane's four lie side by side in
// shared memory, on both sides of the product, which changes the sum's order and nothing else.
#pragma once

#include <cstdint>

namespace minference::cuda {

inline constexpr int kScoreThreads = 256;
inline constexpr int kTileKeys = 128;  // key blocks of a tile
inline constexpr int kStepDims = 16;   // dimensions of a step
inline constexpr int kStepsInFlight = 3;
inline constexpr int kScoreStride = kTileKeys + 8;  // floats: rows of a fragment fall on all banks

/// What one thread block multiplies.
struct ScoreOperands {
  const float* q;         ///< [num_rows, head_dim] means of row blocks
  const float* k;         ///< [num_key_blocks, head_dim]
  std::int32_t num_rows;  ///< <= kTileRows
  std::int32_t num_key_blocks;
  std::int32_t head_dim;  ///< a multiple of 8
};

__host__ __device__ inline std::int32_t num_steps(std::int32_t head_dim) {
  return (head_dim + kStepDims - 1) / kStepDims;
}

/// Shared memory of a thread block; rows of 16 floats let 16-byte reads fall on all banks.
template <int kTileRows>
struct ScoreMemory {
  float* q;       ///< [steps][kTileRows][kStepDims]
  float* k;       ///< [kStepsInFlight][kTileKeys][kStepDims]
  float* scores;  ///< [kTileRows][kScoreStride], what the consumer reads

  static constexpr std::int32_t kKeyFloats = kStepsInFlight * kTileKeys * kStepDims;
  static __host__ __device__ std::int32_t num_floats(std::int32_t head_dim) {
    return num_steps(head_dim) * kTileRows * kStepDims + kKeyFloats + kTileRows * kScoreStride;
  }
  __device__ ScoreMemory(float* base, std::int32_t head_dim)
      : q(base), k(q + num_steps(head_dim) * kTileRows * kStepDims), scores(k + kKeyFloats) {}
};

/// Copies 16 bytes, or writes zeros.
__device__ inline void copy_async(float* to, const float* from, bool exists) {
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(address), "l"(from),
               "r"(exists ? 16 : 0)
               : "memory");
}
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

/// x = large + small + an error below 2^-23 of x; both in tf32.
struct Split {
  std::uint32_t large;
  std::uint32_t small;
};
__device__ inline Split split(float x) {
  constexpr std::uint32_t kMask = 0xffffe000u;
  const std::uint32_t large = (__float_as_uint(x) + 0x1000u) & kMask;
  return {large, __float_as_uint(x - __uint_as_float(large)) & kMask};
}

/// c += a * b, 16 x 8 x 8.
__device__ inline void multiply_tf32(float (&c)[4], const std::uint32_t (&a)[4],
                                     const std::uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// How the 8 warps share a tile.
template <int kTileRows>
struct WarpTile {
  static constexpr int kWarpRows = kTileRows == 64 ? 2 : 1;
  static constexpr int kWarpColumns = kScoreThreads / 32 / kWarpRows;
  static constexpr int kRows = kTileRows / kWarpRows;
  static constexpr int kColumns = kTileKeys / kWarpColumns;
  static constexpr int kRowParts = kRows / 16;
  static constexpr int kColumnParts = kColumns / 8;
  float sums[kRowParts][kColumnParts][4];

  /// One step. q: [kTileRows][kStepDims], k: [kTileKeys][kStepDims]
  __device__ void multiply(const float* q, const float* k) {
    const int lane = threadIdx.x % 32;
    const int offset = lane / 4 * kStepDims + lane % 4 * 4;
    Split split_q[kRowParts][2][4];  // of row parts, halves of 8 rows, dimensions
#pragma unroll
    for (int m = 0; m < kRowParts; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = first_row() + m * 16 + half * 8;
        const float4 x = *reinterpret_cast<const float4*>(q + row * kStepDims + offset);
        split_q[m][half][0] = split(x.x);
        split_q[m][half][1] = split(x.y);
        split_q[m][half][2] = split(x.z);
        split_q[m][half][3] = split(x.w);
      }
    }
#pragma unroll
    for (int n = 0; n < kColumnParts; ++n) {
      const float4 x =
          *reinterpret_cast<const float4*>(k + (first_column() + n * 8) * kStepDims + offset);
      const Split split_k[4] = {split(x.x), split(x.y), split(x.z), split(x.w)};
#pragma unroll
      for (int d = 0; d < 4; d += 2) {
        const std::uint32_t large_k[2] = {split_k[d].large, split_k[d + 1].large};
        const std::uint32_t small_k[2] = {split_k[d].small, split_k[d + 1].small};
#pragma unroll
        for (int m = 0; m < kRowParts; ++m) {
          const auto& low = split_q[m][0];
          const auto& high = split_q[m][1];
          const std::uint32_t large_q[4] = {low[d].large, high[d].large, low[d + 1].large,
                                            high[d + 1].large};
          const std::uint32_t small_q[4] = {low[d].small, high[d].small, low[d + 1].small,
                                            high[d + 1].small};
          multiply_tf32(sums[m][n], small_q, large_k);
          multiply_tf32(sums[m][n], large_q, small_k);
          multiply_tf32(sums[m][n], large_q, large_k);
        }
      }
    }
  }

  /// scores: [kTileRows][kScoreStride]
  __device__ void store(float* scores) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int m = 0; m < kRowParts; ++m) {
#pragma unroll
      for (int n = 0; n < kColumnParts; ++n) {
        float* const to = scores + (first_row() + m * 16 + lane / 4) * kScoreStride +
                          first_column() + n * 8 + lane % 4 * 2;
        *reinterpret_cast<float2*>(to) = {sums[m][n][0], sums[m][n][1]};
        *reinterpret_cast<float2*>(to + 8 * kScoreStride) = {sums[m][n][2], sums[m][n][3]};
      }
    }
  }

 private:
  static __device__ int first_row() { return threadIdx.x / 32 / kWarpColumns * kRows; }
  static __device__ int first_column() { return threadIdx.x / 32 % kWarpColumns * kColumns; }
};

template <int kTileRows>
__device__ inline void copy_queries(const ScoreOperands& operands,
                                    const ScoreMemory<kTileRows>& memory) {
  const std::int32_t pieces = num_steps(operands.head_dim) * kTileRows * (kStepDims / 4);
  for (std::int32_t i = threadIdx.x; i < pieces; i += kScoreThreads) {
    const std::int32_t row = i / 4 % kTileRows;
    const std::int32_t dim = i / 4 / kTileRows * kStepDims + i % 4 * 4;
    const bool exists = row < operands.num_rows && dim < operands.head_dim;
    copy_async(memory.q + i * 4, exists ? operands.q + row * operands.head_dim + dim : operands.q,
               exists);
  }
}

/// to: [kTileKeys][kStepDims]
__device__ inline void copy_keys(const ScoreOperands& operands, std::int32_t first_key,
                                 std::int32_t first_dim, float* to) {
  constexpr int kPieces = kTileKeys * kStepDims / 4;
  static_assert(kPieces % kScoreThreads == 0);
#pragma unroll
  for (int begin = 0; begin < kPieces; begin += kScoreThreads) {
    const int i = begin + threadIdx.x;
    const std::int32_t key = first_key + i / 4;
    const std::int32_t dim = first_dim + i % 4 * 4;
    const bool exists = key < operands.num_key_blocks && dim < operands.head_dim;
    copy_async(to + i * 4,
               exists ? operands.k + std::int64_t{key} * operands.head_dim + dim : operands.k,
               exists);
  }
}

/// The scores of all tiles in the order of the keys: `consume(first_key)`, called by all threads,
/// finds them in memory.scores.
template <int kTileRows, class Consume>
__device__ void for_each_score_tile(const ScoreOperands& operands,
                                    const ScoreMemory<kTileRows>& memory, const Consume& consume) {
  constexpr int kStepFloats = kTileKeys * kStepDims;
  std::int32_t next_key = 0;  // of the step that is copied next
  std::int32_t next_dim = 0;
  const auto copy_next = [&](int slot) {
    if (next_key < operands.num_key_blocks) {
      copy_keys(operands, next_key, next_dim, memory.k + slot * kStepFloats);
      next_dim += kStepDims;
      if (next_dim >= operands.head_dim) {
        next_dim = 0;
        next_key += kTileKeys;
      }
    }
    commit_copies();
  };
  copy_queries(operands, memory);
  for (int slot = 0; slot < kStepsInFlight - 1; ++slot) copy_next(slot);

  const std::int32_t steps = num_steps(operands.head_dim);
  int slot = 0;
  int free_slot = kStepsInFlight - 1;
  for (std::int32_t key = 0; key < operands.num_key_blocks; key += kTileKeys) {
    WarpTile<kTileRows> tile{};
    for (std::int32_t step = 0; step < steps; ++step) {
      wait_for_copies<kStepsInFlight - 2>();
      __syncthreads();  // this step has arrived for everybody, the last one has been read by all
      copy_next(free_slot);
      tile.multiply(memory.q + step * kTileRows * kStepDims, memory.k + slot * kStepFloats);
      free_slot = slot;
      slot = slot + 1 == kStepsInFlight ? 0 : slot + 1;
    }
    tile.store(memory.scores);  // the last tile's have been read: a step's barrier was passed
    __syncthreads();
    consume(key);
  }
  wait_for_copies<0>();
}

/// The score where the split gave NaN: infinite, or truly NaN. q: shared, of ScoreMemory
template <int kTileRows>
__device__ inline float plain_score(const ScoreOperands& operands, const float* q, std::int32_t row,
                                    std::int32_t key) {
  const float* const k = operands.k + std::int64_t{key} * operands.head_dim;
  float sum = 0;
  for (std::int32_t d = 0; d < operands.head_dim; ++d) {
    sum = fmaf(q[(d / kStepDims * kTileRows + row) * kStepDims + d % kStepDims], k[d], sum);
  }
  return sum;
}

}  // namespace minference::cuda
