// How far attention may be from the double reference, and the comparison.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/reference/reference.h"
#include "heap_tensor.h"
#include "minference/minference.h"

namespace minference::test {

/// Rounding of one value to dtype: half a unit in the last place, relative.
inline double rounding(DType dtype) {
  return dtype == DType::kFloat32 ? 0x1p-24 : dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-9;
}

/// Twice the error of an honest kernel: fp32 sums of scores, p rounded to dtype (independent
/// errors, hence `spread`), out rounded once. `dtype`: of out, as wherever results are compared.
inline double tolerance(const reference::Result& expected, std::size_t n, DType dtype) {
  const double unit = rounding(dtype);
  const double smallest = dtype == DType::kFloat16 ? 0x1p-24 : 0;
  return 2 * unit * std::abs(expected.out[n]) + 8 * unit * expected.spread[n] +
         2e-5 * expected.weight[n] + smallest + 1e-7;
}

/// lse: sums of exponentials in fp32. The bfloat16 kernels may take an exponential that is good to
/// 8e-5, far below the rounding of p (2e-3). Scores of float8 are sums in accumulators that keep
/// some 14 bits. `dtype`: of q.
inline double lse_tolerance(double lse, DType dtype) {
  const double unit = dtype == DType::kFloat8E4M3 ? 5e-4 : dtype == DType::kBFloat16 ? 1e-4 : 2e-5;
  return unit * std::max(1.0, std::abs(lse));
}

/// Scores closer than this, relative to the largest one, may be ranked either way.
inline double tie_tolerance(DType dtype) { return dtype == DType::kBFloat16 ? 4e-4 : 1e-5; }

/// Infinities and NaN by position, else within `tolerance`.
inline bool is_close(double found, double expected, double tolerance) {
  if (std::isnan(expected)) return std::isnan(found);
  if (std::isinf(expected)) return found == expected;
  return std::abs(found - expected) <= tolerance;  // false for NaN
}

/// Compares out and lse of `args`, in host memory, with what they must be, and that nothing else of
/// the memory of `out` was written.
inline void compare(const AttentionArgs& args, const HeapTensor& out,
                    const reference::Result& expected, const std::string& what) {
  const TensorView& view = args.out;
  HeapBytes untouched = out.bytes.size() ? HeapBytes(out.bytes.size()) : HeapBytes();
  std::memcpy(untouched.data(), out.bytes.data(), untouched.size());
  std::size_t row_idx = 0;
  for (std::int64_t b = 0; b < view.shape[0]; ++b) {
    for (std::int64_t h = 0; h < view.shape[1]; ++h) {
      for (std::int64_t r = 0; r < view.shape[2]; ++r, ++row_idx) {
        const double lse = expected.lse[row_idx];
        if (args.lse) {
          const std::int64_t* stride = args.lse_stride;
          const double found = args.lse[b * stride[0] + h * stride[1] + r * stride[2]];
          CHECK(is_close(found, lse, lse_tolerance(lse, args.q.dtype)),
                "%s: lse[%d,%d,%d] is %g, expected %g", what.c_str(), int(b), int(h), int(r), found,
                lse);
        }
        const bool is_empty = lse == -std::numeric_limits<double>::infinity();
        const std::vector<double> row = reference::load_row(view, b, h, r);
        std::size_t bad = 0;
        bool is_good = true;
        for (std::size_t d = 0; d < row.size() && is_good; ++d) {
          const std::size_t n = row_idx * row.size() + d;
          const double allowed = is_empty ? 0 : tolerance(expected, n, view.dtype);
          is_good = is_close(row[d], expected.out[n], allowed);
          if (!is_good) bad = d;
        }
        const std::size_t n = row_idx * row.size() + bad;
        CHECK(is_good, "%s: out[%d,%d,%d,%d] is %g, expected %g +- %g", what.c_str(), int(b),
              int(h), int(r), int(bad), row[bad], expected.out[n],
              tolerance(expected, n, view.dtype));
        const auto offset = static_cast<unsigned char*>(out.at(b, h, r, 0)) - out.bytes.data();
        std::memset(untouched.data() + offset, 0xFF, row.size() * element_bytes(view.dtype));
      }
    }
  }
  CHECK(untouched.is_poisoned(), "%s: memory between the rows of out was written", what.c_str());
}

/// Infinities and NaN in some values (float8 has NaN alone), NaN in the last key: only the last
/// query may meet that one.
inline void spoil_values(const HeapTensor& k, const HeapTensor& v) {
  const DType dtype = v.view.dtype;
  const auto store_bits = [&](void* element, std::uint32_t fp32_bits, std::uint16_t fp16_bits) {
    const std::uint16_t bits =
        dtype == DType::kFloat16 ? fp16_bits : static_cast<std::uint16_t>(fp32_bits >> 16);
    if (dtype == DType::kFloat8E4M3) {  // one bit pattern and its negative
      *static_cast<std::uint8_t*>(element) = fp32_bits >> 31 ? 0xFF : 0x7F;
    } else if (dtype == DType::kFloat32) {
      std::memcpy(element, &fp32_bits, sizeof fp32_bits);
    } else {
      std::memcpy(element, &bits, sizeof bits);
    }
  };
  for (std::int64_t h = 0; h < k.view.shape[1]; ++h) {
    for (std::int64_t key : {9, 70, 135}) {
      store_bits(v.at(0, h, key + h, 0), 0x7F800000, 0x7C00);            // inf
      store_bits(v.at(0, h, key + h, 1 + key % 2), 0xFF800000, 0xFC00);  // -inf
      store_bits(v.at(0, h, key + h, 3), 0x7FC00000, 0x7E00);            // NaN
    }
    store_bits(k.at(0, h, k.view.shape[2] - 1, 2), 0x7FC00000, 0x7E00);
  }
}

/// What statistics have to say of kFallbackCase; heads that they call dense get that pattern.
inline void expect_fallback(const PlanStats* stats, std::vector<HeadPattern>* patterns) {
  CHECK(stats[0].is_dense == 1, "lines that cover everything are planned as lines");
  CHECK(stats[2].is_dense == 0, "lists of the caller are replaced by dense attention");
  for (std::size_t head = 0; head < patterns->size(); ++head) {
    if (stats[head].is_dense != 0) (*patterns)[head] = {.kind = PatternKind::kDense};
  }
}

/// Bytes of workspace of a call that has to be supported. They must not depend on data that may not
/// exist yet.
inline std::size_t checked_workspace_bytes(const AttentionArgs& args,
                                           const SparseAttentionParams& params,
                                           const std::string& what) {
  AttentionArgs shapes_only = args;
  shapes_only.q.data = shapes_only.k.data = shapes_only.v.data = shapes_only.out.data = nullptr;
  std::size_t bytes = 0, bytes_of_shapes = 0;
  Status status = sparse_attention_supports(args, params);
  CHECK(status == Status::kOk, "%s: supports: %s", what.c_str(), last_error());
  status = sparse_attention_workspace_bytes(args, params, &bytes);
  CHECK(status == Status::kOk, "%s: workspace_bytes: %s", what.c_str(), last_error());
  status = sparse_attention_workspace_bytes(shapes_only, params, &bytes_of_shapes);
  CHECK(status == Status::kOk, "%s: workspace_bytes without data: %s", what.c_str(), last_error());
  CHECK(bytes == bytes_of_shapes, "%s: %zu bytes, without data %zu", what.c_str(), bytes,
        bytes_of_shapes);
  return bytes;
}

}  // namespace minference::test
