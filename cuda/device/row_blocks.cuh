// The row blocks a thread block of list_tiles.cu works for, and how members of a set become a list.
//
// Row blocks count from the chunk's first query, in the arrays as in RowBlocks; only the caller's
// lists count from the sequence's.
#pragma once

#include "device/sequence_items.cuh"

namespace minference::cuda {

/// Row blocks [first, first + count) of a sequence's chunk, and where their lists are.
struct RowBlocks {
  std::int32_t index_of_sequence;
  Sequence sequence;
  std::int32_t first;
  std::int32_t count;  ///< 0: the item is past the sequence's end
  std::int64_t list;   ///< of row block `first`: plan.tiles + list * max_tiles

  __device__ RowBlocks(const TileParams& params, std::int32_t head, int rows_per_item,
                       std::int64_t item_index) {
    const Rows& array = params.plan.row_blocks;
    const Item item =
        find_item<RowsOf::kQueries>(params.call.sequences, array, rows_per_item, item_index);
    index_of_sequence = item.sequence;
    sequence = sequence_at(params.call.sequences, item.sequence);
    const std::int64_t left =
        plan::num_row_blocks(sequence.row_end - sequence.row_begin) - item.row;
    first = static_cast<std::int32_t>(item.row);
    count = static_cast<std::int32_t>(left < 0 ? 0 : left < rows_per_item ? left : rows_per_item);
    const std::int64_t first_end = std::int64_t{sequence.row_begin} + (item.row + 1) * kRowBlock +
                                   sequence.kv_len - sequence.q_len;
    first_key_blocks_ = static_cast<std::int32_t>(plan::num_row_blocks(first_end));
    all_key_blocks_ = static_cast<std::int32_t>(plan::num_row_blocks(sequence.kv_len));
    list = head * array.total + first_row(array, item.sequence, sequence.q_begin) + item.row;
  }

  /// Key blocks that hold a key some row of row block `first + i` may attend.
  __device__ std::int32_t num_key_blocks(std::int32_t i) const {
    return first_key_blocks_ + i < all_key_blocks_ ? first_key_blocks_ + i : all_key_blocks_;
  }

 private:
  std::int32_t first_key_blocks_;  // up to the end of row block `first`, were it whole
  std::int32_t all_key_blocks_;
};

/// Appends, as one warp, the members of a set, ascending, to a list that holds `count`; returns the
/// longer count.
__device__ inline std::int32_t append_members(const std::uint32_t* words, std::int32_t num_words,
                                              std::int32_t first_member, std::int32_t* list,
                                              std::int32_t count, std::int32_t capacity) {
  constexpr std::uint32_t kAll = 0xffffffffu;
  const int lane = threadIdx.x % 32;
  for (std::int32_t begin = 0; begin < num_words; begin += 32) {
    std::uint32_t word = begin + lane < num_words ? words[begin + lane] : 0;
    if (!__any_sync(kAll, word != 0)) continue;
    const std::int32_t members = __popc(word);
    std::int32_t up_to = members;  // of the lanes up to this one
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const std::int32_t before = __shfl_up_sync(kAll, up_to, distance);
      if (lane >= distance) up_to += before;
    }
    for (std::int32_t at = count + up_to - members; word != 0; word &= word - 1, ++at) {
      if (at < capacity) list[at] = first_member + (begin + lane) * 32 + __ffs(word) - 1;
    }
    count += __shfl_sync(kAll, up_to, 31);
  }
  return count < capacity ? count : capacity;
}

}  // namespace minference::cuda
