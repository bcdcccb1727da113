// Static facts of the attention kernel for Hopper: tiles, roles, registers, shared memory.
#pragma once

#include <cstdint>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <type_traits>

#include "device/matrix_tile.cuh"
#include "device/task.cuh"
#include "sm90/barrier.cuh"

namespace minference::cuda::sm90 {

/// 128 threads that wgmma is executed by; of registers each has what setmaxnreg gives it.
inline constexpr int kWarpgroup = 128;
inline constexpr int kWarpsOfGroup = kWarpgroup / 32;

/// Warps of the first warpgroup.
enum Role { kLoadWarp, kPlanWarp, kMaskWarp, kValueWarp };

/// Named barriers; 0 is __syncthreads'.
enum NamedBarrier : unsigned { kTurn = 1, kOutRows = kTurn + kTaskBlocks };

/// What a stage is to the warpgroups, in one word.
class StageFlags {
 public:
  static constexpr std::uint32_t kNeeded = 1;      ///< << row block: its rows attend some column
  static constexpr std::uint32_t kMasked = 4;      ///< << row block: and not all rows all columns
  static constexpr std::uint32_t kFirst = 16;      ///< of a task
  static constexpr std::uint32_t kLast = 32;       ///< of a task
  static constexpr std::uint32_t kEnd = 64;        ///< no stage: there are no more
  static constexpr std::uint32_t kAdjacent = 128;  ///< the pieces' rows follow each other
  static constexpr std::uint32_t kGathered = 256;  ///< << piece: its rows are gathered ones

  __device__ explicit StageFlags(std::uint32_t bits) : bits_(bits) {}
  __device__ std::uint32_t bits() const { return bits_; }
  __device__ bool is_needed(int block) const { return has(kNeeded << block); }
  __device__ bool is_needed() const { return has(3 * kNeeded); }
  __device__ bool is_shared() const { return (bits_ & 3 * kNeeded) == 3 * kNeeded; }
  __device__ bool is_masked(int block) const { return has(kMasked << block); }
  __device__ bool is_masked() const { return has(3 * kMasked); }
  __device__ bool is_first() const { return has(kFirst); }
  __device__ bool is_last() const { return has(kLast); }
  __device__ bool is_end() const { return has(kEnd); }
  __device__ bool is_adjacent() const { return has(kAdjacent); }
  __device__ bool is_gathered(int piece) const { return has(kGathered << piece); }

 private:
  __device__ bool has(std::uint32_t flags) const { return (bits_ & flags) != 0; }

  std::uint32_t bits_;
};

/// Row of a piece without keys.
inline constexpr std::int32_t kNoKeys = -(1 << 30);

/// What the roles have to know of a task.
struct TaskContext {
  Task task;
  Sequence sequence;
  PieceRows rows;
  std::int32_t head_kv;
  bool has_infinities[kTaskBlocks];
  // Of float8 alone.
  float scale_log2;   ///< with the scales of q and k
  float value_scale;  ///< of v
};

/// 128 query rows, a row block for each of two warpgroups, by 128 keys (64 with head dimension 256:
/// accumulators of the output take half of the registers).
///
/// Of float8, q and K are multiplied as such. V becomes float16, which holds every float8, before
/// it is multiplied: accumulators of float8 products keep some 14 bits, which is enough for the sum
/// over a head's dimensions, not for one over a million keys.
template <DType kDType_, int kHeadDim_>
struct AttentionConfig {
  static constexpr DType kDType = kDType_;
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr bool kIsFloat8 = kDType == DType::kFloat8E4M3;
  static constexpr int kElementBytes = kIsFloat8 ? 1 : 2;  // of q, K and V
  /// What V, and with it P, is multiplied as; else float16.
  static constexpr bool kIsValueBfloat16 = kDType == DType::kBFloat16;
  static constexpr bool kIsOutBfloat16 = kDType != DType::kFloat16;
  static constexpr int kPieces = kHeadDim <= 128 ? 4 : 2;  // of a stage
  static constexpr int kKeys = kPieces * plan::kChunk;
  static constexpr int kStages = kHeadDim <= 64 ? 4 : kHeadDim <= 96 ? 3 : 2;
  static constexpr int kFloat8Stages = 2;  // of V as it comes
  /// V's barriers tell their turns by parity: those of 2 kStages before have to be full when a
  /// warpgroup, which has the keys of a stage, waits for its values. Loading is a stage behind
  /// keys, the value warp kFloat8Stages behind that.
  static_assert(!kIsFloat8 || kFloat8Stages <= 2 * kStages - 2);
  static constexpr int kQueryTiles = kHeadDim <= 128 ? 2 : 1;  // the next task's is loaded ahead
  static constexpr int kPlanned = 6;                           // stages that are planned ahead
  static constexpr int kContexts = 4;
  static constexpr int kThreads = (1 + kTaskBlocks) * kWarpgroup;
  /// Warpgroups take turns in starting their products.
  static constexpr bool kTakesTurns = kHeadDim <= 128;
  // Sum: 504, what 65,536 registers leave for three warpgroups of a kernel of 168.
  static constexpr int kLoadRegisters = 56;
  static constexpr int kMathRegisters = 224;

  using StageRing = TwoRounds<kStages>;

  /// Two float8 count as one element of the tiles of q and K.
  static constexpr int kTileDims = kHeadDim * kElementBytes / 2;
  using QueryTile = MatrixTile<kRowBlock, kTileDims>;
  using KeyTile = MatrixTile<kKeys, kTileDims>;
  using ValueTile = MatrixTile<kKeys, kHeadDim>;
  using OutTile = MatrixTile<kRowBlock, kHeadDim>;
  static constexpr unsigned kQueryBytes = kTaskBlocks * 2 * QueryTile::kElements;
  static constexpr unsigned kKeyBytes = 2 * KeyTile::kElements;

  struct PlannedStage {
    Piece pieces[kPieces];
    std::int32_t rows[kPieces];  // of the tensors, or of the head's gathered ones
    std::uint32_t flags;
  };
  /// Columns that a row attends: bit 2 n + c of word t is column 8 n + 2 t + c, so that a thread
  /// finds those of its accumulators in one word.
  struct alignas(16) Masks {
    std::uint32_t rows[kTaskBlocks][kRowBlock][4];
  };
  /// Infinities that rows of a row block attend, of which NaN is both: a bit per row, in two words.
  struct alignas(16) Infinities {
    std::uint32_t plus[2];
    std::uint32_t minus[2];
  };

  /// V as it comes. Filled by the load warp, emptied by the value warp.
  struct Float8Values {
    alignas(1024) std::uint16_t float8_v[kFloat8Stages][KeyTile::kElements];
    Barrier full_float8_v[kFloat8Stages], empty_float8_v[kFloat8Stages];
  };
  struct NoFloat8Values {};

  struct SharedStorage : std::conditional_t<kIsFloat8, Float8Values, NoFloat8Values> {
    alignas(1024) std::uint16_t q[kQueryTiles][kTaskBlocks][OutTile::kElements];  // later out
    alignas(1024) std::uint16_t k[kStages][KeyTile::kElements];
    alignas(1024) std::uint16_t v[kStages][ValueTile::kElements];
    Masks masks[kStages];
    Infinities infinities[kTaskBlocks][kHeadDim];  // of a task that has some
    std::uint32_t flags[kStages];
    PlannedStage planned[kPlanned];
    TaskContext contexts[kContexts];
    PieceWalk<3, 32> walk;
    // Filled by the load warp, emptied by the warps that multiply, k by the mask warp and v by the
    // value warp too, which of float8 fills v.
    Barrier full_q[kQueryTiles], empty_q[kQueryTiles];
    Barrier full_k[kStages], empty_k[kStages];
    Barrier full_v[2 * kStages], empty_v[kStages];  // TwoRounds
    // Filled by the mask warp and the value warp, only of stages with masks; emptied with K and V.
    // Of float8, v is full once its values are finite.
    Barrier masks_made[kStages], values_finite[kStages];
    // Filled by the plan warp; contexts are emptied by all others, planned stages by the other
    // warps of its warpgroup.
    Barrier full_planned[kPlanned], empty_planned[kPlanned];
    Barrier empty_context[kContexts];
    // Infinities are filled with values_finite, emptied by a warpgroup at its task's end.
    Barrier empty_infinities[kTaskBlocks];
  };
  static_assert(sizeof(SharedStorage) <= 232448, "a block of sm_90 has 227 KB");
};

}  // namespace minference::cuda::sm90
