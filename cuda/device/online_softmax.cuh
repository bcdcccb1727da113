// The softmax of attention over columns that come in pieces, on the accumulators of tensor cores.
//
// Probabilities refer to a row's shift instead of its maximum: p = 2^(score * scale - shift). The
// shift follows the maximum only when that has grown by more than kSlack, as p of up to 2^8 cost no
// precision: whether any lane needs that is one vote, where the maximum itself would take shuffles
// for every row and a multiplication for every output.
// cpp/cpu/isa/attend.h does so row by row.
//
// Accumulators are those of m16n8k16: lane (g, t) = (lane / 4, lane % 4) of a warp holds of matrix
// m the rows 16 m + g (values 0 and 1) and 16 m + g + 8 (values 2 and 3), columns 8 n + 2 t + {0,
// 1}.
#pragma once

#include <cfloat>
#include <cmath>
#include <cstdint>

#include "device/exp2.cuh"

namespace minference::cuda {

template <int kMatrices>
class OnlineSoftmax {
 public:
  static constexpr int kRows = 2 * kMatrices;  // of a lane

  __device__ OnlineSoftmax() {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      shift_[row] = -FLT_MAX;  // finite: -inf would give NaN for a row that has met no key
      sum_[row] = 0;
    }
  }

  /// Turns scores into probabilities, -inf into 0. `out`: what has been accumulated with the
  /// probabilities before, rescaled if shifts change.
  template <int kColumns8, int kOut8>
  __device__ void add(float (&scores)[kMatrices][kColumns8][4], float scale_log2,
                      float (&out)[kMatrices][kOut8][4]) {
    float factors[kRows];
    if (follow(scores, scale_log2, factors)) rescale(out, factors);
    exponentiate(scores, scale_log2);
  }

  /// add() in steps, for who cannot touch `out` at once. Shifts follow the scores; where this says
  /// so, what has been accumulated has to be rescaled by the factors of its rows.
  template <int kColumns8>
  __device__ bool follow(const float (&scores)[kMatrices][kColumns8][4], float scale_log2,
                         float (&factors)[kRows]) {
    float top[kRows];
    bool is_exceeded = false;
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      top[row] = -INFINITY;
#pragma unroll
      for (int n = 0; n < kColumns8; ++n) {
        top[row] = fmaxf(top[row], fmaxf(at(scores, row, n, 0), at(scores, row, n, 1)));
      }
      is_exceeded |= fmaf(top[row], scale_log2, -shift_[row]) > kSlack;
    }
    const bool is_raised = __any_sync(0xffffffff, is_exceeded);
    if (is_raised) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        top[row] = fmaxf(top[row], __shfl_xor_sync(0xffffffff, top[row], 1));
        top[row] = fmaxf(top[row], __shfl_xor_sync(0xffffffff, top[row], 2));
        const float before = shift_[row];
        shift_[row] = fmaxf(before, top[row] * scale_log2);
        factors[row] = exp2_approx(before - shift_[row]);
        sum_[row] *= factors[row];
      }
    }
    return is_raised;
  }

  template <int kOut8>
  __device__ static void rescale(float (&out)[kMatrices][kOut8][4], const float (&factors)[kRows]) {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
#pragma unroll
      for (int n = 0; n < kOut8; ++n) {
        at(out, row, n, 0) *= factors[row];
        at(out, row, n, 1) *= factors[row];
      }
    }
  }

  template <int kColumns8>
  __device__ void exponentiate(float (&scores)[kMatrices][kColumns8][4], float scale_log2) {
#pragma unroll
    for (int n = 0; n < kColumns8; ++n) {
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          float& p = at(scores, row, n, c);
          p = exp2_approx(fmaf(p, scale_log2, -shift_[row]));
          sum_[row] += p;
        }
      }
    }
  }

  /// Adds up the sums over the lanes of each row. To be called once, at the end.
  __device__ void finish() {
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      sum_[row] += __shfl_xor_sync(0xffffffff, sum_[row], 1);
      sum_[row] += __shfl_xor_sync(0xffffffff, sum_[row], 2);
    }
  }

  __device__ float shift(int row) const { return shift_[row]; }
  __device__ float sum(int row) const { return sum_[row]; }

 private:
  static constexpr float kSlack = 8;  // in log2

  /// `values`: of any type of element that may be constant.
  template <class Values>
  __device__ static auto& at(Values& values, int row, int n, int c) {
    return values[row / 2][n][row % 2 * 2 + c];
  }

  float shift_[kRows];  // log2 units
  float sum_[kRows];    // over this lane's columns
};

}  // namespace minference::cuda
