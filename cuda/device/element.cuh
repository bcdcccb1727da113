// bfloat16, float16 and float8 (e4m3) as bits: conversions, and what is not finite.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace minference::cuda {

/// `first` in the low half.
template <bool kIsBfloat16>
__device__ inline std::uint32_t to_pair(float first, float second) {
  if constexpr (kIsBfloat16) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    return reinterpret_cast<const std::uint32_t&>(pair);
  } else {
    const __half2 pair = __floats2half2_rn(first, second);
    return reinterpret_cast<const std::uint32_t&>(pair);
  }
}

template <bool kIsBfloat16>
__device__ inline float to_float(std::uint16_t bits) {
  if constexpr (kIsBfloat16) return __uint_as_float(static_cast<std::uint32_t>(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}

/// Whether a pair of values holds one that is infinite or NaN.
template <bool kIsBfloat16>
__device__ inline bool has_nonfinite(std::uint32_t pair) {
  // All ones in the exponent, and only they, carry into the sign.
  constexpr std::uint32_t kLowestExponent = kIsBfloat16 ? 0x00800080 : 0x04000400;
  return (((pair & 0x7fff7fff) + kLowestExponent) & 0x80008000) != 0;
}

/// Four float8 as two pairs of float16, which holds every float8. Needs sm_89.
__device__ inline uint2 float8_to_float16(std::uint32_t four) {
  uint2 pairs;
  asm("{\n"
      ".reg .b16 low, high;\n"
      "mov.b32 {low, high}, %2;\n"
      "cvt.rn.f16x2.e4m3x2 %0, low;\n"
      "cvt.rn.f16x2.e4m3x2 %1, high;\n"
      "}"
      : "=r"(pairs.x), "=r"(pairs.y)
      : "r"(four));
  return pairs;
}

/// The highest bit of each of four float8 that is NaN; there is no infinity.
__device__ inline std::uint32_t float8_nans(std::uint32_t four) {
  return ((four & 0x7f7f7f7f) + 0x01010101) & 0x80808080;
}

}  // namespace minference::cuda
