// Calls as an engine makes them: captured in a CUDA graph (in the mode that refuses every call that
// allocates or waits) and replayed with other contents, lengths, lists and scales of the same
// shapes; on a stream that does not wait for others; on a second device, if there is one.
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "../check.h"
#include "float8.h"
#include "layer.h"

namespace minference::test {
namespace {

const HeadPattern kWide = {PatternKind::kVerticalSlash, {300, 500}};

/// The same shapes with two kinds of lengths each.
struct CaptureCase {
  Case shape;
  Sizes other_first_valid_key = {}, other_cu_q = {}, other_cu_kv = {};
};

const CaptureCase kCaptureCases[] = {
    {.shape = {.reason = "batch with left padding",
               .batch = 3,
               .seq_q = 150,
               .seq_kv = 400,
               .patterns = {kVs, kVsIndex, kTopK, kBlockIndex, kTriShape, kWide, kDense, kAShape},
               .first_valid_key = {0, 70, 300}},
     .other_first_valid_key = {399, 1, 250}},
    {.shape = {.reason = "packed",
               .seq_q = 300,
               .seq_kv = 1200,
               .patterns = {kVs, kVsIndex, kTopK, kBlockIndex, kTriShape, kWide, kDense, kAShape},
               .cu_seqlens_q = {0, 70, 70, 100, 300},
               .cu_seqlens_kv = {0, 150, 155, 400, 1200}},
     .other_cu_q = {0, 0, 230, 231, 300},
     .other_cu_kv = {0, 20, 1020, 1100, 1200}},
    {.shape = {.reason = "estimated per chunk",
               .num_heads_q = 4,
               .num_heads_kv = 2,
               .seq_q = 300,
               .seq_kv = 330,
               .patterns = {kVs, kWide, kTriShape, kVsIndex},
               .estimate_every = 128}},
    {.shape = {.reason = "few queries: keys are cut in parts",
               .batch = 2,
               .seq_q = 70,
               .seq_kv = 1300,
               .patterns = {kVs, kVsIndex, kTopK, kBlockIndex, kTriShape, kWide, kDense, kAShape},
               .first_valid_key = {0, 700}},
     .other_first_valid_key = {1290, 5}},
};

/// Memory of three ops on the device, and what they wrote.
struct Calls {
  explicit Calls(const Layer& layer)
      : vertical_size(layer.patterns.size(), 61),
        slash_size(layer.patterns.size(), 173),
        count(layer.c.seq_kv),
        vertical(layer.num_lists() * count * sizeof(std::int32_t)),
        slash(layer.num_lists() * count * sizeof(std::int32_t)),
        columns(layer.num_lists() * count * sizeof(float)),
        offsets(layer.num_lists() * count * sizeof(float)),
        stats(layer.num_lists() * sizeof(PlanStats)),
        out(layer.device_out.size()),
        lse(layer.device_lse.size()) {
    params.vertical_size = vertical_size.data();
    params.slash_size = slash_size.data();
    params.vertical_idx = vertical.as<std::int32_t>();
    params.slash_idx = slash.as<std::int32_t>();
    params.vertical_count = params.slash_count = count;
    params.column_scores = columns.as<float>();
    params.slash_scores = offsets.as<float>();
    std::size_t stats_bytes = 0, attention_bytes = 0;
    Status status = estimate_vs_index_workspace_bytes(layer.device, params, &bytes);
    CHECK(status == Status::kOk, "%s", last_error());
    status = plan_stats_workspace_bytes(layer.device, layer.device_params, &stats_bytes);
    CHECK(status == Status::kOk, "%s", last_error());
    status = sparse_attention_workspace_bytes(layer.device, layer.device_params, &attention_bytes);
    CHECK(status == Status::kOk, "%s", last_error());
    bytes = std::max({bytes, stats_bytes, attention_bytes});
    workspace = device_workspace(bytes);
  }

  /// Enqueues all ops.
  void run(const Layer& layer, cudaStream_t stream, const std::string& what) const {
    AttentionArgs args = layer.device;
    args.stream = stream;
    Status status = estimate_vs_index(args, params, workspace.data(), bytes);
    CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
    status = plan_stats(args, layer.device_params, stats.as<PlanStats>(), workspace.data(), bytes);
    CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
    args.out.data = out.data();  // plain layouts only
    args.lse = lse.as<float>();
    status = sparse_attention(args, layer.device_params, workspace.data(), bytes);
    CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  }

  void poison() const {
    for (const DeviceBytes* memory : outputs()) memory->fill(0x7F);
  }
  /// All that was written.
  std::vector<unsigned char> results() const {
    std::vector<unsigned char> all;
    for (const DeviceBytes* memory : outputs()) {
      const std::vector<unsigned char> bytes_of = memory->read();
      all.insert(all.end(), bytes_of.begin(), bytes_of.end());
    }
    return all;
  }
  std::vector<const DeviceBytes*> outputs() const {
    return {&vertical, &slash, &columns, &offsets, &stats, &out, &lse};
  }

  std::vector<std::int64_t> vertical_size, slash_size;
  std::int64_t count;
  DeviceBytes vertical, slash, columns, offsets, stats, out, lse, workspace;
  VsIndexParams params;
  std::size_t bytes = 0;
};

/// What a call of its own gives, with new memory.
std::vector<unsigned char> direct_results(const Layer& layer, const std::string& what) {
  const Calls calls(layer);
  calls.poison();
  calls.run(layer, nullptr, what + ", direct");
  wait_for_device(what.c_str());
  return calls.results();
}

/// That the emulator, or the driver, notices what must not happen during a capture.
void test_capture_is_strict() {
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, 16);
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream, &graph);
  cudaGetLastError();
  CHECK(error != cudaSuccess, "an allocation during a capture went unnoticed");
  must(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

void test_replay(const CaptureCase& c, DType dtype) {
  const std::string what = std::string(c.shape.reason) + ", " + dtype_name(dtype);
  Layer layer(c.shape, dtype);
  const std::vector<unsigned char> first = direct_results(layer, what);
  const Calls calls(layer);
  cudaStream_t stream;
  must(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
  must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "cudaStreamBeginCapture");
  calls.run(layer, stream, what + ", captured");
  cudaGraph_t graph = nullptr;
  must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
  // Nothing of the host's memory may be needed any more: patterns and sizes travel by value.
  std::fill(layer.patterns.begin(), layer.patterns.end(), HeadPattern{});
  cudaGraphExec_t executable = nullptr;
  must(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
  const auto replay = [&](const char* name) {
    calls.poison();
    wait_for_device(name);  // the stream does not wait for the default one
    must(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
    must(cudaStreamSynchronize(stream), name);
    return calls.results();
  };
  CHECK(replay("replay") == first, "%s: the replay differs from a direct call", what.c_str());

  // Other contents, lengths and lists, in the same memory.
  Case other_shape = c.shape;
  if (!c.other_first_valid_key.empty()) other_shape.first_valid_key = c.other_first_valid_key;
  if (!c.other_cu_q.empty()) other_shape.cu_seqlens_q = c.other_cu_q;
  if (!c.other_cu_kv.empty()) other_shape.cu_seqlens_kv = c.other_cu_kv;
  const Layer other(other_shape, dtype, 1);
  const std::vector<unsigned char> second = direct_results(other, what + ", other contents");
  CHECK(second != first, "%s: the other contents give the same results", what.c_str());
  const auto overwrite = [](const DeviceBytes& to, const DeviceBytes& from) {
    const std::vector<unsigned char> bytes = from.read();
    CHECK(bytes.size() == to.size(), "%zu bytes for %zu", bytes.size(), to.size());
    to.write(bytes.data());
  };
  overwrite(layer.device_q, other.device_q);
  overwrite(layer.device_k, other.device_k);
  overwrite(layer.device_v, other.device_v);
  overwrite(layer.device_first_valid, other.device_first_valid);
  overwrite(layer.device_cu_q, other.device_cu_q);
  overwrite(layer.device_cu_kv, other.device_cu_kv);
  overwrite(layer.device_q_scale, other.device_q_scale);
  overwrite(layer.device_k_scale, other.device_k_scale);
  overwrite(layer.device_v_scale, other.device_v_scale);
  overwrite(layer.device_vertical, other.device_vertical);
  overwrite(layer.device_slash, other.device_slash);
  overwrite(layer.device_block, other.device_block);
  CHECK(replay("second replay") == second, "%s: the replay of other contents differs",
        what.c_str());
  CHECK(replay("third replay") == second, "%s: a third replay differs", what.c_str());
  must(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
  must(cudaGraphDestroy(graph), "cudaGraphDestroy");
  must(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

/// The device of the arguments runs the call, the caller's current one stays current.
void test_devices() {
  int count = 0, current = -1;
  must(cudaGetDeviceCount(&count), "cudaGetDeviceCount");
  const CaptureCase& c = kCaptureCases[0];
  const Layer layer(c.shape, DType::kBFloat16);
  const std::vector<unsigned char> expected = direct_results(layer, "device 0");
  must(cudaGetDevice(&current), "cudaGetDevice");
  CHECK(current == 0, "device %d is current after the calls", current);
  if (count < 2) {
    std::printf("capture_cuda_test: one device; calls on a second one were not tested\n");
    return;
  }
  must(cudaSetDevice(1), "cudaSetDevice");
  const Layer other(c.shape, DType::kBFloat16);
  const Calls calls(other);
  calls.poison();
  wait_for_device("poison on device 1");
  must(cudaSetDevice(0), "cudaSetDevice");
  calls.run(other, nullptr, "device 1 while 0 is current");
  must(cudaGetDevice(&current), "cudaGetDevice");
  CHECK(current == 0, "device %d is current after calls on device 1", current);
  must(cudaSetDevice(1), "cudaSetDevice");
  wait_for_device("device 1");
  CHECK(calls.results() == expected, "device 1 gives other results");
  must(cudaSetDevice(0), "cudaSetDevice");
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  for (const test::CaptureCase& c : test::kCaptureCases) {
    test::test_replay(c, DType::kBFloat16);
    test::test_replay(c, DType::kFloat16);
  }
  if (test::device_has_float8()) {  // packed, and keys in parts
    test::test_replay(test::kCaptureCases[1], DType::kFloat8E4M3);
    test::test_replay(test::kCaptureCases[3], DType::kFloat8E4M3);
  }
  test::test_devices();
  test::test_capture_is_strict();
  return test::finish("capture_cuda_test");
}
