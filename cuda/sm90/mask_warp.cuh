// The mask warp: says which row attends which column of the stages that are not attended as a
// whole.
#pragma once

#include "sm90/config.cuh"

namespace minference::cuda::sm90 {

/// Bit matrix whose row n is lane n's word, transposed. As one warp.
__device__ inline std::uint32_t transpose_bits(std::uint32_t word) {
  const unsigned lane = threadIdx.x % 32;
  constexpr std::uint32_t kLow[] = {0x0000ffff, 0x00ff00ff, 0x0f0f0f0f, 0x33333333, 0x55555555};
#pragma unroll
  for (int step = 0; step < 5; ++step) {
    const unsigned distance = 16 >> step;
    const std::uint32_t other = __shfl_xor_sync(kAllLanes, word, distance);
    const std::uint32_t low = kLow[step];
    word = (lane & distance) == 0 ? (word & low) | (other & low) << distance
                                  : (word & ~low) | (other >> distance & low);
  }
  return word;
}

template <class Config>
class MaskWarp {
 public:
  using Storage = typename Config::SharedStorage;

  __device__ explicit MaskWarp(Storage& shared) : shared_(shared) {}

  __device__ void run() {
    Ring<Config::kPlanned> planned;
    Ring<Config::kContexts> context;
    Ring<Config::kStages> stage;
    while (true) {
      shared_.full_planned[planned.slot].wait(planned.parity);
      const auto& at = shared_.planned[planned.slot];
      const StageFlags flags(at.flags);
      if (flags.is_end()) return;
      // Waits for and lets go of every stage: of rounds that pass without this warp one looks like
      // another.
      shared_.empty_k[stage.slot].wait(stage.empty_parity());
#pragma unroll 1
      for (int block = 0; block < kTaskBlocks; ++block) {
        if (!flags.is_masked(block)) continue;
        make_masks(at, block, shared_.contexts[context.slot].rows,
                   shared_.masks[stage.slot].rows[block]);
      }
      if (flags.is_masked()) arrive_as_warp(shared_.masks_made[stage.slot]);
      arrive_as_warp(shared_.empty_k[stage.slot]);
      arrive_as_warp(shared_.empty_planned[planned.slot]);
      if (flags.is_last()) {
        arrive_as_warp(shared_.empty_context[context.slot]);
        context.advance();
      }
      planned.advance();
      stage.advance();
    }
  }

 private:
  __device__ static int lane() { return threadIdx.x % 32; }

  using Words = std::uint32_t[Config::kPieces][kRowBlock / 32];  // of rows lane, and 32 + lane

  __device__ static void make_masks(const typename Config::PlannedStage& at, int block,
                                    const PieceRows& rows, std::uint32_t (&masks)[kRowBlock][4]) {
    Words words;
#pragma unroll
    for (int n = 0; n < Config::kPieces; ++n) {
      const Piece& piece = at.pieces[n];
      if (!piece.varies(block)) {
        words[n][0] = words[n][1] = piece.valid[block];
      } else if (piece.is_gathered() || rows.slash_bits != nullptr) {
        // What is known by column.
        const std::uint64_t attending = rows.attending(piece, block, lane());
        words[n][0] = transpose_bits(static_cast<std::uint32_t>(attending));
        words[n][1] = transpose_bits(static_cast<std::uint32_t>(attending >> 32));
      } else {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          words[n][half] = piece.valid[block] &
                           columns_of_row(rows.blocks[block], piece.row, 32 * half + lane());
        }
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      *reinterpret_cast<uint4*>(masks[32 * half + lane()]) = {
          columns_of_thread(words, half, 0), columns_of_thread(words, half, 1),
          columns_of_thread(words, half, 2), columns_of_thread(words, half, 3)};
    }
  }

  /// Of the 32 keys from `key` on, those that row `row` of a row block attends by its window, if it
  /// has one, and causality: as attending_rows() tells by key.
  __device__ static std::uint32_t columns_of_row(const RowBlock& block, std::int32_t key, int row) {
    const std::int32_t position = block.end - kRowBlock + row - key;  // of the row, from the keys'
    std::uint32_t columns = kAllColumns;
    if (block.has_window != 0 && (block.all_keys_rows >> row & 1) == 0) {
      columns = columns_between(0, block.sink - key) |
                columns_between(position - block.window + 1, plan::kChunk);
    }
    return columns & columns_between(0, position + 1);
  }

  /// Columns 8 n + 2 t + c of all pieces as bits 2 n + c: of a piece four pairs of bits, 8 apart,
  /// side by side.
  __device__ static std::uint32_t columns_of_thread(const Words& words, int half, int t) {
    std::uint32_t columns = 0;
#pragma unroll
    for (int n = 0; n < Config::kPieces; ++n) {
      std::uint32_t pairs = words[n][half] >> 2 * t & 0x03030303;
      pairs |= pairs >> 6;
      pairs |= pairs >> 12;
      columns |= (pairs & 0xff) << 8 * n;
    }
    return columns;
  }

  Storage& shared_;
};

}  // namespace minference::cuda::sm90
