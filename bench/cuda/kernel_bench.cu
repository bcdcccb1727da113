// What the kernels cost on this device, by CUDA events: each stage of the index, index and plan
// together, attention with and without them, both kernels of attention and float8 beside each
// other. bench/gpu runs it; by hand:
//
//   kernel_bench [--lengths 16384,131072] [--seconds 0.1] [--heads 32] [--heads-kv 8]
//                [--sections copy,index,attention] [--flush-mib 256] [--spin 20000]
//
// One JSON object per measurement on stdout, as soon as it is known: whoever reads keeps what came
// before a time limit. Stages are launched alone, on what the stages before have left in memory, so
// their sum is more than the total, which has no gaps between launches to wait for.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/any/launch.h"
#include "cuda/choose.h"
#include "cuda/layer_attention.h"
#include "cuda/layer_index.h"
#include "device_timer.cuh"
#include "layer.cuh"
#include "minference/minference.h"

namespace minference::bench {
namespace {

struct Options {
  std::vector<std::int64_t> lengths = {16384, 131072, 524288, 1048576};
  std::string sections = "copy,index,attention";
  double seconds = 0.1;
  int heads = 32;
  int heads_kv = 8;
  int head_dim = 128;
  std::int64_t flush_mib = 256;
  int spin = 20000;
};

/// One line of output. Values are numbers or already quoted.
class Row {
 public:
  Row& text(const char* key, const std::string& value) { return add(key, '"' + value + '"'); }
  Row& number(const char* key, double value) {
    char digits[32];
    std::snprintf(digits, sizeof digits, "%.9g", value);
    return add(key, digits);
  }
  Row& times(const Times& times, L2 l2) {
    return text("l2", l2 == L2::kFlushed ? "flushed" : "warm")
        .number("ms", times.median_ms)
        .number("p10", times.p10_ms)
        .number("p90", times.p90_ms)
        .number("runs", times.runs);
  }
  void print() const {
    std::printf("{%s}\n", members_.c_str());
    std::fflush(stdout);
  }

 private:
  Row& add(const char* key, const std::string& value) {
    members_ += (members_.empty() ? "\"" : ", \"") + std::string(key) + "\": " + value;
    return *this;
  }
  std::string members_;
};

void require_ok(Status status, const char* what) {
  if (status == Status::kOk) return;
  std::fprintf(stderr, "kernel_bench: %s: %s\n", what, last_error());
  std::exit(1);
}

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        stream_(make_stream()),
        timer_(stream_, options.seconds, static_cast<std::size_t>(options.flush_mib) << 20,
               options.spin) {}

  void run() {
    if (wants("copy")) copy();
    for (const std::int64_t length : options_.lengths) {
      if (!wants("index")) break;
      if (const auto layer = make_layer("index", length)) {
        const HeadPattern sizes{.kind = PatternKind::kVerticalSlash, .size = {1000, 6096, 0}};
        index(*layer, uniform("(1000, 6096)", sizes, options_.heads), "prompt", true);
        index(*layer, mixed_sizes(options_.heads), "prompt", false);
        if (is_hopper()) {
          layer->add_float8();
          index(*layer, uniform("(1000, 6096)", sizes, options_.heads), "prompt in float8", false,
                DType::kFloat8E4M3);
        }
        layer->fill(false);
        index(*layer, uniform("(1000, 6096)", sizes, options_.heads), "random", false);
      }
    }
    for (const std::int64_t length : options_.lengths) {
      if (!wants("attention")) break;
      if (const auto layer = make_layer("attention", length)) attention(layer.get());
    }
  }

 private:
  static cudaStream_t make_stream() {
    cudaStream_t stream = nullptr;
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    return stream;
  }

  bool wants(const char* section) const {
    return (',' + options_.sections + ',').find(',' + std::string(section) + ',') !=
           std::string::npos;
  }

  /// Null, and a row that says so, if the device has not enough memory.
  std::unique_ptr<Layer> make_layer(const char* section, std::int64_t length) {
    const InputShape shape{length, options_.heads, options_.heads_kv, options_.head_dim};
    std::size_t free_bytes = 0, all_bytes = 0;
    require(cudaMemGetInfo(&free_bytes, &all_bytes), "cudaMemGetInfo");
    const std::size_t tensors =
        2 * (Layer::bytes(shape.heads, shape) + Layer::bytes(shape.heads_kv, shape));
    if (tensors + tensors / 2 > free_bytes) {
      row(section, length).text("note", "skipped: not enough device memory").print();
      return nullptr;
    }
    auto layer = std::make_unique<Layer>(shape, stream_);
    layer->fill(true);
    return layer;
  }

  static Row row(const char* section, std::int64_t length) {
    return Row().text("section", section).number("length", static_cast<double>(length));
  }

  /// Achieved bandwidth, bytes read and bytes written.
  void copy() {
    const std::size_t bytes = static_cast<std::size_t>(options_.flush_mib) << 22;  // four times
    const DeviceMemory from(bytes), to(bytes);
    make_normal(from.data(), static_cast<std::int64_t>(bytes / 2), 8, stream_);
    const Times times = timer_.measure(L2::kFlushed, [&] {
      require(cudaMemcpyAsync(to.data(), from.data(), bytes, cudaMemcpyDeviceToDevice, stream_),
              "cudaMemcpyAsync");
    });
    row("copy", 0)
        .times(times, L2::kFlushed)
        .number("bytes", 2.0 * static_cast<double>(bytes))
        .print();
  }

  /// Whether this build and device have the kernel of sm_90, with which float8 comes.
  static bool is_hopper() {
    cuda::DeviceFacts facts{};
    require_ok(cuda::device_facts(&facts), "device_facts");
    return cuda::can_overlap_kernels(facts);
  }

  void index(const Layer& layer, const LayerPatterns& patterns, const char* data, bool has_stages,
             DType dtype = DType::kBFloat16) {
    const plan::Problem problem = problem_of(layer, patterns, true, dtype);
    const plan::Problem no_values = problem_of(layer, patterns, false, dtype);
    const DeviceMemory workspace(cuda::LayerIndex(problem, nullptr).workspace_bytes());
    cuda::LayerIndex index(problem, workspace.data());
    cuda::LayerIndex without_gather(no_values, workspace.data());
    const double keys = static_cast<double>(Layer::bytes(layer.shape.heads_kv, layer.shape)) *
                        cuda::element_bytes(dtype) / 2;
    // Scores of 64 queries per head; the last step sums what the first has exponentiated.
    const double flop = 2.0 * layer.shape.heads * 64 * static_cast<double>(layer.shape.length) *
                        layer.shape.head_dim;
    const auto measure = [&](const char* stage, double bytes, double operations, auto run) {
      for (const L2 l2 : {L2::kFlushed, L2::kWarm}) {
        const Times times = timer_.measure(l2, run);
        row("index", layer.shape.length)
            .text("pattern", patterns.name)
            .text("data", data)
            .text("stage", stage)
            .times(times, l2)
            .number("bytes", bytes)
            .number("flop", operations)
            .print();
      }
    };
    measure("index + plan", 2 * keys, 2 * flop,
            [&] { require_ok(without_gather.build(0), "index + plan"); });
    measure_graph(layer, patterns, data, &without_gather, 2 * keys, 2 * flop);
    measure("index + plan + gather", 2 * keys, 2 * flop,
            [&] { require_ok(index.build(0), "index + plan + gather"); });
    if (!has_stages) return;

    const cuda::EstimateParams& estimate = index.estimate_params();
    const cuda::PlanParams& plan = index.plan_params();
    const cuda::GatherParams gather = {.call = plan.call,
                                       .k = estimate.k,
                                       .v = cuda::device_tensor(problem.args.v),
                                       .plan = plan.plan};
    const auto stage = [&](const char* name, double bytes, double operations, auto launch) {
      measure(name, bytes, operations, [&] { require(launch(), name); });
    };
    stage("row_stats", keys, flop, [&] { return cuda::launch_row_stats(estimate, stream_); });
    stage("merge_row_stats", 0, 0, [&] { return cuda::launch_merge_row_stats(estimate, stream_); });
    stage("line_sums", keys, flop, [&] { return cuda::launch_line_sums(estimate, stream_); });
    stage("select_lines", 0, 0, [&] { return cuda::launch_select_lines(plan, stream_); });
    stage("build_plan", 0, 0, [&] { return cuda::launch_build_plan(plan, stream_); });
    stage("gather", 0, 0, [&] { return cuda::launch_gather(gather, stream_); });
  }

  /// The same as one graph: what the launches cost comes off.
  void measure_graph(const Layer& layer, const LayerPatterns& patterns, const char* data,
                     cuda::LayerIndex* index, double bytes, double flop) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t executable = nullptr;
    require(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capturing");
    require_ok(index->build(0), "capturing index + plan");
    require(cudaStreamEndCapture(stream_, &graph), "capturing");
    require(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
    const Times times = timer_.measure(
        L2::kFlushed, [&] { require(cudaGraphLaunch(executable, stream_), "cudaGraphLaunch"); });
    row("index", layer.shape.length)
        .text("pattern", patterns.name)
        .text("data", data)
        .text("stage", "index + plan, as a graph")
        .times(times, L2::kFlushed)
        .number("bytes", bytes)
        .number("flop", flop)
        .print();
    require(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
    require(cudaGraphDestroy(graph), "cudaGraphDestroy");
  }

  /// Who is timed besides the chosen kernel's attention alone.
  struct Others {
    bool whole = false;         ///< plan and attention, as the library runs them
    bool other_kernel = false;  ///< that of sm_80, where the chosen one is that of sm_90
    bool float8 = false;        ///< the latter with tensors in float8
    bool reserved = false;      ///< the chosen one on fewer multiprocessors, where it can
  };

  /// Whole prompts, then a chunk of one, with too few tasks for a device unless keys are cut.
  void attention(Layer* layer) {
    const InputShape& shape = layer->shape;
    const int heads = shape.heads;
    const bool is_short = shape.length <= kLongestDense;
    const LayerPatterns dense = uniform("dense", {.kind = PatternKind::kDense}, heads);
    if (is_hopper()) layer->add_float8();
    if (is_short) attend(*layer, dense, {true, true, true, shape.length <= kLongestReserved});
    attend(*layer,
           uniform("a_shape(1024, 4096)", {.kind = PatternKind::kAShape, .size = {1024, 4096, 0}},
                   heads),
           {.whole = is_short});
    for (const int percent : {90, 95, 98}) {
      attend(*layer,
             given_lines("clustered " + std::to_string(percent) + "%",
                         clustered_heads((100 - percent) / 100.0, shape.length, heads), shape),
             {.whole = is_short || percent == 95,
              .other_kernel = is_short && percent == 90,
              .float8 = true});
    }
    attend(*layer, given_lines("half local (100, 800)", {100, 400, 400, 1}, shape),
           {.whole = is_short});
    attend(*layer, given_lines("random (100, 800)", {100, 1, 799, 1}, shape), {.whole = is_short});
    if (shape.length == std::ranges::max(options_.lengths)) {
      attend(*layer, isolated(shape), {.float8 = true});
    }
    attend(*layer,
           uniform("estimated (1000, 6096)",
                   {.kind = PatternKind::kVerticalSlash, .size = {1000, 6096, 0}}, heads),
           {.whole = is_short});
    layer->queries = std::min<std::int64_t>(kChunk, shape.length);
    attend(*layer, dense, {.whole = is_short});
    attend(*layer, given_lines("clustered 90%", clustered_heads(0.1, shape.length, heads), shape),
           {.whole = is_short});
  }

  /// A kernel with index, plan and memory of its own.
  struct Alone {
    Alone(const plan::Problem& problem, const cuda::Slots& slots)
        : slots(slots),
          memory(cuda::LayerAttention(problem, slots, nullptr).workspace_bytes()),
          layer(problem, slots, memory.data()) {}
    void plan() { require_ok(layer.index().build(0), "index + plan + gather"); }

    cuda::Slots slots;
    DeviceMemory memory;
    cuda::LayerAttention layer;
  };

  void attend(const Layer& layer, const LayerPatterns& patterns, const Others& others) {
    plan::Problem problem = problem_of(layer, patterns, true);
    Alone chosen(problem, slots_of(problem));
    const Times plan_times = timer_.measure(L2::kFlushed, [&] { chosen.plan(); });
    const PlanStats sum = stats_of(&chosen.layer.index(), layer.shape.heads);
    double line_bytes = patterns.line_bytes;
    const auto measure = [&](const char* contender, const cuda::Slots& slots, auto run) {
      for (const L2 l2 : {L2::kFlushed, L2::kWarm}) {
        const Times times = timer_.measure(l2, run);
        Row labelled = row("attention", layer.shape.length);
        labelled.number("queries", static_cast<double>(layer.queries))
            .text("pattern", patterns.name)
            .text("contender", contender)
            .text("kernel", cuda::kernel_name(slots.kernel))
            .number("slots", slots.count)
            .number("attended", share(sum.attended_pairs, sum.causal_pairs))
            .number("computed", share(sum.computed_pairs, sum.causal_pairs))
            .number("useful_flop", flop(sum.attended_pairs, layer.shape))
            .number("executed_flop", flop(sum.computed_pairs, layer.shape))
            .number("plan_ms", plan_times.median_ms);
        if (line_bytes > 0) labelled.number("line_bytes", line_bytes);
        labelled.times(times, l2).print();
        if (times.median_ms > kLongForL2) break;
      }
    };
    const auto measure_alone = [&](const char* contender, Alone* alone) {
      measure(contender, alone->slots,
              [&] { require_ok(alone->layer.attend(), "attention alone"); });
    };
    measure_alone("ours, attention alone", &chosen);
    const bool is_sm90 = chosen.slots.kernel == cuda::AttentionKernel::kSm90;
    if (others.other_kernel && is_sm90) {
      Alone other(problem, slots_of(problem, cuda::AttentionKernel::kSm80));
      other.plan();
      measure_alone("mma.sync, attention alone", &other);
    }
    if (others.whole) {
      const AttentionArgs args = layer.args();
      SparseAttentionParams params;
      params.head_patterns = patterns.heads.data();
      params.vertical_idx = patterns.vertical_view;
      params.slash_idx = patterns.slash_view;
      params.dense_fallback = 0;
      std::size_t bytes = 0;
      require_ok(sparse_attention_workspace_bytes(args, params, &bytes), "sparse_attention");
      const DeviceMemory workspace(bytes);
      measure("ours", chosen.slots, [&] {
        require_ok(sparse_attention(args, params, workspace.data(), bytes), "sparse_attention");
      });
    }
    if (others.float8 && is_sm90) {
      const plan::Problem in_float8 = problem_of(layer, patterns, true, DType::kFloat8E4M3);
      Alone float8(in_float8, slots_of(in_float8));
      float8.plan();
      line_bytes /= 2;
      measure_alone("float8, attention alone", &float8);
      line_bytes = patterns.line_bytes;
    }
    if (others.reserved && is_sm90) {
      problem.args.reserved_multiprocessors = kReserved;
      Alone fewer(problem, slots_of(problem));
      fewer.plan();
      measure_alone("ours, 16 multiprocessors reserved", &fewer);
    }
  }

  /// Pairs of all heads, of the plan that was made last.
  PlanStats stats_of(cuda::LayerIndex* index, int heads) {
    const DeviceMemory memory(heads * sizeof(PlanStats));
    std::vector<PlanStats> stats(heads);
    require_ok(index->add_stats(static_cast<PlanStats*>(memory.data())), "plan_stats");
    require(cudaMemcpyAsync(stats.data(), memory.data(), heads * sizeof(PlanStats),
                            cudaMemcpyDeviceToHost, stream_),
            "copying statistics");
    require(cudaStreamSynchronize(stream_), "plan_stats");
    PlanStats sum{};
    for (const PlanStats& head : stats) {
      sum.attended_pairs += head.attended_pairs;
      sum.computed_pairs += head.computed_pairs;
      sum.causal_pairs += head.causal_pairs;
    }
    return sum;
  }

  static double share(std::int64_t part, std::int64_t all) {
    return static_cast<double>(part) / static_cast<double>(all);
  }

  static double flop(std::int64_t pairs, const InputShape& shape) {
    return 4.0 * static_cast<double>(pairs) * shape.head_dim;
  }

  /// Of the kernel that the library would choose, or of `kernel`.
  static cuda::Slots slots_of(const plan::Problem& problem,
                              std::optional<cuda::AttentionKernel> kernel = {}) {
    cuda::DeviceFacts facts{};
    cuda::Slots slots{};
    require_ok(cuda::device_facts(&facts), "device_facts");
    cuda::KernelChoice choice = cuda::choose_kernel(problem, facts);
    if (kernel) choice.kernel = *kernel;
    require_ok(cuda::count_slots(problem, choice, facts, &slots), "count_slots");
    return slots;
  }

  static constexpr std::int64_t kChunk = 512;                // queries
  static constexpr std::int64_t kLongestDense = 1 << 17;     // 0.2 s; at 512K 3.5 s
  static constexpr std::int64_t kLongestReserved = 1 << 14;  // tokens
  static constexpr std::int32_t kReserved = 16;              // multiprocessors
  static constexpr double kLongForL2 = 20;  // ms; what the L2 held before does not show in them

  Options options_;
  cudaStream_t stream_;
  DeviceTimer timer_;
};

bool parse(int count, char** arguments, Options* options) {
  for (int i = 1; i < count; i += 2) {
    const std::string name = arguments[i];
    if (i + 1 == count) return false;
    const char* value = arguments[i + 1];
    if (name == "--lengths") {
      options->lengths.clear();
      std::stringstream list(value);
      for (std::string length; std::getline(list, length, ',');) {
        options->lengths.push_back(std::atoll(length.c_str()));
      }
    } else if (name == "--sections") {
      options->sections = value;
    } else if (name == "--seconds") {
      options->seconds = std::atof(value);
    } else if (name == "--heads") {
      options->heads = std::atoi(value);
    } else if (name == "--heads-kv") {
      options->heads_kv = std::atoi(value);
    } else if (name == "--flush-mib") {
      options->flush_mib = std::atoll(value);
    } else if (name == "--spin") {
      options->spin = std::atoi(value);
    } else {
      return false;
    }
  }
  return true;
}

}  // namespace
}  // namespace minference::bench

int main(int count, char** arguments) {
  minference::bench::Options options;
  if (!minference::bench::parse(count, arguments, &options)) {
    std::fprintf(stderr, "kernel_bench: unknown option or no value; the file's head lists them\n");
    return 2;
  }
  minference::bench::Bench(options).run();
  return 0;
}
