// Cuts arrays whose rows belong to sequences into items, one for each thread block: the number of
// items follows from the array's extent, which sequence an item belongs to from lengths in device
// memory. Called by the kernels that gather, pool and list.
//
// Every sequence begins a new item and may waste one, so an item can turn out to be past the last
// row of its sequence: the caller returns then.
#pragma once

#include "device/sequence.cuh"

namespace minference::cuda {

/// Whose lengths an array's `Rows` refer to.
enum class RowsOf { kQueries, kKeys };

struct Item {
  std::int32_t sequence;
  std::int64_t row;  ///< of the sequence: the item's first, a multiple of rows_per_item
};

inline constexpr std::int64_t kNoRow = std::int64_t{1} << 40;  // past every sequence

/// Items of `rows_per_item` rows each that an array can need.
inline std::int64_t num_items(const Rows& rows, std::int32_t num_sequences, int rows_per_item) {
  return rows.total / rows_per_item + num_sequences;
}

template <RowsOf kOf>
__device__ inline std::int64_t first_row_at(const Sequences& all, const Rows& rows,
                                            std::int32_t index) {
  if (rows.divisor == 0) return first_row(rows, index, 0);
  const Sequence sequence = sequence_at(all, index);
  return first_row(rows, index, kOf == RowsOf::kQueries ? sequence.q_begin : sequence.kv_begin);
}

/// Item `index` of num_items().
template <RowsOf kOf>
__device__ inline Item find_item(const Sequences& all, const Rows& rows, int rows_per_item,
                                 std::int64_t index) {
  const auto first_item = [&](std::int32_t sequence) {
    return first_row_at<kOf>(all, rows, sequence) / rows_per_item + sequence;
  };
  std::int32_t low = 0;
  std::int32_t high = all.count;
  while (high - low > 1) {
    const std::int32_t middle = low + (high - low) / 2;
    if (first_item(middle) <= index) {
      low = middle;
    } else {
      high = middle;
    }
  }
  // Lengths that begin with more than 0 leave items in front of the first sequence.
  const std::int64_t within = index - first_item(low);
  return {low, within < 0 ? kNoRow : within * rows_per_item};
}

}  // namespace minference::cuda
