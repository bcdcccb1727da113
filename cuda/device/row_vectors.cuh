// Rows of fp16 or bf16 tensors in vectors of 8 elements. Callers may hand over any strides, odd
// ones too, so a kernel that reads rows comes in two versions: 16-byte loads where every row is
// aligned, 2-byte loads elsewhere.
#pragma once

#include "params.h"

namespace minference::cuda {

inline constexpr int kVectorDims = 8;  // elements; head_dim is a multiple

/// First element of the row, as bits.
template <class Element = std::uint16_t>
__device__ inline Element* row_of(const Tensor& tensor, std::int32_t batch, std::int32_t head,
                                  std::int32_t token) {
  return static_cast<Element*>(tensor.data) + batch * tensor.stride_batch +
         head * tensor.stride_head + token * tensor.stride_token;
}

/// Eight float8, in x and y.
template <bool kIsAligned>
__device__ inline uint4 load_vector(const std::uint8_t* from) {
  static_assert(kIsAligned);
  const uint2 values = __ldg(reinterpret_cast<const uint2*>(from));
  return {values.x, values.y, 0, 0};
}

template <bool kIsAligned>
__device__ inline uint4 load_vector(const std::uint16_t* from) {
  if constexpr (kIsAligned) {
    return __ldg(reinterpret_cast<const uint4*>(from));
  } else {
    std::uint32_t words[4];
    for (int i = 0; i < 4; ++i) {
      words[i] = __ldg(from + 2 * i) | static_cast<std::uint32_t>(__ldg(from + 2 * i + 1)) << 16;
    }
    return {words[0], words[1], words[2], words[3]};
  }
}

}  // namespace minference::cuda
