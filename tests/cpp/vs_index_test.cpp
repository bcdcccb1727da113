// Vertical/slash indices: convert_vs_index against the reference, golden lists and the properties
// that make the lists correct; estimate_vs_index against scores in double.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/reference/reference.h"
#include "heap_tensor.h"
#include "minference/minference.h"

namespace minference::test {
namespace {

using List = std::vector<std::int32_t>;
using Lists = std::vector<List>;

std::string text(const List& list) {
  std::string result = "[";
  for (std::int32_t entry : list) {
    if (result.size() > 1) result += ",";
    result += std::to_string(entry);
  }
  return result + "]";
}

/// A call of convert_vs_index with the memory it needs, to the byte.
struct Conversion {
  /// `vertical` and `slash` are the lists of [batch, num_heads], padded with -1 to one length.
  Conversion(const Lists& vertical, const Lists& slash, List q_seqlens, List kv_seqlens,
             std::int64_t num_heads, bool is_causal, std::int64_t extra_row_blocks)
      : vertical_idx(make_index(vertical, num_heads)),
        slash_idx(make_index(slash, num_heads)),
        q_len(std::move(q_seqlens)),
        kv_len(std::move(kv_seqlens)) {
    params.vertical_idx = vertical_idx.view;
    params.slash_idx = slash_idx.view;
    params.q_seqlens = q_len.data();
    params.kv_seqlens = kv_len.data();
    params.causal = is_causal;
    const std::int64_t longest = q_len.empty() ? 0 : *std::max_element(q_len.begin(), q_len.end());
    params.num_row_blocks = (longest + 63) / 64 + extra_row_blocks;
    const std::int64_t rows =
        static_cast<std::int64_t>(q_len.size()) * num_heads * params.num_row_blocks;
    block_count = HeapIndex({rows});
    block_offset = HeapIndex({rows, slash_idx.view.shape[2]});
    column_count = HeapIndex({rows});
    column_index = HeapIndex({rows, vertical_idx.view.shape[2]});
    params.block_count = block_count.data();
    params.block_offset = block_offset.data();
    params.column_count = column_count.data();
    params.column_index = column_index.data();
  }

  static HeapIndex make_index(const Lists& lists, std::int64_t num_heads) {
    std::size_t count = 0;
    for (const List& list : lists) count = std::max(count, list.size());
    HeapIndex index({static_cast<std::int64_t>(lists.size()) / num_heads, num_heads,
                     static_cast<std::int64_t>(count)});
    for (std::size_t n = 0; n < lists.size(); ++n) {
      std::copy(lists[n].begin(), lists[n].end(), index.data() + n * count);
    }
    return index;
  }

  /// False if there is nothing to look at.
  bool run(const std::string& what) const {
    std::size_t bytes = 0;
    Status status = convert_vs_index_workspace_bytes(params, &bytes);
    CHECK(status == Status::kOk, "%s: workspace_bytes: %s", what.c_str(), last_error());
    const HeapBytes workspace(bytes, 1);
    status = convert_vs_index(params, workspace.data(), bytes);
    CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
    return status == Status::kOk;
  }

  List tiles(std::int64_t row) const {
    const std::int32_t* first = block_offset.data() + row * params.slash_idx.shape[2];
    return List(first, first + block_count.data()[row]);
  }
  List columns(std::int64_t row) const {
    const std::int32_t* first = column_index.data() + row * params.vertical_idx.shape[2];
    return List(first, first + column_count.data()[row]);
  }

  ConvertVsIndexParams params;
  HeapIndex vertical_idx, slash_idx, block_count, block_offset, column_count, column_index;
  List q_len, kv_len;
};

/// Lists worked out by hand from the original algorithm. g3 is the corrected one: the original
/// drops 100 and 250 and adds a tile that no line asks for.
struct Golden {
  const char* name;
  std::int32_t q_len, kv_len;
  bool is_causal;
  List vertical, slash;
  Lists tiles, columns;  // per row block
};

const Golden kGolden[] = {
    {.name = "g1: near and far lines, one touches the diagonal's range",
     .q_len = 320,
     .kv_len = 320,
     .is_causal = true,
     .vertical = {0, 1, 70, 200, 300},
     .slash = {250, 130, 64, 10, 0},
     .tiles = {{0}, {0, 64}, {0, 64, 128}, {0, 64, 128, 192}, {6, 126, 192, 256}},
     .columns = {{}, {}, {}, {}, {0, 1, 70}}},
    {.name = "g2: an offset of 63 shifts the tiles by one key",
     .q_len = 256,
     .kv_len = 256,
     .is_causal = true,
     .vertical = {3, 5, 64, 128, 190},
     .slash = {63, 0},
     .tiles = {{0}, {1, 65}, {65, 129}, {129, 193}},
     .columns = {{}, {}, {3, 5, 64}, {3, 5, 64, 128}}},
    {.name = "g3: no offset 0, columns right of the last tile",
     .q_len = 256,
     .kv_len = 256,
     .is_causal = true,
     .vertical = {0, 100, 250},
     .slash = {128},
     .tiles = {{}, {}, {0}, {64}},
     .columns = {{0}, {0, 100}, {100}, {0, 250}}},
    {.name = "g4: a prefix",
     .q_len = 128,
     .kv_len = 512,
     .is_causal = true,
     .vertical = {0, 10, 400, 500},
     .slash = {300, 65, 0},
     .tiles = {{84, 319, 384}, {148, 383, 448}},
     .columns = {{0, 10}, {0, 10}}},
    {.name = "g5: not causal",
     .q_len = 128,
     .kv_len = 256,
     .is_causal = false,
     .vertical = {7, 90, 250},
     .slash = {600, 400, 300, 150, 20},
     .tiles = {{0, 106, 236}, {20, 170}},
     .columns = {{90}, {7, 90, 250}}},
};

void test_golden() {
  for (const Golden& g : kGolden) {
    const Conversion conversion({g.vertical}, {g.slash}, {g.q_len}, {g.kv_len}, 1, g.is_causal, 0);
    if (!conversion.run(g.name)) continue;
    const reference::VsLists sorted = {g.vertical, List(g.slash.rbegin(), g.slash.rend())};
    for (std::size_t n = 0; n < g.tiles.size(); ++n) {
      const List tiles = conversion.tiles(n), columns = conversion.columns(n);
      CHECK(tiles == g.tiles[n] && columns == g.columns[n], "%s: row block %d: %s|%s, not %s|%s",
            g.name, int(n), text(tiles).c_str(), text(columns).c_str(), text(g.tiles[n]).c_str(),
            text(g.columns[n]).c_str());
      const reference::RowLists row = reference::row_lists(
          sorted, {static_cast<std::int64_t>(n) * 64, g.q_len, g.kv_len, g.is_causal});
      CHECK(row.tiles == g.tiles[n] && row.columns == g.columns[n],
            "%s: the reference is wrong in row block %d: %s|%s", g.name, int(n),
            text(row.tiles).c_str(), text(row.columns).c_str());
    }
  }
}

/// Unsorted entries in [0, limit), some of them close together, some twice, some missing.
List random_list(std::mt19937& generator, std::int64_t count, std::int64_t limit) {
  List list;
  for (std::int64_t n = 0; n < count && limit > 0; ++n) {
    const std::uint32_t choice = generator() % 8;
    if (choice == 0) {
      list.push_back(-1);
    } else if (choice == 1 && !list.empty()) {
      list.push_back(list[generator() % list.size()]);
    } else if (choice < 4 && !list.empty() && list.back() >= 0) {
      list.push_back(static_cast<std::int32_t>((list.back() + generator() % 100) % limit));
    } else {
      list.push_back(static_cast<std::int32_t>(generator() % limit));
    }
  }
  return list;
}

/// Keys that the lists of a row block hold, and how often.
std::vector<int> count_keys(const List& tiles, const List& columns, std::int64_t kv_len) {
  std::vector<int> count(kv_len, 0);
  for (std::int32_t begin : tiles) {
    for (std::int64_t j = begin; j < begin + 64 && j < kv_len; ++j) ++count[j];
  }
  for (std::int32_t j : columns) ++count[j];
  return count;
}

/// What makes the lists of one row block right, whatever algorithm made them.
void check_row(const List& vertical, const List& slash, const List& tiles, const List& columns,
               const reference::RowBlock& row, const std::string& what) {
  const std::vector<int> held = count_keys(tiles, columns, row.kv_len);
  CHECK(std::all_of(held.begin(), held.end(), [](int n) { return n <= 1; }), "%s: a key twice",
        what.c_str());
  CHECK(
      std::is_sorted(tiles.begin(), tiles.end()) && std::is_sorted(columns.begin(), columns.end()),
      "%s: not ascending", what.c_str());
  for (std::int64_t r = row.row_begin; r < std::min(row.row_begin + 64, row.q_len); ++r) {
    const std::int64_t position = r + row.kv_len - (row.is_causal ? row.q_len : 0);
    const std::int64_t e = row.row_begin + 64 + position - r;
    std::int64_t missing = -1;
    const auto needs = [&](std::int64_t j) {
      if (j < 0 || j >= row.kv_len || (row.is_causal && j > position)) return;
      if (held[j] != 1) missing = j;
    };
    for (std::int32_t v : vertical) needs(v);
    for (std::int32_t s : slash) {
      if (s < 0) continue;
      needs(position - s);
      for (std::int64_t j = e - 64 - s; j < e - s; ++j) needs(j);
    }
    CHECK(missing < 0, "%s: row %d lacks key %d", what.c_str(), int(r), int(missing));
  }
}

void test_random_lists() {
  std::mt19937 generator(2);
  for (int round = 0; round < 600; ++round) {
    const bool is_causal = round % 3 != 0;
    const std::int64_t batch = 1 + round % 2, num_heads = 1 + generator() % 2;
    List q_len, kv_len;
    Lists vertical, slash;
    for (std::int64_t b = 0; b < batch; ++b) {
      q_len.push_back(static_cast<std::int32_t>(generator() % 300));
      const std::int32_t more = static_cast<std::int32_t>(generator() % 200);
      kv_len.push_back(is_causal ? q_len.back() + more : more);
      for (std::int64_t h = 0; h < num_heads; ++h) {
        vertical.push_back(random_list(generator, generator() % 40, kv_len.back()));
        // Not causal: lines of a longer prompt, some of which reach no row.
        slash.push_back(random_list(generator, generator() % 30,
                                    kv_len.back() + (is_causal ? 0 : q_len.back() + 200)));
        if (kv_len.back() > 0 && round % 5 == 0) slash.back().push_back(0);
      }
    }
    const std::int64_t extra_row_blocks = generator() % 3;
    const Conversion c(vertical, slash, q_len, kv_len, num_heads, is_causal, extra_row_blocks);
    const std::string what = "random lists, round " + std::to_string(round);
    if (!c.run(what)) continue;
    const reference::ConvertedIndex expected = reference::convert_vs_index(c.params);
    const auto is_equal = [](const HeapIndex& found, const List& wanted) {
      return found.count() == wanted.size() &&
             std::equal(wanted.begin(), wanted.end(), found.data());
    };
    CHECK(is_equal(c.block_count, expected.block_count), "%s: block_count", what.c_str());
    CHECK(is_equal(c.block_offset, expected.block_offset), "%s: block_offset", what.c_str());
    CHECK(is_equal(c.column_count, expected.column_count), "%s: column_count", what.c_str());
    CHECK(is_equal(c.column_index, expected.column_index), "%s: column_index", what.c_str());
    for (std::int64_t list = 0; list < batch * num_heads; ++list) {
      const std::int64_t b = list / num_heads;
      for (std::int64_t begin = 0; begin < q_len[b]; begin += 64) {
        const std::int64_t row = list * c.params.num_row_blocks + begin / 64;
        check_row(vertical[list], slash[list], c.tiles(row), c.columns(row),
                  {begin, q_len[b], kv_len[b], is_causal}, what);
      }
    }
  }
}

/// exact is a subset of cover, cover of reference: what the modes of the attention op promise.
void test_modes() {
  std::mt19937 generator(3);
  for (int round = 0; round < 60; ++round) {
    const std::int64_t q_len = 1 + generator() % 200, kv_len = q_len + generator() % 100;
    AttentionArgs args;
    args.q.shape[0] = args.q.shape[1] = args.k.shape[0] = args.k.shape[1] = 1;
    args.q.shape[2] = q_len;
    args.k.shape[2] = kv_len;
    List slash = random_list(generator, 1 + generator() % 10, kv_len);
    slash.push_back(0);
    const HeapIndex vertical_idx =
        Conversion::make_index({random_list(generator, generator() % 10, kv_len)}, 1);
    const HeapIndex slash_idx = Conversion::make_index({slash}, 1);
    const HeadPattern pattern = {PatternKind::kVerticalSlashIndex, {}};
    SparseAttentionParams params;
    params.head_patterns = &pattern;
    params.vertical_idx = vertical_idx.view;
    params.slash_idx = slash_idx.view;
    std::vector<std::uint8_t> masks[3];
    for (int mode = 0; mode < 3; ++mode) {
      params.mode = static_cast<SlashMode>(mode);
      masks[mode] = reference::mask(args, params, 0, 0);
    }
    const auto& [cover, exact, merged] = masks;
    std::size_t first_bad = 0;
    while (first_bad < cover.size() && exact[first_bad] <= cover[first_bad] &&
           cover[first_bad] <= merged[first_bad]) {
      ++first_bad;
    }
    CHECK(first_bad == cover.size(), "round %d: pair %d is in a smaller mask only", round,
          int(first_bad));
  }
}

struct EstimateCase {
  const char* reason;
  std::int64_t batch = 1, num_heads_q = 4, num_heads_kv = 2, seq_q = 0, seq_kv = 0, head_dim = 16;
  List first_valid_key = {}, cu_seqlens_q = {}, cu_seqlens_kv = {};
  double amplitude = 1;
  bool has_scores = true;
};

const EstimateCase kEstimateCases[] = {
    {.reason = "one query, one key", .seq_q = 1, .seq_kv = 1},
    {.reason = "one query: equal scores go to the lowest index", .seq_q = 1, .seq_kv = 301},
    {.reason = "fewer keys than forced columns", .seq_q = 20, .seq_kv = 25},
    {.reason = "fewer keys than forced offsets", .seq_q = 70, .seq_kv = 90},
    {.reason = "fewer queries than 64", .seq_q = 37, .seq_kv = 333},
    {.reason = "64 queries", .seq_q = 64, .seq_kv = 256, .head_dim = 64},
    {.reason = "whole prompt", .batch = 2, .seq_q = 401, .seq_kv = 401},
    {.reason = "group of 4 heads", .num_heads_kv = 1, .seq_q = 300, .seq_kv = 317, .head_dim = 128},
    {.reason = "peaked", .num_heads_kv = 4, .seq_q = 200, .seq_kv = 500, .amplitude = 4},
    {.reason = "two key segments, the second of one key",
     .seq_q = 70,
     .seq_kv = 4097,
     .head_dim = 8},
    {.reason = "three key segments, the last queries across two of them",
     .num_heads_kv = 1,
     .seq_q = 90,
     .seq_kv = 8215,
     .head_dim = 8},
    {.reason = "lists only", .seq_q = 200, .seq_kv = 280, .has_scores = false},
    {.reason = "left padding",
     .batch = 3,
     .seq_q = 100,
     .seq_kv = 290,
     .first_valid_key = {0, 133, 250}},
    {.reason = "packed, one sequence without queries",
     .seq_q = 300,
     .seq_kv = 400,
     .cu_seqlens_q = {0, 70, 70, 71, 300},
     .cu_seqlens_kv = {0, 150, 155, 160, 400}},
};

/// Sizes of the four heads: beyond the sequence, the raised minimum, odd, a forced set exactly.
constexpr std::int64_t kVerticalSize[4] = {1000, 0, 61, 30};
constexpr std::int64_t kSlashSize[4] = {6096, 0, 173, 100};

/// Error of a score, relative. The bfloat16 kernels may take an exponential that is good to 8e-5.
double score_tolerance(DType dtype) { return dtype == DType::kBFloat16 ? 2e-4 : 2e-5; }

/// `list` holds the `count` best of `scores`, forced ones first: exactly where scores differ by
/// more than fp32 arithmetic explains, and to the lowest index where they are equal.
void check_lines(const std::int32_t* list, std::int64_t list_count,
                 const std::vector<double>& scores, std::int64_t num_forced, std::int64_t count,
                 bool has_exact_ties, double tolerance, const std::string& what) {
  const std::int64_t kv_len = scores.size();
  count = std::min(count, kv_len);
  std::vector<bool> is_chosen(kv_len, false);
  for (std::int64_t n = 0; n < list_count; ++n) {
    if (n >= count) {
      CHECK(list[n] == -1, "%s: entry %d is %d, not -1", what.c_str(), int(n), list[n]);
      continue;
    }
    const bool is_valid = list[n] >= 0 && list[n] < kv_len && (n == 0 || list[n] > list[n - 1]);
    CHECK(is_valid, "%s: entry %d is %d: not ascending in range", what.c_str(), int(n), list[n]);
    if (!is_valid) return;
    is_chosen[list[n]] = true;
  }
  num_forced = std::min(num_forced, kv_len);
  for (std::int64_t n = 0; n < std::min(num_forced, count); ++n) {
    CHECK(is_chosen[n], "%s: forced line %d is missing", what.c_str(), int(n));
  }
  double worst_chosen = 1e300, best_left = -1e300, largest = 0;
  for (std::int64_t n = num_forced; n < kv_len; ++n) {
    largest = std::max(largest, scores[n]);
    if (is_chosen[n]) {
      worst_chosen = std::min(worst_chosen, scores[n]);
    } else {
      best_left = std::max(best_left, scores[n]);
    }
  }
  CHECK(worst_chosen >= best_left - 2 * tolerance * largest, "%s: chose %.9g, left %.9g",
        what.c_str(), worst_chosen, best_left);
  if (!has_exact_ties) return;
  for (std::int64_t n = 0; n < count; ++n) {
    CHECK(is_chosen[n], "%s: of equal scores %d is not chosen", what.c_str(), int(n));
  }
}

void check_scores(const float* found, const std::vector<double>& expected, double tolerance,
                  const std::string& what) {
  for (std::size_t n = 0; n < expected.size(); ++n) {
    CHECK(std::abs(found[n] - expected[n]) <= tolerance * expected[n] + 1e-7,
          "%s: score %d is %.9g, expected %.9g", what.c_str(), int(n), double(found[n]),
          expected[n]);
  }
}

void check_estimate(const EstimateCase& c, const AttentionArgs& args,
                    const std::vector<reference::VsScores>& expected, bool has_exact_ties,
                    const std::string& what) {
  const std::vector<reference::Sequence> sequences = reference::sequences(args);
  const std::int64_t num_lists = static_cast<std::int64_t>(expected.size());
  const std::int64_t vertical_count = std::min<std::int64_t>(c.seq_kv, 1000) + 3;
  const std::int64_t slash_count = std::min<std::int64_t>(c.seq_kv, 6096) + 1;
  const HeapIndex vertical({num_lists, vertical_count}), slash({num_lists, slash_count});
  // Were they -1 from the start, missing padding would not show.
  std::memset(vertical.bytes.data(), 0x7F, vertical.bytes.size());
  std::memset(slash.bytes.data(), 0x7F, slash.bytes.size());
  const HeapBytes column_scores(num_lists * c.seq_kv * sizeof(float));
  const HeapBytes slash_scores(num_lists * c.seq_kv * sizeof(float));
  VsIndexParams params;
  params.vertical_size = kVerticalSize;
  params.slash_size = kSlashSize;
  params.vertical_idx = vertical.data();
  params.slash_idx = slash.data();
  params.vertical_count = vertical_count;
  params.slash_count = slash_count;
  if (c.has_scores) {
    params.column_scores = reinterpret_cast<float*>(column_scores.data());
    params.slash_scores = reinterpret_cast<float*>(slash_scores.data());
  }
  std::size_t bytes = 0;
  Status status = estimate_vs_index_supports(args, params);
  CHECK(status == Status::kOk, "%s: supports: %s", what.c_str(), last_error());
  status = estimate_vs_index_workspace_bytes(args, params, &bytes);
  CHECK(status == Status::kOk, "%s: workspace_bytes: %s", what.c_str(), last_error());
  const HeapBytes workspace(bytes, 1);
  status = estimate_vs_index(args, params, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  if (status != Status::kOk) return;
  const double tolerance = score_tolerance(args.q.dtype);
  for (std::int64_t n = 0; n < num_lists; ++n) {
    const std::int64_t head = n % c.num_heads_q;
    const bool has_lines = sequences[n / c.num_heads_q].q_len > 0;
    const std::int64_t num_vertical = std::max<std::int64_t>(kVerticalSize[head], 30);
    const std::int64_t num_slash = std::max<std::int64_t>(kSlashSize[head], 50);
    const std::string where = what + ", list " + std::to_string(n);
    check_lines(vertical.data() + n * vertical_count, vertical_count, expected[n].column, 30,
                has_lines ? num_vertical : 0, has_exact_ties, tolerance, where + ", V");
    check_lines(slash.data() + n * slash_count, slash_count, expected[n].slash, 100,
                has_lines ? num_slash : 0, has_exact_ties, tolerance, where + ", S");
    if (!c.has_scores) continue;
    check_scores(params.column_scores + n * c.seq_kv, expected[n].column, tolerance,
                 where + ", columns");
    check_scores(params.slash_scores + n * c.seq_kv, expected[n].slash, tolerance,
                 where + ", offsets");
  }
}

const std::int32_t* data_or_null(const List& list) { return list.empty() ? nullptr : list.data(); }

void test_estimate(const EstimateCase& c, DType dtype, const std::vector<std::string>& kernels) {
  std::mt19937 generator(static_cast<unsigned>(c.seq_q * 7 + c.seq_kv));
  HeapTensor q({c.batch, c.num_heads_q, c.seq_q, c.head_dim}, dtype, Layout::kRowsFirst);
  HeapTensor k({c.batch, c.num_heads_kv, c.seq_kv, c.head_dim}, dtype, Layout::kSliced);
  AttentionArgs args;
  args.q = q.view;
  args.k = k.view;  // v and out are not read: they stay empty
  args.num_threads = 2;
  args.first_valid_key = data_or_null(c.first_valid_key);
  args.cu_seqlens_q = data_or_null(c.cu_seqlens_q);
  args.cu_seqlens_kv = data_or_null(c.cu_seqlens_kv);
  if (args.cu_seqlens_q) args.num_sequences = static_cast<std::int64_t>(c.cu_seqlens_q.size()) - 1;
  // One query that is zero: all scores are equal, bit by bit.
  const bool has_exact_ties = c.seq_q == 1;
  for (std::int64_t b = 0; b < c.batch; ++b) {
    const std::int64_t begin = c.first_valid_key.empty() ? 0 : c.first_valid_key[b];
    const std::int64_t q_begin = std::max<std::int64_t>(0, begin - (c.seq_kv - c.seq_q));
    fill_rows(q, b, q_begin, c.seq_q, has_exact_ties ? 0 : c.amplitude, generator);
    fill_rows(k, b, begin, c.seq_kv, 1, generator);
  }
  std::vector<reference::VsScores> expected;  // of all sequences and heads
  for (const reference::Sequence& sequence : reference::sequences(args)) {
    for (std::int64_t head = 0; head < c.num_heads_q; ++head) {
      expected.push_back(reference::vs_scores(args, sequence, head));
    }
  }
  for (const std::string& kernel : kernels) {
    const std::string what =
        std::string(c.reason) + ", dtype " + std::to_string(int(dtype)) + ", " + kernel;
    setenv("MINFERENCE_CPU_KERNEL", kernel.c_str(), 1);
    const char* name = nullptr;
    if (cpu_kernel_for(dtype, &name) == Status::kUnsupported) continue;  // not for this dtype
    check_estimate(c, args, expected, has_exact_ties, what);
  }
  unsetenv("MINFERENCE_CPU_KERNEL");
}

void test_estimates() {
  std::vector<std::string> kernels;
  for (std::int32_t n = 0; n < cpu_kernel_count(); ++n) {
    const char* name = nullptr;
    std::int32_t is_supported = 0;
    const Status status = cpu_kernel_info(n, &name, &is_supported);
    if (status == Status::kOk && is_supported) kernels.push_back(name);
  }
  for (DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const EstimateCase& c : kEstimateCases) test_estimate(c, dtype, kernels);
  }
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  test::test_golden();
  test::test_random_lists();
  test::test_modes();
  test::test_estimates();
  return test::finish("vs_index_test");
}
