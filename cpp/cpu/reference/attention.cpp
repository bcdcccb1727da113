// Attention in double: a boolean mask of query and key pairs, then softmax row by row.
#include <cmath>
#include <cstring>
#include <limits>

#include "cpu/reference/reference.h"

namespace minference::reference {
namespace {

double half_to_double(std::uint16_t bits) {
  const int sign = bits >> 15, exponent = (bits >> 10) & 31, mantissa = bits & 1023;
  double value;
  if (exponent == 31) {
    value = mantissa ? std::numeric_limits<double>::quiet_NaN()
                     : std::numeric_limits<double>::infinity();
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, -24);
  } else {
    value = std::ldexp(1024 + mantissa, exponent - 25);
  }
  return sign ? -value : value;
}

double float8_to_double(std::uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  double value;
  if (exponent == 15 && mantissa == 7) {
    value = std::numeric_limits<double>::quiet_NaN();  // there is no infinity
  } else if (exponent == 0) {
    value = std::ldexp(mantissa, -9);
  } else {
    value = std::ldexp(8 + mantissa, exponent - 10);
  }
  return bits & 0x80 ? -value : value;
}

double load_element(const void* data, DType dtype, std::int64_t offset) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(data)[offset];
  if (dtype == DType::kFloat8E4M3) {
    return float8_to_double(static_cast<const std::uint8_t*>(data)[offset]);
  }
  const std::uint16_t bits = static_cast<const std::uint16_t*>(data)[offset];
  if (dtype == DType::kFloat16) return half_to_double(bits);
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

}  // namespace

std::vector<double> load_row(const TensorView& view, std::int64_t batch, std::int64_t head,
                             std::int64_t row) {
  std::vector<double> values(view.shape[3]);
  const std::int64_t first = batch * view.stride[0] + head * view.stride[1] + row * view.stride[2];
  for (std::int64_t d = 0; d < view.shape[3]; ++d) {
    values[d] = load_element(view.data, view.dtype, first + d);
  }
  return values;
}

std::vector<double> load_scaled_row(const TensorView& view, const float* scales, std::int64_t batch,
                                    std::int64_t head, std::int64_t row) {
  std::vector<double> values = load_row(view, batch, head, row);
  if (scales == nullptr) return values;
  for (double& value : values) value *= scales[head];
  return values;
}

double softmax_scale(const AttentionArgs& args) {
  if (args.softmax_scale != 0) return args.softmax_scale;
  return 1 / std::sqrt(static_cast<double>(args.q.shape[3]));
}

std::vector<Sequence> sequences(const AttentionArgs& args) {
  std::vector<Sequence> result;
  if (args.cu_seqlens_q) {
    for (std::int64_t n = 0; n < args.num_sequences; ++n) {
      const std::int32_t* q = args.cu_seqlens_q + n;
      const std::int32_t* kv = args.cu_seqlens_kv + n;
      result.push_back({0, q[0], q[1] - q[0], kv[0], kv[1] - kv[0]});
    }
    return result;
  }
  for (std::int64_t batch = 0; batch < args.q.shape[0]; ++batch) {
    const std::int64_t seq_q = args.q.shape[2], seq_kv = args.k.shape[2];
    const std::int64_t kv_begin = args.first_valid_key ? args.first_valid_key[batch] : 0;
    // Row r sits at key r + (seq_kv - seq_q); rows at keys before kv_begin are padding.
    std::int64_t q_begin = kv_begin - (seq_kv - seq_q);
    if (q_begin < 0) q_begin = 0;
    result.push_back({batch, q_begin, seq_q - q_begin, kv_begin, seq_kv - kv_begin});
  }
  return result;
}

Result attention(const AttentionArgs& args, const SparseAttentionParams& params) {
  const std::int64_t batch = args.q.shape[0], num_heads_q = args.q.shape[1];
  const std::int64_t seq_q = args.q.shape[2], head_dim = args.q.shape[3];
  const std::int64_t group = num_heads_q / args.k.shape[1];
  const double scale = softmax_scale(args);
  Result result;
  result.out.assign(batch * num_heads_q * seq_q * head_dim, 0.0);
  result.spread = result.weight = result.out;
  result.lse.assign(batch * num_heads_q * seq_q, -std::numeric_limits<double>::infinity());

  const std::vector<Sequence> all = sequences(args);
  for (std::size_t n = 0; n < all.size(); ++n) {
    const Sequence& sequence = all[n];
    for (std::int64_t head = 0; head < num_heads_q; ++head) {
      const std::vector<std::uint8_t> attended = mask(args, params, n, head, &result.margin);
      std::vector<std::vector<double>> keys, values;
      for (std::int64_t j = 0; j < sequence.kv_len; ++j) {
        const std::int64_t key = sequence.kv_begin + j;
        keys.push_back(load_scaled_row(args.k, args.k_scale, sequence.batch, head / group, key));
        values.push_back(load_scaled_row(args.v, args.v_scale, sequence.batch, head / group, key));
      }
      for (std::int64_t r = 0; r < sequence.q_len; ++r) {
        const std::int64_t row = sequence.q_begin + r;
        const std::vector<double> query =
            load_scaled_row(args.q, args.q_scale, sequence.batch, head, row);
        std::vector<std::int64_t> attended_keys;
        std::vector<double> scores;
        double max = -std::numeric_limits<double>::infinity();
        for (std::int64_t j = 0; j < sequence.kv_len; ++j) {
          if (!attended[r * sequence.kv_len + j]) continue;
          double score = 0;
          for (std::int64_t d = 0; d < head_dim; ++d) score += query[d] * keys[j][d];
          attended_keys.push_back(j);
          scores.push_back(scale * score);
          if (scores.back() > max) max = scores.back();
        }
        if (attended_keys.empty()) continue;
        double sum = 0;
        for (double score : scores) sum += std::exp(score - max);
        const std::int64_t flat_row = (sequence.batch * num_heads_q + head) * seq_q + row;
        result.lse[flat_row] = max + std::log(sum);
        for (std::size_t n_key = 0; n_key < attended_keys.size(); ++n_key) {
          const double p = std::exp(scores[n_key] - max) / sum;
          for (std::int64_t d = 0; d < head_dim; ++d) {
            const double term = p * values[attended_keys[n_key]][d];
            result.out[flat_row * head_dim + d] += term;
            result.spread[flat_row * head_dim + d] += term * term;
            result.weight[flat_row * head_dim + d] += std::abs(term);
          }
        }
      }
    }
  }
  for (double& value : result.spread) value = std::sqrt(value);
  return result;
}

}  // namespace minference::reference
