// Products of a warpgroup: 64 rows of registers, operands in shared memory or, for probabilities,
// in registers. CuTe's instructions, with descriptors made of a tile's facts.
#pragma once

#include <cstdint>
#include <cute/arch/mma_sm90_desc.hpp>
#include <cute/arch/mma_sm90_gmma.hpp>
#include <type_traits>
#include <utility>

#include "device/matrix_tile.cuh"
#include "minference/types.h"

namespace minference::cuda::sm90 {

/// Of a tile as operand: `kIsTransposed` where its columns are what the other operand's rows or
/// columns are multiplied with, as those of V are.
template <class Tile, bool kIsTransposed>
class Operand {
 public:
  __device__ explicit Operand(const std::uint16_t* tile) {
    cute::GmmaDescriptor descriptor;
    descriptor.bitfield.start_address_ = cute::cast_smem_ptr_to_uint(tile) / kUnit;
    descriptor.bitfield.leading_byte_offset_ = kIsTransposed ? Tile::kAtomBytes / kUnit : 1;
    descriptor.bitfield.stride_byte_offset_ = 8 * Tile::kRowBytes / kUnit;
    descriptor.bitfield.layout_type_ =
        static_cast<std::uint8_t>(Tile::kAtomDims == 64 ? cute::SM90::GMMA::LayoutType::B128
                                                        : cute::SM90::GMMA::LayoutType::B64);
    first_ = descriptor;
  }

  /// Step `step` of 16: of the tile's dimensions, transposed of its rows.
  __device__ std::uint64_t step(int step) const {
    const int bytes = kIsTransposed ? step * kStepDims * Tile::kRowBytes
                                    : step / Tile::kSteps * Tile::kAtomBytes +
                                          step % Tile::kSteps * 2 * kVectorBytes;
    return first_ + bytes / kUnit;
  }

 private:
  static constexpr int kUnit = 16;  // bytes

  std::uint64_t first_;
};

/// Instructions of 64 x kColumns x 16 with both operands in shared memory, and with the first one
/// in registers and the second one transposed; of float8 64 x kColumns x 32, and the former only.
template <DType kDType, int kColumns>
struct Products;

#define MINFERENCE_PRODUCTS(kDType, kColumns, Types)                                           \
  template <>                                                                                  \
  struct Products<DType::kDType, kColumns> {                                                   \
    using OfRows =                                                                             \
        cute::SM90::GMMA::MMA_64x##kColumns##x16_F32##Types##_SS<cute::SM90::GMMA::Major::K,   \
                                                                 cute::SM90::GMMA::Major::K>;  \
    using OfRegisters =                                                                        \
        cute::SM90::GMMA::MMA_64x##kColumns##x16_F32##Types##_RS<cute::SM90::GMMA::Major::K,   \
                                                                 cute::SM90::GMMA::Major::MN>; \
  }
MINFERENCE_PRODUCTS(kBFloat16, 64, BF16BF16);
MINFERENCE_PRODUCTS(kBFloat16, 96, BF16BF16);
MINFERENCE_PRODUCTS(kBFloat16, 128, BF16BF16);
MINFERENCE_PRODUCTS(kBFloat16, 256, BF16BF16);
MINFERENCE_PRODUCTS(kFloat16, 64, F16F16);
MINFERENCE_PRODUCTS(kFloat16, 96, F16F16);
MINFERENCE_PRODUCTS(kFloat16, 128, F16F16);
MINFERENCE_PRODUCTS(kFloat16, 256, F16F16);
#undef MINFERENCE_PRODUCTS

template <>
struct Products<DType::kFloat8E4M3, 64> {
  using OfRows = cute::SM90::GMMA::MMA_64x64x32_F32E4M3E4M3_SS_TN<>;
};
template <>
struct Products<DType::kFloat8E4M3, 128> {
  using OfRows = cute::SM90::GMMA::MMA_64x128x32_F32E4M3E4M3_SS_TN<>;
};

/// Accumulators of a thread, n-th to last of a 64 x 8 n tile, as the instruction counts them.
template <int kColumns8>
__device__ inline float (&flat(float (&values)[1][kColumns8][4]))[4 * kColumns8] {
  return reinterpret_cast<float (&)[4 * kColumns8]>(values);
}

/// values = a b, or += unless `is_first`.
template <class Instruction, std::size_t... kI>
__device__ inline void multiply_rows(float (&values)[sizeof...(kI)], std::uint64_t a,
                                     std::uint64_t b, bool is_first, std::index_sequence<kI...>) {
  using cute::SM90::GMMA::ScaleOut;
  Instruction::fma(a, b, values[kI]..., is_first ? ScaleOut::Zero : ScaleOut::One);
}

/// values += a b.
template <class Instruction, std::size_t... kI>
__device__ inline void multiply_registers(float (&values)[sizeof...(kI)],
                                          const std::uint32_t (&a)[4], std::uint64_t b,
                                          std::index_sequence<kI...>) {
  Instruction::fma(a[0], a[1], a[2], a[3], b, values[kI]...);
}

template <int kCount>
__device__ inline void fence(float (&values)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) cute::warpgroup_fence_operand(values[i]);
}

}  // namespace minference::cuda::sm90
