// Bad calls of everything that is not an attention op: convert_vs_index, predict, and the choice of
// a CPU kernel.
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

#include "check.h"
#include "heap_tensor.h"
#include "minference/minference.h"
#include "op_fixture.h"
#include "refusal.h"

namespace minference::test {
namespace {

/// A conversion of one head, two row blocks.
struct ConvertFixture {
  ConvertFixture() {
    for (std::size_t n = 0; n < vertical_idx.count(); ++n) vertical_idx.data()[n] = n * 30;
    for (std::size_t n = 0; n < slash_idx.count(); ++n) slash_idx.data()[n] = n * 40;
    params.q_seqlens = &q_len;
    params.kv_seqlens = &kv_len;
    params.vertical_idx = vertical_idx.view;
    params.slash_idx = slash_idx.view;
    params.num_row_blocks = 2;
    params.block_count = block_count.data();
    params.block_offset = block_offset.data();
    params.column_count = column_count.data();
    params.column_index = column_index.data();
  }
  bool is_untouched() const {
    return block_count.bytes.is_poisoned() && block_offset.bytes.is_poisoned() &&
           column_count.bytes.is_poisoned() && column_index.bytes.is_poisoned();
  }

  std::int32_t q_len = 100, kv_len = 110;
  HeapIndex vertical_idx{{1, 1, 3}}, slash_idx{{1, 1, 2}};
  HeapIndex block_count{{2}}, block_offset{{2, 2}}, column_count{{2}}, column_index{{2, 3}};
  ConvertVsIndexParams params;
};

struct BadConversion {
  const char* what;
  std::vector<const char*> names;
  std::function<void(ConvertFixture&)> spoil;
};

const BadConversion kBadConversions[] = {
    {"struct_size 0", {"struct_size"}, [](ConvertFixture& f) { f.params.struct_size = 0; }},
    {"q_seqlens null", {"q_seqlens"}, [](ConvertFixture& f) { f.params.q_seqlens = nullptr; }},
    {"kv_seqlens null", {"kv_seqlens"}, [](ConvertFixture& f) { f.params.kv_seqlens = nullptr; }},
    {"q_len -1", {"q_seqlens"}, [](ConvertFixture& f) { f.q_len = -1; }},
    {"kv_len -1", {"kv_seqlens"}, [](ConvertFixture& f) { f.kv_len = -1; }},
    {"more queries than row blocks", {"q_seqlens"}, [](ConvertFixture& f) { f.q_len = 129; }},
    {"more queries than keys", {"q_seqlens"}, [](ConvertFixture& f) { f.kv_len = 99; }},
    {"num_row_blocks -1",
     {"num_row_blocks"},
     [](ConvertFixture& f) { f.params.num_row_blocks = -1; }},
    {"causal 2", {"causal"}, [](ConvertFixture& f) { f.params.causal = 2; }},
    {"heads", {"slash_idx"}, [](ConvertFixture& f) { f.params.slash_idx.shape[1] = 2; }},
    {"batch", {"slash_idx"}, [](ConvertFixture& f) { f.params.slash_idx.shape[0] = 2; }},
    {"count -1", {"vertical_idx"}, [](ConvertFixture& f) { f.params.vertical_idx.shape[2] = -1; }},
    {"stride", {"slash_idx"}, [](ConvertFixture& f) { f.params.slash_idx.stride[2] = 3; }},
    {"no list", {"vertical_idx"}, [](ConvertFixture& f) { f.params.vertical_idx.data = nullptr; }},
    {"key 110", {"vertical_idx"}, [](ConvertFixture& f) { f.vertical_idx.data()[2] = 110; }},
    {"key -2", {"vertical_idx"}, [](ConvertFixture& f) { f.vertical_idx.data()[0] = -2; }},
    {"offset 110", {"slash_idx"}, [](ConvertFixture& f) { f.slash_idx.data()[1] = 110; }},
    {"block_count null",
     {"block_count"},
     [](ConvertFixture& f) { f.params.block_count = nullptr; }},
    {"block_offset null",
     {"block_offset"},
     [](ConvertFixture& f) { f.params.block_offset = nullptr; }},
    {"column_count null",
     {"column_count"},
     [](ConvertFixture& f) { f.params.column_count = nullptr; }},
    {"column_index null",
     {"column_index"},
     [](ConvertFixture& f) { f.params.column_index = nullptr; }},
};

void test_convert() {
  for (const BadConversion& bad : kBadConversions) {
    ConvertFixture f;
    bad.spoil(f);
    const HeapBytes workspace(4096);
    check_refusal(convert_vs_index(f.params, workspace.data(), workspace.size()),
                  {bad.what, bad.names}, "convert_vs_index");
    CHECK(f.is_untouched(), "convert_vs_index with %s: outputs were written", bad.what);
  }
  ConvertFixture f;
  check_refusal(convert_vs_index_workspace_bytes(f.params, nullptr), {"bytes null", {"bytes"}},
                "convert_vs_index_workspace_bytes");
  std::size_t bytes = 0;
  Status status = convert_vs_index_workspace_bytes(f.params, &bytes);
  CHECK(status == Status::kOk, "%s", last_error());
  const HeapBytes workspace(bytes);
  check_refusal(convert_vs_index(f.params, workspace.data(), bytes - 1),
                {"a workspace too small", {"workspace"}, Status::kWorkspaceTooSmall},
                "convert_vs_index");
  check_refusal(convert_vs_index(f.params, nullptr, bytes), {"workspace null", {"workspace"}},
                "convert_vs_index");
  CHECK(f.is_untouched(), "convert_vs_index: written without a workspace");
  f.params.causal = 0;  // offsets of any size: those that reach no row are skipped
  f.slash_idx.data()[1] = 100000;
  status = convert_vs_index(f.params, workspace.data(), bytes);
  CHECK(status == Status::kOk, "offset 100000, not causal: %s", last_error());
}

void test_predict() {
  Prediction prediction;
  const HeadPattern lines = {PatternKind::kVerticalSlash, {30, 100}};
  const HeadPattern no_kind = {out_of_range<PatternKind>(7), {}};
  const HeadPattern negative = {PatternKind::kAShape, {1, -1}};
  check_refusal(predict(no_kind, 64, 64, &prediction), {"kind 7", {"pattern", "kind"}}, "predict");
  check_refusal(predict(negative, 64, 64, &prediction), {"size -1", {"pattern", "size"}},
                "predict");
  check_refusal(predict(lines, -1, 64, &prediction), {"q_len -1", {"q_len"}}, "predict");
  check_refusal(predict(lines, 65, 64, &prediction), {"q_len 65", {"q_len", "kv_len"}}, "predict");
  check_refusal(predict(lines, 64, 64, nullptr), {"no place", {"prediction"}}, "predict");
  prediction.struct_size = 0;
  check_refusal(predict(lines, 64, 64, &prediction), {"struct_size 0", {"struct_size"}}, "predict");
}

void test_attention_kernel() {
  Fixture f;
  KernelInfo info;
  check_refusal(attention_kernel(f.args, f.sparse, nullptr), {"no place", {"info"}},
                "attention_kernel");
  info.struct_size = sizeof(KernelInfo) - 1;
  check_refusal(attention_kernel(f.args, f.sparse, &info), {"struct_size", {"struct_size"}},
                "attention_kernel");
  info.struct_size = sizeof(KernelInfo);
  f.args.reserved_multiprocessors = -1;
  check_refusal(attention_kernel(f.args, f.sparse, &info),
                {"reserved_multiprocessors -1", {"reserved_multiprocessors"}}, "attention_kernel");
  f.args.reserved_multiprocessors = 0;
  f.sparse.head_patterns = nullptr;
  check_refusal(attention_kernel(f.args, f.sparse, &info), {"no patterns", {"head_patterns"}},
                "attention_kernel");
  Fixture float8;
  float8.set_float8();
  check_refusal(attention_kernel(float8.args, float8.sparse, &info),
                {"float8", {"float8_e4m3fn"}, Status::kUnsupported}, "attention_kernel");
  CHECK(info.name[0] == '\0' && info.reason[0] == '\0', "a refused call says %s: %s", info.name,
        info.reason);
}

void test_kernels() {
  const char* name = nullptr;
  std::int32_t is_supported = 0;
  const Refusal bad_index = {"a bad index", {"index"}};
  check_refusal(cpu_kernel_info(-1, &name, &is_supported), bad_index, "cpu_kernel_info");
  check_refusal(cpu_kernel_info(cpu_kernel_count(), &name, &is_supported), bad_index,
                "cpu_kernel_info");
  check_refusal(cpu_kernel_info(0, nullptr, &is_supported), {"name null", {"name"}},
                "cpu_kernel_info");
  check_refusal(cpu_kernel_info(0, &name, nullptr), {"supported null", {"supported"}},
                "cpu_kernel_info");
  check_refusal(cpu_kernel_for(out_of_range<DType>(4), &name), {"dtype 4", {"dtype"}},
                "cpu_kernel_for");
  check_refusal(cpu_kernel_for(out_of_range<DType>(-1), &name), {"dtype -1", {"dtype"}},
                "cpu_kernel_for");
  check_refusal(cpu_kernel_for(DType::kFloat8E4M3, &name),
                {"float8", {"float8_e4m3fn"}, Status::kUnsupported}, "cpu_kernel_for");
  CHECK(name == nullptr, "a refused call names %s", name);
  check_refusal(cpu_kernel_for(DType::kFloat32, nullptr), {"name null", {"name"}},
                "cpu_kernel_for");

  setenv("MINFERENCE_CPU_KERNEL", "no_such_kernel", 1);
  Refusal refusal = {"a kernel that does not exist", {"MINFERENCE_CPU_KERNEL"}};
  check_refusal(cpu_kernel_for(DType::kFloat32, &name), refusal, "cpu_kernel_for");
  KernelInfo info;
  {
    const Fixture f;
    check_refusal(attention_kernel(f.args, f.sparse, &info), refusal, "attention_kernel");
  }
  for (const Op* op : kOps) {
    const Fixture f;
    check_refusal(op->supports(f), refusal, std::string(op->name) + "_supports");
    const HeapBytes workspace(1 << 24);
    check_refusal(op->run(f, workspace.data(), workspace.size()), refusal, op->name);
    CHECK(f.is_untouched(), "%s: written without a kernel", op->name);
  }
  refusal.what = "a kernel that this machine lacks";
  refusal.status = Status::kUnsupported;
  for (std::int32_t n = 0; n < cpu_kernel_count(); ++n) {
    if (cpu_kernel_info(n, &name, &is_supported) != Status::kOk) continue;
    setenv("MINFERENCE_CPU_KERNEL", name, 1);
    if (is_supported) {
      const Fixture f;
      CHECK(attention_kernel(f.args, f.sparse, &info) == Status::kOk, "%s", last_error());
      CHECK(std::string(info.name) == name && has_word(info.reason, "MINFERENCE_CPU_KERNEL") &&
                has_word(info.reason, name),
            "forced %s: %s, %s", name, info.name, info.reason);
      continue;
    }
    check_refusal(cpu_kernel_for(DType::kBFloat16, &name), refusal, "cpu_kernel_for");
    const Fixture f;
    check_refusal(kSparse.supports(f), refusal, "sparse_attention_supports");
  }
  unsetenv("MINFERENCE_CPU_KERNEL");
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  unsetenv("MINFERENCE_CPU_KERNEL");
  test::test_convert();
  test::test_predict();
  test::test_attention_kernel();
  test::test_kernels();
  return test::finish("bad_call_test");
}
