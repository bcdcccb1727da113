// What every op of libminference means, in double and plain loops: the oracle of the C++ tests.
// Reads the arguments of the public headers and follows their definitions word by word: which keys
// may this query row attend, then softmax over exactly those. Nothing here is shared with the
// product and nothing is validated: arguments must be ones that the library accepts.
// It allocates, so it is a library of its own (minference_reference), never linked in the product.
#pragma once

#include <cstdint>
#include <vector>

#include "minference/minference.h"

namespace minference::reference {

/// One sequence in the coordinates of the tensors: row r of the sequence is row q_begin + r of
/// batch row `batch`. Rows and keys that belong to no sequence are padding.
struct Sequence {
  std::int64_t batch = 0;
  std::int64_t q_begin = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_begin = 0;
  std::int64_t kv_len = 0;
};

/// The sequences of a batch (first_valid_key) or of a packed batch (cu_seqlens_*), in order.
std::vector<Sequence> sequences(const AttentionArgs& args);

/// Row `row` of a head as head_dim doubles.
std::vector<double> load_row(const TensorView& view, std::int64_t batch, std::int64_t head,
                             std::int64_t row);

/// The same times the scale of its head, as attention sees it. `scales` [heads], null: 1.
std::vector<double> load_scaled_row(const TensorView& view, const float* scales, std::int64_t batch,
                                    std::int64_t head, std::int64_t row);

/// softmax_scale with its default.
double softmax_scale(const AttentionArgs& args);

/// Estimation of vertical/slash lines: sums of the probabilities of the last min(64, q_len)
/// queries per key and per offset, before forcing. Both [kv_len].
struct VsScores {
  std::vector<double> column;
  std::vector<double> slash;
};
VsScores vs_scores(const AttentionArgs& args, const Sequence& sequence, std::int64_t head);

/// V and S, ascending.
struct VsLists {
  std::vector<std::int32_t> vertical;
  std::vector<std::int32_t> slash;
};

/// The lines that these scores select. `margin` (may be null) is lowered to the distance between
/// the last score chosen and the first one left out, relative to the largest score: where it is
/// near 0, fp32 arithmetic may rightly choose otherwise and a comparison says nothing.
VsLists select_lines(const VsScores& scores, std::int64_t vertical_size, std::int64_t slash_size,
                     double* margin = nullptr);

/// Lists of the original implementation for one row block; see convert_vs_index.
struct RowLists {
  std::vector<std::int32_t> tiles;    ///< starts of 64-wide key tiles, ascending
  std::vector<std::int32_t> columns;  ///< keys in no tile, ascending
};
/// One row block of one head; row_begin is a multiple of 64.
struct RowBlock {
  std::int64_t row_begin = 0;
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  bool is_causal = true;
};
RowLists row_lists(const VsLists& lists, const RowBlock& block);

/// Dense outputs of convert_vs_index, in the layout of ConvertVsIndexParams.
struct ConvertedIndex {
  std::vector<std::int32_t> block_count, block_offset, column_count, column_index;
};
ConvertedIndex convert_vs_index(const ConvertVsIndexParams& params);

/// Entries of one list of an IndexView without -1, ascending and unique. `row_block` < 0: the view
/// has no such axis.
std::vector<std::int32_t> read_list(const IndexView& view, std::int64_t sequence, std::int64_t head,
                                    std::int64_t row_block = -1);

/// Which keys each query of one head attends: [q_len, kv_len], 0 or 1. dense_fallback is ignored: a
/// head is what its pattern says. `margin` as in select_lines, over every ranking of this head.
std::vector<std::uint8_t> mask(const AttentionArgs& args, const SparseAttentionParams& params,
                               std::int64_t sequence_idx, std::int64_t head,
                               double* margin = nullptr);

/// What attention must give, and how far an honest low-precision kernel may be from it.
struct Result {
  std::vector<double> out;  ///< [batch, num_heads_q, seq_q, head_dim] contiguous; 0 where no keys
  std::vector<double> lse;  ///< [batch, num_heads_q, seq_q] contiguous; -inf where no keys
  std::vector<double> spread;  ///< like out: sqrt(sum p^2 v^2), scales the error of a rounded p
  std::vector<double> weight;  ///< like out: sum p |v|, bounds that error
  double margin = 1;           ///< see select_lines
};
Result attention(const AttentionArgs& args, const SparseAttentionParams& params);

}  // namespace minference::reference
