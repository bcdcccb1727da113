// Estimation of vertical and slash lines (MInference, algorithm 2) without a 64 x N matrix: the
// last 64 queries meet all keys twice on tensor cores, first for each row's maximum and sum, then
// for the probabilities' sums over columns and diagonals. Launched by estimate.cu, once per pass.
//
// Row slot r holds the query at key position chunk_kv_len - 64 + r; with fewer than 64 queries the
// first slots are empty. A block owns a segment, two strips of keys, and up to 4 query heads of a
// kv head; a warp owns one strip of one head. Scores are transposed, K Q^T: a warp holds all rows
// of 32 keys, so both sums stay within it. K goes through a ring of slots in shared memory that the
// heads share; Q stays in registers (from shared memory it would take as long to read as the
// products), save for head dimension 256, where there are too few.
//
// The ring's only synchronisation is one mbarrier, `step`, on which each warp arrives once per
// step:
//   arrives: after its products of step i, when its own copies of step i + 1 have landed
//   waits:   before step i + 1. Then all of that slot has landed, and the slot of step i is free.
// Between the two a warp computes exponentials while another multiplies: __syncthreads would make
// all warps do the same at the same time.
#pragma once

#include <cuda_awbarrier_primitives.h>

#include <cute/tensor.hpp>

#include "any/estimate.h"
#include "any/estimate_passes.cuh"
#include "device/dependent_launch.cuh"
#include "device/element.cuh"
#include "device/head_scales.cuh"
#include "device/launch.cuh"
#include "device/sequence.cuh"

namespace minference::cuda {

inline constexpr int kMaxGroup = 4;  // query heads of a block
inline constexpr int kStripsOfBlock = 2;
inline constexpr int kThreadsOfHead = kStripsOfBlock * 32;
inline constexpr int kMaxThreads = kMaxGroup * kThreadsOfHead;

/// Float8 becomes float16, which holds every float8, on its way from shared memory to registers.
/// Until then two count as one element.
template <DType kDType, int kHeadDim>
struct EstimateConfig {
  static constexpr bool kIsFloat8 = kDType == DType::kFloat8E4M3;
  static constexpr int kFloat8OfElement = kIsFloat8 ? 2 : 1;
  using Element = std::conditional_t<kDType == DType::kBFloat16, cute::bfloat16_t, cute::half_t>;
  static constexpr int kParts = kHeadDim <= 128 ? 1 : kHeadDim / 128;  // slots of a row
  static constexpr int kSlotDims =
      kHeadDim / kParts / kFloat8OfElement;  // elements of a slot's row
  static constexpr bool kQueryInRegisters = kParts == 1;
  static constexpr int kStages = kQueryInRegisters ? 3 : 2;
  /// Q's slots follow the ring. On the way to registers they take its last stage as well, which is
  /// first filled when all warps have read theirs.
  static constexpr int kFirstQuerySlot = kQueryInRegisters ? kStages - 1 : kStages;

  using Atom = std::conditional_t<kDType == DType::kBFloat16,
                                  cute::MMA_Atom<cute::SM80_16x8x16_F32BF16BF16F32_TN>,
                                  cute::MMA_Atom<cute::SM80_16x8x16_F32F16F16F32_TN>>;
  using Mma = cute::TiledMMA<Atom, cute::Layout<cute::Shape<cute::_1, cute::_1, cute::_1>>,
                             cute::Tile<cute::_16, cute::_16, cute::_16>>;
  using CopyAtom = cute::Copy_Atom<cute::SM75_U32x4_LDSM_N, Element>;

  /// A slot: 64 rows (of Q, or 32 keys of each strip), swizzled so that ldmatrix meets no bank
  /// twice.
  static constexpr int kAtomDims = kSlotDims % 64 == 0 ? 64 : 32;
  using SlotAtom =
      decltype(cute::composition(cute::Swizzle<kAtomDims == 64 ? 3 : 2, 3, 3>{},
                                 cute::Layout<cute::Shape<cute::_8, cute::Int<kAtomDims>>,
                                              cute::Stride<cute::Int<kAtomDims>, cute::_1>>{}));
  using SlotLayout = decltype(cute::tile_to_shape(
      SlotAtom{}, cute::Shape<cute::Int<kRowBlock>, cute::Int<kSlotDims>>{}));
  static constexpr int kSlotElements = kRowBlock * kSlotDims;

  struct SharedStorage {
    __mbarrier_t step;
    alignas(16) float row_values[2 * kMaxGroup][kRowBlock];  ///< pass 1: shifts; 2: row_stats
    alignas(128) Element slots[1];  ///< as many as shared_bytes() has room for
  };
  static constexpr int shared_bytes(int heads) {
    return static_cast<int>(offsetof(SharedStorage, slots)) +
           (kFirstQuerySlot + heads * kParts) * kSlotElements * static_cast<int>(sizeof(Element));
  }
  static_assert(shared_bytes(kMaxGroup) <= 166912, "a block of sm_80 has 163 KB of shared memory");
};

/// Until the barrier's phase of this parity is complete. (CUDA's primitive for it needs sm_90.)
__device__ inline void wait_for(__mbarrier_t* barrier, unsigned parity) {
  const unsigned address = cute::cast_smem_ptr_to_uint(barrier);
  unsigned is_complete = 0;
  while (is_complete == 0) {
    asm volatile(
        "{\n"
        ".reg .pred complete;\n"
#if __CUDA_ARCH__ >= 900
        "mbarrier.try_wait.parity.shared.b64 complete, [%1], %2;\n"
#else
        "mbarrier.test_wait.parity.shared.b64 complete, [%1], %2;\n"
#endif
        "selp.u32 %0, 1, 0, complete;\n"
        "}\n"
        : "=r"(is_complete)
        : "r"(address), "r"(parity)
        : "memory");
  }
}

/// The sequence that segment `segment` of all belongs to, and which of its segments it is.
struct SegmentPlace {
  int sequence;
  int segment;
};

__device__ inline SegmentPlace find_segment(const Sequences& sequences, const Rows& strips,
                                            int segment) {
  if (strips.divisor == 0) {
    const int per_sequence = static_cast<int>(strips.stride / kStripsOfBlock);
    return {segment / per_sequence, segment % per_sequence};
  }
  const auto first_segment = [&](int index) {
    const int begin = clamp(sequences.cu_seqlens_kv[index], 0, sequences.seq_kv);
    return static_cast<int>(first_row(strips, index, begin) / kStripsOfBlock);
  };
  int low = 0, high = sequences.count;  // the last sequence that begins at the segment or before
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (first_segment(middle) <= segment ? low : high) = middle;
  }
  return {low, segment - first_segment(low)};
}

/// Eight elements at any address.
__device__ inline uint4 load_elements(const std::uint16_t* from) {
  const auto pair = [&](int i) { return from[i] | static_cast<unsigned>(from[i + 1]) << 16; };
  return {pair(0), pair(2), pair(4), pair(6)};
}

/// Starts to copy part `part` of 64 rows of head_dim elements into a slot, eight rows by a warp.
/// row_of(i): the row of `rows` that goes to row i of the slot, negative: zeros. Rows that are not
/// aligned to 16 bytes are copied at once.
template <class Config, class RowOf>
__device__ void copy_to_slot(const typename Config::Element* rows, std::int64_t stride, int part,
                             int head_dim, bool is_aligned, const RowOf& row_of,
                             typename Config::Element* slot) {
  constexpr int kChunk = 8;  // elements of a 16-byte copy
  constexpr int kLanesOfRow = Config::kAtomDims / kChunk;
  const auto layout = typename Config::SlotLayout{};
  const int first_dim = threadIdx.x % kLanesOfRow * kChunk;
#pragma unroll 1
  for (int octet = threadIdx.x / 32; octet < kRowOctets; octet += blockDim.x / 32) {
#pragma unroll
    for (int j = 0; j < 8; j += 32 / kLanesOfRow) {
      const int i = octet * 8 + threadIdx.x % 32 / kLanesOfRow + j;
      const int row = row_of(i);
      const auto* const from = rows + row * stride + part * Config::kSlotDims + first_dim;
#pragma unroll
      for (int dim = 0; dim < Config::kSlotDims; dim += Config::kAtomDims) {
        const bool is_valid = row >= 0 && part * Config::kSlotDims + first_dim + dim < head_dim;
        auto* const to = reinterpret_cast<cute::uint128_t*>(slot + layout(i, first_dim + dim));
        if (is_aligned) {
          cute::SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<cute::uint128_t>::copy(
              *reinterpret_cast<const cute::uint128_t*>(is_valid ? from + dim : rows), *to,
              is_valid);
        } else {
          *reinterpret_cast<uint4*>(to) =
              is_valid ? load_elements(reinterpret_cast<const std::uint16_t*>(from + dim))
                       : uint4{};
        }
      }
    }
  }
}

/// An operand's registers, as ldmatrix brings 32 float8 of each row, to those of two products of 16
/// dimensions each. Which of the 32 go where does not matter as long as both operands agree: a
/// product sums over them.
template <class Narrow, class First, class Second>
__device__ void widen(const Narrow& narrow, First&& first, Second&& second) {
  const auto from = cute::recast<std::uint32_t>(narrow);  // (registers, rows)
  auto wide_first = cute::recast<std::uint32_t>(first);
  auto wide_second = cute::recast<std::uint32_t>(second);
  constexpr int kHalf = cute::size<0>(from) / 2;
#pragma unroll
  for (int row = 0; row < cute::size<1>(from); ++row) {
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const uint2 pairs_of_first = float8_to_float16(from(i, row));
      const uint2 pairs_of_second = float8_to_float16(from(kHalf + i, row));
      wide_first(i, row) = pairs_of_first.x;
      wide_first(kHalf + i, row) = pairs_of_first.y;
      wide_second(i, row) = pairs_of_second.x;
      wide_second(kHalf + i, row) = pairs_of_second.y;
    }
  }
}

template <class Config, class Pass>
__global__ void __launch_bounds__(kMaxThreads, 1)
    estimate(const __grid_constant__ EstimateParams params) {
#if __CUDA_ARCH__ < 900
  if constexpr (Config::kIsFloat8) return;  // which is refused on these devices
#endif
  begin_kernel();
  using namespace cute;
  using Element = typename Config::Element;
  constexpr int kParts = Config::kParts, kStages = Config::kStages;
  extern __shared__ __align__(128) unsigned char shared_memory[];
  auto& shared = *reinterpret_cast<typename Config::SharedStorage*>(shared_memory);

  const Call& call = params.call;
  const Rows& strips = params.scores.strips;
  const int heads = blockDim.x / kThreadsOfHead;
  const int groups = (call.heads_per_kv + heads - 1) / heads;
  const auto [index, segment] = find_segment(call.sequences, strips, blockIdx.x / groups);
  if (segment < 0) return;
  const Sequence sequence = sequence_at(call.sequences, index);
  const std::int64_t segment_begin = std::int64_t{segment} * kStripsOfBlock * params.scores.strip;
  if (segment_begin >= sequence.chunk_kv_len) return;

  // Roles: all warps copy, those of heads and strips that take part also compute.
  const int warp_index = threadIdx.x / 32;
  const int side = warp_index % kStripsOfBlock;        // which strip
  const int first_head = blockIdx.x % groups * heads;  // of the kv head's
  const int slot_of_head = warp_index / kStripsOfBlock;
  const int head = blockIdx.y * call.heads_per_kv + first_head + slot_of_head;
  const int strip_begin = static_cast<int>(segment_begin) + side * params.scores.strip;
  const auto keys_until = [&](int end) {
    return ::min(params.scores.strip, ::max(0, end - strip_begin));
  };
  const bool is_needed =
      first_head + slot_of_head < call.heads_per_kv &&
      needs_estimate(call, pattern_of(params.patterns, head, sequence), sequence);
  if (!__syncthreads_or(is_needed)) return;
  const WarpStrip warp = {
      .params = params,
      .lane = static_cast<int>(threadIdx.x % 32),
      .strip_index =
          static_cast<int>(head * strips.total + first_row(strips, index, sequence.kv_begin) +
                           segment * kStripsOfBlock + side),
      .num_keys = keys_until(sequence.kv_len),
      .num_tiles = is_needed ? (keys_until(sequence.chunk_kv_len) + kTileKeys - 1) / kTileKeys : 0,
      .scale_log2 = !Config::kIsFloat8 || !is_needed
                        ? params.scale_log2
                        : params.scale_log2 * score_scale(params.scales, head, blockIdx.y)};

  // Q and the first steps of K set out; more follow in the loop.
  const auto slot = [&](int i) { return shared.slots + i * Config::kSlotElements; };
  const Element* const keys =
      static_cast<const Element*>(params.k.data) + sequence.batch * params.k.stride_batch +
      blockIdx.y * params.k.stride_head + sequence.kv_begin * params.k.stride_token;
  const int block_strip_begin = strip_begin - side * params.scores.strip;
  const int num_tiles =
      (::min(params.scores.strip, sequence.chunk_kv_len - block_strip_begin) + kTileKeys - 1) /
      kTileKeys;
  const auto copy_step = [&](int step, int ring_slot) {
    if (step < num_tiles * kParts) {
      const int key_begin = block_strip_begin + step / kParts * kTileKeys;
      const auto key_of = [&](int i) {
        const int key = key_begin + i % kTileKeys + i / kTileKeys * params.scores.strip;
        return key < sequence.chunk_kv_len ? key : -1;
      };
      copy_to_slot<Config>(keys, params.k.stride_token, step % kParts, call.head_dim,
                           params.is_aligned, key_of, slot(ring_slot));
    }
    cp_async_fence();
  };
  const int first_valid_slot = kRowBlock - (sequence.row_end - sequence.row_begin);
  const auto query_of = [&](int i) {
    return i < first_valid_slot ? -1 : sequence.row_end - kRowBlock + i;
  };
  for (int i = 0; i < heads && first_head + i < call.heads_per_kv; ++i) {
    const Element* const queries =
        static_cast<const Element*>(params.q.data) + sequence.batch * params.q.stride_batch +
        (blockIdx.y * call.heads_per_kv + first_head + i) * params.q.stride_head +
        sequence.q_begin * params.q.stride_token;
    for (int part = 0; part < kParts; ++part) {
      copy_to_slot<Config>(queries, params.q.stride_token, part, call.head_dim, params.is_aligned,
                           query_of, slot(Config::kFirstQuerySlot + i * kParts + part));
    }
  }
  cp_async_fence();
  for (int step = 0; step < kStages - 1; ++step) copy_step(step, step);
  if (threadIdx.x == 0) __mbarrier_init(&shared.step, blockDim.x / 32);
  constexpr bool kIsLineSums = std::is_same_v<Pass, LineSums>;
  if (kIsLineSums && is_needed && side == 0) {
    const std::int64_t row = (std::int64_t{index} * call.num_heads_q + head) * kRowBlock;
    reinterpret_cast<float4*>(shared.row_values[warp_index])[warp.lane] =
        reinterpret_cast<const float4*>(params.row_stats + row)[warp.lane];
  }
  Pass pass(warp, shared.row_values[kIsLineSums ? warp_index - side : warp_index]);
  cp_async_wait<kStages - 1>();
  __syncthreads();

  const auto mma = typename Config::Mma{};
  const auto thread_mma = mma.get_thread_slice(warp.lane);
  const auto copy_k = make_tiled_copy_A(typename Config::CopyAtom{}, mma);
  const auto copy_q = make_tiled_copy_B(typename Config::CopyAtom{}, mma);
  const auto thread_copy_k = copy_k.get_thread_slice(warp.lane);
  const auto thread_copy_q = copy_q.get_thread_slice(warp.lane);
  const auto slot_tensor = [&](int i) {  // (64, slot dims)
    return make_tensor(make_smem_ptr(slot(i)), typename Config::SlotLayout{});
  };
  const auto query_tensor = [&](int part) {
    return slot_tensor(Config::kFirstQuerySlot + slot_of_head * kParts + part);
  };
  auto tSrQ = thread_mma.partition_fragment_B(query_tensor(0));  // (MMA, 8, slot dims / 16)
  auto tSrQ_copy = thread_copy_q.retile_D(tSrQ);
  // Of float8: the same in float16.
  auto tSrQ_wide = make_tensor<Element>(
      make_shape(shape<0>(tSrQ), shape<1>(tSrQ), Int<2 * decltype(size<2>(tSrQ))::value>{}));
  const auto widen_queries = [&](auto k) {
    widen(tSrQ(_, _, k), tSrQ_wide(_, _, Int<2 * k>{}), tSrQ_wide(_, _, Int<2 * k + 1>{}));
  };
  if (Config::kQueryInRegisters && warp.num_tiles > 0) {
    copy(copy_q, thread_copy_q.partition_S(query_tensor(0)), tSrQ_copy);
    if constexpr (Config::kIsFloat8) {
      for_each(make_int_sequence<size<2>(tSrQ)>{}, widen_queries);
    }
  }
  auto tSrS = partition_fragment_C(mma, Shape<Int<kTileKeys>, Int<kRowBlock>>{});  // (4, 2, 8)
  const auto score = [&](int a, int n, int c) -> float& { return tSrS(c + a % 2 * 2, a / 2, n); };
  const auto multiply = [&](int ring_slot, int part) {
    const auto sK =
        local_tile(slot_tensor(ring_slot), Shape<Int<kTileKeys>, Int<Config::kSlotDims>>{},
                   make_coord(side, 0));
    const auto tSsK = thread_copy_k.partition_S(sK);
    const auto tSsQ = thread_copy_q.partition_S(query_tensor(part));
    auto tSrK = thread_mma.partition_fragment_A(sK);  // (MMA, 2, slot dims / 16)
    auto tSrK_copy = thread_copy_k.retile_D(tSrK);
    for_each(make_int_sequence<size<2>(tSrK)>{}, [&](auto k) {
      copy(copy_k, tSsK(_, _, k), tSrK_copy(_, _, k));
      if constexpr (!Config::kQueryInRegisters) {
        copy(copy_q, tSsQ(_, _, k), tSrQ_copy(_, _, k));
        if constexpr (Config::kIsFloat8) widen_queries(k);
      }
      if constexpr (Config::kIsFloat8) {
        auto first = make_fragment_like(tSrK(_, _, k));
        auto second = make_fragment_like(first);
        widen(tSrK(_, _, k), first, second);
        gemm(mma, first, tSrQ_wide(_, _, Int<2 * k>{}), tSrS);
        gemm(mma, second, tSrQ_wide(_, _, Int<2 * k + 1>{}), tSrS);
      } else {
        gemm(mma, tSrK(_, _, k), tSrQ(_, _, k), tSrS);
      }
    });
  };
  const auto arrive = [&] {
    cp_async_wait<kStages - 2>();
    __syncwarp();
    if (warp.lane == 0) __mbarrier_arrive(&shared.step);
  };

  arrive();
  int ring_slot = 0;
  unsigned parity = 0;
  for (int tile = 0; tile < num_tiles; ++tile) {
    clear(tSrS);
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      wait_for(&shared.step, parity);
      const int slot_before = ring_slot == 0 ? kStages - 1 : ring_slot - 1;
      copy_step(tile * kParts + part + kStages - 1, slot_before);
      if (tile < warp.num_tiles) multiply(ring_slot, part);
      arrive();
      parity ^= 1;
      ring_slot = ring_slot == kStages - 1 ? 0 : ring_slot + 1;
    }
    if (tile >= warp.num_tiles) continue;
    // Row slot r attends the keys up to this one + r: those of the last 64 that follow do not.
    const int first_key = strip_begin + tile * kTileKeys - (sequence.chunk_kv_len - kRowBlock);
    if (first_key + kTileKeys > 1 || first_valid_slot > 0) {
      mask_tile(warp, first_key, first_valid_slot, score);
    }
    pass.add_tile(tile, score);
  }
  if (warp.num_tiles > 0) pass.finish();
}

template <DType kDType, int kHeadDim>
cudaError_t launch_estimate(EstimatePass pass, const EstimateParams& of_any, cudaStream_t stream) {
  using Config = EstimateConfig<kDType, kHeadDim>;
  EstimateParams params = of_any;
  Call& call = params.call;
  call.head_dim /= Config::kFloat8OfElement;
  params.q = in_two_bytes(params.q);
  params.k = in_two_bytes(params.k);
  std::int32_t shared_bytes = 0;
  const cudaError_t error = max_shared_bytes(&shared_bytes);
  if (error != cudaSuccess) return error;
  int max_heads = kMaxGroup;
  while (max_heads > 1 && Config::shared_bytes(max_heads) > shared_bytes) --max_heads;
  int groups = (call.heads_per_kv + max_heads - 1) / max_heads;
  const int heads = (call.heads_per_kv + groups - 1) / groups;
  groups = (call.heads_per_kv + heads - 1) / heads;  // as the kernel counts them
  const dim3 grid(static_cast<unsigned>(params.scores.strips.total / kStripsOfBlock * groups),
                  call.num_heads_kv);
  return launch(
      pass == EstimatePass::kRowStats ? estimate<Config, RowStats> : estimate<Config, LineSums>,
      grid, heads * kThreadsOfHead, Config::shared_bytes(heads), stream, params);
}

}  // namespace minference::cuda
