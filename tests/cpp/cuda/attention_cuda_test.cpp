// Every attention op on CUDA against the double reference, in every dtype: the cases of the CPU's
// test, cases for what only this backend has (two row blocks that share keys, keys cut in parts),
// and random ones; what float8 does not serve has to be refused. attention_cuda_test REASON runs
// the cases whose reason contains the word; "schedules" and "work" are for many_schedules.py and
// work_counts.py.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <random>
#include <string>
#include <vector>

#include "../check.h"
#include "attention_cuda_cases.h"
#include "attention_run.h"
#include "bench/cuda/line_patterns.h"
#include "float8.h"
#include "layer.h"
#include "layer_attention.h"
#include "slots.h"

namespace minference::test {
namespace {

constexpr DType kDTypes[] = {DType::kBFloat16, DType::kFloat16, DType::kFloat8E4M3};

/// Of the same arguments, two results are as near to each other as both are to the reference.
void compare_results(const Layer& layer, const TensorView& found, const TensorView& other,
                     const char* whose, const reference::Result& expected,
                     const std::string& what) {
  std::size_t n = 0;
  for (std::int64_t b = 0; b < layer.c.batch; ++b) {
    for (std::int64_t h = 0; h < layer.c.num_heads_q; ++h) {
      for (std::int64_t r = 0; r < layer.c.seq_q; ++r) {
        const std::vector<double> row = reference::load_row(found, b, h, r);
        const std::vector<double> other_row = reference::load_row(other, b, h, r);
        for (std::size_t d = 0; d < row.size(); ++d, ++n) {
          const double allowed = 2 * tolerance(expected, n, layer.host.out.dtype);
          const bool is_good = std::isfinite(expected.out[n])
                                   ? std::abs(row[d] - other_row[d]) <= allowed
                                   : is_close(row[d], other_row[d], 0);
          CHECK(is_good, "%s: out[%d,%d,%d,%d] is %g, %s %g", what.c_str(), int(b), int(h), int(r),
                int(d), row[d], whose, other_row[d]);
        }
      }
    }
  }
}

/// A copy of the layer's results on the host, and the tensor in it.
struct ResultsCopy {
  explicit ResultsCopy(const Layer& layer) : bytes(layer.out.bytes.size()), view(layer.host.out) {
    std::memcpy(bytes.data(), layer.out.bytes.data(), bytes.size());
    const auto* const first = static_cast<unsigned char*>(layer.out.view.data);
    view.data = bytes.data() + (first - layer.out.bytes.data());
  }

  HeapBytes bytes;
  TensorView view;
};

void compare_with_cpu(Layer& layer, const reference::Result& expected, const std::string& what) {
  const ResultsCopy found(layer);
  std::size_t bytes = 0;
  CHECK(sparse_attention_workspace_bytes(layer.host, layer.host_params, &bytes) == Status::kOk,
        "%s: CPU: %s", what.c_str(), last_error());
  const HeapBytes workspace(bytes);
  CHECK(sparse_attention(layer.host, layer.host_params, workspace.data(), bytes) == Status::kOk,
        "%s: CPU: %s", what.c_str(), last_error());
  compare_results(layer, found.view, layer.host.out, "on the CPU", expected, what);
}

/// `run(layer, what)` computes the results on the device and copies them to the host.
template <class Run>
void test_case(const Case& c, DType dtype, const Run& run) {
  const std::string what = std::string(dtype_name(dtype)) + ", " + c.reason;
  if (dtype == DType::kFloat8E4M3) {
    const Layer layer(c, dtype);
    if (!is_served(layer)) return check_refused(layer, layer.device, what);
  }
  with_clear_numbers(c, dtype, what, [&](Layer& layer, const reference::Result& expected) {
    run(layer, what);
    compare(layer.host, layer.out, expected, what);
    if (layer.is_float8()) return;  // which the CPU has not; float8_cuda_test repeats its runs
    const std::vector<unsigned char> first = results(layer);
    run(layer, what + ", again");
    CHECK(results(layer) == first, "%s: a second run gives other bits", what.c_str());
    compare_with_cpu(layer, expected, what);
  });
}

/// What every kernel of this device gives for the same arguments.
void test_kernels_agree() {
  const Case cases[] = {{.reason = "every pattern, both kernels",
                         .seq_q = 300,
                         .seq_kv = 700,
                         .head_dim = 128,
                         .num_vertical = 90,
                         .num_slash = 40,
                         .num_blocks = 7},
                        {.reason = "mode exact, not finite, both kernels",
                         .num_heads_q = 2,
                         .num_heads_kv = 1,
                         .seq_q = 200,
                         .seq_kv = 450,
                         .head_dim = 64,
                         .patterns = {kVsIndex},
                         .mode = SlashMode::kExact,
                         .num_vertical = 30,
                         .num_slash = 100,
                         .has_nonfinite = true}};
  for (const Case& c : cases) {
    const Layer layer(c, DType::kBFloat16);
    const reference::Result expected = reference::attention(layer.host, layer.host_params);
    const plan::Problem problem = layer.device_problem(false, true);
    const cuda::Slots chosen = slots_of(problem, 3);
    if (chosen.kernel == cuda::AttentionKernel::kSm80) return;  // the only one here
    const auto run_by = [&](cuda::AttentionKernel kernel) {
      layer.poison_results();
      const cuda::Slots slots = {kernel, chosen.count};
      const DeviceBytes workspace =
          device_workspace(cuda::LayerAttention(problem, slots, nullptr).workspace_bytes());
      CHECK(cuda::LayerAttention(problem, slots, workspace.data()).run() == Status::kOk, "%s: %s",
            c.reason, last_error());
      wait_for_device(c.reason);
      layer.read_results();
      compare(layer.host, layer.out, expected, c.reason);
    };
    run_by(chosen.kernel);
    const ResultsCopy found(layer);
    run_by(cuda::AttentionKernel::kSm80);
    compare_results(layer, found.view, layer.host.out, "by the other kernel", expected, c.reason);
  }
}

/// Multiprocessors left free change who computes a task, not what comes out.
void test_reserved_multiprocessors() {
  Layer layer({.reason = "reserved multiprocessors", .seq_q = 300, .seq_kv = 300},
              DType::kBFloat16);
  cuda::DeviceFacts facts{};
  CHECK(cuda::device_facts(&facts) == Status::kOk, "%s", last_error());
  run_sparse(layer, layer.c.reason);
  const std::vector<unsigned char> expected = results(layer);
  for (const std::int32_t reserved : {1, facts.num_multiprocessors - 2, 100000}) {
    layer.device.reserved_multiprocessors = reserved;
    const plan::Problem problem = layer.device_problem(false, true);
    const cuda::KernelChoice choice = cuda::choose_kernel(problem, facts);
    cuda::Slots slots{};
    CHECK(cuda::count_slots(problem, choice, facts, &slots) == Status::kOk, "%s", last_error());
    if (choice.kernel == cuda::AttentionKernel::kSm90) {
      CHECK(slots.count == std::max(1, facts.num_multiprocessors - reserved),
            "%d of %d multiprocessors reserved: %d blocks", reserved, facts.num_multiprocessors,
            slots.count);
    }
    run_sparse(layer, layer.c.reason);
    CHECK(results(layer) == expected, "%d multiprocessors reserved: other bits", reserved);
  }
}

/// Rows of out from the last to the first, which copies cannot follow.
void test_out_backwards(DType dtype) {
  Layer layer({.reason = "out backwards", .seq_q = 200, .seq_kv = 200, .head_dim = 64}, dtype);
  if (!is_served(layer)) return;
  run_sparse(layer, layer.c.reason);
  const ResultsCopy forwards(layer);
  TensorView& out = layer.device.out;
  const std::int64_t last = layer.c.seq_q - 1;
  out.data = static_cast<std::uint16_t*>(out.data) + last * out.stride[2];
  out.stride[2] = -out.stride[2];
  run_sparse(layer, layer.c.reason);
  for (std::int64_t h = 0; h < layer.c.num_heads_q; ++h) {
    for (std::int64_t r = 0; r <= last; ++r) {
      CHECK(reference::load_row(layer.host.out, 0, h, last - r) ==
                reference::load_row(forwards.view, 0, h, r),
            "%s, %s: row %d of head %d differs", layer.c.reason, dtype_name(dtype), int(r), int(h));
    }
  }
}

/// By two blocks of threads, which take several tasks each.
void test_schedules() {
  cuda::DeviceFacts facts{};
  CHECK(cuda::device_facts(&facts) == Status::kOk, "%s", last_error());
  for (const Case& c : kScheduleCases) {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
      Layer layer(c, dtype, 0);
      if (!is_served(layer)) continue;
      const std::string what = std::string(c.reason) + ", " + dtype_name(dtype);
      layer.device.reserved_multiprocessors = facts.num_multiprocessors - 2;
      run_sparse(layer, what);
      compare(layer.host, layer.out, reference::attention(layer.host, layer.host_params), what);
    }
  }
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
  const bool has_float8 = device_has_float8();
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
    const bool is_float8 = has_float8 && round % 3 == 2;
    if (is_float8) c.head_dim = (c.head_dim + 15) / 16 * 16;
    const DType dtype = is_float8 ? DType::kFloat8E4M3 : kDTypes[round / 4 % 2];
    Layer layer(c, dtype, static_cast<unsigned>(round), 0);
    for (const std::int64_t head : {3, 5}) {
      fill_near_lists(layer.slash_idx.data() + head * c.num_slash, c.num_slash, c.seq_kv,
                      generator);
    }
    layer.update_device();
    const std::string what = "random case " + std::to_string(round) + ", " + dtype_name(dtype);
    run_sparse(layer, what);
    compare(layer.host, layer.out, reference::attention(layer.host, layer.host_params), what);
  }
}

/// Lines of a pattern of work_counts.py, and whether that has any.
bool draw_lines_of(const std::string& pattern, std::int64_t tokens, bench::Lines* lines) {
  bench::LineShape shape;
  if (pattern == "clustered_90" || pattern == "exact") {
    shape = bench::clustered(0.10, tokens);
  } else if (pattern == "clustered_98") {
    shape = bench::clustered(0.02, tokens);
  } else if (pattern == "isolated") {  // a line that no other is near, every 1024 or so
    shape = {.num_vertical = 4, .local = 1, .bands = tokens / 1024, .width = 1};
  } else if (pattern == "verticals") {
    shape = {.num_vertical = tokens / 8, .local = 64, .bands = 0, .width = 0};
  } else {
    return false;
  }
  *lines = bench::draw_lines(shape, tokens, 1);
  return true;
}

/// One head of 128 dimensions for work_counts.py. Prints what the emulator's statistics cannot
/// know: the pairs that are attended.
int run_for_work_counts(const std::string& pattern, std::int64_t tokens, DType dtype) {
  Case c = {.reason = "work counts",
            .num_heads_q = 1,
            .num_heads_kv = 1,
            .seq_q = tokens,
            .seq_kv = tokens,
            .head_dim = 128,
            .patterns = {kDense},
            .mode = pattern == "exact" ? SlashMode::kExact : SlashMode::kCover,
            .num_vertical = 0,
            .num_slash = 0,
            .num_blocks = 0};
  bench::Lines lines;
  if (draw_lines_of(pattern, tokens, &lines)) {
    c.patterns = {kVsIndex};
    c.num_vertical = static_cast<std::int64_t>(lines.verticals.size());
    c.num_slash = static_cast<std::int64_t>(lines.slashes.size());
  } else if (pattern == "a_shape") {
    c.patterns = {{PatternKind::kAShape, {1024, 4096}}};
  } else if (pattern != "dense") {
    std::printf("no pattern %s\n", pattern.c_str());
    return 1;
  }
  Layer layer(c, dtype, 0, 0);
  std::copy(lines.verticals.begin(), lines.verticals.end(), layer.vertical_idx.data());
  std::copy(lines.slashes.begin(), lines.slashes.end(), layer.slash_idx.data());
  layer.update_device();
  const plan::Problem problem = layer.device_problem(false, true);
  const cuda::Slots slots = slots_of(problem, 1);  // never cut into parts
  const DeviceBytes workspace =
      device_workspace(cuda::LayerAttention(problem, slots, nullptr).workspace_bytes());
  const DeviceBytes stats(sizeof(PlanStats));
  cuda::LayerAttention attention(problem, slots, workspace.data());
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
  if (argc == 5 && std::string(argv[1]) == "work") {
    const bool is_float8 = std::string(argv[4]) == "fp8";
    return test::run_for_work_counts(argv[2], std::atoll(argv[3]),
                                     is_float8 ? DType::kFloat8E4M3 : DType::kBFloat16);
  }
  if (argc == 2 && std::string(argv[1]) == "schedules") {
    test::test_schedules();
    return test::finish("attention_cuda_test schedules");
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
    test::test_schedules();
    test::test_num_key_parts();
    test::test_kernels_agree();
    test::test_reserved_multiprocessors();
    test::test_out_backwards(DType::kBFloat16);
    test::test_out_backwards(DType::kFloat8E4M3);
    test::test_dense_fallback();
    test::test_random_cases(60);
  }
  return test::finish("attention_cuda_test");
}
