// Vertical/slash lines in double: estimated from the last queries, and as the tile and column lists
// of the original implementation.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "cpu/reference/ranking.h"
#include "cpu/reference/reference.h"

namespace minference::reference {

std::vector<std::int32_t> best(const std::vector<double>& scores, std::int64_t num_forced,
                               std::int64_t count, double* margin) {
  const std::int64_t num_scores = scores.size();
  count = std::min(count, num_scores);
  std::vector<std::int32_t> order(num_scores);
  std::iota(order.begin(), order.end(), 0);
  const auto rank = [&](std::int32_t index) {
    return index < num_forced ? std::numeric_limits<double>::infinity() : scores[index];
  };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return rank(a) > rank(b); });
  if (margin && count > 0 && count < num_scores) {
    const double last = rank(order[count - 1]), next = rank(order[count]);
    double size = 0;
    for (double score : scores) size = std::max(size, std::abs(score));
    if (std::isfinite(last)) *margin = std::min(*margin, size > 0 ? (last - next) / size : 0);
  }
  order.resize(count);
  std::sort(order.begin(), order.end());
  return order;
}

VsScores vs_scores(const AttentionArgs& args, const Sequence& sequence, std::int64_t head) {
  const std::int64_t kv_head = head / (args.q.shape[1] / args.k.shape[1]);
  const std::int64_t q_len = sequence.q_len, kv_len = sequence.kv_len;
  VsScores result = {std::vector<double>(kv_len, 0.0), std::vector<double>(kv_len, 0.0)};
  std::vector<std::vector<double>> keys;
  for (std::int64_t j = 0; j < kv_len; ++j) {
    keys.push_back(
        load_scaled_row(args.k, args.k_scale, sequence.batch, kv_head, sequence.kv_begin + j));
  }
  for (std::int64_t r = std::max<std::int64_t>(0, q_len - 64); r < q_len; ++r) {
    const std::int64_t i = r + kv_len - q_len;
    const std::vector<double> query =
        load_scaled_row(args.q, args.q_scale, sequence.batch, head, sequence.q_begin + r);
    std::vector<double> scores(i + 1);
    for (std::int64_t j = 0; j <= i; ++j) {
      for (std::size_t d = 0; d < query.size(); ++d) scores[j] += query[d] * keys[j][d];
      scores[j] *= softmax_scale(args);
    }
    const double max = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    for (double score : scores) sum += std::exp(score - max);
    for (std::int64_t j = 0; j <= i; ++j) {
      const double p = std::exp(scores[j] - max) / sum;
      result.column[j] += p;
      result.slash[i - j] += p;
    }
  }
  return result;
}

VsLists select_lines(const VsScores& scores, std::int64_t vertical_size, std::int64_t slash_size,
                     double* margin) {
  // best() stops at kv_len, the length of the scores.
  return {best(scores.column, 30, std::max<std::int64_t>(vertical_size, 30), margin),
          best(scores.slash, 100, std::max<std::int64_t>(slash_size, 50), margin)};
}

RowLists row_lists(const VsLists& lists, const RowBlock& block) {
  // Where the 64 rows end, in key positions: a slash line s crosses keys [end - 64 - s, end - s).
  const std::int64_t end =
      block.row_begin + 64 + block.kv_len - (block.is_causal ? block.q_len : 0);
  std::vector<std::int64_t> tiles;
  for (auto s = lists.slash.rbegin(); s != lists.slash.rend(); ++s) {  // from the farthest line
    if (*s >= end) continue;
    const std::int64_t piece_end = std::max<std::int64_t>(end - *s, 64);
    if (tiles.empty() || piece_end > tiles.back() + 128) {
      tiles.push_back(piece_end - 64);
    } else if (piece_end > tiles.back() + 64) {
      tiles.push_back(tiles.back() + 64);
    }
  }
  RowLists result;
  for (std::int64_t begin : tiles) {
    if (begin < block.kv_len) result.tiles.push_back(static_cast<std::int32_t>(begin));
  }
  for (std::int32_t v : lists.vertical) {
    const bool is_covered = std::any_of(tiles.begin(), tiles.end(), [&](std::int64_t begin) {
      return v >= begin && v < begin + 64;
    });
    if (v < end && !is_covered) result.columns.push_back(v);
  }
  return result;
}

ConvertedIndex convert_vs_index(const ConvertVsIndexParams& params) {
  const std::int64_t batch = params.slash_idx.shape[0], num_heads = params.slash_idx.shape[1];
  const std::int64_t num_slash = params.slash_idx.shape[2];
  const std::int64_t num_vertical = params.vertical_idx.shape[2];
  const std::int64_t rows = batch * num_heads * params.num_row_blocks;
  ConvertedIndex result;
  result.block_count.assign(rows, 0);
  result.column_count.assign(rows, 0);
  result.block_offset.assign(rows * num_slash, 0);
  result.column_index.assign(rows * num_vertical, 0);
  for (std::int64_t b = 0; b < batch; ++b) {
    for (std::int64_t head = 0; head < num_heads; ++head) {
      const VsLists lists = {read_list(params.vertical_idx, b, head),
                             read_list(params.slash_idx, b, head)};
      for (std::int64_t n = 0; n * 64 < params.q_seqlens[b]; ++n) {
        const RowLists row = row_lists(
            lists, {n * 64, params.q_seqlens[b], params.kv_seqlens[b], params.causal != 0});
        const std::int64_t flat = (b * num_heads + head) * params.num_row_blocks + n;
        result.block_count[flat] = static_cast<std::int32_t>(row.tiles.size());
        result.column_count[flat] = static_cast<std::int32_t>(row.columns.size());
        std::copy(row.tiles.begin(), row.tiles.end(),
                  result.block_offset.begin() + flat * num_slash);
        std::copy(row.columns.begin(), row.columns.end(),
                  result.column_index.begin() + flat * num_vertical);
      }
    }
  }
  return result;
}

}  // namespace minference::reference
