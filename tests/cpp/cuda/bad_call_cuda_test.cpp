// Calls on CUDA that must be refused: a status, a sentence that names the argument, and nothing
// written. Also what device memory may hold without harm: lengths that make no sense.
//
// Over 600 lines: because all of them need the answers of one program, below, to the runtime.
//
// Some questions that the library asks the runtime are answered by this program, so that it meets
// machines of other kinds: one whose GPU cannot read ordinary host memory (the emulator's says it
// can), one whose GPU is too old or has less shared memory, one without any, one with two.
#include <dlfcn.h>

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "../check.h"
#include "../refusal.h"
#include "float8.h"
#include "layer.h"
#include "layer_index.h"
#include "minference/c_api.h"
#include "plan_copy.h"

namespace {

int answered_pageable_access = 0;
int answered_major = 0;  // 0: the device's own
cudaError_t answered_get_device = cudaSuccess;
int answered_shared_bytes = 0;  // of a thread block; 0: the device's own

/// A second device, where all device memory is but `on_first`. In truth it is the first.
struct SecondDevice {
  bool is_there = false;
  int current = 0;
  const void* on_first = nullptr;
  int launches[2] = {0, 0};       // while a device was current
  int questions_about_other = 0;  // attributes of a device that is not the memory's
} second_device;

template <class Function>
Function* next_function(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

extern "C" cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  static auto* const next = next_function<decltype(cudaDeviceGetAttribute)>(__func__);
  if (second_device.is_there) {
    second_device.questions_about_other += device != 1;
    device = 0;
  }
  const cudaError_t error = next(value, attribute, device);
  if (attribute == cudaDevAttrPageableMemoryAccess) *value = answered_pageable_access;
  if (attribute == cudaDevAttrComputeCapabilityMajor && answered_major != 0) {
    *value = answered_major;
  }
  if (attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin && answered_shared_bytes != 0) {
    *value = answered_shared_bytes;
  }
  return error;
}

extern "C" cudaError_t cudaGetDevice(int* device) {
  static auto* const next = next_function<decltype(cudaGetDevice)>(__func__);
  if (answered_get_device != cudaSuccess) return answered_get_device;
  const cudaError_t error = next(device);
  if (second_device.is_there) *device = second_device.current;
  return error;
}

extern "C" cudaError_t cudaSetDevice(int device) {
  static auto* const next = next_function<decltype(cudaSetDevice)>(__func__);
  if (!second_device.is_there) return next(device);
  second_device.current = device;
  return cudaSuccess;
}

extern "C" cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                                const void* data) {
  static auto* const next = next_function<decltype(cudaPointerGetAttributes)>(__func__);
  const cudaError_t error = next(attributes, data);
  if (second_device.is_there && attributes->type == cudaMemoryTypeDevice) {
    attributes->device = data == second_device.on_first ? 0 : 1;
  }
  return error;
}

namespace {

/// Whether a thread block with this much dynamic shared memory runs on the device that is answered.
bool fits_in_shared_memory(const void* kernel, std::size_t dynamic_bytes) {
  cudaFuncAttributes attributes{};
  return answered_shared_bytes == 0 || (cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess &&
                                        attributes.sharedSizeBytes + dynamic_bytes <=
                                            static_cast<std::size_t>(answered_shared_bytes));
}

}  // namespace

extern "C" cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute,
                                            int value) {
  static auto* const next =
      next_function<cudaError_t(const void*, cudaFuncAttribute, int)>(__func__);
  const bool is_refused = attribute == cudaFuncAttributeMaxDynamicSharedMemorySize &&
                          !fits_in_shared_memory(kernel, value);
  return is_refused ? cudaErrorInvalidValue : next(kernel, attribute, value);
}

extern "C" cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* config, const void* kernel,
                                           void** arguments) {
  static auto* const next = next_function<decltype(cudaLaunchKernelExC)>(__func__);
  if (second_device.is_there) ++second_device.launches[second_device.current];
  if (!fits_in_shared_memory(kernel, config->dynamicSmemBytes)) return cudaErrorInvalidValue;
  return next(config, kernel, arguments);
}

namespace minference::test {
namespace {

const Case kShape = {.reason = "bad call",
                     .num_heads_q = 4,
                     .num_heads_kv = 2,
                     .seq_q = 70,
                     .seq_kv = 130,
                     .patterns = {kVs, kVsIndex, kBlockIndex, kTopK}};

/// Valid arguments of three ops, to be spoiled.
struct CudaFixture {
  explicit CudaFixture(const Case& shape = kShape, DType dtype = DType::kBFloat16)
      : layer(shape, dtype),
        args(layer.device),
        sparse(layer.device_params),
        sizes(layer.patterns.size(), 40),
        vertical(layer.num_lists() * shape.seq_kv * sizeof(std::int32_t)),
        slash(layer.num_lists() * shape.seq_kv * sizeof(std::int32_t)),
        scores(layer.num_lists() * shape.seq_kv * sizeof(float)),
        stats(layer.num_lists() * sizeof(PlanStats)),
        host_memory(1 << 20) {
    vs_index.vertical_size = vs_index.slash_size = sizes.data();
    vs_index.vertical_idx = vertical.as<std::int32_t>();
    vs_index.slash_idx = slash.as<std::int32_t>();
    vs_index.vertical_count = vs_index.slash_count = shape.seq_kv;
    plan_stats_out = stats.as<PlanStats>();
    std::size_t of_plan = 0, of_attention = 0;
    CHECK(estimate_vs_index_workspace_bytes(args, vs_index, &bytes) == Status::kOk, "%s",
          last_error());
    CHECK(plan_stats_workspace_bytes(args, sparse, &of_plan) == Status::kOk, "%s", last_error());
    CHECK(sparse_attention_workspace_bytes(args, sparse, &of_attention) == Status::kOk, "%s",
          last_error());
    bytes = std::max({bytes, of_plan, of_attention});
    memory = DeviceBytes(bytes);
    workspace = memory.data();
    poison();
  }
  std::vector<const DeviceBytes*> outputs() const {
    return {&vertical, &slash, &scores, &stats, &layer.device_out, &layer.device_lse};
  }
  void poison() const {
    for (const DeviceBytes* output : outputs()) output->fill(0x7F);
  }
  bool is_untouched() const {
    for (const DeviceBytes* output : outputs()) {
      if (!output->holds_only(0x7F)) return false;
    }
    return true;
  }
  bool has_guards() const {
    for (const DeviceBytes* output : outputs()) {
      if (!output->has_guards()) return false;
    }
    return memory.has_guards();
  }
  Status estimate() const { return estimate_vs_index(args, vs_index, workspace, bytes); }
  Status plan() const { return plan_stats(args, sparse, plan_stats_out, workspace, bytes); }
  Status attend() const { return sparse_attention(args, sparse, workspace, bytes); }
  void set_dtype(DType dtype) {
    args.q.dtype = args.k.dtype = args.v.dtype = args.out.dtype = dtype;
  }
  void set_head_dim(std::int64_t head_dim) {
    args.q.shape[3] = args.k.shape[3] = args.v.shape[3] = args.out.shape[3] = head_dim;
  }
  template <class T>
  T* host() const {
    return reinterpret_cast<T*>(host_memory.data());
  }

  Layer layer;
  AttentionArgs args;
  SparseAttentionParams sparse;
  VsIndexParams vs_index;
  PlanStats* plan_stats_out;
  std::vector<std::int64_t> sizes;
  DeviceBytes vertical, slash, scores, stats, memory;
  HeapBytes host_memory;
  void* workspace = nullptr;
  std::size_t bytes = 0;
};

enum Ops { kEstimate = 1, kPlan = 2, kAttend = 4, kPlans = 6, kAll = 7 };

struct BadCall {
  Refusal refusal;
  Ops ops;
  std::function<void(CudaFixture&)> spoil;
  bool is_supports_bad = false;  // *_supports gives the same answer
};

const BadCall kBadCalls[] = {
    {{"q on the host", {"q"}}, kAll, [](CudaFixture& f) { f.args.q.data = f.host<void>(); }},
    {{"k on the host", {"k"}}, kAll, [](CudaFixture& f) { f.args.k.data = f.host<void>(); }},
    {{"v on the host", {"v"}}, kAttend, [](CudaFixture& f) { f.args.v.data = f.host<void>(); }},
    {{"out on the host", {"out"}},
     kAttend,
     [](CudaFixture& f) { f.args.out.data = f.host<void>(); }},
    {{"lse on the host", {"lse"}}, kAttend, [](CudaFixture& f) { f.args.lse = f.host<float>(); }},
    {{"v null", {"v"}}, kAttend, [](CudaFixture& f) { f.args.v.data = nullptr; }},
    {{"out is q", {"out"}}, kAttend, [](CudaFixture& f) { f.args.out.data = f.args.q.data; }},
    {{"q null", {"q"}}, kAll, [](CudaFixture& f) { f.args.q.data = nullptr; }},
    {{"k null", {"k"}}, kAll, [](CudaFixture& f) { f.args.k.data = nullptr; }},
    {{"first_valid_key on the host", {"first_valid_key"}},
     kAll,
     [](CudaFixture& f) { f.args.first_valid_key = f.host<std::int32_t>(); }},
    {{"cu_seqlens on the host", {"cu_seqlens_q", "cu_seqlens_kv"}},
     kEstimate,
     [](CudaFixture& f) {
       f.args.cu_seqlens_q = f.args.cu_seqlens_kv = f.host<std::int32_t>();
       f.args.num_sequences = 1;
     }},
    {{"cu_seqlens_kv missing", {"cu_seqlens_kv"}},
     kEstimate,
     [](CudaFixture& f) {
       f.args.cu_seqlens_q = f.layer.device_vertical.as<std::int32_t>();
       f.args.num_sequences = 1;
     },
     true},
    {{"vertical_idx on the host", {"vertical_idx"}},
     kPlans,
     [](CudaFixture& f) { f.sparse.vertical_idx.data = f.host<std::int32_t>(); }},
    {{"slash_idx on the host", {"slash_idx"}},
     kPlans,
     [](CudaFixture& f) { f.sparse.slash_idx.data = f.host<std::int32_t>(); }},
    {{"block_idx on the host", {"block_idx"}},
     kPlans,
     [](CudaFixture& f) { f.sparse.block_idx.data = f.host<std::int32_t>(); }},
    {{"estimated vertical_idx on the host", {"vertical_idx"}},
     kEstimate,
     [](CudaFixture& f) { f.vs_index.vertical_idx = f.host<std::int32_t>(); }},
    {{"estimated slash_idx on the host", {"slash_idx"}},
     kEstimate,
     [](CudaFixture& f) { f.vs_index.slash_idx = f.host<std::int32_t>(); }},
    {{"column_scores on the host", {"column_scores"}},
     kEstimate,
     [](CudaFixture& f) { f.vs_index.column_scores = f.host<float>(); }},
    {{"slash_scores on the host", {"slash_scores"}},
     kEstimate,
     [](CudaFixture& f) { f.vs_index.slash_scores = f.host<float>(); }},
    {{"vertical_idx null", {"vertical_idx"}},
     kEstimate,
     [](CudaFixture& f) { f.vs_index.vertical_idx = nullptr; }},
    {{"stats on the host", {"stats"}},
     kPlan,
     [](CudaFixture& f) { f.plan_stats_out = f.host<PlanStats>(); }},
    {{"stats null", {"stats"}}, kPlan, [](CudaFixture& f) { f.plan_stats_out = nullptr; }},
    {{"workspace on the host", {"workspace"}},
     kAll,
     [](CudaFixture& f) { f.workspace = f.host<void>(); }},
    {{"workspace null", {"workspace"}}, kAll, [](CudaFixture& f) { f.workspace = nullptr; }},
    {{"a workspace of 255 bytes", {"workspace"}, Status::kWorkspaceTooSmall},
     kAll,
     [](CudaFixture& f) { f.bytes = 255; }},
    {{"float32", {"q", "float32"}, Status::kUnsupported},
     kAll,
     [](CudaFixture& f) { f.set_dtype(DType::kFloat32); },
     true},
    {{"head_dim 12", {"head_dim"}}, kAll, [](CudaFixture& f) { f.set_head_dim(12); }, true},
    {{"estimate_every 63", {"estimate_every"}},
     kPlans,
     [](CudaFixture& f) { f.sparse.estimate_every = 63; },
     true},
    {{"vertical_count less than any length may need", {"vertical_count"}},
     kEstimate,
     [](CudaFixture& f) { f.vs_index.vertical_count = 39; },
     true},
    {{"slash_count less than any length may need", {"slash_count"}},
     kEstimate,
     [](CudaFixture& f) { f.vs_index.slash_count = 49; },
     true},
    {{"block lists without a row block", {"block_idx"}},
     kPlans,
     [](CudaFixture& f) { f.sparse.block_idx.shape[2] = 1; },
     true},
};

/// Of float8, where the device has it. Scales of what an op does not read are not looked at.
const BadCall kBadFloat8Calls[] = {
    {{"q_scale on the host", {"q_scale"}},
     kAll,
     [](CudaFixture& f) { f.args.q_scale = f.host<float>(); }},
    {{"k_scale on the host", {"k_scale"}},
     kAll,
     [](CudaFixture& f) { f.args.k_scale = f.host<float>(); }},
    {{"v_scale on the host", {"v_scale"}},
     kAttend,
     [](CudaFixture& f) { f.args.v_scale = f.host<float>(); }},
    {{"k on the host", {"k"}}, kAll, [](CudaFixture& f) { f.args.k.data = f.host<void>(); }},
    {{"out on the host", {"out"}},
     kAttend,
     [](CudaFixture& f) { f.args.out.data = f.host<void>(); }},
    {{"v null", {"v"}}, kAttend, [](CudaFixture& f) { f.args.v.data = nullptr; }},
    {{"a workspace of 255 bytes", {"workspace"}, Status::kWorkspaceTooSmall},
     kAll,
     [](CudaFixture& f) { f.bytes = 255; }},
};

template <std::size_t kCount>
void test_bad_calls(const BadCall (&calls)[kCount], DType dtype) {
  for (const BadCall& bad : calls) {
    CudaFixture f(kShape, dtype);
    bad.spoil(f);
    if (bad.ops & kEstimate) {
      check_refusal(f.estimate(), bad.refusal, "estimate_vs_index");
      const Status status = estimate_vs_index_supports(f.args, f.vs_index);
      CHECK(status == (bad.is_supports_bad ? bad.refusal.status : Status::kOk),
            "estimate_vs_index_supports with %s: %s", bad.refusal.what, status_string(status));
    }
    if (bad.ops & kPlan) {
      check_refusal(f.plan(), bad.refusal, "plan_stats");
      const Status status = plan_stats_supports(f.args, f.sparse);
      CHECK(status == (bad.is_supports_bad ? bad.refusal.status : Status::kOk),
            "plan_stats_supports with %s: %s", bad.refusal.what, status_string(status));
    }
    if (bad.ops & kAttend) {
      check_refusal(f.attend(), bad.refusal, "sparse_attention");
      const Status status = sparse_attention_supports(f.args, f.sparse);
      CHECK(status == (bad.is_supports_bad ? bad.refusal.status : Status::kOk),
            "sparse_attention_supports with %s: %s", bad.refusal.what, status_string(status));
    }
    wait_for_device(bad.refusal.what);
    CHECK(f.is_untouched(), "%s: something was written", bad.refusal.what);
  }
}

void test_too_many_heads() {
  Case shape = kShape;
  shape.num_heads_q = 257;
  shape.num_heads_kv = 1;
  shape.seq_q = shape.seq_kv = 2;
  shape.patterns = {kVs};
  const Layer layer(shape, DType::kFloat16);
  check_refusal(plan_stats_supports(layer.device, layer.device_params),
                {"257 heads", {"heads"}, Status::kUnsupported}, "plan_stats_supports");
  shape.num_heads_q = 256;
  const CudaFixture f(shape);
  CHECK(f.plan() == Status::kOk, "256 heads: %s", last_error());
  CHECK(f.estimate() == Status::kOk, "256 heads: %s", last_error());
  CHECK(f.attend() == Status::kOk, "256 heads: %s", last_error());
  wait_for_device("256 heads");
}

/// No device, or one that the kernels do not run on.
void test_machines() {
  const CudaFixture f;
  const auto check = [&](const Refusal& bad) {
    check_refusal(estimate_vs_index_supports(f.args, f.vs_index), bad,
                  "estimate_vs_index_supports");
    check_refusal(f.estimate(), bad, "estimate_vs_index");
    check_refusal(plan_stats_supports(f.args, f.sparse), bad, "plan_stats_supports");
    check_refusal(f.plan(), bad, "plan_stats");
    check_refusal(sparse_attention_supports(f.args, f.sparse), bad, "sparse_attention_supports");
    check_refusal(f.attend(), bad, "sparse_attention");
    check_refusal(dense_attention_supports(f.args), bad, "dense_attention_supports");
    KernelInfo info;
    check_refusal(attention_kernel(f.args, f.sparse, &info), bad, "attention_kernel");
    wait_for_device(bad.what);
    CHECK(f.is_untouched(), "%s: something was written", bad.what);
  };
  answered_get_device = cudaErrorNoDevice;
  check({"no device", {"CUDA"}, Status::kUnsupported});
  answered_get_device = cudaErrorInsufficientDriver;
  check({"no driver", {"CUDA"}, Status::kUnsupported});
  answered_get_device = cudaSuccess;
  answered_major = 7;
  check({"an old device", {"capability"}, Status::kUnsupported});
  answered_major = 0;
}

/// float8, on devices that have no kernel for it.
void test_machines_without_float8() {
  if (!device_has_float8()) return;  // float8_cuda_test
  const Layer layer(kShape, DType::kFloat8E4M3);
  for (const int major : {8, 10, 12}) {
    answered_major = major;
    check_refused(layer, layer.device, "compute capability " + std::to_string(major));
  }
  answered_major = 0;
  answered_shared_bytes = 99 << 10;
  check_refused(layer, layer.device, "99 KB of shared memory");
  answered_shared_bytes = 0;
  CHECK(sparse_attention_supports(layer.device, layer.device_params) == Status::kOk, "%s",
        last_error());
}

/// Pinned memory of the host is the device's as well.
void test_readable_host_memory() {
  const auto estimated = [](const CudaFixture& f) {
    CHECK(f.estimate() == Status::kOk, "%s", last_error());
    wait_for_device("readable host memory");
    return f.vertical.read<std::int32_t>();
  };
  const CudaFixture f;
  const std::vector<std::int32_t> expected = estimated(f);
  CudaFixture registered;
  void* memory = nullptr;
  const std::size_t size = registered.layer.k.bytes.size();
  must(cudaMallocHost(&memory, size), "cudaMallocHost");
  std::memcpy(memory, registered.layer.k.bytes.data(), size);
  registered.args.k.data = memory;
  CHECK(estimated(registered) == expected, "k in pinned memory gives other lists");
  must(cudaFreeHost(memory), "cudaFreeHost");
}

/// More thread blocks than a grid has room for.
void test_too_many_tasks() {
  const CudaFixture f;
  AttentionArgs args = f.args;
  for (TensorView* view : {&args.q, &args.k, &args.v, &args.out}) {
    view->shape[0] = 1 << 20;
    view->shape[2] = 1 << 17;
  }
  SparseAttentionParams params = f.sparse;
  const HeadPattern dense[4] = {};
  params.head_patterns = dense;
  check_refusal(sparse_attention_supports(args, params),
                {"2^32 thread blocks", {"q"}, Status::kUnsupported}, "sparse_attention_supports");
}

void test_bad_conversions() {
  const DeviceBytes memory(1024);
  const std::vector<std::int32_t> on_host(8);
  ConvertVsIndexParams good;
  good.device = Device::kCuda;
  auto* const words = memory.as<std::int32_t>();
  good.q_seqlens = good.kv_seqlens = words;
  good.vertical_idx =
      good.slash_idx = {.data = words, .shape = {1, 1, 3, 0}, .stride = {3, 3, 1, 0}};
  good.num_row_blocks = 2;
  good.block_count = good.block_offset = good.column_count = good.column_index = words;
  std::size_t bytes = 0;
  CHECK(convert_vs_index_workspace_bytes(good, &bytes) == Status::kOk, "%s", last_error());
  const DeviceBytes workspace(bytes);
  const auto refused = [&](const Refusal& bad, const auto& spoil) {
    ConvertVsIndexParams params = good;
    spoil(&params);
    check_refusal(convert_vs_index(params, workspace.data(), bytes), bad, "convert_vs_index");
  };
  using Params = ConvertVsIndexParams*;
  refused({"q_seqlens null", {"q_seqlens"}}, [](Params p) { p->q_seqlens = nullptr; });
  refused({"kv_seqlens on the host", {"kv_seqlens"}},
          [&](Params p) { p->kv_seqlens = on_host.data(); });
  refused({"slash_idx on the host", {"slash_idx"}},
          [&](Params p) { p->slash_idx.data = on_host.data(); });
  refused({"a list too long to sort", {"slash_idx"}, Status::kUnsupported},
          [](Params p) { p->slash_idx.shape[2] = (1 << 24) + 1; });
  refused({"2^32 lists", {"vertical_idx"}, Status::kUnsupported}, [](Params p) {
    for (IndexView* view : {&p->vertical_idx, &p->slash_idx}) {
      view->shape[0] = view->shape[1] = 1 << 16;
      view->stride[0] = view->stride[1] = 0;
    }
  });
  refused({"2^32 thread blocks", {"num_row_blocks"}, Status::kUnsupported}, [](Params p) {
    p->vertical_idx.shape[0] = p->slash_idx.shape[0] = 1 << 10;
    p->num_row_blocks = std::int64_t{1} << 30;
  });
  check_refusal(convert_vs_index(good, words, bytes - 1),
                {"too little workspace", {"workspace"}, Status::kWorkspaceTooSmall},
                "convert_vs_index");
}

/// Lengths are in device memory: what the host cannot check must not do harm. The emulator sees
/// every access outside of the tensors.
void test_senseless_lengths(DType dtype) {
  Case shape = kShape;
  shape.cu_seqlens_q = {0, 30, 70};
  shape.cu_seqlens_kv = {0, 60, 130};
  const Sizes bad_q[] = {{5, 3, 70}, {0, 1000, 70}, {-7, 30, 2000000000}, {0, 70, 70}};
  const Sizes bad_kv[] = {{0, 60, 130}, {130, -1, 5000}, {0, 10, 130}, {0, 2000000000, -5}};
  for (const Sizes& q : bad_q) {
    for (const Sizes& kv : bad_kv) {
      const CudaFixture f(shape, dtype);
      f.layer.device_cu_q.write(q.data());
      f.layer.device_cu_kv.write(kv.data());
      CHECK(f.estimate() == Status::kOk, "%s", last_error());
      CHECK(f.plan() == Status::kOk, "%s", last_error());
      CHECK(f.attend() == Status::kOk, "%s", last_error());
      wait_for_device("senseless cu_seqlens");
      CHECK(f.has_guards(), "senseless cu_seqlens: memory around a buffer was written");
    }
  }
  shape = kShape;
  shape.batch = 2;
  shape.first_valid_key = {0, 7};
  for (const Sizes& bad : {Sizes{-1, 131}, Sizes{2000000000, -2000000000}}) {
    const CudaFixture f(shape, dtype);
    f.layer.device_first_valid.write(bad.data());
    CHECK(f.estimate() == Status::kOk, "%s", last_error());
    CHECK(f.plan() == Status::kOk, "%s", last_error());
    CHECK(f.attend() == Status::kOk, "%s", last_error());
    wait_for_device("senseless first_valid_key");
    CHECK(f.has_guards(), "senseless first_valid_key: memory around a buffer was written");
  }
}

/// No queries and no memory for them: the lists are empty, and the rest is left alone.
void test_no_queries() {
  for (bool is_on_second : {false, true}) {
    for (std::int64_t num_keys : {130, 0}) {
      Case shape = kShape;
      shape.seq_q = 0;
      shape.seq_kv = num_keys;
      CudaFixture f(shape);
      f.args.q.data = nullptr;
      f.args.out.data = nullptr;
      if (num_keys == 0) f.args.k.data = f.args.v.data = nullptr;
      second_device.is_there = is_on_second;
      CHECK(estimate_vs_index_supports(f.args, f.vs_index) == Status::kOk, "%s", last_error());
      CHECK(plan_stats_supports(f.args, f.sparse) == Status::kOk, "%s", last_error());
      CHECK(f.estimate() == Status::kOk, "no queries: %s", last_error());
      CHECK(f.plan() == Status::kOk, "no queries: %s", last_error());
      CHECK(f.attend() == Status::kOk, "no queries: %s", last_error());
      CHECK(second_device.current == 0, "no queries: device %d is left current",
            second_device.current);
      // Without k, too: the workspace and the lists are there.
      CHECK(second_device.launches[0] == 0 && (second_device.launches[1] > 0) == is_on_second,
            "no queries: %d launches on the first device, %d on the second",
            second_device.launches[0], second_device.launches[1]);
      second_device = {};
      wait_for_device("no queries");
      CHECK(f.vertical.holds_only(0xFF) && f.slash.holds_only(0xFF), "no queries: lines");
      for (const PlanStats& stats : f.stats.read<PlanStats>()) {
        CHECK(stats.num_vertical == 0 && stats.num_slash == 0 && stats.num_chunks == 0 &&
                  stats.computed_pairs == 0 && stats.attended_pairs == 0 && stats.causal_pairs == 0,
              "no queries: something is computed");
      }
      CHECK(f.has_guards(), "no queries: memory around a buffer was written");
    }
  }
}

/// A call runs on the device of its memory, whichever is current, and leaves that one current.
void test_second_device(DType dtype) {
  const CudaFixture f(kShape, dtype);
  for (int current : {0, 1}) {
    second_device = {.is_there = true, .current = current};
    CHECK(f.estimate() == Status::kOk, "second device: %s", last_error());
    CHECK(f.plan() == Status::kOk, "second device: %s", last_error());
    CHECK(f.attend() == Status::kOk, "second device: %s", last_error());
    CHECK(second_device.current == current, "device %d is left current", second_device.current);
    CHECK(second_device.launches[0] == 0 && second_device.launches[1] > 0,
          "second device: %d launches on the first", second_device.launches[0]);
    CHECK(second_device.questions_about_other == 0, "second device: asked about the first");
  }
  wait_for_device("second device");
  const struct {
    const char* name;
    const void* data;
    Ops ops;
  } pieces[] = {{"k", f.args.k.data, kAll},
                {"workspace", f.workspace, kAll},
                {"vertical_idx", f.vertical.data(), kEstimate},
                {"block_idx", f.sparse.block_idx.data, kPlans},
                {"v", f.args.v.data, kAttend},
                {"out", f.args.out.data, kAttend},
                {"lse", f.args.lse, kAttend},
                {"stats", f.plan_stats_out, kPlan},
                {"q_scale", f.args.q_scale, kAll},
                {"k_scale", f.args.k_scale, kAll},
                {"v_scale", f.args.v_scale, kAttend}};
  f.poison();
  for (const auto& piece : pieces) {
    if (piece.data == nullptr) continue;  // a scale of other dtypes than float8
    const Refusal bad = {"memory of two devices", {piece.name}};
    second_device = {.is_there = true, .on_first = piece.data};
    if (piece.ops & kEstimate) check_refusal(f.estimate(), bad, "estimate_vs_index");
    if (piece.ops & kPlan) check_refusal(f.plan(), bad, "plan_stats");
    if (piece.ops & kAttend) check_refusal(f.attend(), bad, "sparse_attention");
    CHECK(second_device.current == 0, "%s: device %d is left current", piece.name,
          second_device.current);
    CHECK(second_device.launches[0] + second_device.launches[1] == 0, "%s: launches", piece.name);
  }
  second_device = {};
  wait_for_device("memory of two devices");
  CHECK(f.is_untouched(), "memory of two devices: something was written");
}

/// Estimated lists and scores, and what block_sparse chooses, with shared memory of `bytes`.
struct Outcome {
  std::vector<std::int32_t> vertical, slash;
  std::vector<std::uint32_t> scores;  // bits
  std::vector<std::vector<std::int32_t>> tiles;
};

Outcome run_with_shared_memory(CudaFixture& f, int bytes) {
  answered_shared_bytes = bytes;
  const std::string what = std::to_string(bytes) + " bytes of shared memory";
  Outcome outcome;
  const bool estimates = f.layer.patterns[0].kind == PatternKind::kVerticalSlash;
  if (estimates) {
    f.vs_index.column_scores = f.scores.as<float>();
    CHECK(f.estimate() == Status::kOk, "%s: %s", what.c_str(), last_error());
    wait_for_device(what.c_str());
    outcome.vertical = f.vertical.read<std::int32_t>();
    outcome.slash = f.slash.read<std::int32_t>();
    outcome.scores = f.scores.read<std::uint32_t>();
  }
  const plan::Problem problem = f.layer.device_problem(false, false);
  const DeviceBytes workspace =
      device_workspace(cuda::LayerIndex(problem, nullptr).workspace_bytes());
  cuda::LayerIndex index(problem, workspace.data());
  const Status status = index.build(0);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  answered_shared_bytes = 0;
  wait_for_device(what.c_str());
  if (estimates || status != Status::kOk) return outcome;
  const Case& c = f.layer.c;
  const PlanCopy copy(index.plan(), c.num_heads_q, f.layer.num_sequences(), f.layer.row_bytes());
  const PlannedRows rows = planned_rows(reference::sequences(f.layer.host), 0, 0, 0);
  for (std::int64_t head = 0; head < c.num_heads_q; ++head) {
    for (std::int64_t row = 0; row < c.seq_q; row += 64) {
      outcome.tiles.push_back(HeadView(copy, rows, head).tiles(row / 64));
    }
  }
  return outcome;
}

/// GPUs of capability 8.6, 8.9 and 12.0 have 99 KB for a thread block, 8.0 has 163 and 9.0 227.
void test_shared_memory() {
  const Case shapes[] = {
      {.reason = "four wide heads in a thread block",
       .num_heads_q = 8,
       .num_heads_kv = 2,
       .seq_q = 70,
       .seq_kv = 700,
       .head_dim = 256,
       .patterns = {kVs}},
      // So many heads that 64 row blocks share a thread block.
      {.reason = "block lists of 8K tokens",
       .num_heads_q = 256,
       .num_heads_kv = 1,
       .seq_q = 64,
       .seq_kv = 8192,
       .head_dim = 128,
       .patterns = {{PatternKind::kBlockSparse, {100}}}},
      {.reason = "block lists of 8K tokens, wide heads",
       .num_heads_q = 128,
       .num_heads_kv = 1,
       .seq_q = 130,
       .seq_kv = 8192,
       .head_dim = 256,
       .patterns = {{PatternKind::kBlockSparse, {20}}}},
      {.reason = "long block lists",
       .num_heads_q = 4,
       .num_heads_kv = 2,
       .seq_q = 70,
       .seq_kv = 200000,
       .head_dim = 8,
       .patterns = {{PatternKind::kBlockSparse, {2500}}}},
  };
  for (const Case& shape : shapes) {
    CudaFixture f(shape, DType::kFloat16);
    const Outcome whole = run_with_shared_memory(f, 0);
    for (int bytes : {99 << 10, 163 << 10}) {
      const Outcome found = run_with_shared_memory(f, bytes);
      CHECK(found.vertical == whole.vertical && found.slash == whole.slash &&
                found.scores == whole.scores,
            "%s: other lines with %d bytes of shared memory", shape.reason, bytes);
      CHECK(found.tiles == whole.tiles, "%s: other blocks with %d bytes of shared memory",
            shape.reason, bytes);
    }
  }
}

/// The C functions are the same calls.
void test_c_api() {
  CHECK(minference_has_cuda() == 1, "no CUDA");
  CHECK(std::string(minference_cuda_architectures()) == cuda_architectures(), "%s",
        minference_cuda_architectures());
  CHECK(cuda_architectures()[0] != '\0', "no architectures");
  const CudaFixture f;
  MinferenceAttentionArgs args = MINFERENCE_ATTENTION_ARGS_INIT;
  static_assert(sizeof args == sizeof f.args);
  std::memcpy(static_cast<void*>(&args), static_cast<const void*>(&f.args), sizeof args);
  MinferenceVsIndexParams params = MINFERENCE_VS_INDEX_PARAMS_INIT;
  params.vertical_size = f.sizes.data();
  params.slash_size = f.sizes.data();
  params.vertical_idx = f.vertical.as<std::int32_t>();
  params.slash_idx = f.slash.as<std::int32_t>();
  params.vertical_count = params.slash_count = kShape.seq_kv;
  MinferenceStatus status = minference_estimate_vs_index(&args, &params, f.workspace, f.bytes);
  CHECK(status == MINFERENCE_OK, "minference_estimate_vs_index: %s", minference_last_error());
  wait_for_device("C API");
  const std::vector<std::int32_t> lists = f.vertical.read<std::int32_t>();
  CHECK(lists[0] == 0 && lists[29] == 29 && lists[40] == -1, "C API: %d, %d, %d", lists[0],
        lists[29], lists[40]);
  status = minference_estimate_vs_index(&args, &params, f.host<void>(), f.bytes);
  CHECK(status == MINFERENCE_INVALID_ARGUMENT && has_word(minference_last_error(), "workspace"),
        "C API with a workspace on the host: %s", minference_last_error());
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  const bool has_float8 = test::device_has_float8();
  test::test_bad_calls(test::kBadCalls, DType::kBFloat16);
  if (has_float8) test::test_bad_calls(test::kBadFloat8Calls, DType::kFloat8E4M3);
  test::test_too_many_heads();
  test::test_machines();
  test::test_machines_without_float8();
  test::test_readable_host_memory();
  test::test_too_many_tasks();
  test::test_bad_conversions();
  test::test_senseless_lengths(DType::kBFloat16);
  if (has_float8) test::test_senseless_lengths(DType::kFloat8E4M3);
  test::test_no_queries();
  test::test_second_device(DType::kBFloat16);
  if (has_float8) test::test_second_device(DType::kFloat8E4M3);
  test::test_shared_memory();
  test::test_c_api();
  return test::finish("bad_call_cuda_test");
}
