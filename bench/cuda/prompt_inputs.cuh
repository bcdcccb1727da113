// Queries, keys and values made on the device, in bfloat16: independent normal, or with the lines
// of real prompts. The latter is the formula of minference_ext.benchmark.inputs, which explains it;
// the random numbers differ. kernel_bench.cu calls it.
//
// Positions reach a million and RoPE's first frequency is 1: angles are computed in double.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>

namespace minference::bench {

/// [heads, length, head_dim] of one kind.
struct InputShape {
  std::int64_t length;
  int heads;
  int heads_kv;
  int head_dim;
};

enum class Role { kQuery, kKey };

__device__ inline std::uint32_t hashed(std::uint64_t x) {  // splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return static_cast<std::uint32_t>((x ^ (x >> 31)) >> 32);
}

/// In (0, 1).
__device__ inline float uniform(std::uint64_t key) {
  return (static_cast<float>(hashed(key) >> 8) + 0.5f) * 0x1p-24f;
}

__device__ inline float2 normal_pair(std::uint64_t key) {
  const float radius = sqrtf(-2.0f * logf(uniform(2 * key)));
  float sine, cosine;
  sincospif(2.0f * uniform(2 * key + 1), &sine, &cosine);
  return {radius * cosine, radius * sine};
}

__global__ void fill_normal(__nv_bfloat162* out, std::int64_t pairs, std::uint64_t seed) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < pairs;
       i += step) {
    const float2 value = normal_pair((seed << 40) + i);
    out[i] = __floats2bfloat162_rn(value.x, value.y);
  }
}

__global__ void convert_to_float8(const __nv_bfloat162* from, __nv_fp8x2_e4m3* to,
                                  std::int64_t pairs) {
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < pairs;
       i += step) {
    to[i] = __nv_fp8x2_e4m3(from[i]);
  }
}

/// A thread makes one pair of components of one token: those that RoPE turns together.
__global__ void fill_prompt(__nv_bfloat16* out, InputShape shape, Role role, float contrast) {
  constexpr float kPeakScore = 19, kNoise = 0.2f, kColumnScore = -5, kSinkScore = 6;
  constexpr double kTheta = 5e5;
  constexpr int kColumns = 200, kSinks = 4, kFarDiagonals = 2, kNearest = 64;
  const int pairs = shape.head_dim / 2;
  const bool is_query = role == Role::kQuery;
  const int heads = is_query ? shape.heads : shape.heads_kv;
  const std::int64_t count = heads * shape.length * pairs;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * blockDim.x;
  for (std::int64_t i = blockIdx.x * static_cast<std::int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += step) {
    const int pair = static_cast<int>(i % pairs);
    const std::int64_t token = i / pairs % shape.length;
    const int head = static_cast<int>(i / pairs / shape.length);
    const int head_kv = is_query ? head / (shape.heads / shape.heads_kv) : head;
    const float gain = is_query ? kPeakScore / pairs : 1.0f;
    const double frequency = pow(kTheta, -static_cast<double>(pair) / pairs);
    float2 value;
    if (pair == pairs - 1) {  // not turned: the keys that all queries read
      const bool is_column =
          hashed((7ull << 40) + head * shape.length + token) % shape.length < kColumns;
      value = {0, 0};
      if (is_query) {
        value = {contrast, 1};
      } else if (token < kSinks) {
        value = {1, kSinkScore};
      } else if (is_column) {
        value = {1, kColumnScore};
      }
    } else {
      const float2 noise = normal_pair(((is_query ? 3ull : 2ull) << 42) + i);
      const float phase = 6.2831853f * uniform((5ull << 40) + head_kv * pairs + pair);
      value = {kNoise * gain * 0.70710678f * noise.x, kNoise * gain * 0.70710678f * noise.y};
      for (int peak = 0; peak <= (is_query ? kFarDiagonals : 0); ++peak) {
        const double span =
            static_cast<double>(shape.length / 2 > kNearest ? shape.length / 2 - kNearest : 0);
        const double distance =
            peak == 0
                ? 0
                : kNearest + floor(span * uniform((6ull << 40) + head * kFarDiagonals + peak));
        const float angle =
            static_cast<float>(fmod(phase - distance * frequency, 6.283185307179586));
        value.x += gain * cosf(angle);
        value.y += gain * sinf(angle);
      }
      double sine, cosine;
      sincos(static_cast<double>(token) * frequency, &sine, &cosine);
      value = {static_cast<float>(value.x * cosine - value.y * sine),
               static_cast<float>(value.x * sine + value.y * cosine)};
    }
    const float unit = sqrtf(sqrtf(static_cast<float>(shape.head_dim)));
    __nv_bfloat16* const row = out + (head * shape.length + token) * shape.head_dim;
    row[pair] = __float2bfloat16(unit * value.x);
    row[pair + pairs] = __float2bfloat16(unit * value.y);
  }
}

/// Errors of these launches show in the next call that waits.
inline void make_normal(void* out, std::int64_t elements, std::uint64_t seed, cudaStream_t stream) {
  fill_normal<<<1056, 256, 0, stream>>>(static_cast<__nv_bfloat162*>(out), elements / 2, seed);
}

inline void make_float8(const void* from, void* to, std::int64_t elements, cudaStream_t stream) {
  convert_to_float8<<<1056, 256, 0, stream>>>(static_cast<const __nv_bfloat162*>(from),
                                              static_cast<__nv_fp8x2_e4m3*>(to), elements / 2);
}

inline void make_prompt(void* out, const InputShape& shape, Role role, cudaStream_t stream) {
  const int pairs = shape.head_dim / 2;
  double contrast = 0;
  for (int pair = 0; pair < pairs; ++pair) {
    const double frequency = std::pow(5e5, -static_cast<double>(pair) / pairs);
    contrast += 1 - std::cos(frequency * static_cast<double>(shape.length) / 4);
  }
  contrast *= 19.0 / pairs;
  fill_prompt<<<1056, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(out), shape, role,
                                        static_cast<float>(contrast));
}

}  // namespace minference::bench
