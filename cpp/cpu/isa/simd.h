// Vectors of MINFERENCE_LANES floats in GCC's vector extension, so that one source serves every
// instruction set: each file in isa/ sets the width and is compiled with its own flags.
//
// Everything is in an anonymous namespace: the same names compiled for different instruction sets
// must never be merged by the linker.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__F16C__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace minference::cpu {
namespace {

inline constexpr int kLanes = MINFERENCE_LANES;

typedef float VecF __attribute__((vector_size(kLanes * 4)));
typedef std::int32_t VecI __attribute__((vector_size(kLanes * 4)));
typedef std::uint32_t VecU __attribute__((vector_size(kLanes * 4)));
typedef std::uint16_t VecH __attribute__((vector_size(kLanes * 2)));

struct BFloat16 {
  std::uint16_t bits;
};
struct Float16 {
  std::uint16_t bits;
};

template <class V, class T>
inline V load_as(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}
inline VecF load(const float* p) { return load_as<VecF>(p); }
template <class V, class T>
inline void store(T* p, V v) {
  std::memcpy(p, &v, sizeof(v));
}
/// x - 0 is x for every x, -0 and NaN included, so that the compiler sees a broadcast.
inline VecF splat(float x) { return x - VecF{}; }
inline VecU splat_bits(std::uint32_t x) { return VecU{} + x; }

template <class To, class From>
inline To bits_as(From v) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &v, sizeof(to));
  return to;
}

/// a where a > b, else b: NaN in either gives b.
inline VecF max_or_second(VecF a, VecF b) {
#if defined(__AVX512F__)
  return bits_as<VecF>(_mm512_max_ps(bits_as<__m512>(a), bits_as<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}

inline bool any(VecI lanes) {
#if defined(__AVX512F__)
  return _mm512_test_epi32_mask(bits_as<__m512i>(lanes), bits_as<__m512i>(lanes)) != 0;
#else
  std::int32_t all = 0;
  for (int i = 0; i < kLanes; ++i) all |= lanes[i];
  return all != 0;
#endif
}

inline float horizontal_sum(VecF v) {
  float part[kLanes];
  store(part, v);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) part[i] += part[i + width];
  }
  return part[0];
}

/// Lane i of the result is all ones iff bit i of `bits` is set.
inline VecI lanes_of(std::uint32_t bits) {
  VecI selector;
  for (int i = 0; i < kLanes; ++i) selector[i] = static_cast<std::int32_t>(1u << i);
  return (bits_as<VecI>(splat_bits(bits)) & selector) != 0;
}

/// `v` where the bit is set, else `other`.
inline VecF select(std::uint32_t bits, VecF v, VecF other) {
#if defined(__AVX512F__)
  return bits_as<VecF>(
      _mm512_mask_mov_ps(bits_as<__m512>(other), static_cast<__mmask16>(bits), bits_as<__m512>(v)));
#else
  return lanes_of(bits) ? v : other;
#endif
}

template <int kDegree>
inline constexpr float kExp2Polynomial[kDegree + 1] = {};
template <>
inline constexpr float kExp2Polynomial<4>[] = {9.58285294e-3f, 5.59064262e-2f, 2.40240991e-1f,
                                               6.93124175e-1f, 1.0f};
template <>
inline constexpr float kExp2Polynomial<5>[] = {1.32647273e-3f, 9.67151299e-3f, 5.55073358e-2f,
                                               2.40222424e-1f, 6.93147004e-1f, 1.0f};

/// x[i] = 2^max(x[i], -125) for x <= 126, NaN for NaN: never subnormal, which costs 100 cycles a
/// vector. Minimax polynomials of the relative error on [-1/2, 1/2], exact at 0: degree 4 is within
/// 2.9e-6 (for probabilities that are rounded to bfloat16), 5 within 9.2e-8. Several vectors at a
/// time: each step of one vector waits for the step before, and the processor looks too few
/// instructions ahead to find the next vector's by itself.
template <int kDegree, int kCount>
inline void exp2(VecF (&x)[kCount]) {
  static_assert(kDegree == 4 || kDegree == 5);
  const float* const coefficients = kExp2Polynomial<kDegree>;
  VecF power[kCount];  // 2^round(x), or with AVX-512 its exponent
  VecF p[kCount];
  for (int i = 0; i < kCount; ++i) x[i] = max_or_second(splat(-125.0f), x[i]);
#if defined(__AVX512F__)
  for (int i = 0; i < kCount; ++i) power[i] = x[i];
  for (int i = 0; i < kCount; ++i) x[i] = bits_as<VecF>(_mm512_reduce_ps(bits_as<__m512>(x[i]), 0));
  for (int i = 0; i < kCount; ++i) power[i] -= x[i];
#else
  // Adding 1.5 * 2^23 + 127 leaves round(x) + 127 in the low bits: the exponent field of
  // 2^round(x).
  const VecF magic = splat(12582912.0f + 127.0f);
  for (int i = 0; i < kCount; ++i) power[i] = x[i] + magic;
  for (int i = 0; i < kCount; ++i) x[i] -= power[i] - magic;
  for (int i = 0; i < kCount; ++i) power[i] = bits_as<VecF>(bits_as<VecU>(power[i]) << 23);
#endif
  for (int i = 0; i < kCount; ++i) p[i] = x[i] * coefficients[0] + coefficients[1];
#pragma GCC unroll 8
  for (int c = 2; c <= kDegree; ++c) {
    for (int i = 0; i < kCount; ++i) p[i] = p[i] * x[i] + coefficients[c];
  }
#if defined(__AVX512F__)
  for (int i = 0; i < kCount; ++i) {
    x[i] = bits_as<VecF>(_mm512_scalef_ps(bits_as<__m512>(p[i]), bits_as<__m512>(power[i])));
  }
#else
  for (int i = 0; i < kCount; ++i) x[i] = p[i] * power[i];
#endif
}

template <int kDegree>
inline VecF exp2(VecF x) {
  VecF one[1] = {x};
  exp2<kDegree>(one);
  return one[0];
}

/// log2(x) for normal x > 0, within 2 units in the last place of 1 or of the result; x for +inf,
/// NaN.
inline VecF log2(VecF x) {
  // x = 2^exponent * m with m in [sqrt(1/2), sqrt(2)), ln(m) = 2 atanh((m - 1) / (m + 1)).
  constexpr std::uint32_t kSqrtHalf = 0x3f3504f3u;
  const VecI exponent = bits_as<VecI>(bits_as<VecU>(x) - kSqrtHalf) >> 23;
  const VecF m = bits_as<VecF>(bits_as<VecI>(x) - (exponent << 23));
  const VecF t = (m - 1.0f) / (m + 1.0f);
  const VecF square = t * t;
  VecF series = splat(1.0f / 9);
  series = series * square + 1.0f / 7;
  series = series * square + 1.0f / 5;
  series = series * square + 1.0f / 3;
  series = series * square + 1.0f;
  constexpr float kTwoOverLn2 = 2.88539008177792681f;
  const VecF result = __builtin_convertvector(exponent, VecF) + kTwoOverLn2 * t * series;
  return x - x == splat(0.0f) ? result : x;
}

// ---- element types ------------------------------------------------------------------------------

inline VecF widen(const float* p) { return load(p); }
inline VecF widen(const BFloat16* p) {
  return bits_as<VecF>(__builtin_convertvector(load_as<VecH>(p), VecU) << 16);
}
inline VecF widen(const Float16* p) {
#if defined(__AVX512F__)
  return bits_as<VecF>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
  return bits_as<VecF>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#else
  const VecU half = __builtin_convertvector(load_as<VecH>(p), VecU);
  const VecU sign = (half & 0x8000u) << 16;
  const VecU magnitude = (half & 0x7fffu) << 13;
  // The exponent is rebiased by a multiplication, which also normalises subnormals.
  const VecU finite = bits_as<VecU>(bits_as<VecF>(magnitude) * 0x1p112f);
  const VecU special = magnitude | 0x7f800000u;
  const VecI is_special = (half & 0x7c00u) == 0x7c00u;
  return bits_as<VecF>(sign | (is_special ? special : finite));
#endif
}

/// Round to nearest even; NaN stays NaN.
inline VecH bfloat16_bits(VecF x) {
#if defined(__AVX512BF16__)
  return bits_as<VecH>(_mm512_cvtneps_pbh(bits_as<__m512>(x)));
#else
  const VecU bits = bits_as<VecU>(x);
  const VecU rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const VecI is_nan = x != x;
  return __builtin_convertvector(is_nan ? ((bits >> 16) | 0x40u) : rounded, VecH);
#endif
}
inline VecH float16_bits(VecF x) {
#if defined(__AVX512F__)
  return bits_as<VecH>(_mm512_cvtps_ph(bits_as<__m512>(x), 0));
#elif defined(__F16C__)
  return bits_as<VecH>(_mm256_cvtps_ph(bits_as<__m256>(x), 0));
#else
  const VecU bits = bits_as<VecU>(x);
  const VecU sign = (bits >> 16) & 0x8000u;
  const VecU magnitude = bits & 0x7fffffffu;
  const VecU normal =
      (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;  // rebias, round to even
  // Adding 0.5 aligns a subnormal's bits at the end of the significand, rounded to even.
  const VecU subnormal = bits_as<VecU>(bits_as<VecF>(magnitude) + 0.5f) - 0x3f000000u;
  VecU half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x477ff000u ? splat_bits(0x7c00u) : half;
  half = magnitude > 0x7f800000u ? splat_bits(0x7e00u) : half;
  return __builtin_convertvector(half | sign, VecH);
#endif
}

inline void narrow(float* p, VecF v) { store(p, v); }
inline void narrow(BFloat16* p, VecF v) { store(p, bfloat16_bits(v)); }
inline void narrow(Float16* p, VecF v) { store(p, float16_bits(v)); }

/// `count` < kLanes elements; the other lanes are 0.
template <class T>
inline VecF widen_part(const T* p, int count) {
  T part[kLanes] = {};
  std::memcpy(part, p, count * sizeof(T));
  return widen(part);
}
template <class T>
inline void narrow_part(T* p, VecF v, int count) {
  T part[kLanes];
  narrow(part, v);
  std::memcpy(p, part, count * sizeof(T));
}

// ---- transposition ------------------------------------------------------------------------------

/// One butterfly step: swaps the off-diagonal kStep x kStep blocks of every 2*kStep block.
template <int kStep, class V>
inline void transpose_step(V (&rows)[kLanes]) {
  VecI low, high;
  for (int lane = 0; lane < kLanes; ++lane) {
    low[lane] = (lane & kStep) ? lane - kStep + kLanes : lane;
    high[lane] = (lane & kStep) ? lane + kLanes : lane + kStep;
  }
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if (i & kStep) continue;
    const V a = rows[i];
    const V b = rows[i + kStep];
    rows[i] = __builtin_shuffle(a, b, low);
    rows[i + kStep] = __builtin_shuffle(a, b, high);
  }
  if constexpr (2 * kStep < kLanes) transpose_step<2 * kStep>(rows);
}

/// rows[i][j] <-> rows[j][i] of a kLanes x kLanes matrix of 32-bit elements.
template <class V>
inline void transpose(V (&rows)[kLanes]) {
  transpose_step<1>(rows);
}

}  // namespace
}  // namespace minference::cpu
