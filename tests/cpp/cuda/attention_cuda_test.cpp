// Every attention op on CUDA against the double reference, in both dtypes: the cases of the CPU's
// test, cases for what only this backend has (two row blocks that share keys, keys cut in parts),
// and random ones. attention_cuda_test REASON runs the cases whose reason contains the word.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "../check.h"
#include "bench/cuda/line_patterns.h"
#include "layer.h"
#include "layer_attention.h"

namespace minference::test {
namespace {

constexpr DType kDTypes[] = {DType::kBFloat16, DType::kFloat16};

const Case kAttentionCases[] = {
    {.reason = "many row blocks, an odd number of them",
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 290,
     .seq_kv = 700,
     .head_dim = 64,
     .patterns = {kVsIndex, kBlockIndex, kTriShape, kDense},
     .num_vertical = 150,
     .num_slash = 40,
     .num_blocks = 9},
    {.reason = "many batches of pieces: lines that cover nearly everything, long block lists",
     .num_heads_q = 4,
     .num_heads_kv = 1,
     .seq_q = 250,
     .seq_kv = 2900,
     .patterns = {kVsIndex, kBlockIndex, kDense, kVsIndex},
     .num_vertical = 1500,
     .num_slash = 300,
     .num_blocks = 120},
    {.reason = "more verticals than a batch of pieces, few slashes",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 140,
     .seq_kv = 2600,
     .head_dim = 40,
     .patterns = {kVsIndex, {PatternKind::kVerticalSlash, {1900, 50}}},
     .num_vertical = 4000,
     .num_slash = 3},
    {.reason = "many batches, mode exact",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 200,
     .seq_kv = 2300,
     .patterns = {kVsIndex},
     .mode = SlashMode::kExact,
     .num_vertical = 400,
     .num_slash = 500},
    {.reason = "many batches, mode reference",
     .num_heads_q = 4,
     .num_heads_kv = 1,
     .seq_q = 200,
     .seq_kv = 2300,
     .patterns = {kVsIndex, kBlockIndex, kDense, {PatternKind::kVerticalSlash, {40, 120}}},
     .mode = SlashMode::kReference,
     .num_vertical = 1500,
     .num_slash = 50,
     .num_blocks = 20},
    {.reason = "windows and sinks of many sizes",
     .num_heads_q = 8,
     .num_heads_kv = 8,
     .seq_q = 400,
     .seq_kv = 477,
     .patterns = {{PatternKind::kAShape, {0, 1}},
                  {PatternKind::kAShape, {33, 64}},
                  {PatternKind::kAShape, {128, 256}},
                  {PatternKind::kAShape, {300, 300}},
                  {PatternKind::kTriShape, {4, 100, 65}},
                  {PatternKind::kTriShape, {0, 0, 1}},
                  {PatternKind::kTriShape, {70, 33, 200}},
                  {PatternKind::kTriShape, {70, 0, 10000}}}},
    {.reason = "every pattern, packed, estimated per chunk, head of 96",
     .seq_q = 420,
     .seq_kv = 700,
     .head_dim = 96,
     .estimate_every = 128,
     .cu_seqlens_q = {0, 200, 200, 265, 420},
     .cu_seqlens_kv = {0, 200, 260, 330, 700}},
    {.reason = "padding longer than a chunk of queries",
     .batch = 2,
     .num_heads_q = 2,
     .num_heads_kv = 2,
     .seq_q = 500,
     .seq_kv = 500,
     .patterns = {kVs},
     .estimate_every = 64,
     .first_valid_key = {431, 3}},
    {.reason = "head of 256, every pattern, three row blocks",
     .seq_q = 150,
     .seq_kv = 310,
     .head_dim = 256,
     .layout = Layout::kRowsFirst,
     .layout_kv = Layout::kRowsFirst},
    {.reason = "head of 128, every pattern, rows of odd strides",
     .seq_q = 200,
     .seq_kv = 230,
     .head_dim = 128,
     .layout = Layout::kOddStride,
     .layout_kv = Layout::kOddStride},
    {.reason = "head of 128, no lines at all: nothing but q is copied",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 130,
     .seq_kv = 150,
     .head_dim = 128,
     .patterns = {kVsIndex},
     .num_vertical = 0,
     .num_slash = 0},
    {.reason = "head of 256, no lines at all",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 70,
     .seq_kv = 90,
     .head_dim = 256,
     .patterns = {kVsIndex},
     .num_vertical = 0,
     .num_slash = 0},
    {.reason = "out aligned, inputs not",
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 130,
     .seq_kv = 150,
     .head_dim = 64,
     .layout_kv = Layout::kSliced},
    {.reason = "very peaked rows: maxima rise by far more than probabilities may",
     .num_heads_q = 4,
     .num_heads_kv = 4,
     .seq_q = 200,
     .seq_kv = 400,
     .patterns = {kDense, kVsIndex, kBlockIndex, kAShape},
     .amplitude = 60},
    {.reason = "not finite, head of 128, estimated lines: gathered keys and diagonals",
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 300,
     .seq_kv = 300,
     .head_dim = 128,
     .patterns = {kVsIndex, kBlockIndex, kDense, kTriShape},
     .num_vertical = 60,
     .has_nonfinite = true},
    {.reason = "not finite, head of 128, few diagonals: pieces with half of their columns",
     .num_heads_q = 16,
     .num_heads_kv = 2,
     .seq_q = 200,
     .seq_kv = 330,
     .head_dim = 128,
     .patterns = {kVsIndex},
     .num_vertical = 9,
     .num_slash = 3,
     .has_nonfinite = true},
    {.reason = "not finite, head of 256, packed rows",
     .num_heads_q = 2,
     .num_heads_kv = 2,
     .seq_q = 170,
     .seq_kv = 230,
     .head_dim = 256,
     .patterns = {kDense, kVsIndex},
     .num_vertical = 100,
     .cu_seqlens_q = {0, 40, 170},
     .cu_seqlens_kv = {0, 60, 230},
     .has_nonfinite = true},
};

/// Cases whose keys are cut in parts.
const Case kPartCases[] = {
    {.reason = "parts, every pattern",
     .seq_q = 200,
     .seq_kv = 2100,
     .head_dim = 64,
     .num_vertical = 300,
     .num_slash = 60,
     .num_blocks = 20},
    {.reason = "parts, batch with padding: rows with few keys and none",
     .batch = 3,
     .seq_q = 130,
     .seq_kv = 1600,
     .patterns = {kVs, kVsIndex, kDense, kAShape},
     .num_vertical = 100,
     .num_slash = 20,
     .layout = Layout::kRowsFirst,
     .first_valid_key = {0, 1500, 1599}},
    {.reason = "parts, packed, estimated per chunk, no lse",
     .seq_q = 300,
     .seq_kv = 3000,
     .head_dim = 24,
     .estimate_every = 64,
     .layout = Layout::kSliced,
     .layout_kv = Layout::kSliced,
     .cu_seqlens_q = {0, 0, 130, 300},
     .cu_seqlens_kv = {0, 40, 1800, 3000},
     .has_lse = false},
    {.reason = "parts, mode exact, not finite",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 100,
     .seq_kv = 1100,
     .head_dim = 40,
     .patterns = {kVsIndex},
     .mode = SlashMode::kExact,
     .num_vertical = 50,
     .num_slash = 200,
     .has_nonfinite = true},
    {.reason = "parts, mode reference",
     .num_heads_q = 2,
     .num_heads_kv = 2,
     .seq_q = 150,
     .seq_kv = 1700,
     .patterns = {kVsIndex},
     .mode = SlashMode::kReference,
     .num_vertical = 200,
     .num_slash = 40},
    {.reason = "parts, one query",
     .batch = 2,
     .seq_q = 1,
     .seq_kv = 4000,
     .head_dim = 128,
     .patterns = {kDense, kAShape, kVsIndex, kBlockIndex},
     .num_vertical = 1000,
     .num_slash = 100,
     .num_blocks = 30},
};

/// Runs the op as a user would and copies the results to the host.
void run_sparse(const Layer& layer, const std::string& what) {
  layer.poison_results();
  const std::size_t bytes = checked_workspace_bytes(layer.device, layer.device_params, what);
  const DeviceBytes workspace = device_workspace(bytes);
  const Status status =
      sparse_attention(layer.device, layer.device_params, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  wait_for_device(what.c_str());
  CHECK(workspace.has_guards() && layer.device_out.has_guards() && layer.device_lse.has_guards(),
        "%s: memory around a buffer was written", what.c_str());
  layer.read_results();
}

std::vector<unsigned char> results(const Layer& layer) {
  std::vector<unsigned char> all = layer.device_out.read();
  const std::vector<unsigned char> sums = layer.device_lse.read();
  all.insert(all.end(), sums.begin(), sums.end());
  return all;
}

/// What the CPU's op gives for the same arguments is as near to it as both are to the reference.
void compare_with_cpu(Layer& layer, const reference::Result& expected, const std::string& what) {
  const HeapBytes on_device(layer.out.bytes.size());
  std::memcpy(on_device.data(), layer.out.bytes.data(), on_device.size());
  TensorView found = layer.host.out;
  found.data = on_device.data() +
               (static_cast<unsigned char*>(layer.out.view.data) - layer.out.bytes.data());
  std::size_t bytes = 0;
  CHECK(sparse_attention_workspace_bytes(layer.host, layer.host_params, &bytes) == Status::kOk,
        "%s: CPU: %s", what.c_str(), last_error());
  const HeapBytes workspace(bytes);
  CHECK(sparse_attention(layer.host, layer.host_params, workspace.data(), bytes) == Status::kOk,
        "%s: CPU: %s", what.c_str(), last_error());
  std::size_t n = 0;
  for (std::int64_t b = 0; b < layer.c.batch; ++b) {
    for (std::int64_t h = 0; h < layer.c.num_heads_q; ++h) {
      for (std::int64_t r = 0; r < layer.c.seq_q; ++r) {
        const std::vector<double> cuda_row = reference::load_row(found, b, h, r);
        const std::vector<double> cpu_row = reference::load_row(layer.host.out, b, h, r);
        for (std::size_t d = 0; d < cuda_row.size(); ++d, ++n) {
          const double allowed = 2 * tolerance(expected, n, layer.host.q.dtype);
          const bool is_good = std::isfinite(expected.out[n])
                                   ? std::abs(cuda_row[d] - cpu_row[d]) <= allowed
                                   : is_close(cuda_row[d], cpu_row[d], 0);
          CHECK(is_good, "%s: out[%d,%d,%d,%d] is %g on CUDA and %g on the CPU", what.c_str(),
                int(b), int(h), int(r), int(d), cuda_row[d], cpu_row[d]);
        }
      }
    }
  }
}

/// `run(layer, what)` computes the results on the device and copies them to the host.
template <class Run>
void test_case(const Case& c, DType dtype, const Run& run) {
  const std::string what = std::string(dtype_name(dtype)) + ", " + c.reason;
  // Numbers whose lines and blocks do not depend on the last bits of a score.
  for (unsigned seed = 0; seed < 50; ++seed) {
    Layer layer(c, dtype, seed);
    const reference::Result expected = reference::attention(layer.host, layer.host_params);
    if (expected.margin <= tie_tolerance(dtype) && seed < 49) continue;
    CHECK(expected.margin > tie_tolerance(dtype), "%s: always a tie", what.c_str());
    layer.device_params.dense_fallback = 0;
    run(layer, what);
    compare(layer.host, layer.out, expected, what);
    const std::vector<unsigned char> first = results(layer);
    run(layer, what + ", again");
    CHECK(results(layer) == first, "%s: a second run gives other bits", what.c_str());
    compare_with_cpu(layer, expected, what);
    return;
  }
}

/// As run_sparse(), on a device that runs as many blocks at once as it takes to cut keys in parts.
void run_in_parts(const Layer& layer, const std::string& what) {
  layer.poison_results();
  const plan::Problem problem = layer.device_problem(false, true);
  constexpr std::int32_t kSlots = 1 << 20;
  const std::size_t bytes = cuda::LayerAttention(problem, kSlots, nullptr).workspace_bytes();
  CHECK(bytes > cuda::LayerAttention(problem, 1, nullptr).workspace_bytes(),
        "%s: keys are not cut in parts", what.c_str());
  const DeviceBytes workspace = device_workspace(bytes);
  cuda::LayerAttention attention(problem, kSlots, workspace.data());
  CHECK(attention.run() == Status::kOk, "%s: %s", what.c_str(), last_error());
  wait_for_device(what.c_str());
  CHECK(workspace.has_guards() && layer.device_out.has_guards() && layer.device_lse.has_guards(),
        "%s: memory around a buffer was written", what.c_str());
  layer.read_results();
}

void test_num_key_parts() {
  const auto check = [](std::int64_t tasks, std::int64_t slots, std::int64_t keys,
                        std::int32_t expected) {
    const std::int32_t found = cuda::num_key_parts(tasks, slots, keys);
    CHECK(found == expected, "%d tasks on %d slots, %d keys: %d parts, not %d", int(tasks),
          int(slots), int(keys), found, expected);
  };
  check(0, 264, 1 << 20, 1);
  check(264, 264, 1 << 20, 1);
  check(5000, 264, 1 << 20, 1);
  check(128, 264, 131072, 2);  // 512 queries, 32 heads: 97 % of the slots work
  check(128, 216, 131072, 5);  // 99 %, where 2 parts take two waves
  check(32, 264, 131072, 8);   // decoding: one wave
  check(32, 264, 1023, 1);     // too short to cut
  check(1, 264, 1 << 20, 61);  // 64 at most, of which the last ones gain little
  check(128, 264, 1 << 20, 2);
}

/// With dense_fallback a head is what plan_stats says it is, and lists are never replaced.
void test_dense_fallback() {
  const Case& c = kFallbackCase;
  Layer layer(c, DType::kBFloat16);
  layer.device_params.dense_fallback = 1;
  std::size_t bytes = 0;
  CHECK(plan_stats_workspace_bytes(layer.device, layer.device_params, &bytes) == Status::kOk, "%s",
        last_error());
  const DeviceBytes workspace = device_workspace(bytes), memory(3 * sizeof(PlanStats));
  CHECK(plan_stats(layer.device, layer.device_params, memory.as<PlanStats>(), workspace.data(),
                   bytes) == Status::kOk,
        "%s", last_error());
  wait_for_device(c.reason);
  const std::vector<PlanStats> stats = memory.read<PlanStats>();
  run_sparse(layer, c.reason);
  expect_fallback(stats.data(), &layer.patterns);
  compare(layer.host, layer.out, reference::attention(layer.host, layer.host_params), c.reason);
}

/// Offsets at the distances where pieces of 32 or 64 keys touch, overlap or leave one key free.
void fill_near_lists(std::int32_t* list, std::int64_t count, std::int64_t limit,
                     std::mt19937& generator) {
  constexpr int kSteps[] = {1, 2, 31, 32, 33, 62, 63, 64, 65, 66, 96, 97, 127, 128, 129};
  std::int64_t entry = generator() % 8;
  for (std::int64_t n = 0; n < count; ++n) {
    list[n] = entry < limit ? static_cast<std::int32_t>(entry) : -1;
    entry += kSteps[generator() % std::size(kSteps)];
  }
}

/// Lengths, sizes and head dimensions at random: every pattern's edges meet every position within
/// the kernel's pieces.
void test_random_cases(int num_rounds) {
  std::mt19937 generator(11);
  constexpr int kHeadDims[] = {8, 64, 88, 128, 200, 256};
  for (int round = 0; round < num_rounds; ++round) {
    Case c = {.reason = "random", .num_heads_q = 6, .num_heads_kv = 1};
    c.head_dim = kHeadDims[generator() % std::size(kHeadDims)];
    c.seq_q = 1 + generator() % 300;
    c.seq_kv = c.seq_q + generator() % 300;
    c.mode = round % 4 == 3   ? SlashMode::kExact
             : round % 4 == 2 ? SlashMode::kReference
                              : SlashMode::kCover;
    c.num_vertical = generator() % 50;
    c.num_slash = generator() % 12;
    c.num_blocks = 1 + generator() % 8;
    const auto size = [&](int limit) { return static_cast<std::int64_t>(generator() % limit); };
    c.patterns = {kDense,
                  {PatternKind::kAShape, {size(80), size(300)}},
                  {PatternKind::kTriShape, {size(80), size(300), size(200)}},
                  kVsIndex,
                  kBlockIndex,
                  kVsIndex};
    Layer layer(c, kDTypes[round % 2], static_cast<unsigned>(round), 0);
    for (const std::int64_t head : {3, 5}) {
      fill_near_lists(layer.slash_idx.data() + head * c.num_slash, c.num_slash, c.seq_kv,
                      generator);
    }
    layer.update_device();
    const std::string what = "random case " + std::to_string(round);
    run_sparse(layer, what);
    compare(layer.host, layer.out, reference::attention(layer.host, layer.host_params), what);
  }
}

/// One head for work_counts.py: dense, or lines in bands that attend about `share` of the causal
/// pairs. Prints what the emulator's statistics cannot know: the pairs that are attended.
int run_for_work_counts(std::int64_t tokens, double share) {
  Case c = {.reason = "work counts",
            .num_heads_q = 1,
            .num_heads_kv = 1,
            .seq_q = tokens,
            .seq_kv = tokens,
            .head_dim = 128,
            .patterns = {kDense},
            .num_vertical = 0,
            .num_slash = 0,
            .num_blocks = 0};
  bench::Lines lines;
  if (share < 1) {
    lines = bench::draw_lines(bench::clustered(share, tokens), tokens, 1);
    c.patterns = {kVsIndex};
    c.num_vertical = static_cast<std::int64_t>(lines.verticals.size());
    c.num_slash = static_cast<std::int64_t>(lines.slashes.size());
  }
  Layer layer(c, DType::kBFloat16, 0, 0);
  std::copy(lines.verticals.begin(), lines.verticals.end(), layer.vertical_idx.data());
  std::copy(lines.slashes.begin(), lines.slashes.end(), layer.slash_idx.data());
  layer.update_device();
  const plan::Problem problem = layer.device_problem(false, true);
  constexpr std::int32_t kSlots = 1;  // never cut into parts
  const DeviceBytes workspace =
      device_workspace(cuda::LayerAttention(problem, kSlots, nullptr).workspace_bytes());
  const DeviceBytes stats(sizeof(PlanStats));
  cuda::LayerAttention attention(problem, kSlots, workspace.data());
  Status status = attention.run();
  if (status == Status::kOk) status = attention.index().add_stats(stats.as<PlanStats>());
  if (status != Status::kOk) {
    std::printf("%s\n", last_error());
    return 1;
  }
  wait_for_device("work counts");
  const PlanStats counted = stats.read<PlanStats>()[0];
  std::printf("{\"attended_pairs\": %lld, \"causal_pairs\": %lld}\n",
              static_cast<long long>(counted.attended_pairs),
              static_cast<long long>(counted.causal_pairs));
  return 0;
}

}  // namespace
}  // namespace minference::test

int main(int argc, char** argv) {
  using namespace minference;
  if (argc == 4 && std::string(argv[1]) == "work") {
    return test::run_for_work_counts(std::atoll(argv[2]), std::atof(argv[3]));
  }
  std::vector<test::Case> cases(std::begin(test::kAttentionCases), std::end(test::kAttentionCases));
  cases.insert(cases.end(), std::begin(test::kCases), std::end(test::kCases));
  for (const DType dtype : test::kDTypes) {
    for (const test::Case& c : cases) {
      if (test::is_chosen(c.reason, argc, argv)) test::test_case(c, dtype, test::run_sparse);
    }
    for (const test::Case& c : test::kPartCases) {
      if (test::is_chosen(c.reason, argc, argv)) test::test_case(c, dtype, test::run_in_parts);
    }
  }
  if (argc == 1) {
    test::test_num_key_parts();
    test::test_dense_fallback();
    test::test_random_cases(60);
  }
  return test::finish("attention_cuda_test");
}
