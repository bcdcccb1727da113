// Which keys a query attends, one definition of sparse_attention.h after the other.
#include <algorithm>
#include <cmath>

#include "cpu/reference/ranking.h"
#include "cpu/reference/reference.h"

namespace minference::reference {
namespace {

constexpr std::int64_t kBlock = 64;

bool contains(const std::vector<std::int32_t>& list, std::int64_t value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

/// Keys that V and S let the rows of one row block attend, before causality: [rows, kv_len].
/// `shift` is the position of query row 0.
void mark_vertical_slash(const VsLists& lists, SlashMode mode, std::int64_t row_begin,
                         std::int64_t row_end, const Sequence& sequence,
                         std::vector<std::uint8_t>& attended) {
  const std::int64_t kv_len = sequence.kv_len;
  const std::int64_t shift = kv_len - sequence.q_len;
  std::vector<std::uint8_t> in_v(kv_len, 0), in_s(kv_len, 0), block_keys(kv_len, 0);
  for (std::int32_t v : lists.vertical) in_v[v] = 1;
  for (std::int32_t s : lists.slash) in_s[s] = 1;
  if (mode == SlashMode::kReference) {
    const RowLists row = row_lists(lists, {row_begin, sequence.q_len, kv_len, true});
    for (std::int32_t begin : row.tiles) {
      for (std::int64_t j = begin; j < begin + kBlock && j < kv_len; ++j) block_keys[j] = 1;
    }
    for (std::int32_t j : row.columns) block_keys[j] = 1;
  } else if (mode == SlashMode::kCover) {
    const std::int64_t e = row_begin + kBlock + shift;
    block_keys = in_v;
    for (std::int32_t s : lists.slash) {
      for (std::int64_t j = e - kBlock - s; j < e - s; ++j) {
        if (j >= 0 && j < kv_len) block_keys[j] = 1;
      }
    }
  }
  for (std::int64_t r = row_begin; r < row_end; ++r) {
    for (std::int64_t j = 0; j <= r + shift; ++j) {
      const bool is_in =
          mode == SlashMode::kExact ? in_v[j] || in_s[r + shift - j] : block_keys[j] != 0;
      attended[r * kv_len + j] = is_in;
    }
  }
}

/// Mean of rows [begin, end) of a head.
std::vector<double> mean_row(const TensorView& view, const float* scales, std::int64_t batch,
                             std::int64_t head, std::int64_t begin, std::int64_t end) {
  std::vector<double> mean(view.shape[3], 0.0);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::vector<double> values = load_scaled_row(view, scales, batch, head, row);
    for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += values[d];
  }
  for (double& value : mean) value /= static_cast<double>(end - begin);
  return mean;
}

/// The top_k key blocks of one row block by the scores of their means.
std::vector<std::int32_t> best_blocks(const AttentionArgs& args, const Sequence& sequence,
                                      std::int64_t head, std::int64_t row_begin,
                                      std::int64_t row_end, std::int64_t top_k, double* margin) {
  const std::int64_t kv_head = head / (args.q.shape[1] / args.k.shape[1]);
  const std::int64_t last_position = row_end - 1 + sequence.kv_len - sequence.q_len;
  const std::vector<double> query =
      mean_row(args.q, args.q_scale, sequence.batch, head, sequence.q_begin + row_begin,
               sequence.q_begin + row_end);
  std::vector<double> scores;
  for (std::int64_t begin = 0; begin <= last_position; begin += kBlock) {
    const std::int64_t end = std::min(begin + kBlock, sequence.kv_len);
    const std::vector<double> key = mean_row(args.k, args.k_scale, sequence.batch, kv_head,
                                             sequence.kv_begin + begin, sequence.kv_begin + end);
    double score = 0;
    for (std::size_t d = 0; d < query.size(); ++d) score += query[d] * key[d];
    scores.push_back(score);
  }
  return best(scores, 0, top_k, margin);
}

}  // namespace

std::vector<std::int32_t> read_list(const IndexView& view, std::int64_t sequence, std::int64_t head,
                                    std::int64_t row_block) {
  const bool has_blocks = row_block >= 0;
  const std::int64_t count = view.shape[has_blocks ? 3 : 2];
  const std::int64_t step = view.stride[has_blocks ? 3 : 2];
  std::int64_t first = sequence * view.stride[0] + head * view.stride[1];
  if (has_blocks) first += row_block * view.stride[2];
  std::vector<std::int32_t> list;
  for (std::int64_t n = 0; n < count; ++n) {
    const std::int32_t entry = view.data[first + n * step];
    if (entry != -1) list.push_back(entry);
  }
  std::sort(list.begin(), list.end());
  list.erase(std::unique(list.begin(), list.end()), list.end());
  return list;
}

std::vector<std::uint8_t> mask(const AttentionArgs& args, const SparseAttentionParams& params,
                               std::int64_t sequence_idx, std::int64_t head, double* margin) {
  const Sequence sequence = sequences(args)[sequence_idx];
  const HeadPattern pattern = params.head_patterns[head];
  const std::int64_t q_len = sequence.q_len, kv_len = sequence.kv_len, shift = kv_len - q_len;
  std::vector<std::uint8_t> attended(q_len * kv_len, 0);

  // Queries that share one estimation.
  const bool is_estimated = pattern.kind == PatternKind::kVerticalSlash;
  const std::int64_t chunk_len =
      is_estimated && params.estimate_every != 0 ? params.estimate_every : q_len;
  for (std::int64_t chunk = 0; chunk < q_len; chunk += chunk_len) {
    const std::int64_t chunk_end = std::min(chunk + chunk_len, q_len);
    VsLists lists;
    if (is_estimated) {
      const Sequence own = {sequence.batch, sequence.q_begin + chunk, chunk_end - chunk,
                            sequence.kv_begin, shift + chunk_end};
      lists = select_lines(vs_scores(args, own, head), pattern.size[0], pattern.size[1], margin);
    } else if (pattern.kind == PatternKind::kVerticalSlashIndex) {
      lists = {read_list(params.vertical_idx, sequence_idx, head),
               read_list(params.slash_idx, sequence_idx, head)};
    }
    for (std::int64_t row_begin = chunk; row_begin < chunk_end; row_begin += kBlock) {
      const std::int64_t row_end = std::min(row_begin + kBlock, chunk_end);
      if (is_estimated || pattern.kind == PatternKind::kVerticalSlashIndex) {
        mark_vertical_slash(lists, params.mode, row_begin, row_end, sequence, attended);
        continue;
      }
      std::vector<std::int32_t> blocks;
      if (pattern.kind == PatternKind::kBlockSparse) {
        blocks = best_blocks(args, sequence, head, row_begin, row_end, pattern.size[0], margin);
      } else if (pattern.kind == PatternKind::kBlockIndex) {
        blocks = read_list(params.block_idx, sequence_idx, head, row_begin / kBlock);
      }
      for (std::int64_t r = row_begin; r < row_end; ++r) {
        const std::int64_t i = r + shift;
        for (std::int64_t j = 0; j <= i; ++j) {
          bool is_in = false;
          switch (pattern.kind) {
            case PatternKind::kDense:
              is_in = true;
              break;
            case PatternKind::kTriShape:
              is_in = r >= q_len - pattern.size[2];
              [[fallthrough]];
            case PatternKind::kAShape:
              is_in = is_in || j < pattern.size[0] || i - j < pattern.size[1];
              break;
            default:
              is_in = contains(blocks, j / kBlock);
          }
          attended[r * kv_len + j] = is_in;
        }
      }
    }
  }
  return attended;
}

}  // namespace minference::reference
