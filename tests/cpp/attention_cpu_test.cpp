// Every attention op of libminference against the double reference, in every dtype and on every CPU
// kernel that this machine can run. Sizes are small on purpose: the same run under AddressSanitizer
// and UBSan is what proves that no kernel reads or writes one byte too many.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "attention_cases.h"
#include "attention_check.h"
#include "check.h"
#include "cpu/reference/reference.h"
#include "heap_tensor.h"
#include "minference/minference.h"

namespace minference::test {
namespace {

using List = std::vector<std::int32_t>;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};
constexpr const char* kDTypeNames[] = {"fp32", "bf16", "fp16"};

/// A case's arguments with the memory they point to.
struct Problem {
  AttentionArgs args;
  SparseAttentionParams params;
  Patterns patterns;
  HeapTensor q, k, v, out;
  HeapBytes lse, first_valid_key, cu_seqlens_q, cu_seqlens_kv;
  HeapIndex vertical_idx, slash_idx, block_idx;
};

const std::int32_t* copy_sizes(const Sizes& sizes, HeapBytes& bytes) {
  if (sizes.empty()) return nullptr;
  bytes = HeapBytes(sizes.size() * sizeof(std::int32_t));
  std::memcpy(bytes.data(), sizes.data(), bytes.size());
  return reinterpret_cast<const std::int32_t*>(bytes.data());
}

/// Random entries in [0, limit), in any order, some twice, every fifth missing (-1).
void fill_list(std::int32_t* list, std::int64_t count, std::int64_t limit,
               std::mt19937& generator) {
  for (std::int64_t n = 0; n < count; ++n) {
    list[n] = limit <= 0 || n % 5 == 4 ? -1 : static_cast<std::int32_t>(generator() % limit);
  }
}

void fill_lists(const Case& c, Problem& problem, std::mt19937& generator) {
  const std::vector<reference::Sequence> sequences = reference::sequences(problem.args);
  const std::int64_t num_sequences = sequences.size(), row_blocks = (c.seq_q + 63) / 64;
  problem.vertical_idx = HeapIndex({num_sequences, c.num_heads_q, c.num_vertical});
  problem.slash_idx = HeapIndex({num_sequences, c.num_heads_q, c.num_slash});
  problem.block_idx = HeapIndex({num_sequences, c.num_heads_q, row_blocks, c.num_blocks});
  for (std::int64_t n = 0; n < num_sequences * c.num_heads_q; ++n) {
    const std::int64_t kv_len = sequences[n / c.num_heads_q].kv_len;
    std::int32_t* slash = problem.slash_idx.data() + n * c.num_slash;
    fill_list(problem.vertical_idx.data() + n * c.num_vertical, c.num_vertical, kv_len, generator);
    fill_list(slash, c.num_slash, kv_len, generator);
    if (c.has_offset_0 && kv_len > 0) slash[0] = 0;
    fill_list(problem.block_idx.data() + n * row_blocks * c.num_blocks, row_blocks * c.num_blocks,
              (kv_len + 63) / 64, generator);
  }
  problem.params.vertical_idx = problem.vertical_idx.view;
  problem.params.slash_idx = problem.slash_idx.view;
  problem.params.block_idx = problem.block_idx.view;
}

void poison_outputs(Problem& problem) {
  std::memset(problem.out.bytes.data(), 0xFF, problem.out.bytes.size());
  std::memset(problem.lse.data(), 0xFF, problem.lse.size());
}

Problem make_problem(const Case& c, DType dtype, unsigned seed = 0) {
  Problem problem;
  std::mt19937 generator(static_cast<unsigned>(1000 * c.seq_q + c.seq_kv) + 1000000 * seed);
  const Layout layout_out = c.layout == Layout::kExpanded ? Layout::kPlain : c.layout;
  problem.q = HeapTensor({c.batch, c.num_heads_q, c.seq_q, c.head_dim}, dtype, c.layout);
  problem.k = HeapTensor({c.batch, c.num_heads_kv, c.seq_kv, c.head_dim}, dtype, c.layout_kv);
  problem.v = HeapTensor({c.batch, c.num_heads_kv, c.seq_kv, c.head_dim}, dtype, c.layout_kv);
  problem.out = HeapTensor({c.batch, c.num_heads_q, c.seq_q, c.head_dim}, dtype, layout_out);
  AttentionArgs& args = problem.args;
  args.q = problem.q.view;
  args.k = problem.k.view;
  args.v = problem.v.view;
  args.out = problem.out.view;
  args.softmax_scale = c.scale;
  args.num_threads = c.num_threads;
  args.first_valid_key = copy_sizes(c.first_valid_key, problem.first_valid_key);
  args.cu_seqlens_q = copy_sizes(c.cu_seqlens_q, problem.cu_seqlens_q);
  args.cu_seqlens_kv = copy_sizes(c.cu_seqlens_kv, problem.cu_seqlens_kv);
  if (args.cu_seqlens_q) args.num_sequences = static_cast<std::int64_t>(c.cu_seqlens_q.size()) - 1;
  if (c.has_lse) {
    // [batch, seq_q, num_heads_q] in memory where the tensors are rows first.
    const bool is_rows_first = layout_out == Layout::kRowsFirst;
    problem.lse = HeapBytes(c.batch * c.num_heads_q * c.seq_q * sizeof(float));
    args.lse = reinterpret_cast<float*>(problem.lse.data());
    args.lse_stride[0] = c.num_heads_q * c.seq_q;
    args.lse_stride[1] = is_rows_first ? 1 : c.seq_q;
    args.lse_stride[2] = is_rows_first ? c.num_heads_q : 1;
  }
  // Padding stays NaN: a row must give what the unpadded row gives.
  for (std::int64_t b = 0; b < c.batch; ++b) {
    const std::int64_t begin = c.first_valid_key.empty() ? 0 : c.first_valid_key[b];
    const std::int64_t q_begin = std::max<std::int64_t>(0, begin - (c.seq_kv - c.seq_q));
    fill_rows(problem.q, b, q_begin, c.seq_q, c.amplitude, generator);
    fill_rows(problem.k, b, begin, c.seq_kv, 1, generator);
    fill_rows(problem.v, b, begin, c.seq_kv, 1, generator);
  }
  if (c.has_nonfinite) spoil_values(problem.k, problem.v);
  for (std::int64_t head = 0; head < c.num_heads_q; ++head) {
    problem.patterns.push_back(c.patterns[head % c.patterns.size()]);
  }
  problem.params.mode = c.mode;
  problem.params.estimate_every = c.estimate_every;
  problem.params.head_patterns = problem.patterns.data();
  problem.params.dense_fallback = 0;
  fill_lists(c, problem, generator);
  return problem;
}

void compare(const Problem& problem, const reference::Result& expected, const std::string& what) {
  compare(problem.args, problem.out, expected, what);
}

/// Memory of exactly `bytes`, at an odd address.
HeapBytes make_workspace(std::size_t bytes) { return HeapBytes(bytes, 1); }

void run_sparse(Problem& problem, const std::string& what) {
  poison_outputs(problem);
  const std::size_t bytes = checked_workspace_bytes(problem.args, problem.params, what);
  const HeapBytes workspace = make_workspace(bytes);
  const Status status = sparse_attention(problem.args, problem.params, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
}

/// A second run with other workers must give the same bits: work is split by rows, not by sums.
void check_repeatable(Problem& problem, const std::string& what) {
  const HeapBytes first(problem.out.bytes.size());
  std::memcpy(first.data(), problem.out.bytes.data(), first.size());
  problem.args.num_threads = problem.args.num_threads == 1 ? 3 : 1;
  run_sparse(problem, what + ", second run");
  CHECK(std::memcmp(first.data(), problem.out.bytes.data(), first.size()) == 0,
        "%s: a run with %d threads gives other bits", what.c_str(), problem.args.num_threads);
}

/// Statistics of the plan against the reference's masks.
void check_stats(const Problem& problem, const std::string& what) {
  std::size_t bytes = 0;
  Status status = plan_stats_workspace_bytes(problem.args, problem.params, &bytes);
  const HeapBytes workspace = make_workspace(bytes);
  const std::vector<reference::Sequence> sequences = reference::sequences(problem.args);
  const std::int64_t num_heads = problem.args.q.shape[1];
  const HeapBytes memory(sequences.size() * num_heads * sizeof(PlanStats));
  auto* stats = reinterpret_cast<PlanStats*>(memory.data());
  status = plan_stats(problem.args, problem.params, stats, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: plan_stats: %s", what.c_str(), last_error());
  if (status != Status::kOk) return;
  for (std::size_t n = 0; n < sequences.size(); ++n) {
    const std::int64_t q_len = sequences[n].q_len, shift = sequences[n].kv_len - q_len;
    for (std::int64_t head = 0; head < num_heads; ++head) {
      const PlanStats& found = stats[n * num_heads + head];
      std::int64_t attended = 0;
      for (std::uint8_t is_in : reference::mask(problem.args, problem.params, n, head)) {
        attended += is_in;
      }
      const std::int64_t causal = q_len * shift + q_len * (q_len + 1) / 2;
      const char* name = what.c_str();
      CHECK(found.attended_pairs == attended,
            "%s: sequence %d head %d attends %lld pairs, not %lld", name, int(n), int(head),
            (long long)found.attended_pairs, (long long)attended);
      CHECK(found.causal_pairs == causal, "%s: sequence %d head %d has %lld causal pairs, not %lld",
            name, int(n), int(head), (long long)found.causal_pairs, (long long)causal);
      CHECK(found.computed_pairs >= attended, "%s: sequence %d head %d computes %lld of %lld pairs",
            name, int(n), int(head), (long long)found.computed_pairs, (long long)attended);
      if (problem.patterns[head].kind == PatternKind::kVerticalSlashIndex && q_len > 0) {
        const List vertical = reference::read_list(problem.params.vertical_idx, n, head);
        const List slash = reference::read_list(problem.params.slash_idx, n, head);
        CHECK(found.num_vertical == int(vertical.size()) && found.num_slash == int(slash.size()),
              "%s: sequence %d head %d: %d and %d lines, not %zu and %zu", name, int(n), int(head),
              found.num_vertical, found.num_slash, vertical.size(), slash.size());
      }
      const bool is_dense = problem.patterns[head].kind == PatternKind::kDense;
      CHECK((found.is_dense != 0) == is_dense, "%s: sequence %d head %d: is_dense %d", name, int(n),
            int(head), found.is_dense);
    }
  }
}

/// Names of the CPU kernels that this machine runs, the best first.
std::vector<std::string> supported_kernels() {
  std::vector<std::string> names;
  for (std::int32_t n = 0; n < cpu_kernel_count(); ++n) {
    const char* name = nullptr;
    std::int32_t is_supported = 0;
    const Status status = cpu_kernel_info(n, &name, &is_supported);
    CHECK(status == Status::kOk && name, "cpu_kernel_info(%d): %s", n, last_error());
    if (status == Status::kOk && is_supported) names.push_back(name);
  }
  CHECK(!names.empty(), "no CPU kernel runs on this machine");
  return names;
}

void test_cases(const std::vector<std::string>& kernels) {
  std::vector<int> num_runs(kernels.size(), 0);
  for (DType dtype : kDTypes) {
    for (const Case& c : kCases) {
      const std::string what = std::string(kDTypeNames[int(dtype)]) + ", " + c.reason;
      Problem problem;
      reference::Result expected;
      // Numbers whose lines and blocks do not depend on the last bits of a score.
      for (unsigned seed = 0; seed < 50; ++seed) {
        problem = make_problem(c, dtype, seed);
        expected = reference::attention(problem.args, problem.params);
        if (expected.margin > tie_tolerance(dtype)) break;
      }
      CHECK(expected.margin > tie_tolerance(dtype), "%s: always a tie", what.c_str());
      for (std::size_t n = 0; n < kernels.size(); ++n) {
        setenv("MINFERENCE_CPU_KERNEL", kernels[n].c_str(), 1);
        const char* name = nullptr;
        const Status status = cpu_kernel_for(dtype, &name);
        if (status == Status::kUnsupported) continue;  // not for this dtype
        CHECK(status == Status::kOk && name == kernels[n], "%s: kernel %s, not %s", what.c_str(),
              name, kernels[n].c_str());
        run_sparse(problem, what + ", " + kernels[n]);
        compare(problem, expected, what + ", " + kernels[n]);
        ++num_runs[n];
      }
      unsetenv("MINFERENCE_CPU_KERNEL");
      run_sparse(problem, what);
      check_repeatable(problem, what);
      check_stats(problem, what);
    }
  }
  for (std::size_t n = 0; n < kernels.size(); ++n) {
    CHECK(num_runs[n] > 0, "kernel %s never ran", kernels[n].c_str());
    std::printf("%s: %d runs\n", kernels[n].c_str(), num_runs[n]);
  }
}

/// The single-pattern ops are the same attention with every head alike.
template <class Params, class Supports, class WorkspaceBytes, class Run>
void test_op(const char* name, Problem& problem, const Patterns& patterns, const Params& params,
             Supports supports, WorkspaceBytes workspace_bytes, Run run) {
  poison_outputs(problem);
  problem.params.head_patterns = patterns.data();
  const std::string what = std::string(kDTypeNames[int(problem.args.q.dtype)]) + ", " + name;
  std::size_t bytes = 0;
  Status status = supports(problem.args, params);
  CHECK(status == Status::kOk, "%s: supports: %s", what.c_str(), last_error());
  status = workspace_bytes(problem.args, params, &bytes);
  CHECK(status == Status::kOk, "%s: workspace_bytes: %s", what.c_str(), last_error());
  const HeapBytes workspace = make_workspace(bytes);
  status = run(problem.args, params, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  compare(problem, reference::attention(problem.args, problem.params), what);
}

void test_ops(DType dtype) {
  const Case c = {.reason = "", .num_heads_q = 2, .num_heads_kv = 1, .seq_q = 140, .seq_kv = 173};
  Problem problem = make_problem(c, dtype);
  const Patterns dense(2, kDense), a_shape(2, kAShape), tri_shape(2, kTriShape);
  test_op(
      "dense_attention", problem, dense, 0,
      [](const AttentionArgs& args, int) { return dense_attention_supports(args); },
      [](const AttentionArgs& args, int, std::size_t* bytes) {
        return dense_attention_workspace_bytes(args, bytes);
      },
      [](const AttentionArgs& args, int, void* workspace, std::size_t bytes) {
        return dense_attention(args, workspace, bytes);
      });
  test_op("a_shape_attention", problem, a_shape, AShapeParams{.sink = 3, .window = 17},
          a_shape_attention_supports, a_shape_attention_workspace_bytes, a_shape_attention);
  test_op("tri_shape_attention", problem, tri_shape,
          TriShapeParams{.sink = 5, .window = 20, .last = 9}, tri_shape_attention_supports,
          tri_shape_attention_workspace_bytes, tri_shape_attention);
  test_op("block_sparse_attention, top_k", problem, Patterns(2, kTopK),
          BlockSparseParams{.top_k = 2, .block_idx = {}}, block_sparse_attention_supports,
          block_sparse_attention_workspace_bytes, block_sparse_attention);
  test_op("block_sparse_attention, lists", problem, Patterns(2, kBlockIndex),
          BlockSparseParams{.block_idx = problem.block_idx.view}, block_sparse_attention_supports,
          block_sparse_attention_workspace_bytes, block_sparse_attention);
  const std::int64_t vertical_size[2] = {40, 0}, slash_size[2] = {101, 7};
  const Patterns estimated = {{PatternKind::kVerticalSlash, {40, 101}},
                              {PatternKind::kVerticalSlash, {0, 7}}};
  for (SlashMode mode : {SlashMode::kCover, SlashMode::kExact, SlashMode::kReference}) {
    problem.params.mode = mode;
    for (std::int64_t estimate_every : {0, 64}) {
      problem.params.estimate_every = estimate_every;
      const VsAttentionParams params = {.mode = mode,
                                        .vertical_size = vertical_size,
                                        .slash_size = slash_size,
                                        .estimate_every = estimate_every,
                                        .dense_fallback = 0};
      test_op("vs_attention", problem, estimated, params, vs_attention_supports,
              vs_attention_workspace_bytes, vs_attention);
    }
    problem.params.estimate_every = 0;
    const VsAttentionWithIndexParams params = {.mode = mode,
                                               .vertical_idx = problem.vertical_idx.view,
                                               .slash_idx = problem.slash_idx.view};
    test_op("vs_attention_with_index", problem, Patterns(2, kVsIndex), params,
            vs_attention_with_index_supports, vs_attention_with_index_workspace_bytes,
            vs_attention_with_index);
  }
}

/// With dense_fallback a head is what plan_stats says it is, and lists are never replaced.
void test_dense_fallback() {
  const Case& c = kFallbackCase;
  Problem problem = make_problem(c, DType::kFloat32);
  problem.params.dense_fallback = 1;
  std::size_t bytes = 0;
  CHECK(sparse_attention_workspace_bytes(problem.args, problem.params, &bytes) == Status::kOk, "%s",
        last_error());
  const HeapBytes workspace = make_workspace(bytes);
  PlanStats stats[3] = {};
  CHECK(plan_stats(problem.args, problem.params, stats, workspace.data(), bytes) == Status::kOk,
        "%s", last_error());
  run_sparse(problem, "dense fallback");
  expect_fallback(stats, &problem.patterns);
  compare(problem, reference::attention(problem.args, problem.params), "dense fallback");
}

/// Offsets at the distances where pieces of 32 or 64 keys touch, overlap or leave one key free.
void fill_near_lists(std::int32_t* list, std::int64_t count, std::int64_t limit,
                     std::mt19937& generator) {
  constexpr int kSteps[] = {1, 2, 31, 32, 33, 62, 63, 64, 65, 66, 96, 97};
  std::int64_t entry = generator() % 8;
  for (std::int64_t n = 0; n < count; ++n) {
    list[n] = entry < limit ? static_cast<std::int32_t>(entry) : -1;
    entry += kSteps[generator() % std::size(kSteps)];
  }
}

/// Lengths and sizes at random: every pattern's edges meet every position within the kernel's
/// pieces.
void test_random_cases() {
  std::mt19937 generator(11);
  for (int round = 0; round < 250; ++round) {
    Case c = {.reason = "", .num_heads_q = 6, .num_heads_kv = 1, .head_dim = 8};
    c.seq_q = 1 + generator() % 200;
    c.seq_kv = c.seq_q + generator() % 200;
    c.mode = static_cast<SlashMode>(round % 3);
    c.num_vertical = generator() % 20;
    c.num_slash = generator() % 8;
    const auto size = [&](int limit) { return static_cast<std::int64_t>(generator() % limit); };
    c.patterns = {kDense,
                  {PatternKind::kAShape, {size(80), size(200)}},
                  {PatternKind::kTriShape, {size(80), size(200), size(150)}},
                  kVsIndex,
                  kBlockIndex,
                  kVsIndex};
    Problem problem = make_problem(c, round % 2 ? DType::kFloat32 : DType::kBFloat16);
    for (std::size_t head : {3, 5}) {
      fill_near_lists(problem.slash_idx.data() + head * c.num_slash, c.num_slash, c.seq_kv,
                      generator);
    }
    const std::string what = "random case " + std::to_string(round);
    run_sparse(problem, what);
    compare(problem, reference::attention(problem.args, problem.params), what);
    check_stats(problem, what);
  }
}

/// More kv heads than fit in the workspace at once: they are computed in groups. The lists are long
/// and nearly empty, so that the scratch that their length asks for is what fills the workspace.
void test_groups() {
  const Case c = {.reason = "",
                  .num_heads_q = 7,
                  .num_heads_kv = 7,
                  .seq_q = 65,
                  .seq_kv = 80,
                  .head_dim = 256,
                  .patterns = {kVsIndex, kDense},
                  .num_vertical = 50000};
  Problem problem = make_problem(c, DType::kFloat32);
  std::memset(problem.vertical_idx.bytes.data(), 0xFF, problem.vertical_idx.bytes.size());
  for (std::int64_t head = 0; head < c.num_heads_q; ++head) {
    problem.vertical_idx.data()[head * c.num_vertical + 49999 - head] = 11 * head;
  }
  run_sparse(problem, "groups of heads");
  compare(problem, reference::attention(problem.args, problem.params), "groups of heads");
}

void test_predict() {
  Prediction prediction;
  const HeadPattern lines = {PatternKind::kVerticalSlash, {1000, 6096}};
  CHECK(predict(lines, 1 << 20, 1 << 20, &prediction) == Status::kOk, "%s", last_error());
  CHECK(prediction.is_dense == 0 && prediction.cost_sparse < prediction.cost_dense,
        "1M tokens: dense %g, sparse %g", prediction.cost_dense, prediction.cost_sparse);
  CHECK(predict(lines, 512, 512, &prediction) == Status::kOk, "%s", last_error());
  CHECK(prediction.is_dense == 1, "512 tokens: dense %g, sparse %g", prediction.cost_dense,
        prediction.cost_sparse);
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  unsetenv("MINFERENCE_CPU_KERNEL");
  test::test_cases(test::supported_kernels());
  for (DType dtype : test::kDTypes) test::test_ops(dtype);
  test::test_dense_fallback();
  test::test_random_cases();
  test::test_groups();
  test::test_predict();
  return test::finish("attention_cpu_test");
}
