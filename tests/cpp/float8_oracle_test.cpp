// What the tests of float8 stand on, without a GPU: how values are read and rounded, and that the
// double oracle multiplies q, k and v by the scales of their heads before anything else.
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "attention_cases.h"
#include "check.h"
#include "cpu/reference/reference.h"
#include "heap_tensor.h"
#include "minference/minference.h"

namespace minference::test {
namespace {

constexpr DType kFloat8 = DType::kFloat8E4M3;
constexpr int kLargest = 0x7E;  // bits of 448

double value_of(int bits) {
  HeapTensor tensor({1, 1, 1, 1}, kFloat8, Layout::kPlain);
  *tensor.bytes.data() = static_cast<unsigned char>(bits);
  return reference::load_row(tensor.view, 0, 0, 0)[0];
}

int bits_of(double value) {
  unsigned char bits = 0;
  store_element(&bits, kFloat8, value);
  return bits;
}

void test_values() {
  const struct {
    int bits;
    double value;
  } landmarks[] = {{0x00, 0},     {0x01, 0x1p-9}, {0x07, 7 * 0x1p-9}, {0x08, 0x1p-6}, {0x38, 1},
                   {0x39, 1.125}, {0xB8, -1},     {kLargest, 448},    {0xFE, -448}};
  for (const auto& landmark : landmarks) {
    CHECK(value_of(landmark.bits) == landmark.value, "0x%02x is %g, expected %g", landmark.bits,
          value_of(landmark.bits), landmark.value);
  }
  CHECK(std::signbit(value_of(0x80)), "0x80 is not -0");
  CHECK(std::isnan(value_of(0x7F)) && std::isnan(value_of(0xFF)), "0x7f and 0xff are %g and %g",
        value_of(0x7F), value_of(0xFF));
  for (int bits = 0; bits < kLargest; ++bits) {
    const double step = value_of(bits + 1) - value_of(bits);
    CHECK(step == std::ldexp(1.0, std::max(0, bits / 8 - 1) - 9), "0x%02x: a step of %g", bits,
          step);
    CHECK(value_of(bits | 0x80) == -value_of(bits), "0x%02x and its negative", bits);
  }
}

void test_rounding() {
  for (int bits = 0; bits <= kLargest; ++bits) {
    const double value = value_of(bits);
    CHECK(bits_of(value) == bits, "0x%02x is stored as 0x%02x", bits, bits_of(value));
    CHECK(bits_of(-value) == (bits == 0 ? 0 : bits | 0x80), "-0x%02x is stored as 0x%02x", bits,
          bits_of(-value));
    if (bits == kLargest) continue;
    const double half = (value + value_of(bits + 1)) / 2;
    CHECK(bits_of(half) == bits + bits % 2, "half above 0x%02x is stored as 0x%02x", bits,
          bits_of(half));
    CHECK(bits_of(half * (1 - 0x1p-40)) == bits && bits_of(half * (1 + 0x1p-40)) == bits + 1,
          "near half above 0x%02x", bits);
  }
  const double infinity = std::numeric_limits<double>::infinity();
  CHECK(bits_of(463) == kLargest && bits_of(1e9) == kLargest && bits_of(infinity) == kLargest &&
            bits_of(-infinity) == (kLargest | 0x80),
        "does not saturate");
  CHECK(std::isnan(value_of(bits_of(std::nan("")))), "NaN is stored as 0x%02x",
        bits_of(std::nan("")));
}

/// `tensor` in float32, every head multiplied by its scale.
HeapTensor multiplied(const HeapTensor& tensor, const std::vector<float>& scales) {
  const std::int64_t* const shape = tensor.view.shape;
  HeapTensor result({shape, shape + 4}, DType::kFloat32, Layout::kPlain);
  for (std::int64_t b = 0; b < shape[0]; ++b) {
    for (std::int64_t h = 0; h < shape[1]; ++h) {
      for (std::int64_t r = 0; r < shape[2]; ++r) {
        const std::vector<double> row = reference::load_row(tensor.view, b, h, r);
        for (std::int64_t d = 0; d < shape[3]; ++d) {
          store_element(result.at(b, h, r, d), DType::kFloat32, scales[h] * row[d]);
        }
      }
    }
  }
  return result;
}

/// Scales of few bits: their products with float8 are exact in float32.
void test_scales() {
  constexpr std::int64_t kHeadsQ = 4, kHeadsKv = 2, kRows = 210, kDim = 16;
  HeapTensor q({2, kHeadsQ, kRows, kDim}, kFloat8, Layout::kPlain);
  HeapTensor k({2, kHeadsKv, kRows, kDim}, kFloat8, Layout::kPlain);
  HeapTensor v({2, kHeadsKv, kRows, kDim}, kFloat8, Layout::kPlain);
  std::mt19937 generator(3);
  for (std::int64_t b = 0; b < 2; ++b) {
    for (HeapTensor* tensor : {&q, &k, &v}) fill_rows(*tensor, b, 0, kRows, 1, generator);
  }
  const std::vector<float> q_scale = {0.75f, 3, 1.25f, 0.375f}, k_scale = {1.5f, 0.875f},
                           v_scale = {0.625f, 5};
  const HeapTensor wide_q = multiplied(q, q_scale), wide_k = multiplied(k, k_scale),
                   wide_v = multiplied(v, v_scale);
  const Patterns patterns = {{PatternKind::kVerticalSlash, {35, 110}}, kTopK, kDense, kAShape};
  SparseAttentionParams params;
  params.head_patterns = patterns.data();
  const auto attend = [&](const HeapTensor& queries, const HeapTensor& keys,
                          const HeapTensor& values, bool has_scales) {
    AttentionArgs args;
    args.q = queries.view;
    args.k = keys.view;
    args.v = values.view;
    if (has_scales) {
      args.q_scale = q_scale.data();
      args.k_scale = k_scale.data();
      args.v_scale = v_scale.data();
    }
    return reference::attention(args, params);
  };
  const reference::Result scaled = attend(q, k, v, true);
  const reference::Result expected = attend(wide_q, wide_k, wide_v, false);
  CHECK(scaled.out == expected.out && scaled.lse == expected.lse &&
            scaled.spread == expected.spread && scaled.weight == expected.weight &&
            scaled.margin == expected.margin,
        "scales: not the attention of scaled q, k and v");
  CHECK(attend(q, k, v, false).out != expected.out, "scales change nothing");
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  test::test_values();
  test::test_rounding();
  test::test_scales();
  return test::finish("float8_oracle_test");
}
