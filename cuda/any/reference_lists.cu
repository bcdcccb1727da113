// Lists of the original implementation, for every block of 64 query rows: tiles of 64 keys and
// single columns (plan/reference_lists.h). A thread makes those of a row block, as the original
// does. For mode kReference, after select_lines, and for the op convert_vs_index, which sorts the
// caller's lines first.
#include <cstdint>

#include "any/launch.h"
#include "device/dependent_launch.cuh"
#include "device/launch.cuh"
#include "device/plan_walk.cuh"
#include "device/sequence_items.cuh"
#include "plan/reference_lists.h"

namespace minference::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kSortThreads = 1024;
constexpr std::int32_t kNoLine = 0x7fffffff;

/// A thread per row block, blocks of threads per head.
__global__ void __launch_bounds__(kThreads)
    list_reference_tiles(const __grid_constant__ ReferenceParams params) {
  begin_kernel();
  const Call& call = params.call;
  const LayerPlan& plan = params.plan;
  const Item item = find_item<RowsOf::kQueries>(call.sequences, plan.row_blocks, kThreads,
                                                std::int64_t{blockIdx.x});
  if (item.row >= kNoRow) return;
  const Sequence sequence = sequence_at(call.sequences, item.sequence);
  const std::int64_t block = item.row + threadIdx.x;
  const std::int64_t row_begin = sequence.row_begin + block * kRowBlock;
  if (row_begin >= sequence.row_end) return;
  const std::int32_t head = blockIdx.y;
  const HeadPlan& head_plan = plan.heads[std::int64_t{item.sequence} * call.num_heads_q + head];
  if (!has_lines(head_plan)) return;
  const Lines lines = lines_of(plan, head_plan, call.mode, head, item.sequence, sequence);
  const std::int64_t list = head * plan.row_blocks.total +
                            first_row(plan.row_blocks, item.sequence, sequence.q_begin) + block;
  plan::RowTiles row{.tiles = plan.tiles + list * plan.max_tiles,
                     .columns = params.columns.columns + list * params.columns.max_columns};
  plan::reference_row_lists({.vertical = lines.verticals,
                             .num_vertical = lines.num_vertical,
                             .slash = plan.slashes + head * plan.slash_rows.total +
                                      first_row(plan.slash_rows, item.sequence, sequence.kv_begin),
                             .num_slash = head_plan.num_slash,
                             .row_begin = row_begin,
                             .q_len = sequence.q_len,
                             .kv_len = sequence.kv_len},
                            &row);
  plan.num_tiles[list] = row.num_tiles;
  params.columns.num_columns[list] = row.num_columns;
}

/// Sorts a power of two of entries in place, as one block of threads (bitonic).
__device__ void sort(std::int32_t* entries, std::int64_t count) {
  for (std::int64_t size = 2; size <= count; size *= 2) {
    for (std::int64_t step = size / 2; step > 0; step /= 2) {
      for (std::int64_t i = threadIdx.x; i < count / 2; i += kSortThreads) {
        const std::int64_t low = i / step * step * 2 + i % step;
        const std::int32_t first = entries[low], second = entries[low + step];
        if (first > second == ((low & size) == 0)) {
          entries[low] = second;
          entries[low + step] = first;
        }
      }
      __syncthreads();
    }
  }
}

/// A block of threads per list: copies its entries of [0, limit), then kNoLine, and sorts.
__global__ void __launch_bounds__(kSortThreads)
    sort_lines(const __grid_constant__ ConvertParams params) {
  const bool is_slash = blockIdx.y == 1;
  const IndexView& view = is_slash ? params.slash_idx : params.vertical_idx;
  const std::int64_t num_heads = view.shape[1];
  const std::int64_t batch = blockIdx.x / num_heads, head = blockIdx.x % num_heads;
  const std::int32_t* const lines = view.data + batch * view.stride[0] + head * view.stride[1];
  const std::int64_t capacity = is_slash ? params.slash_capacity : params.vertical_capacity;
  std::int32_t* const sorted =
      (is_slash ? params.sorted_slash : params.sorted_vertical) + blockIdx.x * capacity;
  // Not causal, an offset may be longer than the keys; one that reaches no row is skipped.
  const std::int32_t limit = is_slash && !params.is_causal ? kNoLine : params.kv_seqlens[batch];
  for (std::int64_t i = threadIdx.x; i < capacity; i += kSortThreads) {
    const std::int32_t line = i < view.shape[2] ? lines[i] : kNoLine;
    sorted[i] = line >= 0 && line < limit ? line : kNoLine;
  }
  __syncthreads();
  sort(sorted, capacity);
}

__host__ __device__ std::int64_t blocks_of_unit(const ConvertParams& params) {
  return (params.num_row_blocks + kThreads - 1) / kThreads;
}

/// A thread per row block.
__global__ void __launch_bounds__(kThreads)
    list_converted_tiles(const __grid_constant__ ConvertParams params) {
  const std::int64_t unit = blockIdx.x / blocks_of_unit(params);
  const std::int64_t block = blockIdx.x % blocks_of_unit(params) * kThreads + threadIdx.x;
  if (block >= params.num_row_blocks) return;
  const std::int64_t batch = unit / params.vertical_idx.shape[1];
  const std::int64_t num_vertical = params.vertical_idx.shape[2];
  const std::int64_t num_slash = params.slash_idx.shape[2];
  const std::int64_t list = unit * params.num_row_blocks + block;
  plan::RowTiles row{.tiles = params.block_offset + list * num_slash,
                     .columns = params.column_index + list * num_vertical};
  const std::int32_t q_len = params.q_seqlens[batch], kv_len = params.kv_seqlens[batch];
  const std::int64_t row_begin = block * kRowBlock;
  const bool makes_sense = q_len <= params.num_row_blocks * kRowBlock && kv_len >= 0 &&
                           (!params.is_causal || q_len <= kv_len);
  if (row_begin < q_len && makes_sense) {
    const auto given = [](const std::int32_t* list, std::int64_t count) {
      return plan::count_below(list, count, kNoLine);
    };
    const std::int32_t* const vertical = params.sorted_vertical + unit * params.vertical_capacity;
    const std::int32_t* const slash = params.sorted_slash + unit * params.slash_capacity;
    plan::reference_row_lists({.vertical = vertical,
                               .num_vertical = given(vertical, num_vertical),
                               .slash = slash,
                               .num_slash = given(slash, num_slash),
                               .row_begin = row_begin,
                               .q_len = q_len,
                               .kv_len = kv_len,
                               .is_causal = params.is_causal},
                              &row);
  }
  for (std::int64_t i = row.num_tiles; i < num_slash; ++i) row.tiles[i] = 0;
  for (std::int64_t i = row.num_columns; i < num_vertical; ++i) row.columns[i] = 0;
  params.block_count[list] = row.num_tiles;
  params.column_count[list] = row.num_columns;
}

}  // namespace

cudaError_t launch_reference_lists(const ReferenceParams& params, cudaStream_t stream) {
  const std::int64_t items =
      num_items(params.plan.row_blocks, params.call.sequences.count, kThreads);
  return launch(list_reference_tiles, dim3(static_cast<unsigned>(items), params.call.num_heads_q),
                kThreads, 0, stream, params);
}

cudaError_t launch_convert_lines(const ConvertParams& params, cudaStream_t stream) {
  const auto units =
      static_cast<unsigned>(params.vertical_idx.shape[0] * params.vertical_idx.shape[1]);
  const cudaError_t error = launch(sort_lines, dim3(units, 2), kSortThreads, 0, stream, params);
  if (error != cudaSuccess) return error;
  return launch(list_converted_tiles, dim3(static_cast<unsigned>(units * blocks_of_unit(params))),
                kThreads, 0, stream, params);
}

}  // namespace minference::cuda
