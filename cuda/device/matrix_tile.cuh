// Tiles of fp16 or bf16 rows in shared memory: their layout, the addresses at which ldmatrix reads
// them, and copies of rows into them. Called by the kernels on tensor cores.
//
// A tile is cut into columns of atoms of 64 (or 32) head dimensions, whose 16-byte vectors are
// permuted within 8 rows (CuTe's Swizzle), so that neither ldmatrix nor the copies meet a bank
// twice. Rows a multiple of 8 apart and atoms side by side are permuted alike: a lane computes its
// addresses once, for one row and the steps of one atom, and everything else is an immediate offset
// of the instruction. That is why ldmatrix and cp.async are spelled out here: CuTe's take a generic
// pointer, which costs two conversions and an addition each.
#pragma once

#include <cstdint>
#include <cute/tensor.hpp>

#include "device/row_vectors.cuh"

namespace minference::cuda {

inline constexpr int kVectorBytes = 16;
inline constexpr int kStepDims = 16;  // of one tensor core instruction

template <int kRows, int kDims>
struct MatrixTile {
  static constexpr int kAtomDims = kDims % 64 == 0 ? 64 : 32;
  using Atom =
      decltype(cute::composition(cute::Swizzle<kAtomDims == 64 ? 3 : 2, 3, 3>{},
                                 cute::Layout<cute::Shape<cute::_8, cute::Int<kAtomDims>>,
                                              cute::Stride<cute::Int<kAtomDims>, cute::_1>>{}));
  using Layout =
      decltype(cute::tile_to_shape(Atom{}, cute::Shape<cute::Int<kRows>, cute::Int<kDims>>{}));

  static constexpr int kElements = kRows * kDims;
  static constexpr int kAtoms = kDims / kAtomDims;
  static constexpr int kAtomVectors = kAtomDims / kVectorDims;  // of a row in an atom
  static constexpr int kSteps = kAtomDims / kStepDims;          // of an atom
  static constexpr int kRowBytes = 2 * kAtomDims;       // from a row to the next, in an atom
  static constexpr int kAtomBytes = kRows * kRowBytes;  // from an atom to the one beside it

  static_assert(kRows % 8 == 0 && kDims % kAtomDims == 0);

  /// Bytes from the tile's begin to vector `vector` of a row; same as Layout, for less.
  CUTE_HOST_DEVICE static constexpr unsigned offset(unsigned row, unsigned vector) {
    const unsigned permutation = kAtomDims == 64 ? row % 8 : row / 2 % 4;
    return vector / kAtomVectors * kAtomBytes + row * kRowBytes +
           (vector % kAtomVectors ^ permutation) * kVectorBytes;
  }
};

/// Whether MatrixTile::offset is what CuTe's layout says.
template <class Tile>
constexpr bool has_offsets_of_layout() {
  for (int row = 0; row < 16; ++row) {
    for (int vector = 0; vector < Tile::kAtoms * Tile::kAtomVectors; ++vector) {
      if (Tile::offset(row, vector) != 2 * typename Tile::Layout{}(row, vector * kVectorDims)) {
        return false;
      }
    }
  }
  return true;
}

/// Where a lane reads four 8 x 8 matrices of 16 dimensions: with `row` and `half` (of the 16
/// dimensions) of the tile's first ones, those of other rows and steps are immediate offsets.
template <class Tile>
struct MatrixAddress {
  unsigned first;  ///< of the tile's first step

  static_assert(has_offsets_of_layout<Tile>());

  __device__ MatrixAddress(unsigned tile, unsigned row, unsigned half)
      : first(tile + Tile::offset(row, half)) {}

  /// Matrices as they lie, of step `kStep` of the tile's dimensions, `kRow` rows on.
  template <int kRow, int kStep>
  __device__ void load(std::uint32_t (&matrices)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(of_step<kStep>()), "n"(offset_of<kRow, kStep>()));
  }
  /// The same, each matrix transposed.
  template <int kRow, int kStep>
  __device__ void load_transposed(std::uint32_t (&matrices)[4]) const {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4 + %5];"
                 : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
                 : "r"(of_step<kStep>()), "n"(offset_of<kRow, kStep>()));
  }
  /// Writes four matrices as they lie.
  template <int kStep>
  __device__ void store(const std::uint32_t (&matrices)[4]) const {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0 + %1], {%2, %3, %4, %5};" ::"r"(
                     of_step<kStep>()),
                 "n"(offset_of<0, kStep>()), "r"(matrices[0]), "r"(matrices[1]), "r"(matrices[2]),
                 "r"(matrices[3])
                 : "memory");
  }

 private:
  /// Permutations are by exclusive or: the steps of an atom differ by that of their bits.
  template <int kStep>
  __device__ unsigned of_step() const {
    return first ^ kStep % Tile::kSteps * 2 * kVectorBytes;
  }
  template <int kRow, int kStep>
  static constexpr int offset_of() {
    static_assert(kRow % 8 == 0);
    return kRow * Tile::kRowBytes + kStep / Tile::kSteps * Tile::kAtomBytes;
  }
};

__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Until all but the last `kPending` groups of this thread's copies have landed.
template <int kPending>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

/// threadIdx.x, read anew: what is derived from it is not kept in registers from one use to the
/// next, where accumulators need them.
__device__ inline unsigned thread_index() {
  unsigned index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

/// Rows of head_dim elements in global memory.
struct alignas(16) SourceRows {
  const std::uint16_t* data;
  std::int64_t stride;    ///< elements
  std::int32_t num_rows;  ///< others, also before the first, count as zeros
  bool is_aligned;        ///< rows begin at multiples of 16 bytes
};

/// How the threads of a block copy rows to a tile: kLanes of them share a row, a vector each of
/// every atom.
template <class Tile, int kThreads>
class TileCopy {
 public:
  __device__ explicit TileCopy(unsigned tile) {
    const unsigned thread = thread_index();
    row_ = thread / kLanes;
    vector_ = thread % kLanes;
    to_ = tile + Tile::offset(row_, vector_);
  }

  /// Starts to copy rows [first, first + kRows), all of which `source` holds and which fill the
  /// tile's dimensions, to the tile's rows from `tile_row` on, a multiple of 8.
  template <int kRows>
  __device__ void whole_rows(const SourceRows& source, std::int32_t first, int tile_row) const {
    static_assert(kRows % kRowsAtOnce == 0);
    const unsigned target = to_ + tile_row * Tile::kRowBytes;
    const std::int64_t stride = source.stride;
    const std::uint16_t* from =
        source.data + (first + static_cast<int>(row_)) * stride + vector_ * kVectorDims;
    cute::for_each(cute::make_int_sequence<kRows / kRowsAtOnce>{}, [&](auto pass) {
      cute::for_each(cute::make_int_sequence<Tile::kAtoms>{}, [&](auto atom) {
        constexpr int kTo = pass * kRowsAtOnce * Tile::kRowBytes + atom * Tile::kAtomBytes;
        constexpr int kFrom = atom * Tile::kRowBytes;
        asm volatile("cp.async.cg.shared.global [%0 + %1], [%2 + %3], 16;" ::"r"(target), "n"(kTo),
                     "l"(from), "n"(kFrom)
                     : "memory");
      });
      from += kRowsAtOnce * stride;
    });
  }

  /// The same for any rows and head dimensions. Rows that are not aligned are copied at once.
  template <int kRows>
  __device__ void any_rows(const SourceRows& source, std::int32_t first, int tile_row,
                           int head_dim) const {
    unsigned target = to_ + tile_row * Tile::kRowBytes;
    const int first_dim = static_cast<int>(vector_) * kVectorDims;
#pragma unroll 1
    for (int pass = 0; pass < kRows / kRowsAtOnce; ++pass) {
      const int source_row = first + pass * kRowsAtOnce + static_cast<int>(row_);
      const bool is_row =
          static_cast<unsigned>(source_row) < static_cast<unsigned>(source.num_rows);
      const std::uint16_t* const from = source.data + source_row * source.stride + first_dim;
#pragma unroll
      for (int atom = 0; atom < Tile::kAtoms; ++atom) {
        const bool is_element = is_row && atom * Tile::kAtomDims + first_dim < head_dim;
        const std::uint16_t* const elements =
            is_element ? from + atom * Tile::kAtomDims : source.data;
        copy_vector(elements, is_element, source.is_aligned, target + atom * Tile::kAtomBytes);
      }
      target += kRowsAtOnce * Tile::kRowBytes;
    }
  }

 private:
  static constexpr int kLanes = Tile::kAtomVectors;
  static constexpr int kRowsAtOnce = kThreads / kLanes;

  /// Zeros unless `is_element`; `elements` can be read in any case.
  __device__ static void copy_vector(const std::uint16_t* elements, bool is_element,
                                     bool is_aligned, unsigned target) {
    if (is_aligned) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(elements),
                   "r"(is_element ? kVectorBytes : 0)
                   : "memory");
      return;
    }
    const uint4 vector = is_element ? load_vector<false>(elements) : uint4{0, 0, 0, 0};
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(target), "r"(vector.x),
                 "r"(vector.y), "r"(vector.z), "r"(vector.w)
                 : "memory");
  }

  unsigned row_;     // this thread's first
  unsigned vector_;  // its vector of every atom
  unsigned to_;      // where that goes
};

}  // namespace minference::cuda
