// bfloat16 on AMX: one instruction multiplies a 16 x 32 by a 32 x 16 tile.
//
// Tiles 0-3 accumulate 2 x 2, tiles 4-5 hold the left operand (rows of K or of packed V, loaded as
// they lie in memory), tiles 6-7 the right one (packed Q or P).
#define MINFERENCE_LANES 16
#include "cpu/isa/estimate.h"
#include "cpu/isa/kernel_sets.h"
#include "cpu/isa/pair_dot.h"
#include "cpu/isa/row_dot.h"

namespace minference::cpu {
namespace {

/// What ldtilecfg reads. Constant: the intrinsic tells the compiler of its first bytes only, and
/// stores to the others would be removed.
struct alignas(64) TileLayout {
  std::uint8_t palette = 1;
  std::uint8_t start_row = 0;
  std::uint8_t reserved[14] = {};
  std::uint16_t bytes_per_row[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileLayout kTileLayout;

/// All eight tiles as 16 rows of 64 bytes while a task runs.
struct TileSession {
  TileSession() { _tile_loadconfig(&kTileLayout); }
  ~TileSession() { _tile_release(); }
  TileSession(const TileSession&) = delete;
  TileSession& operator=(const TileSession&) = delete;
};

inline constexpr int kTileRows = 16;
inline constexpr std::size_t kTileRowBytes = 64;

struct TilePairDot : PairDot {
  static constexpr int kStageChunks = 6;
  using Session = TileSession;

  static void scores(const ChunkKeys& chunk, const ChunkKeys& next, int head_dim,
                     const void* packed_query, int width, float* scores, void* staging) {
    std::int64_t stride;
    const std::uint16_t* const keys =
        chunk_keys(chunk.source, chunk.key_begin, head_dim, true, staging, &stride);
    finish_stores();
    const std::size_t key_row_bytes = stride * sizeof(std::uint16_t);
    const std::uint32_t* const query = static_cast<const std::uint32_t*>(packed_query);
    const std::uint16_t* const next_keys =
        static_cast<const std::uint16_t*>(next.source.k) + next.key_begin * next.source.k_stride;
    for (int lane = 0; lane < width; lane += 2 * kLanes) {
      _tile_zero(0);
      _tile_zero(1);
      _tile_zero(2);
      _tile_zero(3);
      const std::uint32_t* right = query + lane / kLanes * kTileElements;
      for (int d = 0; d < head_dim; d += 2 * kPairs, right += kGroups * kTileElements) {
        if (lane != 0) prefetch_rows(next_keys + d, next.source.k_stride);
        _tile_loadd(4, keys + d, key_row_bytes);
        _tile_loadd(6, right, kTileRowBytes);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, right + kTileElements, kTileRowBytes);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, keys + kTileRows * stride + d, key_row_bytes);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
      }
      store_accumulators(scores + lane);
    }
  }

  /// Adds chunks [begin, end) of the stage.
  static void accumulate(const RowBlockTask& task, const Stage& stage, int begin, int end,
                         int width, const Scratch<TilePairDot>& scratch, float* out_t) {
    if (begin == end) return;
    ChunkValues values[kMaxStageChunks];
    stage_values(task, stage, begin, end, scratch, out_t, values);
    finish_stores();
    const std::uint32_t* const p = static_cast<const std::uint32_t*>(scratch.probabilities);
    for (int d = 0; d < task.head_dim; d += 2 * kTileRows) {
      for (int lane = 0; lane < width; lane += 2 * kLanes) {
        float* const out = out_t + d * kRowBlock + lane;
        load_accumulators(out);
        for (int c = begin; c < end; ++c) {
          const std::size_t pitch_bytes = values[c].pitch * sizeof(std::uint16_t);
          const std::uint16_t* const left = values[c].rows + d * values[c].pitch;
          const std::uint32_t* const right = p + (c * kGroups + lane / kLanes) * kTileElements;
          _tile_loadd(4, left, pitch_bytes);
          _tile_loadd(6, right, kTileRowBytes);
          _tile_dpbf16ps(0, 4, 6);
          _tile_loadd(7, right + kTileElements, kTileRowBytes);
          _tile_dpbf16ps(1, 4, 7);
          _tile_loadd(5, left + kTileRows * values[c].pitch, pitch_bytes);
          _tile_dpbf16ps(2, 5, 6);
          _tile_dpbf16ps(3, 5, 7);
        }
        store_accumulators(out);
      }
    }
  }

 private:
  /// Tile loads do not tell the compiler what memory they read: stores before them must be made.
  static void finish_stores() { __asm__ volatile("" ::: "memory"); }

  static constexpr std::size_t kRowBytes = kRowBlock * sizeof(float);

  /// Each tile step has time for a part of the next chunk.
  static void prefetch_rows(const std::uint16_t* rows, std::int64_t stride) {
    for (int row = 0; row < kChunk; ++row) _mm_prefetch(rows + row * stride, _MM_HINT_T0);
  }

  static void load_accumulators(const float* from) {
    _tile_loadd(0, from, kRowBytes);
    _tile_loadd(1, from + kLanes, kRowBytes);
    _tile_loadd(2, from + kTileRows * kRowBlock, kRowBytes);
    _tile_loadd(3, from + kTileRows * kRowBlock + kLanes, kRowBytes);
  }
  static void store_accumulators(float* to) {
    _tile_stored(0, to, kRowBytes);
    _tile_stored(1, to + kLanes, kRowBytes);
    _tile_stored(2, to + kTileRows * kRowBlock, kRowBytes);
    _tile_stored(3, to + kTileRows * kRowBlock + kLanes, kRowBytes);
  }
};

}  // namespace

const KernelTable kAmxBf16Kernels = {&kKernelOf<RowDot<float>>, &kKernelOf<TilePairDot>,
                                     &kKernelOf<RowDot<Float16>>};

}  // namespace minference::cpu
