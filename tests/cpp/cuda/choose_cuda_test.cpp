// Which attention kernel is chosen, and the sentence that says why: by device, build, and how q, k
// and v lie in memory. Devices and tensors are made up, so that every machine tests all of them;
// then what the public function says of the device that is there.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "../check.h"
#include "../refusal.h"
#include "choose.h"
#include "minference/minference.h"
#include "plan/problem.h"

namespace minference::test {
namespace {

using cuda::AttentionKernel;
using cuda::DeviceFacts;
using cuda::KernelChoice;
using plan::Problem;

constexpr DeviceFacts kHopper = {.major = 9,
                                 .minor = 0,
                                 .num_multiprocessors = 132,
                                 .max_shared_bytes = 232448,
                                 .has_sm90a_code = true};

/// [batch 2, heads, 300 tokens, head_dim], contiguous, at a made-up address.
TensorView tensor(std::uintptr_t address, std::int64_t heads, std::int64_t head_dim) {
  return {reinterpret_cast<void*>(address),
          {2, heads, 300, head_dim},
          {heads * 300 * head_dim, 300 * head_dim, head_dim, 1},
          DType::kBFloat16};
}

Problem problem_of(std::int64_t head_dim) {
  Problem problem;
  problem.args.device = Device::kCuda;
  problem.args.q = tensor(0x10000, 8, head_dim);
  problem.args.k = tensor(0x20010, 2, head_dim);
  problem.args.v = tensor(0x300F0, 2, head_dim);
  problem.args.out = tensor(0x40000, 8, head_dim);
  return problem;
}

struct ChoiceCase {
  const char* what;
  std::function<void(Problem&, DeviceFacts&)> change;
  AttentionKernel kernel;
  const char* reason;
};

constexpr AttentionKernel kSm80 = AttentionKernel::kSm80, kSm90 = AttentionKernel::kSm90;
const char* const kAligned =
    "device of compute capability 9.0, and every row of q, k and v begins at a multiple of 16 "
    "bytes";

const ChoiceCase kCases[] = {
    {"Hopper", [](Problem&, DeviceFacts&) {}, kSm90, kAligned},
    {"fp16",
     [](Problem& p, DeviceFacts&) {
       p.args.q.dtype = p.args.k.dtype = p.args.v.dtype = DType::kFloat16;
     },
     kSm90, kAligned},
    {"A10", [](Problem&, DeviceFacts& f) { f = {8, 6, 72, 101376, true}; }, kSm80,
     "device of compute capability 8.6: the kernel with wgmma runs on 9.0 only"},
    {"Blackwell", [](Problem&, DeviceFacts& f) { f.major = 10; }, kSm80,
     "device of compute capability 10.0: the kernel with wgmma runs on 9.0 only"},
    {"the device decides before the build",
     [](Problem&, DeviceFacts& f) { f = {8, 0, 108, 166912, false}; }, kSm80,
     "device of compute capability 8.0: the kernel with wgmma runs on 9.0 only"},
    {"no code", [](Problem&, DeviceFacts& f) { f.has_sm90a_code = false; }, kSm80,
     "this build has no code for sm_90a"},
    {"a byte of shared memory less", [](Problem&, DeviceFacts& f) { f.max_shared_bytes = 232447; },
     kSm80,
     "device with 232447 bytes of shared memory for a thread block: the kernel with wgmma takes up "
     "to 232448"},
    {"q at an odd place",
     [](Problem& p, DeviceFacts&) { p.args.q.data = reinterpret_cast<void*>(0x10008); }, kSm80,
     "q begins 8 bytes past a multiple of 16: TMA reads rows that begin at multiples of 16 bytes"},
    {"odd rows of k", [](Problem& p, DeviceFacts&) { p.args.k.stride[2] = 129; }, kSm80,
     "k has stride[2] 129: TMA reads rows that begin at multiples of 16 bytes"},
    {"odd heads of v", [](Problem& p, DeviceFacts&) { p.args.v.stride[1] = 300 * 128 + 4; }, kSm80,
     "v has stride[1] 38404: TMA reads rows that begin at multiples of 16 bytes"},
    {"odd batch rows of q", [](Problem& p, DeviceFacts&) { p.args.q.stride[0] = 1000001; }, kSm80,
     "q has stride[0] 1000001: TMA reads rows that begin at multiples of 16 bytes"},
    {"the stride of one batch row",
     [](Problem& p, DeviceFacts&) {
       p.args.q.shape[0] = p.args.k.shape[0] = p.args.v.shape[0] = 1;
       p.args.k.stride[0] = 3;
     },
     kSm90, kAligned},
    {"out anywhere",
     [](Problem& p, DeviceFacts&) {
       p.args.out.data = reinterpret_cast<void*>(0x40002);
       p.args.out.stride[2] = 131;
     },
     kSm90, kAligned},
    {"no memory yet",
     [](Problem& p, DeviceFacts&) { p.args.q.data = p.args.k.data = p.args.v.data = nullptr; },
     kSm90, kAligned},
    {"the same row for all tokens", [](Problem& p, DeviceFacts&) { p.args.k.stride[2] = 0; }, kSm80,
     "k has stride[2] 0: TMA does not read one row for all tokens"},
    {"the longest stride",
     [](Problem& p, DeviceFacts&) { p.args.v.stride[0] = (std::int64_t{1} << 39) - 8; }, kSm90,
     kAligned},
    {"a stride of 2^40 bytes",
     [](Problem& p, DeviceFacts&) { p.args.v.stride[0] = std::int64_t{1} << 39; }, kSm80,
     "v has stride[0] 549755813888: TMA follows strides in [0, 2^40) bytes"},
    {"backwards", [](Problem& p, DeviceFacts&) { p.args.k.stride[2] = -128; }, kSm80,
     "k has stride[2] -128: TMA follows strides in [0, 2^40) bytes"},
};

/// q, k and v of float8. Nothing but the kernel of sm_90 serves it, so a reason why that does not
/// is one to refuse the call: it tells what was found.
const ChoiceCase kFloat8Cases[] = {
    {"Hopper", [](Problem&, DeviceFacts&) {}, kSm90, kAligned},
    {"A10", [](Problem&, DeviceFacts& f) { f = {8, 6, 72, 101376, true}; }, kSm80, "8.6"},
    {"Ada", [](Problem&, DeviceFacts& f) { f = {8, 9, 142, 101376, true}; }, kSm80, "8.9"},
    {"Blackwell", [](Problem&, DeviceFacts& f) { f.major = 10; }, kSm80, "10.0"},
    {"no code", [](Problem&, DeviceFacts& f) { f.has_sm90a_code = false; }, kSm80, "sm_90a"},
    {"a byte of shared memory less", [](Problem&, DeviceFacts& f) { f.max_shared_bytes = 232447; },
     kSm80, "232447"},
    {"a stride of 8 bytes past 16", [](Problem& p, DeviceFacts&) { p.args.k.stride[2] = 136; },
     kSm80, "k has stride[2] 136"},
    {"a stride of 16 bytes more", [](Problem& p, DeviceFacts&) { p.args.k.stride[2] = 144; }, kSm90,
     kAligned},
    {"heads of q 8 bytes past 16",
     [](Problem& p, DeviceFacts&) { p.args.q.stride[1] = 300 * 128 + 8; }, kSm80,
     "q has stride[1] 38408"},
    {"v at an odd place",
     [](Problem& p, DeviceFacts&) { p.args.v.data = reinterpret_cast<void*>(0x300F8); }, kSm80,
     "v begins 8 bytes past a multiple of 16"},
    {"v that is not used",
     [](Problem& p, DeviceFacts&) {
       p.needs_values = false;
       p.args.v = p.args.out = {};
     },
     kSm90, kAligned},
    {"out anywhere",
     [](Problem& p, DeviceFacts&) {
       p.args.out.data = reinterpret_cast<void*>(0x40002);
       p.args.out.stride[2] = 131;
     },
     kSm90, kAligned},
    {"no memory yet",
     [](Problem& p, DeviceFacts&) { p.args.q.data = p.args.k.data = p.args.v.data = nullptr; },
     kSm90, kAligned},
    {"the same row for all tokens", [](Problem& p, DeviceFacts&) { p.args.v.stride[2] = 0; }, kSm80,
     "v has stride[2] 0"},
    {"the same row for all heads", [](Problem& p, DeviceFacts&) { p.args.k.stride[1] = 0; }, kSm90,
     kAligned},
    {"backwards", [](Problem& p, DeviceFacts&) { p.args.q.stride[2] = -128; }, kSm80,
     "q has stride[2] -128"},
    {"the longest stride",
     [](Problem& p, DeviceFacts&) { p.args.v.stride[0] = (std::int64_t{1} << 40) - 16; }, kSm90,
     kAligned},
    {"a stride of 2^40 bytes",
     [](Problem& p, DeviceFacts&) { p.args.v.stride[0] = std::int64_t{1} << 40; }, kSm80,
     "v has stride[0] 1099511627776"},
};

Problem float8_problem_of(std::int64_t head_dim) {
  Problem problem = problem_of(head_dim);
  AttentionArgs& args = problem.args;
  args.q.dtype = args.k.dtype = args.v.dtype = DType::kFloat8E4M3;
  return problem;
}

void test_float8_decisions() {
  for (const ChoiceCase& c : kFloat8Cases) {
    Problem problem = float8_problem_of(128);
    DeviceFacts facts = kHopper;
    c.change(problem, facts);
    const KernelChoice found = cuda::choose_kernel(problem, facts);
    CHECK(found.kernel == c.kernel, "float8, %s: %s", c.what, cuda::kernel_name(found.kernel));
    CHECK(std::string(found.reason).find(c.reason) != std::string::npos, "float8, %s: %s", c.what,
          found.reason);
  }
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    const KernelChoice found = cuda::choose_kernel(float8_problem_of(head_dim), kHopper);
    if (head_dim % 16 == 0) {
      CHECK(found.kernel == kSm90 && found.tile_rows == 128 &&
                found.tile_keys == (head_dim > 128 ? 64 : 128),
            "float8, head_dim %d: %s, %d x %d", head_dim, cuda::kernel_name(found.kernel),
            found.tile_rows, found.tile_keys);
    } else {
      CHECK(found.kernel == kSm80 && has_word(found.reason, std::to_string(head_dim)),
            "float8, head_dim %d: %s: %s", head_dim, cuda::kernel_name(found.kernel), found.reason);
    }
  }
}

void test_decisions() {
  for (const ChoiceCase& c : kCases) {
    Problem problem = problem_of(128);
    DeviceFacts facts = kHopper;
    c.change(problem, facts);
    const KernelChoice found = cuda::choose_kernel(problem, facts);
    CHECK(found.kernel == c.kernel, "%s: %s", c.what, cuda::kernel_name(found.kernel));
    CHECK(std::string(found.reason) == c.reason, "%s: %s", c.what, found.reason);
  }
  CHECK(std::string(cuda::kernel_name(kSm80)) == "sm80", "%s", cuda::kernel_name(kSm80));
  CHECK(std::string(cuda::kernel_name(kSm90)) == "sm90", "%s", cuda::kernel_name(kSm90));
}

void test_tiles() {
  DeviceFacts ampere = kHopper;
  ampere.major = 8;
  for (int head_dim = 8; head_dim <= 256; head_dim += 8) {
    for (const DeviceFacts& facts : {kHopper, ampere}) {
      const int keys = (facts.major == 9 ? 128 : 64) / (head_dim > 128 ? 2 : 1);
      const KernelChoice found = cuda::choose_kernel(problem_of(head_dim), facts);
      CHECK(found.tile_rows == 128 && found.tile_keys == keys, "head_dim %d, %s: %d x %d", head_dim,
            cuda::kernel_name(found.kernel), found.tile_rows, found.tile_keys);
    }
  }
}

void test_reserved() {
  const struct {
    std::int32_t asked, of_sm90;
  } counts[] = {{0, 0}, {1, 1}, {16, 16}, {131, 131}, {132, 131}, {2147483647, 131}};
  for (const auto& count : counts) {
    Problem problem = problem_of(64);
    problem.args.reserved_multiprocessors = count.asked;
    KernelChoice found = cuda::choose_kernel(problem, kHopper);
    CHECK(found.kernel == kSm90 && found.num_reserved == count.of_sm90, "%d reserved: %d",
          count.asked, found.num_reserved);
    problem.args.v.stride[2] = 65;
    found = cuda::choose_kernel(problem, kHopper);
    CHECK(found.kernel == kSm80 && found.num_reserved == 0, "%d reserved on sm_80: %d", count.asked,
          found.num_reserved);
  }
}

/// What attention_kernel says is what is chosen for the device that is there.
void test_this_device() {
  DeviceFacts facts{};
  CHECK(cuda::device_facts(&facts) == Status::kOk, "%s", last_error());
  int major = 0, multiprocessors = 0;
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0);
  cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0);
  CHECK(facts.major == major && facts.num_multiprocessors == multiprocessors &&
            facts.max_shared_bytes >= 99 << 10,
        "%d.%d, %d, %d bytes", facts.major, facts.minor, facts.num_multiprocessors,
        facts.max_shared_bytes);

  const std::vector<HeadPattern> patterns(8);
  SparseAttentionParams params;
  params.head_patterns = patterns.data();
  for (const std::int64_t stride : {128, 129}) {
    Problem problem = problem_of(128);
    AttentionArgs& args = problem.args;
    args.q.data = args.k.data = args.v.data = args.out.data = nullptr;
    args.v.stride[2] = stride;
    args.reserved_multiprocessors = 5;
    const KernelChoice choice = cuda::choose_kernel(problem, facts);
    KernelInfo info;
    CHECK(attention_kernel(args, params, &info) == Status::kOk, "%s", last_error());
    CHECK(std::string(info.name) == cuda::kernel_name(choice.kernel) &&
              std::string(info.reason) == choice.reason && info.tile_rows == choice.tile_rows &&
              info.tile_keys == choice.tile_keys &&
              info.num_multiprocessors == multiprocessors - choice.num_reserved,
          "%s, %d x %d on %d: %s", info.name, info.tile_rows, info.tile_keys,
          info.num_multiprocessors, info.reason);
    args.reserved_multiprocessors = -1;
    check_refusal(attention_kernel(args, params, &info),
                  {"reserved_multiprocessors -1", {"reserved_multiprocessors"}},
                  "attention_kernel");
    args.reserved_multiprocessors = 0;
    args.q.dtype = args.k.dtype = args.v.dtype = args.out.dtype = DType::kFloat32;
    check_refusal(attention_kernel(args, params, &info),
                  {"float32", {"float32"}, Status::kUnsupported}, "attention_kernel");
  }
}

/// attention_kernel of float8, which one kernel serves.
void test_float8_on_this_device() {
  DeviceFacts facts{};
  CHECK(cuda::device_facts(&facts) == Status::kOk, "%s", last_error());
  const std::vector<HeadPattern> patterns(8);
  SparseAttentionParams params;
  params.head_patterns = patterns.data();
  for (const std::int64_t head_dim : {16, 112, 128, 144, 256}) {
    AttentionArgs args = float8_problem_of(head_dim).args;
    args.q.data = args.k.data = args.v.data = args.out.data = nullptr;
    KernelInfo info;
    const Status status = attention_kernel(args, params, &info);
    if (facts.major != 9 || facts.minor != 0) {
      CHECK(status == Status::kUnsupported && has_word(last_error(), "float8_e4m3fn"),
            "float8 on %d.%d: %s, %s", facts.major, facts.minor, status_string(status),
            last_error());
      continue;
    }
    CHECK(status == Status::kOk, "%s", last_error());
    CHECK(std::string(info.name) == "sm90" && info.tile_rows == 128 &&
              info.tile_keys == (head_dim > 128 ? 64 : 128),
          "float8, head_dim %d: %s, %d x %d", int(head_dim), info.name, info.tile_rows,
          info.tile_keys);
  }
}

/// Only where code for sm_90a runs, as that alone waits for the kernel before it.
void test_overlap() {
  const auto can_overlap = [](std::int32_t major, std::int32_t minor, bool has_sm90a_code) {
    DeviceFacts facts = kHopper;
    facts.major = major;
    facts.minor = minor;
    facts.has_sm90a_code = has_sm90a_code;
    return cuda::can_overlap_kernels(facts);
  };
  CHECK(can_overlap(9, 0, true), "sm_90a on 9.0 does not overlap");
  CHECK(!can_overlap(9, 0, false), "sm_80 on 9.0 overlaps");
  CHECK(!can_overlap(8, 0, true), "8.0 overlaps");
  CHECK(!can_overlap(10, 0, true), "sm_80 on 10.0 overlaps");
  CHECK(!can_overlap(12, 0, true), "sm_80 on 12.0 overlaps");
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  test::test_decisions();
  test::test_float8_decisions();
  test::test_tiles();
  test::test_reserved();
  test::test_overlap();
  test::test_this_device();
  test::test_float8_on_this_device();
  return test::finish("choose_cuda_test");
}
