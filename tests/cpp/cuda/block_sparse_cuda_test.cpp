// Heads of kBlockSparse on inputs that hold infinities and NaN, and on short block lists where NaN
// has to be listed. What the device chooses is compared with a ranking in double that has the CPU's
// meaning: NaN below everything, equal scores by block. Heads, key heads and sequences that hold no
// such value must choose what they choose without it.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "../check.h"
#include "float8.h"
#include "layer.h"
#include "layer_index.h"
#include "plan_copy.h"

namespace minference::test {
namespace {

using List = std::vector<std::int32_t>;

/// fp32 against double: block means that are closer than this, relative to the largest finite
/// score, may be ranked either way.
constexpr double kTieTolerance = 1e-5;
constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

/// Elements [row_begin, row_end) of a dimension are set to a value.
struct Spot {
  double value;
  std::int64_t row_begin, row_end, dim;
};

struct Spoiled {
  const char* what;
  bool is_query;      // spots are in q, else in k
  std::int64_t head;  // that holds them
  std::vector<Spot> spots;
};

/// Rows are those of batch row 0. Key blocks count from a sequence's first key.
const Spoiled kSpoiled[] = {
    {"Inf in one key", false, 1, {{kInf, 700, 701, 3}}},
    {"-Inf in one key", false, 1, {{-kInf, 129, 130, 0}}},
    {"Inf in two dimensions of one key", false, 0, {{kInf, 300, 301, 1}, {kInf, 300, 301, 2}}},
    {"Inf and -Inf in one dimension of a block",
     false,
     1,
     {{kInf, 640, 641, 5}, {-kInf, 641, 642, 5}}},
    {"NaN in one key", false, 0, {{kNaN, 333, 334, 7}}},
    {"NaN in the first key", false, 1, {{kNaN, 0, 1, 0}}},
    {"NaN in most keys: some must be listed", false, 1, {{kNaN, 128, 1400, 2}}},
    {"NaN in every key", false, 0, {{kNaN, 0, 1 << 30, 4}}},
    {"Inf in every key", false, 1, {{kInf, 0, 1 << 30, 4}}},
    {"NaN, Inf and -Inf in some keys",
     false,
     0,
     {{kNaN, 64, 65, 0}, {kInf, 200, 201, 1}, {-kInf, 400, 401, 2}, {kNaN, 1000, 1001, 3}}},
    {"Inf in one query", true, 2, {{kInf, 70, 71, 6}}},
    {"-Inf and Inf in one query", true, 1, {{-kInf, 5, 6, 0}, {kInf, 5, 6, 1}}},
    {"NaN in one query", true, 3, {{kNaN, 128, 129, 6}}},
};

void set_element(void* element, DType dtype, double value) {
  if (dtype != DType::kFloat16 || std::isfinite(value)) {
    store_element(element, dtype, value);
    return;
  }
  const std::uint16_t bits = std::isnan(value) ? 0x7E00 : value > 0 ? 0x7C00 : 0xFC00;
  std::memcpy(element, &bits, sizeof bits);
}

void spoil(const Spoiled& spoiled, DType dtype, HeapTensor* tensor) {
  for (const Spot& spot : spoiled.spots) {
    const std::int64_t end = std::min(spot.row_end, tensor->view.shape[2]);
    for (std::int64_t row = spot.row_begin; row < end; ++row) {
      set_element(tensor->at(0, spoiled.head, row, spot.dim), dtype, spot.value);
    }
  }
}

std::vector<double> mean_row(const HeapTensor& tensor, std::int64_t batch, std::int64_t head,
                             std::int64_t begin, std::int64_t end) {
  std::vector<double> mean(tensor.view.shape[3], 0.0);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::vector<double> values = reference::load_row(tensor.view, batch, head, row);
    for (std::size_t d = 0; d < mean.size(); ++d) mean[d] += values[d];
  }
  for (double& value : mean) value /= static_cast<double>(end - begin);
  return mean;
}

bool ranks_before(double a, double b) {
  if (std::isnan(b)) return !std::isnan(a);
  return a > b;
}

/// The listed blocks, ascending. False if fp32 may rank another way.
bool expected_tiles(const Layer& layer, const reference::Sequence& sequence, std::int64_t head,
                    std::int64_t row_block, List* tiles) {
  const std::int64_t head_kv = head / (layer.c.num_heads_q / layer.c.num_heads_kv);
  const std::int64_t row = row_block * 64, row_end = std::min(row + 64, sequence.q_len);
  const std::int64_t shift = sequence.kv_len - sequence.q_len;
  const std::vector<double> query =
      mean_row(layer.q, sequence.batch, head, sequence.q_begin + row, sequence.q_begin + row_end);
  std::vector<double> scores;
  double largest = 0;
  for (std::int64_t key = 0; key < row_end + shift; key += 64) {
    const std::int64_t end = std::min(key + 64, sequence.kv_len);
    const std::vector<double> mean = mean_row(layer.k, sequence.batch, head_kv,
                                              sequence.kv_begin + key, sequence.kv_begin + end);
    double score = 0;
    for (std::size_t d = 0; d < mean.size(); ++d) score += query[d] * mean[d];
    scores.push_back(score);
    if (std::isfinite(score)) largest = std::max(largest, std::abs(score));
  }
  List order(scores.size());
  for (std::size_t n = 0; n < order.size(); ++n) order[n] = static_cast<std::int32_t>(n);
  std::stable_sort(order.begin(), order.end(),
                   [&](int a, int b) { return ranks_before(scores[a], scores[b]); });
  const std::size_t top_k = layer.patterns[head].size[0];
  const std::size_t count = std::min(top_k, order.size());
  tiles->assign(order.begin(), order.begin() + count);
  std::sort(tiles->begin(), tiles->end());
  if (count == 0 || count == order.size()) return true;
  const double last = scores[order[count - 1]], next = scores[order[count]];
  if (!std::isfinite(last) || !std::isfinite(next)) return true;
  return last - next > kTieTolerance * largest;
}

/// The lists of every row block, by list (sequence, head).
std::vector<std::vector<List>> chosen_tiles(const Layer& layer, const std::string& what) {
  const plan::Problem problem = layer.device_problem(false, false);
  const std::size_t bytes = cuda::LayerIndex(problem, nullptr).workspace_bytes();
  const DeviceBytes workspace = device_workspace(bytes);
  cuda::LayerIndex index(problem, workspace.data());
  CHECK(index.build(0) == Status::kOk, "%s: %s", what.c_str(), last_error());
  wait_for_device(what.c_str());
  CHECK(workspace.has_guards(), "%s: memory around the workspace was written", what.c_str());
  const PlanCopy copy(index.plan(), layer.c.num_heads_q, layer.num_sequences(), layer.row_bytes());
  const std::vector<reference::Sequence> sequences = reference::sequences(layer.host);
  std::vector<std::vector<List>> all;
  for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
    const PlannedRows rows = planned_rows(sequences, n / layer.c.num_heads_q, 0, 0);
    const HeadView view(copy, rows, n % layer.c.num_heads_q);
    std::vector<List> lists;
    for (std::int64_t row = 0; row < rows.row_end; row += 64) lists.push_back(view.tiles(row / 64));
    all.push_back(std::move(lists));
  }
  return all;
}

/// Whether any spoiled row belongs to the sequence, the head being given.
bool is_spoiled(const Spoiled& spoiled, const Layer& layer, const reference::Sequence& sequence,
                std::int64_t head) {
  const std::int64_t head_kv = head / (layer.c.num_heads_q / layer.c.num_heads_kv);
  if (sequence.batch != 0 || spoiled.head != (spoiled.is_query ? head : head_kv)) return false;
  const std::int64_t begin = spoiled.is_query ? sequence.q_begin : sequence.kv_begin;
  const std::int64_t end = begin + (spoiled.is_query ? sequence.q_len : sequence.kv_len);
  return std::any_of(spoiled.spots.begin(), spoiled.spots.end(), [&](const Spot& spot) {
    return spot.row_begin < end && begin < spot.row_end;
  });
}

bool has_infinity(const Spoiled& spoiled) {
  return std::any_of(spoiled.spots.begin(), spoiled.spots.end(),
                     [](const Spot& spot) { return std::isinf(spot.value); });
}

void test_spoiled(const Case& c, DType dtype, int argc, char** argv) {
  const Layer clean(c, dtype);
  const std::vector<std::vector<List>> clean_tiles = chosen_tiles(clean, c.reason);
  const std::vector<reference::Sequence> sequences = reference::sequences(clean.host);
  for (const Spoiled& spoiled : kSpoiled) {
    const std::string what = std::string(c.reason) + ", " + dtype_name(dtype) + ", " + spoiled.what;
    if (!is_chosen(what.c_str(), argc, argv)) continue;
    if (dtype == DType::kFloat8E4M3 && has_infinity(spoiled)) continue;  // it has none
    Layer layer(c, dtype);
    spoil(spoiled, dtype, spoiled.is_query ? &layer.q : &layer.k);
    layer.update_device();
    const std::vector<std::vector<List>> found = chosen_tiles(layer, what);
    std::int64_t num_compared = 0, num_spoiled = 0;
    for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
      const std::int64_t head = n % c.num_heads_q, at = n / c.num_heads_q;
      if (is_spoiled(spoiled, layer, sequences[at], head)) {
        ++num_spoiled;
      } else {
        CHECK(found[n] == clean_tiles[n], "%s: list %d, which holds no such value, is another",
              what.c_str(), int(n));
      }
      for (std::size_t block = 0; block < found[n].size(); ++block) {
        List expected;
        if (!expected_tiles(layer, sequences[at], head, block, &expected)) continue;
        ++num_compared;
        CHECK(found[n][block] == expected, "%s: list %d, row block %d: %zu tiles, expected %zu",
              what.c_str(), int(n), int(block), found[n][block].size(), expected.size());
      }
    }
    CHECK(num_spoiled > 0 && num_compared > 0, "%s: compared nothing", what.c_str());
  }
}

const Patterns kLists = {{PatternKind::kBlockSparse, {5}},
                         {PatternKind::kBlockSparse, {8}},
                         {PatternKind::kBlockSparse, {1}},
                         {PatternKind::kBlockSparse, {7}}};

const Case kShapes[] = {
    {.reason = "two sequences of a batch",
     .batch = 2,
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 200,
     .seq_kv = 1500,
     .patterns = kLists},
    {.reason = "packed, a block that two sequences share",
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 330,
     .seq_kv = 1600,
     .head_dim = 24,
     .patterns = kLists,
     .cu_seqlens_q = {0, 130, 131, 330},
     .cu_seqlens_kv = {0, 660, 720, 1600}},
    {.reason = "more key blocks than a tile of scores",
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 130,
     .seq_kv = 8900,
     .patterns = {{PatternKind::kBlockSparse, {30}},
                  {PatternKind::kBlockSparse, {100}},
                  {PatternKind::kBlockSparse, {3}},
                  {PatternKind::kBlockSparse, {131}}}},
};

}  // namespace
}  // namespace minference::test

int main(int argc, char** argv) {
  using namespace minference;
  const bool has_float8 = test::device_has_float8();
  for (const test::Case& c : test::kShapes) {
    for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      test::test_spoiled(c, dtype, argc, argv);
    }
    test::Case of_float8 = c;
    of_float8.head_dim = (c.head_dim + 15) / 16 * 16;
    if (has_float8) test::test_spoiled(of_float8, DType::kFloat8E4M3, argc, argv);
  }
  return test::finish("block_sparse_cuda_test");
}
