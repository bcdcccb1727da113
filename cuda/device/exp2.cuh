// The exponential of the softmax.
#pragma once

namespace minference::cuda {

/// 2^x, to 2 units in the last place; what is below 2^-126 becomes 0.
__device__ inline float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace minference::cuda
