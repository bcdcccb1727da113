// Static facts of the attention kernel on mma.sync: tiles, warps, shared memory.
#pragma once

#include <cstdint>
#include <cute/tensor.hpp>
#include <type_traits>

#include "device/matrix_tile.cuh"
#include "device/pair_walk.cuh"
#include "device/task.cuh"

namespace minference::cuda::sm80 {

/// 128 query rows, two row blocks, by 64 keys. A warp owns 32 rows, which read K and V from shared
/// memory half as often as 16 would; head dimension 256 has registers for 16 rows only, and for
/// 32 keys shared memory that every card has.
template <bool kIsBfloat16_, int kHeadDim_>
struct AttentionConfig {
  static constexpr bool kIsBfloat16 = kIsBfloat16_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kRows = kTaskRows;
  static constexpr int kRowsOfWarp = kHeadDim <= 128 ? 32 : 16;
  static constexpr int kMatrices = kRowsOfWarp / 16;
  static constexpr int kWarps = kRows / kRowsOfWarp;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kWarpsOfBlock = kWarps / kTaskBlocks;
  static constexpr int kPieces = kHeadDim <= 128 ? 2 : 1;  // of a stage
  static constexpr int kKeys = kPieces * plan::kChunk;
  static constexpr int kBlocksPerSm = kHeadDim <= 64 ? 3 : kHeadDim <= 128 ? 2 : 1;

  using Mma = std::conditional_t<kIsBfloat16, cute::SM80_16x8x16_F32BF16BF16F32_TN,
                                 cute::SM80_16x8x16_F32F16F16F32_TN>;
  using QueryTile = MatrixTile<kRows, kHeadDim>;
  using KeyTile = MatrixTile<kKeys, kHeadDim>;
  using Walk = PairWalk<kPieces, kHeadDim <= 128 ? 32 : 16>;

  /// Rows that attend each column of a stage: a bit per row of a row block, in two words.
  struct alignas(16) Masks {
    std::uint32_t rows[kTaskBlocks][2][kKeys];
  };
  struct SharedStorage {
    alignas(128) std::uint16_t q[QueryTile::kElements];  // later out
    alignas(128) std::uint16_t k[KeyTile::kElements];
    alignas(128) std::uint16_t v[KeyTile::kElements];
    Task task;  // for the end: registers are scarce meanwhile
    Sequence sequence;
    Walk walk;
    Masks masks[2];                    // of this stage and the next
    SourceRows keys[2];                // of the sequence, and gathered
    SourceRows values[2];              // the same
    Piece pieces[2][kPieces];          // of this stage and the next, for what is not finite
    std::uint32_t nonfinite[kPieces];  // columns with values that are not, of pieces with a mask
  };
  static_assert(sizeof(SharedStorage) <= 101376, "a block of some cards has 99 KB");
};

}  // namespace minference::cuda::sm80
