// What a million tokens ask of the host code and the kernels: memory and launches of a layer of 32
// heads, the plan of lists at that length, and tensors whose element offsets pass 2^31.
//
// With the argument "work" it instead runs one layer for work_counts.py, which reads the
// emulator's statistics, and prints what that layer cannot do without.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "../check.h"
#include "cpu/plan.h"
#include "float8.h"
#include "layer.h"
#include "layer_attention.h"
#include "plan/cost.h"
#include "plan_copy.h"
#include "slots.h"

namespace minference::test {
namespace {

constexpr std::int64_t kMillion = 1 << 20;
constexpr std::int64_t kHeads = 32, kKvHeads = 8;
constexpr std::int32_t kSlots = 264;  // blocks that an H200 runs at once
const HeadPattern kLarge = {PatternKind::kVerticalSlash, {1000, 6096}};

TensorView shape_only(std::int64_t heads, std::int64_t tokens, std::int64_t head_dim) {
  TensorView view;
  view.data = reinterpret_cast<void*>(std::uintptr_t{1} << 30);  // nothing is read
  const std::int64_t shape[4] = {1, heads, tokens, head_dim};
  const std::int64_t stride[4] = {heads * tokens * head_dim, head_dim, heads * head_dim, 1};
  std::copy(shape, shape + 4, view.shape);
  std::copy(stride, stride + 4, view.stride);
  view.dtype = DType::kBFloat16;
  return view;
}

/// A layer of a million tokens without memory: enough to ask, and to record launches.
plan::Problem million_tokens(const Patterns& patterns) {
  plan::Problem problem;
  problem.args.device = Device::kCuda;
  problem.args.q = shape_only(kHeads, kMillion, 128);
  problem.args.k = problem.args.v = shape_only(kKvHeads, kMillion, 128);
  problem.args.out = problem.args.q;
  problem.patterns.each = patterns.data();
  problem.dense_fallback = true;
  problem.scale_log2 = 0.1f;
  return problem;
}

std::int64_t plan_bytes(const cuda::HeadPlan& plan, std::int64_t kv_len) {
  return sizeof(cuda::HeadPlan) + plan.num_vertical * sizeof(std::int32_t) +
         plan.num_chunks * sizeof(plan::PlanChunk) + (kv_len + 129) / 8;
}

/// Nodes of the graph that `enqueue` fills: its launches.
template <class Enqueue>
std::size_t count_launches(const Enqueue& enqueue, cudaStream_t stream, const char* what) {
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  const Status status = enqueue();
  CHECK(status == Status::kOk, "%s: %s", what, last_error());
  cudaGraph_t graph = nullptr;
  must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  std::size_t count = 0;
  must(cudaGraphGetNodes(graph, nullptr, &count), "cudaGraphGetNodes");
  must(cudaGraphDestroy(graph), "cudaGraphDestroy");
  return count;
}

void test_memory_and_launches() {
  const Patterns patterns(kHeads, kLarge);
  plan::Problem problem = million_tokens(patterns);
  problem.needs_values = false;
  const double plan_only = cuda::LayerIndex(problem, nullptr).workspace_bytes();
  problem.needs_values = true;
  const double with_values = cuda::LayerIndex(problem, nullptr).workspace_bytes();
  const double scratch = plan_only / (kHeads * kMillion);
  std::printf(
      "1M tokens, 32 heads of (1000, 6096): workspace %.1f MiB, %.2f bytes per head and "
      "token; gathered keys and values %.1f MiB more\n",
      plan_only / (1 << 20), scratch, (with_values - plan_only) / (1 << 20));
  CHECK(scratch <= 10, "%.2f bytes per head and token", scratch);

  Patterns mixed = patterns;
  mixed[1] = {PatternKind::kBlockSparse, {100}};
  mixed[2] = {PatternKind::kTriShape, {4, 1000, 100}};
  mixed[3] = kDense;
  mixed[4] = {PatternKind::kBlockIndex};
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  DeviceBytes workspace(1);  // never touched: nothing runs
  for (const auto& [of, name] : {std::pair{&patterns, "vertical_slash"}, {&mixed, "mixed"}}) {
    plan::Problem large = million_tokens(*of);
    large.args.stream = stream;
    large.block_idx = {.shape = {1, kHeads, plan::num_row_blocks(kMillion), 100}};
    cuda::LayerIndex index(large, workspace.data());
    const std::size_t count =
        count_launches([&] { return index.build(0); }, stream, "build at 1M tokens");
    cuda::LayerAttention attention(large, slots_of(large, kSlots), workspace.data());
    const std::size_t with_attention =
        count_launches([&] { return attention.run(); }, stream, "attention at 1M tokens");
    std::printf("1M tokens, 32 heads, %s: %zu launches of index and plan, %zu with attention\n",
                name, count, with_attention);
    CHECK(count >= 4 && count <= 8, "%s: %zu launches", name, count);
    CHECK(with_attention == count + 1, "%s: %zu launches with attention", name, with_attention);
  }
  // A chunk of queries against a long context: keys are cut in parts.
  plan::Problem chunk = million_tokens(mixed);
  chunk.args.q = shape_only(kHeads, 512, 128);
  chunk.args.out = chunk.args.q;
  chunk.args.stream = stream;
  chunk.block_idx = {.shape = {1, kHeads, 8, 100}};
  const double chunk_index = cuda::LayerIndex(chunk, nullptr).workspace_bytes();
  cuda::LayerAttention attention(chunk, slots_of(chunk, kSlots), workspace.data());
  const std::size_t count =
      count_launches([&] { return attention.run(); }, stream, "512 queries, 1M keys");
  std::printf("512 queries, 1M keys, 32 heads, mixed: %zu launches; parts take %.1f MiB\n", count,
              (attention.workspace_bytes() - chunk_index) / (1 << 20));
  CHECK(count <= 10, "%zu launches", count);
  chunk.mode = SlashMode::kReference;
  cuda::LayerAttention reference(chunk, slots_of(chunk, kSlots), workspace.data());
  const std::size_t of_reference =
      count_launches([&] { return reference.run(); }, stream, "512 queries, mode reference");
  std::printf("the same in mode reference: %zu launches\n", of_reference);
  CHECK(of_reference == count + 1, "%zu launches in mode reference", of_reference);
  CHECK(attention.workspace_bytes() > chunk_index, "keys are not cut in parts");
  must(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

/// Lists of 32 heads at a million tokens: the plan is the CPU's, chunk by chunk.
void test_plan_of_a_million() {
  const Patterns patterns(kHeads, kVsIndex);
  plan::Problem problem = million_tokens(patterns);
  problem.needs_values = false;  // q, k and v are not read
  std::mt19937 generator(7);
  constexpr std::int64_t kVertical = 1000, kSlash = 6096;
  HeapIndex vertical({1, kHeads, kVertical}), slash({1, kHeads, kSlash});
  for (std::size_t n = 0; n < vertical.count(); ++n) {
    vertical.data()[n] = static_cast<std::int32_t>(generator() % kMillion);
  }
  for (std::size_t n = 0; n < slash.count(); ++n) {
    slash.data()[n] = static_cast<std::int32_t>(generator() % kMillion);
  }
  DeviceBytes vertical_memory, slash_memory;
  problem.vertical_idx = copy_to_device(vertical, &vertical_memory);
  problem.slash_idx = copy_to_device(slash, &slash_memory);
  const DeviceBytes workspace =
      device_workspace(cuda::LayerIndex(problem, nullptr).workspace_bytes());
  cuda::LayerIndex index(problem, workspace.data());
  CHECK(index.build(0) == Status::kOk, "%s", last_error());
  wait_for_device("1M tokens");
  const PlanCopy copy(index.plan(), kHeads, 1, 256);
  const PlannedRows rows = {{0, 0, kMillion, 0, kMillion}, 0, 0, kMillion};
  std::int64_t bytes = 0;
  for (std::int64_t head = 0; head < kHeads; ++head) {
    const HeadView view(copy, rows, head);
    std::vector<std::int32_t> verticals = reference::read_list(vertical.view, 0, head);
    std::vector<std::int32_t> slashes = reference::read_list(slash.view, 0, head);
    CHECK(view.verticals() == verticals && view.slashes() == slashes, "head %d: other lines",
          int(head));
    std::vector<plan::PlanChunk> chunks(plan::max_plan_chunks(slashes.size(), kMillion) + 1);
    std::vector<std::uint64_t> covered(cpu::BitSet::num_words(kMillion + 65));
    cpu::HeadPlan expected{};
    expected.mode = SlashMode::kCover;
    expected.verticals = verticals.data();
    expected.slashes = slashes.data();
    expected.num_vertical = static_cast<std::int32_t>(verticals.size());
    expected.num_slash = static_cast<std::int32_t>(slashes.size());
    expected.chunks = chunks.data();
    expected.covered.words = covered.data();
    cpu::build_vs_plan(kMillion, &expected);
    const std::vector<plan::PlanChunk> found = view.chunks();
    const bool is_equal = view.plan().num_chunks == expected.num_chunks &&
                          std::equal(found.begin(), found.end(), chunks.begin(),
                                     [](const plan::PlanChunk& a, const plan::PlanChunk& b) {
                                       return a.rel == b.rel && a.valid == b.valid;
                                     });
    CHECK(is_equal, "head %d: other chunks", int(head));
    CHECK(view.plan().pieces == cpu::vs_pieces(expected, kMillion, kMillion), "head %d: pieces",
          int(head));
    std::int64_t bad = -1;
    for (std::int64_t bit = 0; bit < kMillion + 65; ++bit) {
      if (test_bit(view.covered(), bit) != expected.covered.test(bit)) bad = bit;
    }
    CHECK(bad < 0, "head %d: bit %d of the cover", int(head), int(bad));
    bytes += plan_bytes(view.plan(), kMillion);
  }
  std::printf("1M tokens, 32 heads of (1000, 6096), random lines: plans %.2f MiB\n",
              static_cast<double>(bytes) / (1 << 20));
  CHECK(bytes <= 8 << 20, "plans of %lld bytes", static_cast<long long>(bytes));
}

/// A tensor with one stride so large that offsets pass 2^31 elements. Little of it is touched.
class WideTensor {
 public:
  WideTensor(const HeapTensor& compact, int axis) : view_(compact.view) {
    for (int n = 0; n < 3; ++n) {
      if (view_.shape[n] == 1) view_.stride[n] = 0;
    }
    const std::int64_t steps = std::max<std::int64_t>(1, view_.shape[axis] - 1);
    view_.stride[axis] = ((std::int64_t{1} << 32) / steps / 16 + 1) * 16;  // half from 2^31 on
    std::int64_t last = view_.shape[3];
    for (int n = 0; n < 3; ++n) last += (view_.shape[n] - 1) * view_.stride[n];
    void* memory = nullptr;
    must(cudaMalloc(&memory, bytes(last)), "cudaMalloc");
    memory_.reset(memory, &cudaFree);
    view_.data = memory;
    for (std::int64_t b = 0; b < view_.shape[0]; ++b) {
      for (std::int64_t h = 0; h < view_.shape[1]; ++h) {
        for (std::int64_t r = 0; r < view_.shape[2]; ++r) {
          const std::int64_t offset =
              b * view_.stride[0] + h * view_.stride[1] + r * view_.stride[2];
          must(cudaMemcpy(static_cast<char*>(memory) + bytes(offset), compact.at(b, h, r, 0),
                          bytes(view_.shape[3]), cudaMemcpyHostToDevice),
               "cudaMemcpy");
        }
      }
    }
  }
  const TensorView& view() const { return view_; }

  /// Copies what is there to a tensor of the same shape.
  void read(const HeapTensor& compact) const {
    for (std::int64_t b = 0; b < view_.shape[0]; ++b) {
      for (std::int64_t h = 0; h < view_.shape[1]; ++h) {
        for (std::int64_t r = 0; r < view_.shape[2]; ++r) {
          const std::int64_t offset =
              b * view_.stride[0] + h * view_.stride[1] + r * view_.stride[2];
          must(cudaMemcpy(compact.at(b, h, r, 0), static_cast<char*>(memory_.get()) + bytes(offset),
                          bytes(view_.shape[3]), cudaMemcpyDeviceToHost),
               "cudaMemcpy");
        }
      }
    }
  }

 private:
  std::size_t bytes(std::int64_t elements) const {
    return static_cast<std::size_t>(elements) * element_bytes(view_.dtype);
  }

  TensorView view_;
  std::shared_ptr<void> memory_;
};

/// Everything the plan consists of, row by row of what is defined.
std::vector<unsigned char> plan_contents(const plan::Problem& problem, const Layer& layer) {
  const DeviceBytes workspace =
      device_workspace(cuda::LayerIndex(problem, nullptr).workspace_bytes());
  cuda::LayerIndex index(problem, workspace.data());
  CHECK(index.build(0) == Status::kOk, "%s", last_error());
  wait_for_device("large strides");
  const PlanCopy copy(index.plan(), layer.c.num_heads_q, layer.num_sequences(), layer.row_bytes());
  const std::vector<reference::Sequence> sequences = reference::sequences(layer.host);
  std::vector<unsigned char> contents;
  const auto add = [&](const auto* data, std::size_t count) {
    const auto* const bytes = reinterpret_cast<const unsigned char*>(data);
    contents.insert(contents.end(), bytes, bytes + count * sizeof *data);
  };
  for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
    const HeadView view(copy, planned_rows(sequences, n / layer.c.num_heads_q, 0, 0),
                        n % layer.c.num_heads_q);
    const PatternKind kind = view.plan().kind;
    add(&kind, 1);
    if (kind == PatternKind::kVerticalSlash || kind == PatternKind::kVerticalSlashIndex) {
      const std::vector<std::int32_t> verticals = view.verticals(), slashes = view.slashes();
      add(verticals.data(), verticals.size());
      add(slashes.data(), slashes.size());
      const std::size_t bytes = verticals.size() * copy.row_bytes;
      add(view.gathered(copy.gathered_k, 0), bytes);
      add(view.gathered(copy.gathered_v, 0), bytes);
    } else {
      for (std::int64_t block = 0; block < (layer.c.seq_q + 63) / 64; ++block) {
        const std::vector<std::int32_t> tiles = view.tiles(block);
        add(tiles.data(), tiles.size());
      }
    }
  }
  return contents;
}

void test_large_strides(DType dtype) {
  const Case shape = {.reason = "large strides",
                      .batch = 2,
                      .num_heads_q = 4,
                      .num_heads_kv = 2,
                      .seq_q = 130,
                      .seq_kv = 600,
                      .head_dim = 32,
                      .patterns = {{PatternKind::kVerticalSlash, {200, 300}},
                                   kVsIndex,
                                   kTopK,
                                   {PatternKind::kVerticalSlash, {40, 60}}}};
  const Layer layer(shape, dtype);
  if (!is_served(layer)) return;
  const plan::Problem compact = layer.device_problem(false, true);
  const std::vector<unsigned char> expected = plan_contents(compact, layer);
  for (int axis = 0; axis < 3; ++axis) {
    static constexpr const char* kAxes[] = {"batch", "heads", "tokens"};
    plan::Problem problem = compact;
    const WideTensor q(layer.q, axis), k(layer.k, axis), v(layer.v, axis);
    problem.args.q = q.view();
    problem.args.k = k.view();
    problem.args.v = v.view();
    CHECK(plan_contents(problem, layer) == expected,
          "%s: offsets past 2^31 on axis %s: another plan", dtype_name(dtype), kAxes[axis]);
  }
}

void test_attention_at_large_strides(DType dtype) {
  const Case shape = {.reason = "large strides",
                      .batch = 2,
                      .num_heads_q = 4,
                      .num_heads_kv = 2,
                      .seq_q = 130,
                      .seq_kv = 300,
                      .head_dim = 32,
                      .patterns = {kDense, kVsIndex, kBlockIndex, kVs},
                      .num_vertical = 40};
  const Layer layer(shape, dtype);
  if (!is_served(layer)) return;
  const auto run = [](const plan::Problem& problem) {
    const cuda::Slots slots = slots_of(problem, 1);
    const DeviceBytes workspace =
        device_workspace(cuda::LayerAttention(problem, slots, nullptr).workspace_bytes());
    CHECK(cuda::LayerAttention(problem, slots, workspace.data()).run() == Status::kOk, "%s",
          last_error());
    wait_for_device("large strides");
  };
  const auto bytes_of = [](const HeapTensor& tensor) {
    return std::vector<unsigned char>(tensor.bytes.data(),
                                      tensor.bytes.data() + tensor.bytes.size());
  };
  const plan::Problem compact = layer.device_problem(false, true);
  run(compact);
  layer.read_results();
  const std::vector<unsigned char> expected = bytes_of(layer.out);
  for (int axis = 0; axis < 3; ++axis) {
    static constexpr const char* kAxes[] = {"batch", "heads", "tokens"};
    plan::Problem problem = compact;
    std::memset(layer.out.bytes.data(), 0, layer.out.bytes.size());
    const WideTensor q(layer.q, axis), k(layer.k, axis), v(layer.v, axis), out(layer.out, axis);
    problem.args.q = q.view();
    problem.args.k = k.view();
    problem.args.v = v.view();
    problem.args.out = out.view();
    run(problem);
    out.read(layer.out);
    CHECK(bytes_of(layer.out) == expected, "%s: offsets past 2^31 on axis %s: other results",
          dtype_name(dtype), kAxes[axis]);
  }
}

/// Two layers of 16K tokens on 2 kv heads: 8 heads that estimate, and 2 that rank blocks. Prints
/// what the emulator's statistics cannot know: bytes that no plan can do without.
int run_for_work_counts() {
  Case shape = {.reason = "work counts",
                .num_heads_q = 8,
                .num_heads_kv = 2,
                .seq_q = 16384,
                .seq_kv = 16384,
                .head_dim = 128,
                .patterns = {{PatternKind::kVerticalSlash, {1000, 600}}},
                .layout = Layout::kRowsFirst,
                .layout_kv = Layout::kRowsFirst};
  std::int64_t gathered = 0;
  const std::int64_t row_bytes = 2 * shape.head_dim;
  for (const bool ranks_blocks : {false, true}) {
    if (ranks_blocks) {
      shape.num_heads_q = 2;
      shape.patterns = {{PatternKind::kBlockSparse, {64}}};
    }
    const Layer layer(shape, DType::kBFloat16);
    const plan::Problem problem = layer.device_problem(false, true);
    const DeviceBytes workspace =
        device_workspace(cuda::LayerIndex(problem, nullptr).workspace_bytes());
    cuda::LayerIndex index(problem, workspace.data());
    if (index.build(0) != Status::kOk) {
      std::printf("%s\n", last_error());
      return 1;
    }
    wait_for_device("work counts");
    const PlanCopy copy(index.plan(), shape.num_heads_q, 1, row_bytes);
    for (const cuda::HeadPlan& head : copy.heads) gathered += 2 * row_bytes * head.num_vertical;
  }
  const std::int64_t k_bytes = shape.num_heads_kv * shape.seq_kv * row_bytes;
  std::printf(
      "{\"k_bytes\": %lld, \"q_bytes_per_block\": %lld, \"pooled_bytes\": %lld, "
      "\"gathered_bytes\": %lld}\n",
      static_cast<long long>(k_bytes), static_cast<long long>(4 * 64 * row_bytes),
      static_cast<long long>(2 * k_bytes), static_cast<long long>(gathered));
  return 0;
}

}  // namespace
}  // namespace minference::test

int main(int argc, char** argv) {
  using namespace minference;
  if (argc > 1 && std::string(argv[1]) == "work") return test::run_for_work_counts();
  test::test_memory_and_launches();
  test::test_plan_of_a_million();
  for (const DType dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
    test::test_large_strides(dtype);
    test::test_attention_at_large_strides(dtype);
  }
  return test::finish("large_cuda_test");
}
