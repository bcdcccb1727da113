// A C++ engine in small: its own memory, its own threads, libminference.so and nothing else of
// ours. Runs dense and vertical-slash attention on one small layer and compares them with loops in
// double written from sparse_attention.h. Prints one line per check; returns the number of
// failures.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <random>
#include <thread>
#include <vector>

#include "minference/minference.h"

namespace {

using minference::Status;

constexpr std::int64_t kHeadsQ = 4;
constexpr std::int64_t kHeadsKv = 2;
constexpr std::int64_t kQueries = 150;  // two row blocks and a partial one
constexpr std::int64_t kKeys = 331;     // queries are the last ones: bottom-right aligned
constexpr std::int64_t kHeadDim = 40;
constexpr double kTolerance = 2e-4;

int num_failures = 0;

void check(bool is_ok, const char* what) {
  std::printf("%s: %s\n", is_ok ? "ok" : "FAILED", what);
  num_failures += is_ok ? 0 : 1;
}

void check_status(Status status, Status expected, const char* what) {
  check(status == expected, what);
  if (status != expected) {
    std::printf("  %s: %s\n", minference::status_string(status), minference::last_error());
  }
}

/// The engine's threads: two of them, workers dealt out by a counter.
struct EngineThreads {
  std::atomic<int> num_calls{0};

  static void run(void* context, std::int64_t num_workers, void (*body)(void*, std::int64_t),
                  void* argument) {
    static_cast<EngineThreads*>(context)->num_calls++;
    std::atomic<std::int64_t> next{0};
    const auto work = [&] {
      for (std::int64_t worker = next++; worker < num_workers; worker = next++) {
        body(argument, worker);
      }
    };
    std::thread other(work);
    work();
    other.join();
  }
};

/// The engine's layout [tokens, heads, head_dim] with room for two more heads in each token.
struct EngineTensor {
  std::vector<float> memory;
  std::int64_t heads, tokens;

  EngineTensor(std::int64_t num_heads, std::int64_t num_tokens, std::mt19937* generator)
      : memory((num_heads + 2) * num_tokens * kHeadDim, std::nanf("")),
        heads(num_heads),
        tokens(num_tokens) {
    std::normal_distribution<float> normal;
    if (generator == nullptr) return;
    for (std::int64_t h = 0; h < heads; ++h) {
      for (std::int64_t t = 0; t < tokens; ++t) {
        for (std::int64_t d = 0; d < kHeadDim; ++d) at(h, t)[d] = normal(*generator);
      }
    }
  }
  float* at(std::int64_t head, std::int64_t token) {
    return memory.data() + (token * (heads + 2) + head) * kHeadDim;
  }
  minference::TensorView view() {
    minference::TensorView view;
    view.data = memory.data();
    const std::int64_t shape[4] = {1, heads, tokens, kHeadDim};
    const std::int64_t stride[4] = {tokens * (heads + 2) * kHeadDim, kHeadDim,
                                    (heads + 2) * kHeadDim, 1};
    std::copy(shape, shape + 4, view.shape);
    std::copy(stride, stride + 4, view.stride);
    return view;
  }
};

/// Workspace of exactly the size asked for, at an odd address, with guard bytes behind it.
struct Workspace {
  std::vector<unsigned char> memory;
  std::size_t bytes;

  explicit Workspace(std::size_t size) : memory(size + 1 + 64, 0xA5), bytes(size) {}
  void* data() { return memory.data() + 1; }
  bool is_overrun() const {
    return std::any_of(memory.begin() + 1 + bytes, memory.end(),
                       [](unsigned char byte) { return byte != 0xA5; });
  }
};

struct Layer {
  std::mt19937 generator{7};
  EngineTensor q{kHeadsQ, kQueries, &generator};
  EngineTensor k{kHeadsKv, kKeys, &generator};
  EngineTensor v{kHeadsKv, kKeys, &generator};
  EngineTensor out{kHeadsQ, kQueries, nullptr};
  std::vector<float> lse = std::vector<float>(kHeadsQ * kQueries, std::nanf(""));
  EngineThreads threads;

  minference::AttentionArgs args() {
    minference::AttentionArgs args;
    args.q = q.view();
    args.k = k.view();
    args.v = v.view();
    args.out = out.view();
    args.lse = lse.data();
    args.lse_stride[0] = kHeadsQ * kQueries;
    args.lse_stride[1] = kQueries;
    args.lse_stride[2] = 1;
    args.num_threads = 2;
    args.parallel_for.run = &EngineThreads::run;
    args.parallel_for.context = &threads;
    return args;
  }

  /// Largest difference of out and lse from attention over the keys that attends(head, row, key)
  /// allows; infinite if anything was left unwritten.
  double error(const std::function<bool(std::int64_t, std::int64_t, std::int64_t)>& attends) {
    double worst = 0;
    const auto compare = [&worst](double actual, double expected) {
      const bool is_same = actual == expected;  // both -inf
      const double difference = is_same ? 0 : std::abs(actual - expected);
      worst = std::isnan(difference) ? std::numeric_limits<double>::infinity()
                                     : std::max(worst, difference);
    };
    std::vector<double> score(kKeys), expected(kHeadDim);
    for (std::int64_t h = 0; h < kHeadsQ; ++h) {
      const std::int64_t g = h / (kHeadsQ / kHeadsKv);
      for (std::int64_t r = 0; r < kQueries; ++r) {
        const std::int64_t last_key = r + kKeys - kQueries;
        double sum = 0;
        std::fill(expected.begin(), expected.end(), 0.0);
        for (std::int64_t j = 0; j <= last_key; ++j) {
          if (!attends(h, r, j)) continue;
          double dot = 0;
          for (std::int64_t d = 0; d < kHeadDim; ++d) {
            dot += static_cast<double>(q.at(h, r)[d]) * k.at(g, j)[d];
          }
          const double weight = std::exp(dot / std::sqrt(static_cast<double>(kHeadDim)));
          sum += weight;
          for (std::int64_t d = 0; d < kHeadDim; ++d) expected[d] += weight * v.at(g, j)[d];
        }
        compare(lse[h * kQueries + r], std::log(sum));
        for (std::int64_t d = 0; d < kHeadDim; ++d) {
          compare(out.at(h, r)[d], sum == 0 ? 0 : expected[d] / sum);
        }
      }
    }
    return worst;
  }

  /// Unwritten results and writes between the heads show.
  void poison() {
    std::fill(out.memory.begin(), out.memory.end(), std::nanf(""));
    std::fill(lse.begin(), lse.end(), std::nanf(""));
  }
  bool gaps_are_untouched() {
    for (std::int64_t t = 0; t < kQueries; ++t) {
      const float* gap = out.at(kHeadsQ, t);
      if (!std::all_of(gap, gap + 2 * kHeadDim, [](float x) { return std::isnan(x); })) {
        return false;
      }
    }
    return true;
  }
};

void dense() {
  Layer layer;
  const minference::AttentionArgs args = layer.args();
  check_status(minference::dense_attention_supports(args), Status::kOk, "dense is supported");
  std::size_t bytes = 0;
  check_status(minference::dense_attention_workspace_bytes(args, &bytes), Status::kOk,
               "dense workspace is known");
  Workspace workspace(bytes);
  check_status(minference::dense_attention(args, workspace.data(), bytes), Status::kOk,
               "dense runs");
  const auto all = [](std::int64_t, std::int64_t, std::int64_t) { return true; };
  check(layer.error(all) < kTolerance, "dense equals the loops");
  check(layer.gaps_are_untouched() && !workspace.is_overrun(), "dense writes its own memory only");
  check(layer.threads.num_calls > 0, "dense runs on the engine's threads");
  if (bytes > 0) {
    check_status(minference::dense_attention(args, workspace.data(), bytes - 1),
                 Status::kWorkspaceTooSmall, "a workspace one byte short is refused");
  }
}

/// Lines per head, with a duplicate and a -1 in each list.
void vs_with_index() {
  constexpr std::int64_t kLines = 5;
  std::vector<std::int32_t> vertical, slash;
  for (std::int32_t h = 0; h < kHeadsQ; ++h) {
    const std::int32_t base = 10 * h;
    vertical.insert(vertical.end(), {base + 200, base, base, -1, 3});
    slash.insert(slash.end(), {base + 100, 0, -1, base + 17, 0});
  }
  const auto index_view = [](const std::vector<std::int32_t>& list) {
    minference::IndexView view;
    view.data = list.data();
    view.shape[0] = view.shape[3] = 1;
    view.shape[1] = kHeadsQ;
    view.shape[2] = kLines;
    view.stride[0] = kHeadsQ * kLines;
    view.stride[1] = kLines;
    view.stride[2] = view.stride[3] = 1;
    return view;
  };

  Layer layer;
  const minference::AttentionArgs args = layer.args();
  minference::VsAttentionWithIndexParams params;
  params.vertical_idx = index_view(vertical);
  params.slash_idx = index_view(slash);
  check_status(minference::vs_attention_with_index_supports(args, params), Status::kOk,
               "vs with lists is supported");
  std::size_t bytes = 0;
  check_status(minference::vs_attention_with_index_workspace_bytes(args, params, &bytes),
               Status::kOk, "vs with lists: workspace is known");
  Workspace workspace(bytes);
  for (const auto mode : {minference::SlashMode::kCover, minference::SlashMode::kExact}) {
    const bool is_cover = mode == minference::SlashMode::kCover;
    params.mode = mode;
    layer.poison();
    std::size_t mode_bytes = 0;
    minference::vs_attention_with_index_workspace_bytes(args, params, &mode_bytes);
    Workspace mode_workspace(mode_bytes);
    check_status(
        minference::vs_attention_with_index(args, params, mode_workspace.data(), mode_bytes),
        Status::kOk, is_cover ? "vs cover runs" : "vs exact runs");
    const auto attends = [&](std::int64_t h, std::int64_t r, std::int64_t j) {
      const auto* columns = &vertical[h * kLines];
      if (std::find(columns, columns + kLines, j) != columns + kLines) return true;
      const std::int64_t end = r / 64 * 64 + 64 + (kKeys - kQueries);
      for (std::int64_t n = 0; n < kLines; ++n) {
        const std::int64_t s = slash[h * kLines + n];
        if (s < 0) continue;
        if (is_cover ? end - 64 - s <= j && j < end - s : r + kKeys - kQueries - j == s) {
          return true;
        }
      }
      return false;
    };
    check(layer.error(attends) < kTolerance,
          is_cover ? "vs cover equals the loops" : "vs exact equals the loops");
    check(layer.gaps_are_untouched() && !mode_workspace.is_overrun(),
          "vs writes its own memory only");
  }
}

/// Sizes that select every line: estimation, plan and attention must give dense attention.
void vs_estimated() {
  Layer layer;
  const minference::AttentionArgs args = layer.args();
  const std::vector<std::int64_t> sizes(kHeadsQ, kKeys);
  minference::VsAttentionParams params;
  params.vertical_size = sizes.data();
  params.slash_size = sizes.data();
  params.dense_fallback = 0;
  std::size_t bytes = 0;
  check_status(minference::vs_attention_workspace_bytes(args, params, &bytes), Status::kOk,
               "vs workspace is known");
  Workspace workspace(bytes);
  check_status(minference::vs_attention(args, params, workspace.data(), bytes), Status::kOk,
               "vs runs");
  const auto all = [](std::int64_t, std::int64_t, std::int64_t) { return true; };
  check(layer.error(all) < kTolerance, "vs with every line equals dense");
  check(!workspace.is_overrun(), "vs stays in its workspace");
}

void errors() {
  Layer layer;
  minference::AttentionArgs args = layer.args();
  args.k.shape[3] = kHeadDim + 8;
  check_status(minference::dense_attention_supports(args), Status::kInvalidArgument,
               "k with another head_dim is refused");
  check(std::strstr(minference::last_error(), "k") != nullptr, "the sentence names k");
  args = layer.args();
  args.q.dtype = args.k.dtype = args.v.dtype = minference::DType::kFloat8E4M3;
  args.out.dtype = minference::DType::kBFloat16;
  check_status(minference::dense_attention_supports(args), Status::kUnsupported,
               "float8 is refused on the CPU");
  args = layer.args();
  args.device = minference::Device::kCuda;
  if (!minference::has_cuda()) {
    check_status(minference::dense_attention_supports(args), Status::kUnsupported,
                 "CUDA is refused in a build without it");
  }
}

}  // namespace

int main() {
  const char* kernel = nullptr;
  check_status(minference::cpu_kernel_for(minference::DType::kFloat32, &kernel), Status::kOk,
               "a CPU kernel for float32 is chosen");
  std::printf("libminference %s, CPU kernel %s\n", minference::version(), kernel);
  dense();
  vs_with_index();
  vs_estimated();
  errors();
  return num_failures;
}
