// Every bad argument of every attention op gets its status and a sentence that names it, from the
// run and from the functions that ask beforehand, and nothing is written.
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "heap_tensor.h"
#include "minference/minference.h"
#include "op_fixture.h"
#include "refusal.h"

namespace minference::test {
namespace {

/// Which of an op's functions must refuse: data is there when the op runs, not when it is sized.
enum class Seen { kAlways, kRun };

struct BadArgument {
  const char* what;
  std::vector<const char*> names;
  std::function<void(Fixture&)> spoil;
  Seen seen = Seen::kAlways;
  Status status = Status::kInvalidArgument;
  bool is_of_values = false;  // spoils v or out, which estimate_vs_index and plan_stats do not read
};

void test_bad_argument(const Op& op, const BadArgument& bad) {
  Fixture f(1);
  std::size_t valid_bytes = 0;
  Status status = op.workspace_bytes(f, &valid_bytes);
  CHECK(status == Status::kOk, "%s: workspace_bytes: %s", op.name, last_error());
  bad.spoil(f);
  const Refusal refusal = {bad.what, bad.names, bad.status};
  const HeapBytes workspace(valid_bytes + 4096);
  check_refusal(op.run(f, workspace.data(), workspace.size()), refusal, op.name);
  CHECK(f.is_untouched(), "%s with %s: outputs were written", op.name, bad.what);
  if (bad.seen == Seen::kRun) return;
  check_refusal(op.supports(f), refusal, std::string(op.name) + "_supports");
  std::size_t bytes = 0;
  check_refusal(op.workspace_bytes(f, &bytes), refusal, std::string(op.name) + "_workspace_bytes");
}

const double kNaN = std::numeric_limits<double>::quiet_NaN();
const double kInfinity = std::numeric_limits<double>::infinity();

/// Wrong for every op that takes AttentionArgs.
const BadArgument kBadArgs[] = {
    {"struct_size 0", {"struct_size"}, [](Fixture& f) { f.args.struct_size = 0; }},
    {"struct_size 12", {"struct_size"}, [](Fixture& f) { f.args.struct_size = 12; }},
    {"device 3", {"device"}, [](Fixture& f) { f.args.device = out_of_range<Device>(3); }},
    {"device 0", {"device"}, [](Fixture& f) { f.args.device = out_of_range<Device>(0); }},
    {"q null", {"q"}, [](Fixture& f) { f.args.q.data = nullptr; }, Seen::kRun},
    {"k null", {"k"}, [](Fixture& f) { f.args.k.data = nullptr; }, Seen::kRun},
    {.what = "v null",
     .names = {"v"},
     .spoil = [](Fixture& f) { f.args.v.data = nullptr; },
     .seen = Seen::kRun,
     .is_of_values = true},
    {.what = "out null",
     .names = {"out"},
     .spoil = [](Fixture& f) { f.args.out.data = nullptr; },
     .seen = Seen::kRun,
     .is_of_values = true},
    {"dtype 4", {"dtype"}, [](Fixture& f) { f.set_dtype(out_of_range<DType>(4)); }},
    {"dtype -1", {"dtype"}, [](Fixture& f) { f.set_dtype(out_of_range<DType>(-1)); }},
    {"dtype of k", {"k"}, [](Fixture& f) { f.args.k.dtype = DType::kFloat16; }},
    {"float8 k", {"k"}, [](Fixture& f) { f.args.k.dtype = DType::kFloat8E4M3; }},
    {"float32 k of float8 q",
     {"k"},
     [](Fixture& f) {
       f.set_float8();
       f.args.k.dtype = DType::kFloat32;
     }},
    {.what = "dtype of v",
     .names = {"v"},
     .spoil = [](Fixture& f) { f.args.v.dtype = DType::kBFloat16; },
     .is_of_values = true},
    {.what = "dtype of out",
     .names = {"out"},
     .spoil = [](Fixture& f) { f.args.out.dtype = DType::kFloat16; },
     .is_of_values = true},
    {.what = "float8 out",
     .names = {"out"},
     .spoil = [](Fixture& f) { f.set_dtype(DType::kFloat8E4M3); },
     .is_of_values = true},
    {.what = "float16 out of float8 q",
     .names = {"out"},
     .spoil =
         [](Fixture& f) {
           f.set_float8();
           f.args.out.dtype = DType::kFloat16;
         },
     .is_of_values = true},
    {"q_scale of float32 q", {"q_scale"}, [](Fixture& f) { f.args.q_scale = f.scales; }},
    {"k_scale of float32 q", {"k_scale"}, [](Fixture& f) { f.args.k_scale = f.scales; }},
    {.what = "v_scale of float32 q",
     .names = {"v_scale"},
     .spoil = [](Fixture& f) { f.args.v_scale = f.scales; },
     .is_of_values = true},
    {"head_dim 0", {"head_dim", "q"}, [](Fixture& f) { f.set_head_dim(0); }},
    {"head_dim 12", {"head_dim", "q"}, [](Fixture& f) { f.set_head_dim(12); }},
    {"head_dim 264", {"head_dim", "q"}, [](Fixture& f) { f.set_head_dim(264); }},
    {"head_dim of k", {"k"}, [](Fixture& f) { f.args.k.shape[3] = 8; }},
    {.what = "head_dim of v",
     .names = {"v"},
     .spoil = [](Fixture& f) { f.args.v.shape[3] = 8; },
     .is_of_values = true},
    {.what = "head_dim of out",
     .names = {"out"},
     .spoil = [](Fixture& f) { f.args.out.shape[3] = 8; },
     .is_of_values = true},
    {"negative length of q", {"q"}, [](Fixture& f) { f.args.q.shape[2] = -1; }},
    {"negative length of k", {"k"}, [](Fixture& f) { f.args.k.shape[2] = -1; }},
    {"no heads in q", {"q", "num_heads_q"}, [](Fixture& f) { f.args.q.shape[1] = 0; }},
    {"3 kv heads", {"k", "num_heads_kv"}, [](Fixture& f) { f.set_heads_kv(3); }},
    {"no kv heads", {"k", "num_heads_kv"}, [](Fixture& f) { f.set_heads_kv(0); }},
    {"batch of k", {"k"}, [](Fixture& f) { f.args.k.shape[0] = 2; }},
    {.what = "batch of v",
     .names = {"v"},
     .spoil = [](Fixture& f) { f.args.v.shape[0] = 2; },
     .is_of_values = true},
    {.what = "heads of v",
     .names = {"v"},
     .spoil = [](Fixture& f) { f.args.v.shape[1] = 1; },
     .is_of_values = true},
    {.what = "length of v",
     .names = {"v"},
     .spoil = [](Fixture& f) { f.args.v.shape[2] = kSeqKv - 1; },
     .is_of_values = true},
    {.what = "heads of out",
     .names = {"out"},
     .spoil = [](Fixture& f) { f.args.out.shape[1] = 2; },
     .is_of_values = true},
    {.what = "length of out",
     .names = {"out"},
     .spoil = [](Fixture& f) { f.args.out.shape[2] = kSeqQ - 1; },
     .is_of_values = true},
    {"stride[3] of q", {"q"}, [](Fixture& f) { f.args.q.stride[3] = 2; }},
    {"stride[3] of k", {"k"}, [](Fixture& f) { f.args.k.stride[3] = 0; }},
    {.what = "stride[3] of v",
     .names = {"v"},
     .spoil = [](Fixture& f) { f.args.v.stride[3] = -1; },
     .is_of_values = true},
    {.what = "stride[3] of out",
     .names = {"out"},
     .spoil = [](Fixture& f) { f.args.out.stride[3] = 2; },
     .is_of_values = true},
    {"more queries than keys",
     {"q", "k", "seq_q", "seq_kv", "q_len", "kv_len"},
     [](Fixture& f) { f.args.k.shape[2] = f.args.v.shape[2] = kSeqQ - 1; }},
    {"softmax_scale NaN", {"softmax_scale"}, [](Fixture& f) { f.args.softmax_scale = kNaN; }},
    {"softmax_scale inf", {"softmax_scale"}, [](Fixture& f) { f.args.softmax_scale = kInfinity; }},
    {"num_threads -1", {"num_threads"}, [](Fixture& f) { f.args.num_threads = -1; }},
    {"reserved_multiprocessors -1",
     {"reserved_multiprocessors"},
     [](Fixture& f) { f.args.reserved_multiprocessors = -1; }},
    {"cu_seqlens_q alone",
     {"cu_seqlens_q", "cu_seqlens_kv"},
     [](Fixture& f) {
       f.set_packed();
       f.args.cu_seqlens_kv = nullptr;
     }},
    {"cu_seqlens_kv alone",
     {"cu_seqlens_q", "cu_seqlens_kv"},
     [](Fixture& f) {
       f.set_packed();
       f.args.cu_seqlens_q = nullptr;
     }},
    {"no packed sequences",
     {"num_sequences", "cu_seqlens_q"},
     [](Fixture& f) {
       f.set_packed();
       f.args.num_sequences = 0;
     }},
    {"-1 packed sequences",
     {"num_sequences"},
     [](Fixture& f) {
       f.set_packed();
       f.args.num_sequences = -1;
     }},
    {"cu_seqlens_q from 1",
     {"cu_seqlens_q"},
     [](Fixture& f) {
       f.set_packed();
       f.cu_q[0] = 1;
     }},
    {"cu_seqlens_q to 69",
     {"cu_seqlens_q"},
     [](Fixture& f) {
       f.set_packed();
       f.cu_q[3] = 69;
     }},
    {"cu_seqlens_kv to 101",
     {"cu_seqlens_kv"},
     [](Fixture& f) {
       f.set_packed();
       f.cu_kv[3] = 101;
     }},
    {"cu_seqlens_q decreasing",
     {"cu_seqlens_q"},
     [](Fixture& f) {
       f.set_packed();
       f.cu_q[2] = 19;
     }},
    {"cu_seqlens_kv decreasing",
     {"cu_seqlens_kv"},
     [](Fixture& f) {
       f.set_packed();
       f.cu_kv[1] = 61;
     }},
    {"a packed sequence with more queries than keys",
     {"cu_seqlens_q", "cu_seqlens_kv"},
     [](Fixture& f) {
       f.set_packed();
       f.cu_kv[1] = 19;
     }},
    {"first_valid_key -1",
     {"first_valid_key"},
     [](Fixture& f) {
       f.first_valid[0] = -1;
       f.args.first_valid_key = f.first_valid;
     },
     Seen::kRun},
    {"first_valid_key beyond the keys",
     {"first_valid_key"},
     [](Fixture& f) {
       f.first_valid[0] = kSeqKv + 1;
       f.args.first_valid_key = f.first_valid;
     },
     Seen::kRun},
};

const BadArgument kBadSparse[] = {
    {"params.struct_size 0", {"struct_size"}, [](Fixture& f) { f.sparse.struct_size = 0; }},
    {"params.struct_size 8", {"struct_size"}, [](Fixture& f) { f.sparse.struct_size = 8; }},
    {"mode 3", {"mode"}, [](Fixture& f) { f.sparse.mode = out_of_range<SlashMode>(3); }},
    {"mode -1", {"mode"}, [](Fixture& f) { f.sparse.mode = out_of_range<SlashMode>(-1); }},
    {"no patterns", {"head_patterns"}, [](Fixture& f) { f.sparse.head_patterns = nullptr; }},
    {"kind 7",
     {"head_patterns", "kind"},
     [](Fixture& f) { f.patterns[1].kind = out_of_range<PatternKind>(7); }},
    {"kind -1",
     {"head_patterns", "kind"},
     [](Fixture& f) { f.patterns[3].kind = out_of_range<PatternKind>(-1); }},
    {"last -1", {"head_patterns", "last"}, [](Fixture& f) { f.patterns[3].size[2] = -1; }},
    {"slash size -5",
     {"head_patterns", "slash_size"},
     [](Fixture& f) { f.patterns[0].size[1] = -5; }},
    {"estimate_every 100", {"estimate_every"}, [](Fixture& f) { f.sparse.estimate_every = 100; }},
    {"estimate_every -64", {"estimate_every"}, [](Fixture& f) { f.sparse.estimate_every = -64; }},
    {"vertical_idx null",
     {"vertical_idx"},
     [](Fixture& f) { f.sparse.vertical_idx.data = nullptr; },
     Seen::kRun},
    {"slash_idx null",
     {"slash_idx"},
     [](Fixture& f) { f.sparse.slash_idx.data = nullptr; },
     Seen::kRun},
    {"block_idx null",
     {"block_idx"},
     [](Fixture& f) { f.sparse.block_idx.data = nullptr; },
     Seen::kRun},
    {"heads of vertical_idx",
     {"vertical_idx"},
     [](Fixture& f) { f.sparse.vertical_idx.shape[1] = 2; }},
    {"sequences of slash_idx", {"slash_idx"}, [](Fixture& f) { f.sparse.slash_idx.shape[0] = 2; }},
    {"negative count", {"slash_idx"}, [](Fixture& f) { f.sparse.slash_idx.shape[2] = -1; }},
    {"row blocks of block_idx", {"block_idx"}, [](Fixture& f) { f.sparse.block_idx.shape[2] = 1; }},
    {"stride[2] of vertical_idx",
     {"vertical_idx"},
     [](Fixture& f) { f.sparse.vertical_idx.stride[2] = 2; }},
    {"vertical beyond the keys",
     {"vertical_idx"},
     [](Fixture& f) { f.vertical_idx.data()[4] = kSeqKv; },
     Seen::kRun},
    {"vertical -2",
     {"vertical_idx"},
     [](Fixture& f) { f.vertical_idx.data()[5] = -2; },
     Seen::kRun},
    {"slash beyond the keys",
     {"slash_idx"},
     [](Fixture& f) { f.slash_idx.data()[3] = kSeqKv; },
     Seen::kRun},
    {"slash -2", {"slash_idx"}, [](Fixture& f) { f.slash_idx.data()[2] = -2; }, Seen::kRun},
    {"block beyond the keys",
     {"block_idx"},
     [](Fixture& f) { f.block_idx.data()[5] = kKeyBlocks; },
     Seen::kRun},
    {"block -2", {"block_idx"}, [](Fixture& f) { f.block_idx.data()[4] = -2; }, Seen::kRun},
};

struct BadOfOp {
  const Op& op;
  BadArgument bad;
};

const BadOfOp kBadOfOps[] = {
    {kAShape,
     {"a_shape.struct_size 0", {"struct_size"}, [](Fixture& f) { f.a_shape.struct_size = 0; }}},
    {kAShape, {"sink -1", {"sink"}, [](Fixture& f) { f.a_shape.sink = -1; }}},
    {kAShape, {"window -1", {"window"}, [](Fixture& f) { f.a_shape.window = -1; }}},
    {kTriShape,
     {"tri_shape.struct_size 0", {"struct_size"}, [](Fixture& f) { f.tri_shape.struct_size = 0; }}},
    {kTriShape, {"sink -1", {"sink"}, [](Fixture& f) { f.tri_shape.sink = -1; }}},
    {kTriShape, {"window -1", {"window"}, [](Fixture& f) { f.tri_shape.window = -1; }}},
    {kTriShape, {"last -1", {"last"}, [](Fixture& f) { f.tri_shape.last = -1; }}},
    {kBlockSparse,
     {"block.struct_size 0", {"struct_size"}, [](Fixture& f) { f.block.struct_size = 0; }}},
    {kBlockSparse, {"top_k 0", {"top_k"}, [](Fixture& f) { f.block.top_k = 0; }}},
    {kBlockSparse, {"top_k -1", {"top_k"}, [](Fixture& f) { f.block.top_k = -1; }}},
    {kBlockSparse,
     {"heads of block_idx",
      {"block_idx"},
      [](Fixture& f) {
        f.block.block_idx = f.block_idx.view;
        f.block.block_idx.shape[1] = 3;
      }}},
    {kBlockSparse,
     {"block beyond the keys",
      {"block_idx"},
      [](Fixture& f) {
        f.block.block_idx = f.block_idx.view;
        f.block_idx.data()[0] = kKeyBlocks;
      },
      Seen::kRun}},
    {kVs, {"vs.struct_size 0", {"struct_size"}, [](Fixture& f) { f.vs.struct_size = 0; }}},
    {kVs, {"mode 9", {"mode"}, [](Fixture& f) { f.vs.mode = out_of_range<SlashMode>(9); }}},
    {kVs,
     {"vertical_size null", {"vertical_size"}, [](Fixture& f) { f.vs.vertical_size = nullptr; }}},
    {kVs, {"slash_size null", {"slash_size"}, [](Fixture& f) { f.vs.slash_size = nullptr; }}},
    {kVs, {"vertical_size -1", {"vertical_size"}, [](Fixture& f) { f.vertical_size[3] = -1; }}},
    {kVs, {"slash_size -1", {"slash_size"}, [](Fixture& f) { f.slash_size[1] = -1; }}},
    {kVs, {"estimate_every 63", {"estimate_every"}, [](Fixture& f) { f.vs.estimate_every = 63; }}},
    {kVsWithIndex,
     {"struct_size 0", {"struct_size"}, [](Fixture& f) { f.vs_with_index.struct_size = 0; }}},
    {kVsWithIndex,
     {"mode 3", {"mode"}, [](Fixture& f) { f.vs_with_index.mode = out_of_range<SlashMode>(3); }}},
    {kVsWithIndex,
     {"vertical_idx null",
      {"vertical_idx"},
      [](Fixture& f) { f.vs_with_index.vertical_idx.data = nullptr; },
      Seen::kRun}},
    {kVsWithIndex,
     {"heads of slash_idx",
      {"slash_idx"},
      [](Fixture& f) { f.vs_with_index.slash_idx.shape[1] = 5; }}},
    {kVsWithIndex,
     {"slash beyond the keys",
      {"slash_idx"},
      [](Fixture& f) { f.slash_idx.data()[0] = kSeqKv; },
      Seen::kRun}},
    {kVsIndex, {"struct_size 0", {"struct_size"}, [](Fixture& f) { f.vs_index.struct_size = 0; }}},
    {kVsIndex,
     {"vertical_size null",
      {"vertical_size"},
      [](Fixture& f) { f.vs_index.vertical_size = nullptr; }}},
    {kVsIndex,
     {"slash_size null", {"slash_size"}, [](Fixture& f) { f.vs_index.slash_size = nullptr; }}},
    {kVsIndex,
     {"vertical_size -1", {"vertical_size"}, [](Fixture& f) { f.vertical_size[0] = -1; }}},
    {kVsIndex, {"slash_size -1", {"slash_size"}, [](Fixture& f) { f.slash_size[0] = -1; }}},
    {kVsIndex,
     {"vertical_count 39", {"vertical_count"}, [](Fixture& f) { f.vs_index.vertical_count = 39; }}},
    {kVsIndex,
     {"slash_count 69", {"slash_count"}, [](Fixture& f) { f.vs_index.slash_count = 69; }}},
    {kVsIndex,
     {"vertical_idx null",
      {"vertical_idx"},
      [](Fixture& f) { f.vs_index.vertical_idx = nullptr; },
      Seen::kRun}},
    {kVsIndex,
     {"slash_idx null",
      {"slash_idx"},
      [](Fixture& f) { f.vs_index.slash_idx = nullptr; },
      Seen::kRun}},
};

void test_bad_arguments() {
  for (const Op* op : kOps) {
    const bool reads_values = op != &kVsIndex && op != &kPlanStats;
    for (const BadArgument& bad : kBadArgs) {
      if (reads_values || !bad.is_of_values) test_bad_argument(*op, bad);
    }
  }
  for (const Op* op : {&kSparse, &kPlanStats}) {
    for (const BadArgument& bad : kBadSparse) test_bad_argument(*op, bad);
  }
  for (const BadOfOp& entry : kBadOfOps) test_bad_argument(entry.op, entry.bad);
  for (const Op* op : kOps) {
    test_bad_argument(*op, {.what = "device CUDA",
                            .names = {"device", "CUDA", "cuda"},
                            .spoil = [](Fixture& f) { f.args.device = Device::kCuda; },
                            .status = Status::kUnsupported});
  }
}

/// No CPU kernel has it. What an op does not read is not refused.
void test_float8() {
  const BadArgument float8 = {.what = "float8 on the CPU",
                              .names = {"float8_e4m3fn"},
                              .spoil =
                                  [](Fixture& f) {
                                    f.set_float8();
                                    f.args.q_scale = f.args.k_scale = f.args.v_scale = f.scales;
                                  },
                              .status = Status::kUnsupported};
  for (const Op* op : kOps) {
    test_bad_argument(*op, float8);
    CHECK(std::string(last_error()) ==
              "q has dtype float8_e4m3fn; the CPU backend supports float32, bfloat16 and float16",
          "%s: %s", op->name, last_error());
  }
  for (const Op* op : {&kVsIndex, &kPlanStats}) {
    Fixture f;
    f.args.v_scale = f.scales;
    CHECK(op->supports(f) == Status::kOk, "%s with v_scale: %s", op->name, last_error());
  }
  Fixture f;
  f.args.k_scale = f.scales;
  check_refusal(kDense.supports(f), {"k_scale", {"k_scale"}}, "dense_attention_supports");
  CHECK(std::string(last_error()) ==
            "k_scale is given and q has dtype float32; scales are for float8_e4m3fn",
        "%s", last_error());
  f.args.k_scale = nullptr;
  f.set_dtype(DType::kFloat8E4M3);
  check_refusal(kDense.supports(f), {"float8 out", {"out"}}, "dense_attention_supports");
  CHECK(std::string(last_error()) ==
            "out has dtype float8_e4m3fn; it must be bfloat16 for float8_e4m3fn q",
        "%s", last_error());
}

/// Too little memory, none, and no place for the answer.
void test_workspace() {
  for (const Op* op : kOps) {
    Fixture f;
    std::size_t bytes = 0;
    Status status = op->workspace_bytes(f, &bytes);
    CHECK(status == Status::kOk, "%s: workspace_bytes: %s", op->name, last_error());
    check_refusal(op->workspace_bytes(f, nullptr), {"bytes null", {"bytes"}}, op->name);
    if (bytes == 0) continue;
    const HeapBytes workspace(bytes);
    const Refusal too_small = {
        "a workspace too small", {"workspace", "bytes"}, Status::kWorkspaceTooSmall};
    check_refusal(op->run(f, workspace.data(), bytes - 1), too_small, op->name);
    check_refusal(op->run(f, workspace.data(), 0), too_small, op->name);
    check_refusal(op->run(f, nullptr, 0), too_small, op->name);
    check_refusal(op->run(f, nullptr, bytes), {"workspace null", {"workspace"}}, op->name);
    CHECK(f.is_untouched() && workspace.is_poisoned(), "%s: written without a workspace", op->name);
  }
  const Fixture f;
  std::size_t bytes = 0;
  Status status = plan_stats_workspace_bytes(f.args, f.sparse, &bytes);
  const HeapBytes workspace(bytes);
  status = plan_stats(f.args, f.sparse, nullptr, workspace.data(), bytes);
  check_refusal(status, {"stats null", {"stats"}}, "plan_stats");
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  unsetenv("MINFERENCE_CPU_KERNEL");
  test::test_bad_arguments();
  test::test_float8();
  test::test_workspace();
  return test::finish("bad_argument_test");
}
