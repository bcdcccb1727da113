// Means of 64 query rows and of 64 keys, from which block-sparse heads choose their key blocks. One
// thread block per mean. Called before launch_list_tiles.
//
// A last block with fewer rows is divided by the rows that exist, and query blocks count from the
// chunk's first query, key blocks from the sequence's first key. Sums have a fixed order.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <type_traits>

#include "any/launch.h"
#include "device/dependent_launch.cuh"
#include "device/head_list.cuh"
#include "device/launch.cuh"
#include "device/row_vectors.cuh"
#include "device/sequence_items.cuh"

namespace minference::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kLoadsInFlight = 8;
static_assert(kMaxHeadDim / kVectorDims <= kThreads, "a row must fit the threads of a block");

/// A launch: grid y counts query heads, then kv heads.
struct PoolTask {
  PoolParams params;
  HeadList query_heads;
  HeadList kv_heads;
};
static_assert(sizeof(PoolTask) <= 4096, "limit of kernel arguments");

template <class Element>
using BitsOf = std::conditional_t<sizeof(Element) == 1, std::uint8_t, std::uint16_t>;

/// Adds 8 elements of type Element.
template <class Element>
__device__ void add_vector(const uint4& vector, float (&sums)[kVectorDims]) {
  Element elements[kVectorDims];
  memcpy(elements, &vector, sizeof(elements));
#pragma unroll
  for (int i = 0; i < kVectorDims; ++i) sums[i] += static_cast<float>(elements[i]);
}

/// Mean of `num_rows` rows, 1 to 64, by all threads of the block. mean: [head_dim]
template <class Element, bool kIsAligned>
__device__ void mean_of_rows(const BitsOf<Element>* rows, std::int64_t stride,
                             std::int32_t num_rows, std::int32_t head_dim, float* mean) {
  // Thread t owns 8 columns and every num_groups-th row; the groups' sums are added in order.
  // Its sums lie in two halves of 4, apart by half the banks: no two lanes meet in one.
  __shared__ alignas(16) float partial[2][kThreads * kVectorDims / 2 + 16];
  const std::int32_t vectors_per_row = head_dim / kVectorDims;
  const std::int32_t num_groups = kThreads / vectors_per_row;
  const std::int32_t group = threadIdx.x / vectors_per_row;
  const std::int32_t column = (threadIdx.x - group * vectors_per_row) * kVectorDims;
  float sums[kVectorDims] = {};
  if (group < num_groups) {
    for (std::int32_t begin = group; begin < num_rows; begin += num_groups * kLoadsInFlight) {
      uint4 vectors[kLoadsInFlight];
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i) {
        const std::int32_t row = begin + i * num_groups;
        vectors[i] = row < num_rows ? load_vector<kIsAligned>(rows + row * stride + column)
                                    : uint4{0, 0, 0, 0};
      }
#pragma unroll
      for (int i = 0; i < kLoadsInFlight; ++i) add_vector<Element>(vectors[i], sums);
    }
    reinterpret_cast<float4*>(partial[0])[threadIdx.x] = {sums[0], sums[1], sums[2], sums[3]};
    reinterpret_cast<float4*>(partial[1])[threadIdx.x] = {sums[4], sums[5], sums[6], sums[7]};
  }
  __syncthreads();
  for (std::int32_t i = threadIdx.x; i < head_dim; i += kThreads) {
    float sum = 0;
    const float* const first = partial[i / 4 % 2] + i / kVectorDims * 4 + i % 4;
    for (std::int32_t g = 0; g < num_groups; ++g) sum += first[g * head_dim / 2];
    mean[i] = sum / static_cast<float>(num_rows);
  }
}

template <class Element, bool kIsAligned>
__global__ void __launch_bounds__(kThreads) pool_rows(const __grid_constant__ PoolTask task) {
  begin_kernel();
  const PoolParams& params = task.params;
  const Call& call = params.call;
  const Sequences& sequences = call.sequences;
  const Pooled& pooled = params.pooled;
  const std::int32_t index_of_head = blockIdx.y;
  const bool is_key = index_of_head >= task.query_heads.count;
  const Rows& blocks = is_key ? pooled.key_blocks : pooled.query_blocks;
  if (blockIdx.x >= blocks.total + sequences.count) return;
  const Item item = is_key ? find_item<RowsOf::kKeys>(sequences, blocks, 1, blockIdx.x)
                           : find_item<RowsOf::kQueries>(sequences, blocks, 1, blockIdx.x);
  const Sequence sequence = sequence_at(sequences, item.sequence);
  const std::int32_t row_begin = is_key ? 0 : sequence.row_begin;
  const std::int32_t num_rows = (is_key ? sequence.kv_len : sequence.row_end) - row_begin;
  const std::int64_t block_begin = item.row * kRowBlock;
  if (block_begin >= num_rows) return;

  const std::int32_t first = is_key ? sequence.kv_begin : sequence.q_begin;
  const std::int32_t head = is_key ? task.kv_heads.head[index_of_head - task.query_heads.count]
                                   : task.query_heads.head[index_of_head];
  const std::int64_t block =
      head * blocks.total + first_row(blocks, item.sequence, first) + item.row;
  const auto begin = static_cast<std::int32_t>(block_begin);
  const Tensor& tensor = is_key ? params.k : params.q;
  mean_of_rows<Element, kIsAligned>(
      row_of<BitsOf<Element>>(tensor, sequence.batch, head, first + row_begin + begin),
      tensor.stride_token, num_rows - begin < kRowBlock ? num_rows - begin : kRowBlock,
      call.head_dim, (is_key ? pooled.k : pooled.q) + block * call.head_dim);
}

}  // namespace

cudaError_t launch_pool(const PoolParams& params, cudaStream_t stream) {
  const Call& call = params.call;
  const Sequences& sequences = call.sequences;
  const Pooled& pooled = params.pooled;
  PoolTask task{.params = params, .query_heads = {}, .kv_heads = {}};
  const HeadList heads = query_heads_of(params.patterns, call, PatternKind::kBlockSparse);
  std::int64_t items = 0;
  if (pooled.q != nullptr) {
    task.query_heads = heads;
    items = num_items(pooled.query_blocks, sequences.count, 1);
  }
  if (pooled.k != nullptr) {
    task.kv_heads = kv_heads_of(heads, call);
    items = std::max(items, num_items(pooled.key_blocks, sequences.count, 1));
  }
  const bool is_aligned = has_aligned_rows(params.q) && has_aligned_rows(params.k);
  const auto kernel =
      call.dtype == DType::kFloat8E4M3 ? pool_rows<__nv_fp8_e4m3, true>  // refused if not aligned
      : call.dtype == DType::kBFloat16
          ? (is_aligned ? pool_rows<__nv_bfloat16, true> : pool_rows<__nv_bfloat16, false>)
          : (is_aligned ? pool_rows<__half, true> : pool_rows<__half, false>);
  const dim3 grid(static_cast<unsigned>(items), task.query_heads.count + task.kv_heads.count);
  return launch(kernel, grid, kThreads, 0, stream, task);
}

}  // namespace minference::cuda
