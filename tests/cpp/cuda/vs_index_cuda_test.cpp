// estimate_vs_index on CUDA: scores against the double oracle, lists bit for bit those that the
// CPU's selection takes from the same scores, and as good as the oracle's own up to near-ties.
//
// A score is a sum of probabilities p = 2^(x - max) / sum of fp32 logits x. A dot product in fp32
// is wrong by at most some 2^-22 of the sum of its terms' magnitudes, at most |q| |k|; p's relative
// error is that of x, absolute. So with L = max |q| |k| * scale * log2(e), the largest that a logit
// of the head can be,
//
//   |score - expected| <= (4e-6 + 2^-20 L) expected
//
// and of two lines that this cannot tell apart either may be selected. q and k of float8 are meant
// times their scales.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../check.h"
#include "cpu/select.h"
#include "float8.h"
#include "layer.h"

namespace minference::test {
namespace {

using List = std::vector<std::int32_t>;

enum class Content {
  kRandom,
  kEqualKeys,   // all keys of a head are one: scores tie
  kNanKey,      // in one key of kv head 0
  kInfKey,      // in one key of kv head 0
  kNanQuery,    // in one of the last queries of head 0
  kEarlyQuery,  // NaN in a query before the last 64: nobody reads it
};

struct EstimateCase {
  Case shape;  // patterns: of kVerticalSlash, with the sizes
  Content content = Content::kRandom;
};

Patterns sizes(std::vector<std::pair<std::int64_t, std::int64_t>> of_heads) {
  Patterns patterns;
  for (const auto& [vertical, slash] : of_heads) {
    patterns.push_back({PatternKind::kVerticalSlash, {vertical, slash, 0}});
  }
  return patterns;
}

/// Beyond the sequence, the raised minimum, odd, forced lines only.
const Patterns kSizes = sizes({{1000, 6096}, {0, 0}, {61, 173}, {30, 100}});

std::vector<EstimateCase> make_cases() {
  std::vector<EstimateCase> cases;
  for (std::int64_t length :
       {1, 2, 31, 63, 64, 65, 100, 127, 128, 511, 512, 513, 1023, 1025, 2049, 4097, 4160, 5000}) {
    cases.push_back({.shape = {.reason = "a length",
                               .num_heads_q = length < 1000 ? 4 : 2,
                               .num_heads_kv = 1,
                               .seq_q = length,
                               .seq_kv = length,
                               .head_dim = length % 2 == 0 ? 64 : 16,
                               .patterns = kSizes}});
  }
  for (std::int64_t head_dim = 8; head_dim <= 256; head_dim += 8) {
    cases.push_back({.shape = {.reason = "a head dim",
                               .num_heads_q = 2,
                               .num_heads_kv = 2,
                               .seq_q = 90,
                               .seq_kv = 607,
                               .head_dim = head_dim,
                               .patterns = sizes({{61, 173}, {40, 300}})}});
  }
  const EstimateCase others[] = {
      {.shape = {.reason = "128K keys",
                 .num_heads_q = 2,
                 .num_heads_kv = 1,
                 .seq_q = 100,
                 .seq_kv = 131072,
                 .head_dim = 32,
                 .patterns = sizes({{1000, 6096}, {500, 700}})}},
      {.shape = {.reason = "140001 keys: the longest strips",
                 .num_heads_q = 2,
                 .num_heads_kv = 1,
                 .seq_q = 100,
                 .seq_kv = 140001,
                 .head_dim = 8,
                 .patterns = sizes({{1000, 6096}, {500, 700}})}},
      {.shape = {.reason = "groups of 7 heads, sizes 0 and 30",
                 .num_heads_q = 14,
                 .num_heads_kv = 2,
                 .seq_q = 70,
                 .seq_kv = 513,
                 .head_dim = 32,
                 .patterns = sizes({{0, 0}, {30, 50}, {31, 101}})}},
      {.shape = {.reason = "a group of 8 heads, batch, rows first",
                 .batch = 2,
                 .num_heads_q = 8,
                 .num_heads_kv = 1,
                 .seq_q = 200,
                 .seq_kv = 600,
                 .head_dim = 64,
                 .patterns = kSizes,
                 .layout = Layout::kRowsFirst,
                 .layout_kv = Layout::kRowsFirst}},
      {.shape = {.reason = "rows of odd strides",
                 .batch = 2,
                 .seq_q = 70,
                 .seq_kv = 130,
                 .head_dim = 40,
                 .patterns = kSizes,
                 .layout = Layout::kOddStride,
                 .layout_kv = Layout::kOddStride}},
      {.shape = {.reason = "sliced from wider rows, off alignment",
                 .num_heads_q = 4,
                 .num_heads_kv = 4,
                 .seq_q = 97,
                 .seq_kv = 297,
                 .head_dim = 128,
                 .patterns = kSizes,
                 .layout = Layout::kSliced,
                 .layout_kv = Layout::kSliced}},
      {.shape = {.reason = "keys backwards",
                 .num_heads_q = 2,
                 .num_heads_kv = 1,
                 .seq_q = 97,
                 .seq_kv = 700,
                 .patterns = kSizes,
                 .layout_kv = Layout::kReversed}},
      {.shape = {.reason = "kv heads expanded by stride 0",
                 .batch = 2,
                 .seq_q = 83,
                 .seq_kv = 101,
                 .patterns = kSizes,
                 .layout_kv = Layout::kExpanded}},
      {.shape = {.reason = "fewer queries than 64, the diagonal across two strips",
                 .num_heads_q = 2,
                 .num_heads_kv = 1,
                 .seq_q = 37,
                 .seq_kv = 1045,
                 .patterns = sizes({{61, 173}, {300, 600}})}},
      {.shape = {.reason = "one query: decode",
                 .batch = 2,
                 .num_heads_q = 2,
                 .num_heads_kv = 1,
                 .seq_q = 1,
                 .seq_kv = 1301,
                 .patterns = sizes({{61, 173}, {300, 600}})}},
      {.shape = {.reason = "no queries", .seq_q = 0, .seq_kv = 70, .patterns = kSizes}},
      {.shape = {.reason = "no keys", .seq_q = 0, .seq_kv = 0, .patterns = kSizes}},
      {.shape = {.reason = "no batch", .batch = 0, .seq_q = 5, .seq_kv = 7, .patterns = kSizes}},
      {.shape = {.reason = "left padding: none, in the keys, across the queries, all but one, all",
                 .batch = 5,
                 .num_heads_q = 2,
                 .num_heads_kv = 1,
                 .seq_q = 100,
                 .seq_kv = 620,
                 .patterns = sizes({{61, 173}, {300, 600}}),
                 .first_valid_key = {0, 133, 530, 619, 620}}},
      {.shape = {.reason = "packed: empty sequences, no queries, one row, prefixes",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 370,
                 .seq_kv = 1800,
                 .patterns = kSizes,
                 .cu_seqlens_q = {0, 70, 70, 70, 71, 300, 370},
                 .cu_seqlens_kv = {0, 150, 150, 155, 160, 400, 1800}}},
      {.shape = {.reason = "packed: many short sequences",
                 .num_heads_q = 2,
                 .num_heads_kv = 2,
                 .seq_q = 60,
                 .seq_kv = 80,
                 .patterns = kSizes,
                 .cu_seqlens_q = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 60},
                 .cu_seqlens_kv = {0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 30, 80}}},
      {.shape = {.reason = "all keys equal: ties",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 200,
                 .seq_kv = 1300,
                 .patterns = sizes({{61, 173}, {300, 600}, {0, 0}, {1000, 6096}})},
       .content = Content::kEqualKeys},
      {.shape = {.reason = "NaN in a key",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 100,
                 .seq_kv = 650,
                 .patterns = sizes({{61, 173}, {300, 600}})},
       .content = Content::kNanKey},
      {.shape = {.reason = "infinity in a key",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 100,
                 .seq_kv = 650,
                 .patterns = sizes({{61, 173}, {300, 600}})},
       .content = Content::kInfKey},
      {.shape = {.reason = "NaN in one of the last queries",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 100,
                 .seq_kv = 650,
                 .patterns = sizes({{61, 173}, {300, 600}})},
       .content = Content::kNanQuery},
      {.shape = {.reason = "NaN in a query that does not estimate",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 100,
                 .seq_kv = 650,
                 .patterns = sizes({{61, 173}, {300, 600}})},
       .content = Content::kEarlyQuery},
      {.shape = {.reason = "huge logits",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 100,
                 .seq_kv = 900,
                 .patterns = sizes({{61, 173}, {300, 600}}),
                 .amplitude = 300}},
      {.shape = {.reason = "peaked, scale of the caller",
                 .num_heads_q = 2,
                 .num_heads_kv = 1,
                 .seq_q = 100,
                 .seq_kv = 900,
                 .patterns = sizes({{61, 173}, {300, 600}}),
                 .scale = 0.71,
                 .amplitude = 2}},
  };
  cases.insert(cases.end(), std::begin(others), std::end(others));
  return cases;
}

void store_bits(void* element, DType dtype, std::uint16_t bf16, std::uint16_t fp16) {
  if (dtype == DType::kFloat8E4M3) return store_element(element, dtype, std::nan(""));
  const std::uint16_t bits = dtype == DType::kFloat16 ? fp16 : bf16;
  std::memcpy(element, &bits, sizeof bits);
}

/// Query heads whose scores are spoiled are those below the result.
std::int64_t spoil(Layer& layer, Content content) {
  const DType dtype = layer.host.q.dtype;
  const std::int64_t group = layer.c.num_heads_q / layer.c.num_heads_kv;
  switch (content) {
    case Content::kRandom:
      return 0;
    case Content::kEqualKeys:
      for (std::int64_t h = 0; h < layer.c.num_heads_kv; ++h) {
        for (std::int64_t j = 1; j < layer.c.seq_kv; ++j) {
          std::memcpy(layer.k.at(0, h, j, 0), layer.k.at(0, h, 0, 0), layer.row_bytes());
        }
      }
      return 0;
    case Content::kNanKey:
      store_bits(layer.k.at(0, 0, 77, 5), dtype, 0x7FC0, 0x7E00);
      return group;
    case Content::kInfKey:
      store_bits(layer.k.at(0, 0, 77, 5), dtype, 0x7F80, 0x7C00);
      return group;
    case Content::kNanQuery:
      store_bits(layer.q.at(0, 0, layer.c.seq_q - 3, 5), dtype, 0x7FC0, 0x7E00);
      return 1;
    case Content::kEarlyQuery:
      store_bits(layer.q.at(0, 0, layer.c.seq_q - 65, 5), dtype, 0x7FC0, 0x7E00);
      return 0;
  }
  return 0;
}

/// What a call returned, copied to the host.
struct Estimation {
  std::int64_t vertical_count = 0, slash_count = 0;
  List vertical, slash;
  std::vector<float> column_scores, slash_scores;
};

Estimation estimate(const Layer& layer, bool has_scores, const std::string& what) {
  std::vector<std::int64_t> vertical_size, slash_size;
  Estimation found;
  for (const HeadPattern& pattern : layer.patterns) {
    vertical_size.push_back(pattern.size[0]);
    slash_size.push_back(pattern.size[1]);
    const auto needed = [&](std::int64_t size, std::int64_t least) {
      return std::min(layer.c.seq_kv, std::max(size, least));
    };
    found.vertical_count = std::max(found.vertical_count, needed(pattern.size[0], 30) + 3);
    found.slash_count = std::max(found.slash_count, needed(pattern.size[1], 50) + 1);
  }
  const std::int64_t lists = layer.num_lists();
  const DeviceBytes vertical(lists * found.vertical_count * sizeof(std::int32_t));
  const DeviceBytes slash(lists * found.slash_count * sizeof(std::int32_t));
  const std::size_t score_bytes = has_scores ? lists * layer.c.seq_kv * sizeof(float) : 0;
  const DeviceBytes column_scores(score_bytes), slash_scores(score_bytes);
  vertical.fill(0x7F);  // were they -1 from the start, missing padding would not show
  slash.fill(0x7F);
  VsIndexParams params;
  params.vertical_size = vertical_size.data();
  params.slash_size = slash_size.data();
  params.vertical_idx = vertical.as<std::int32_t>();
  params.slash_idx = slash.as<std::int32_t>();
  params.vertical_count = found.vertical_count;
  params.slash_count = found.slash_count;
  if (has_scores) {
    params.column_scores = column_scores.as<float>();
    params.slash_scores = slash_scores.as<float>();
  }
  std::size_t bytes = 0, bytes_of_shapes = 0;
  AttentionArgs shapes_only = layer.device;
  shapes_only.q.data = shapes_only.k.data = nullptr;
  Status status = estimate_vs_index_supports(layer.device, params);
  CHECK(status == Status::kOk, "%s: supports: %s", what.c_str(), last_error());
  status = estimate_vs_index_workspace_bytes(layer.device, params, &bytes);
  CHECK(status == Status::kOk, "%s: workspace_bytes: %s", what.c_str(), last_error());
  status = estimate_vs_index_workspace_bytes(shapes_only, params, &bytes_of_shapes);
  CHECK(status == Status::kOk && bytes == bytes_of_shapes, "%s: %zu bytes, without data %zu",
        what.c_str(), bytes, bytes_of_shapes);
  const DeviceBytes workspace = device_workspace(bytes);
  status = estimate_vs_index(layer.device, params, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  if (status != Status::kOk) return {};
  wait_for_device(what.c_str());
  for (const DeviceBytes* memory : {&vertical, &slash, &column_scores, &slash_scores, &workspace}) {
    CHECK(memory->has_guards(), "%s: memory around a buffer was written", what.c_str());
  }
  found.vertical = vertical.read<std::int32_t>();
  found.slash = slash.read<std::int32_t>();
  found.column_scores = column_scores.read<float>();
  found.slash_scores = slash_scores.read<float>();
  return found;
}

/// The lines of one head: where they and their scores are, and what they have to be.
struct Lines {
  const std::int32_t* list;
  std::int64_t count;   // entries of the list
  const float* scores;  // [seq_kv]
  std::int64_t seq_kv;
  std::int64_t kv_len;  // 0: a sequence without lines
  std::int64_t wanted;  // lines
  std::int64_t num_forced;
};

/// The list is what the CPU's selection takes from the same scores.
void check_selection(const Lines& lines, const std::string& what) {
  List expected(std::min(lines.wanted, lines.kv_len));
  cpu::select_top_k(lines.scores, lines.kv_len, expected.size(),
                    std::min(lines.num_forced, lines.kv_len), expected.data());
  expected.resize(lines.count, -1);
  const auto [found, wanted] =
      std::mismatch(lines.list, lines.list + lines.count, expected.begin());
  CHECK(found == lines.list + lines.count, "%s: entry %d is %d, expected %d", what.c_str(),
        int(found - lines.list), *found, *wanted);
}

/// Scores within `tolerance`, relative, and lines that are as good as the best ones.
void check_against_oracle(const Lines& lines, const std::vector<double>& expected, double tolerance,
                          const std::string& what) {
  std::int64_t bad = -1;
  for (std::int64_t n = 0; n < lines.seq_kv && bad < 0; ++n) {
    const double wanted = n < lines.kv_len ? expected[n] : 0;
    const bool is_close = std::abs(lines.scores[n] - wanted) <= tolerance * wanted + 1e-35;
    if (!is_close) bad = n;
  }
  CHECK(bad < 0, "%s: score %d is %.9g, expected %.9g (relative tolerance %g)", what.c_str(),
        int(bad), double(lines.scores[bad]), bad < lines.kv_len ? expected[bad] : 0.0, tolerance);
  std::vector<bool> is_chosen(lines.kv_len, false);
  for (std::int64_t n = 0; n < lines.count; ++n) {
    if (lines.list[n] >= 0 && lines.list[n] < lines.kv_len) is_chosen[lines.list[n]] = true;
  }
  double worst_chosen = 1e300, best_left = 0;
  for (std::int64_t n = lines.num_forced; n < lines.kv_len; ++n) {
    if (is_chosen[n]) {
      worst_chosen = std::min(worst_chosen, expected[n]);
    } else {
      best_left = std::max(best_left, expected[n]);
    }
  }
  CHECK(worst_chosen * (1 + tolerance) >= best_left * (1 - tolerance) - 1e-35,
        "%s: chose %.9g, left %.9g", what.c_str(), worst_chosen, best_left);
}

/// L: what no logit of the head's last queries exceeds, in log2 units.
double largest_logit(const Layer& layer, const reference::Sequence& sequence, std::int64_t head) {
  const auto largest = [&](const TensorView& view, const float* scales, std::int64_t head,
                           std::int64_t begin, std::int64_t end) {
    double result = 0;
    for (std::int64_t row = begin; row < end; ++row) {
      double square = 0;
      for (double x : reference::load_scaled_row(view, scales, sequence.batch, head, row)) {
        square += x * x;
      }
      result = std::max(result, square);
    }
    return std::sqrt(result);
  };
  const std::int64_t q_end = sequence.q_begin + sequence.q_len;
  const std::int64_t q_begin = std::max(sequence.q_begin, q_end - 64);
  const std::int64_t head_kv = head / (layer.c.num_heads_q / layer.c.num_heads_kv);
  return largest(layer.host.q, layer.host.q_scale, head, q_begin, q_end) *
         largest(layer.host.k, layer.host.k_scale, head_kv, sequence.kv_begin,
                 sequence.kv_begin + sequence.kv_len) *
         reference::softmax_scale(layer.host) * 1.4426950408889634;
}

void check_estimation(const Layer& layer, const Estimation& found, std::int64_t num_spoiled,
                      const std::string& what) {
  const std::vector<reference::Sequence> sequences = reference::sequences(layer.host);
  for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
    const std::int64_t head = n % layer.c.num_heads_q;
    const reference::Sequence& sequence = sequences[n / layer.c.num_heads_q];
    const std::int64_t kv_len = sequence.q_len > 0 ? sequence.kv_len : 0;
    const HeadPattern& pattern = layer.patterns[head];
    const Lines vertical = {.list = found.vertical.data() + n * found.vertical_count,
                            .count = found.vertical_count,
                            .scores = found.column_scores.data() + n * layer.c.seq_kv,
                            .seq_kv = layer.c.seq_kv,
                            .kv_len = kv_len,
                            .wanted = std::max<std::int64_t>(pattern.size[0], 30),
                            .num_forced = 30};
    const Lines slash = {.list = found.slash.data() + n * found.slash_count,
                         .count = found.slash_count,
                         .scores = found.slash_scores.data() + n * layer.c.seq_kv,
                         .seq_kv = layer.c.seq_kv,
                         .kv_len = kv_len,
                         .wanted = std::max<std::int64_t>(pattern.size[1], 50),
                         .num_forced = 100};
    const std::string where = what + ", list " + std::to_string(n);
    check_selection(vertical, where + ", V");
    check_selection(slash, where + ", S");
    if (head < num_spoiled) continue;
    reference::VsScores expected;
    double tolerance = 0;
    if (kv_len > 0) {
      expected = reference::vs_scores(layer.host, sequence, head);
      tolerance = 4e-6 + 0x1p-20 * largest_logit(layer, sequence, head);
    }
    check_against_oracle(vertical, expected.column, tolerance, where + ", columns");
    check_against_oracle(slash, expected.slash, tolerance, where + ", offsets");
  }
}

template <class T>
bool is_same(const std::vector<T>& a, const std::vector<T>& b, std::size_t begin = 0) {
  return a.size() == b.size() &&
         (a.size() <= begin ||
          std::memcmp(a.data() + begin, b.data() + begin, (a.size() - begin) * sizeof(T)) == 0);
}

void test_case(const EstimateCase& c, DType dtype) {
  const std::string what = std::string(c.shape.reason) + ", " + std::to_string(c.shape.seq_q) +
                           " x " + std::to_string(c.shape.seq_kv) + ", head dim " +
                           std::to_string(c.shape.head_dim) + ", " + dtype_name(dtype);
  Layer layer(c.shape, dtype);
  Estimation clean;
  const bool is_spoiled = c.content > Content::kEqualKeys;
  if (is_spoiled) clean = estimate(layer, true, what + ", before it was spoiled");
  const std::int64_t num_spoiled = spoil(layer, c.content);
  layer.update_device();
  const Estimation found = estimate(layer, true, what);
  check_estimation(layer, found, num_spoiled, what);
  if (is_spoiled) {
    // One sequence: heads that do not meet the spoiled row are the same to the last bit.
    CHECK(is_same(clean.column_scores, found.column_scores, num_spoiled * c.shape.seq_kv) &&
              is_same(clean.slash_scores, found.slash_scores, num_spoiled * c.shape.seq_kv) &&
              is_same(clean.vertical, found.vertical, num_spoiled * found.vertical_count) &&
              is_same(clean.slash, found.slash, num_spoiled * found.slash_count),
          "%s: other heads changed", what.c_str());
  }
  const Estimation again = estimate(layer, false, what + ", again, lists only");
  CHECK(is_same(found.vertical, again.vertical) && is_same(found.slash, again.slash),
        "%s: other lists without scores", what.c_str());
  const Estimation third = estimate(layer, true, what + ", third");
  CHECK(is_same(found.column_scores, third.column_scores) &&
            is_same(found.slash_scores, third.slash_scores),
        "%s: other bits in another run", what.c_str());
}

/// Those that float8 has: not infinity, nor lengths that would only take long.
bool is_for_float8(const EstimateCase& c) {
  return c.content != Content::kInfKey && c.shape.seq_kv <= 5000 && runs_in_float8(c.shape);
}

}  // namespace
}  // namespace minference::test

int main(int argc, char** argv) {
  using namespace minference;
  for (const test::EstimateCase& c : test::make_cases()) {
    if (!test::is_chosen(c.shape.reason, argc, argv)) continue;
    test::test_case(c, DType::kBFloat16);
    test::test_case(c, DType::kFloat16);
    if (test::is_for_float8(c)) test::test_case(c, DType::kFloat8E4M3);
  }
  return test::finish("vs_index_cuda_test");
}
