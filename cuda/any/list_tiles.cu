// Which key blocks every row block attends, ascending: for heads of kBlockSparse the top_k by
// pooled score, for heads of kBlockIndex the caller's list. Called after launch_pool, before
// attention.
//
// Row block r meets the key blocks up to its own last position, which is past the diagonal block's
// first key for all rows but the first: a chosen block may still need the causal mask.
#include <algorithm>

#include "any/launch.h"
#include "device/block_scores.cuh"
#include "device/dependent_launch.cuh"
#include "device/head_list.cuh"
#include "device/launch.cuh"
#include "device/row_blocks.cuh"
#include "device/top_list.cuh"

namespace minference::cuda {
namespace {

constexpr int kThreads = kScoreThreads;
constexpr int kWarps = kThreads / 32;
constexpr int kSetBlocks =
    32768;  // key blocks of a warp's bit set: a longer sequence takes several
constexpr std::int32_t kSetBytes = kWarps * kSetBlocks / 8;
constexpr std::int32_t kSharedBytes = 160 << 10;  // of a thread block, where a device has that much
constexpr std::int64_t kMinThreadBlocks = 256;    // shorter tiles if there would be fewer

/// A launch for heads of kBlockSparse.
struct TopTask {
  TileParams params;
  HeadList heads;
  std::int32_t rows_per_item;
  std::int32_t capacity;  ///< of a row block's TopList
};

/// A launch for heads of kBlockIndex: a warp per row block.
struct GivenTask {
  TileParams params;
  HeadList heads;
};
static_assert(sizeof(TopTask) <= 4096 && sizeof(GivenTask) <= 4096, "limit of kernel arguments");

/// Adds every lane's scores of the tile that begins at `first_key` to the lists of row blocks.
template <int kTileRows>
struct ListTopBlocks {
  const TopTask& task;
  const RowBlocks& rows;
  const ScoreOperands& operands;
  const ScoreMemory<kTileRows>& memory;
  std::int32_t top_k;
  std::int32_t* counts;    ///< [kTileRows], as the next three in shared memory
  std::uint32_t* leasts;   ///< [kTileRows]
  std::uint32_t* keys;     ///< [rows_per_item, capacity]
  std::uint16_t* indices;  ///< [rows_per_item, capacity]

  __device__ TopList list_of(std::int32_t row) const {
    return {keys + row * task.capacity,
            indices + row * task.capacity,
            task.capacity,
            top_k,
            counts[row],
            leasts[row]};
  }

  __device__ void operator()(std::int32_t first_key) const {
    const int lane = threadIdx.x % 32;
    for (std::int32_t row = threadIdx.x / 32; row < rows.count; row += kWarps) {
      const std::int32_t end = rows.num_key_blocks(row);
      if (end <= top_k || end <= first_key) continue;
      const float* const scores = memory.scores + row * kScoreStride + lane;
      // Most tiles hold none of the largest. NaN goes on, and so does all while `least` is 0.
      const float least = score_of_key(leasts[row]);
      bool may_enter = false;
#pragma unroll
      for (int i = 0; i < kTileKeys; i += 32) may_enter |= !(scores[i] < least);
      if (!__any_sync(0xffffffffu, may_enter)) continue;

      TopList list = list_of(row);
#pragma unroll 1
      for (int i = 0; i < kTileKeys; i += 32) {
        const std::int32_t key = first_key + i + lane;
        const bool exists = key < end;
        float score = scores[i];
        if (!__any_sync(0xffffffffu, exists && !(score < least))) continue;
        if (exists && score != score) score = plain_score<kTileRows>(operands, memory.q, row, key);
        list.add(order_key(score), key, exists);
      }
      if (lane == 0) {
        counts[row] = list.count;
        leasts[row] = list.least;
      }
      __syncwarp();
    }
  }

  __device__ void write() const {
    const LayerPlan& plan = task.params.plan;
    const int lane = threadIdx.x % 32;
    for (std::int32_t row = threadIdx.x / 32; row < rows.count; row += kWarps) {
      const std::int32_t end = rows.num_key_blocks(row);
      std::int32_t num_tiles = end < top_k ? end : top_k;
      if (num_tiles > plan.max_tiles) num_tiles = plan.max_tiles;
      std::int32_t* const tiles = plan.tiles + (rows.list + row) * plan.max_tiles;
      if (end > top_k && top_k > 0) {
        TopList list = list_of(row);
        if (list.count > top_k) list.keep_largest();
        for (std::int32_t i = lane; i < num_tiles; i += 32) tiles[i] = list.indices[i];
      } else {
        for (std::int32_t i = lane; i < num_tiles; i += 32) tiles[i] = i;
      }
      if (lane == 0) plan.num_tiles[rows.list + row] = num_tiles;
    }
  }
};

/// The caller's lists of these row blocks, a warp for each in turn. `sets`: kSetBytes.
__device__ void list_given(const TileParams& params, std::int32_t head, const RowBlocks& rows,
                           std::uint32_t* sets) {
  const LayerPlan& plan = params.plan;
  const IndexView& view = params.block_idx;
  const int lane = threadIdx.x % 32;
  std::uint32_t* const set = sets + threadIdx.x / 32 * (kSetBlocks / 32);
  for (std::int32_t row = threadIdx.x / 32; row < rows.count; row += kWarps) {
    const std::int64_t row_block = rows.sequence.row_begin / kRowBlock + rows.first + row;
    const std::int64_t num_entries = row_block < view.shape[2] ? view.shape[3] : 0;
    const std::int32_t* const entries = view.data + rows.index_of_sequence * view.stride[0] +
                                        head * view.stride[1] + row_block * view.stride[2];
    const std::int32_t end = rows.num_key_blocks(row);
    std::int32_t* const tiles = plan.tiles + (rows.list + row) * plan.max_tiles;
    std::int32_t count = 0;
    for (std::int32_t begin = 0; begin < end && num_entries > 0; begin += kSetBlocks) {
      const std::int32_t size = end - begin < kSetBlocks ? end - begin : kSetBlocks;
      const std::int32_t num_words = (size + 31) / 32;
      for (std::int32_t i = lane; i < num_words; i += 32) set[i] = 0;
      __syncwarp();
      for (std::int64_t i = lane; i < num_entries; i += 32) {
        const std::int32_t entry = entries[i];
        if (entry < begin || entry - begin >= size) continue;
        atomicOr(set + (entry - begin) / 32, 1u << (entry - begin) % 32);
      }
      __syncwarp();
      count = append_members(set, num_words, begin, tiles, count, plan.max_tiles);
      __syncwarp();
    }
    if (lane == 0) plan.num_tiles[rows.list + row] = count;
  }
}

template <int kTileRows>
__global__ void __launch_bounds__(kThreads, 1)
    list_top_blocks(const __grid_constant__ TopTask task) {
  begin_kernel();
  extern __shared__ __align__(16) float shared[];
  __shared__ std::int32_t counts[kTileRows];
  __shared__ std::uint32_t leasts[kTileRows];
  const Call& call = task.params.call;
  const Pooled& pooled = task.params.pooled;
  const std::int32_t head = task.heads.head[blockIdx.y];
  // The last row blocks of a sequence take the longest: they begin first.
  const RowBlocks rows(task.params, head, task.rows_per_item, gridDim.x - 1 - blockIdx.x);
  if (rows.count == 0) return;
  if (static_cast<std::int32_t>(blockIdx.y) >= task.heads.count) {
    list_given(task.params, head, rows, reinterpret_cast<std::uint32_t*>(shared));
    return;
  }

  const Sequence& sequence = rows.sequence;
  const std::int64_t query_block =
      head * pooled.query_blocks.total +
      first_row(pooled.query_blocks, rows.index_of_sequence, sequence.q_begin) + rows.first;
  const std::int64_t key_block =
      head / call.heads_per_kv * pooled.key_blocks.total +
      first_row(pooled.key_blocks, rows.index_of_sequence, sequence.kv_begin);
  const ScoreOperands operands{.q = pooled.q + query_block * call.head_dim,
                               .k = pooled.k + key_block * call.head_dim,
                               .num_rows = rows.count,
                               .num_key_blocks = rows.num_key_blocks(rows.count - 1),
                               .head_dim = call.head_dim};
  const ScoreMemory<kTileRows> memory(shared, call.head_dim);
  auto* const keys =
      reinterpret_cast<std::uint32_t*>(shared + ScoreMemory<kTileRows>::num_floats(call.head_dim));
  const ListTopBlocks<kTileRows> lists{
      .task = task,
      .rows = rows,
      .operands = operands,
      .memory = memory,
      .top_k = task.params.patterns.size[head][0],
      .counts = counts,
      .leasts = leasts,
      .keys = keys,
      .indices = reinterpret_cast<std::uint16_t*>(keys + task.rows_per_item * task.capacity)};
  if (lists.top_k > 0 && operands.num_key_blocks > lists.top_k) {
    for (int row = threadIdx.x; row < kTileRows; row += kThreads) {
      counts[row] = 0;
      leasts[row] = 0;
    }
    for_each_score_tile(operands, memory, lists);  // a barrier of its own comes before `lists`
  }
  lists.write();
}

__global__ void __launch_bounds__(kThreads)
    list_given_blocks(const __grid_constant__ GivenTask task) {
  begin_kernel();
  extern __shared__ __align__(16) float shared[];
  const std::int32_t head = task.heads.head[blockIdx.y];
  list_given(task.params, head, RowBlocks(task.params, head, kWarps, blockIdx.x),
             reinterpret_cast<std::uint32_t*>(shared));
}

/// How list_top_blocks is launched; tile_rows 0: it cannot be.
struct Shape {
  int tile_rows;      ///< template argument
  int rows_per_item;  ///< the same, or less for long lists
  std::int32_t capacity;
  std::int32_t shared_bytes;
};

/// A thread block for `rows_per_item` lists of at least `wanted` entries, at most key_blocks.
template <int kTileRows>
Shape shape_of(int rows_per_item, std::int32_t head_dim, std::int32_t wanted,
               std::int32_t key_blocks, std::int32_t max_shared_bytes) {
  constexpr std::int32_t kStateBytes = sizeof(std::int32_t) + sizeof(std::uint32_t);
  constexpr std::int32_t kEntryBytes = sizeof(std::uint32_t) + sizeof(std::uint16_t);
  const std::int32_t score_bytes =
      ScoreMemory<kTileRows>::num_floats(head_dim) * static_cast<std::int32_t>(sizeof(float));
  const std::int32_t entry_bytes = kEntryBytes * rows_per_item;
  const std::int32_t left =
      (max_shared_bytes - kTileRows * kStateBytes - score_bytes) / entry_bytes;
  const std::int32_t capacity = std::min(left, key_blocks + 1) / 2 * 2;  // no word of two lists
  if (capacity < wanted) return {};
  return {kTileRows, rows_per_item, capacity, score_bytes + capacity * entry_bytes};
}

Shape choose_shape(const TileParams& params, const HeadList& heads, std::int32_t shared) {
  const Call& call = params.call;
  const auto key_blocks = static_cast<std::int32_t>(plan::num_row_blocks(call.sequences.seq_kv));
  std::int32_t top_k = 0;
  for (std::int32_t i = 0; i < heads.count; ++i) {
    top_k = std::max(top_k, std::min(params.patterns.size[heads.head[i]][0], key_blocks));
  }
  if (key_blocks > kMaxKeyBlocks || top_k > kMaxTopBlocks) return {};
  // Longer lists are cut back less often; 32 more than top_k is the least that works.
  const std::int32_t wanted = std::min(key_blocks, top_k + std::max(32, top_k / 2));
  const auto is_enough = [&](int rows) {
    return num_items(params.plan.row_blocks, call.sequences.count, rows) * heads.count >=
           kMinThreadBlocks;
  };
  Shape shape =
      is_enough(64) ? shape_of<64>(64, call.head_dim, wanted, key_blocks, shared) : Shape{};
  if (shape.tile_rows == 0 && is_enough(32))
    shape = shape_of<32>(32, call.head_dim, wanted, key_blocks, shared);
  for (int rows = 16; shape.tile_rows == 0 && rows > 1; rows /= 2) {
    shape = shape_of<16>(rows, call.head_dim, wanted, key_blocks, shared);
  }
  if (shape.tile_rows == 0) {
    shape = shape_of<16>(1, call.head_dim, std::min(key_blocks, top_k + 32), key_blocks, shared);
  }
  return shape;
}

/// The heads of both kinds in one launch: those that rank first, `heads.count` of them.
cudaError_t launch_top_blocks(const TileParams& params, const HeadList& ranked,
                              const HeadList& given, cudaStream_t stream) {
  std::int32_t shared = 0;
  const cudaError_t error = max_shared_bytes(&shared);
  if (error != cudaSuccess) return error;
  const Shape shape = choose_shape(params, ranked, std::min(shared, kSharedBytes));
  if (shape.tile_rows == 0) return cudaErrorNotSupported;
  HeadList heads = ranked;
  std::copy_n(given.head, given.count, heads.head + ranked.count);
  const std::int64_t items =
      num_items(params.plan.row_blocks, params.call.sequences.count, shape.rows_per_item);
  const auto kernel = shape.tile_rows == 64   ? list_top_blocks<64>
                      : shape.tile_rows == 32 ? list_top_blocks<32>
                                              : list_top_blocks<16>;
  return launch(kernel, dim3(static_cast<unsigned>(items), ranked.count + given.count), kThreads,
                given.count == 0 ? shape.shared_bytes : std::max(shape.shared_bytes, kSetBytes),
                stream,
                TopTask{.params = params,
                        .heads = heads,
                        .rows_per_item = shape.rows_per_item,
                        .capacity = shape.capacity});
}

}  // namespace

cudaError_t launch_list_tiles(const TileParams& params, cudaStream_t stream) {
  const HeadList ranked = query_heads_of(params.patterns, params.call, PatternKind::kBlockSparse);
  const HeadList given = query_heads_of(params.patterns, params.call, PatternKind::kBlockIndex);
  if (ranked.count > 0) return launch_top_blocks(params, ranked, given, stream);
  const std::int64_t items = num_items(params.plan.row_blocks, params.call.sequences.count, kWarps);
  return launch(list_given_blocks, dim3(static_cast<unsigned>(items), given.count), kThreads,
                kSetBytes, stream, GivenTask{.params = params, .heads = given});
}

}  // namespace minference::cuda
