// The C functions beside the C++ ones: equal defaults, equal results to the bit, older clients, and
// a sentence for every pointer that is null.
#include "minference/c_api.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <string>

#include "check.h"
#include "heap_tensor.h"
#include "minference/minference.h"
#include "op_fixture.h"
#include "refusal.h"

namespace minference::test {
namespace {

template <class C, class Cpp>
const C* to_c(const Cpp& cpp) {
  static_assert(sizeof(C) == sizeof(Cpp));
  return reinterpret_cast<const C*>(&cpp);
}
const MinferenceAttentionArgs* c_args(const Fixture& f) {
  return to_c<MinferenceAttentionArgs>(f.args);
}
const MinferenceSparseAttentionParams* c_sparse(const Fixture& f) {
  return to_c<MinferenceSparseAttentionParams>(f.sparse);
}
const MinferenceVsIndexParams* c_vs_index(const Fixture& f) {
  return to_c<MinferenceVsIndexParams>(f.vs_index);
}
MinferencePlanStats* c_stats(const Fixture& f) {
  return reinterpret_cast<MinferencePlanStats*>(f.plan_stats());
}
Status to_cpp(MinferenceStatus status) { return static_cast<Status>(status); }

/// The ops of c_api.h in the form of those of op_fixture.h.
const Op kCSparse = {
    "minference_sparse_attention",
    [](const Fixture& f) {
      return to_cpp(minference_sparse_attention_supports(c_args(f), c_sparse(f)));
    },
    [](const Fixture& f, std::size_t* bytes) {
      return to_cpp(minference_sparse_attention_workspace_bytes(c_args(f), c_sparse(f), bytes));
    },
    [](const Fixture& f, void* workspace, std::size_t bytes) {
      return to_cpp(minference_sparse_attention(c_args(f), c_sparse(f), workspace, bytes));
    }};
const Op kCPlanStats = {
    "minference_plan_stats",
    [](const Fixture& f) { return to_cpp(minference_plan_stats_supports(c_args(f), c_sparse(f))); },
    [](const Fixture& f, std::size_t* bytes) {
      return to_cpp(minference_plan_stats_workspace_bytes(c_args(f), c_sparse(f), bytes));
    },
    [](const Fixture& f, void* workspace, std::size_t bytes) {
      return to_cpp(minference_plan_stats(c_args(f), c_sparse(f), c_stats(f), workspace, bytes));
    }};
const Op kCVsIndex = {
    "minference_estimate_vs_index",
    [](const Fixture& f) {
      return to_cpp(minference_estimate_vs_index_supports(c_args(f), c_vs_index(f)));
    },
    [](const Fixture& f, std::size_t* bytes) {
      return to_cpp(minference_estimate_vs_index_workspace_bytes(c_args(f), c_vs_index(f), bytes));
    },
    [](const Fixture& f, void* workspace, std::size_t bytes) {
      return to_cpp(minference_estimate_vs_index(c_args(f), c_vs_index(f), workspace, bytes));
    }};

/// Everything an op writes, and the workspace it asked for.
std::string run(const Op& op, const Fixture& f) {
  CHECK(op.supports(f) == Status::kOk, "%s: %s", op.name, last_error());
  std::size_t bytes = 0;
  CHECK(op.workspace_bytes(f, &bytes) == Status::kOk, "%s: %s", op.name, last_error());
  const HeapBytes workspace(bytes, 1);
  CHECK(op.run(f, workspace.data(), bytes) == Status::kOk, "%s: %s", op.name, last_error());
  CHECK(!f.is_untouched(), "%s: nothing was written", op.name);
  std::string result = std::to_string(bytes) + ":";
  for (const HeapBytes* part : {&f.out.bytes, &f.lse, &f.estimated_vertical.bytes,
                                &f.estimated_slash.bytes, &f.stats_bytes}) {
    result.append(reinterpret_cast<const char*>(part->data()), part->size());
  }
  return result;
}

const Op* const kCOps[] = {&kCSparse, &kCPlanStats, &kCVsIndex};

void test_defaults() {
  const auto check = [](const auto& c, const auto& cpp, const char* name) {
    static_assert(sizeof c == sizeof cpp);
    CHECK(std::memcmp(&c, &cpp, sizeof c) == 0, "%s: other defaults than in C++", name);
  };
  // Static: their padding is 0.
  static const MinferenceAttentionArgs args = MINFERENCE_ATTENTION_ARGS_INIT;
  static const MinferenceSparseAttentionParams sparse = MINFERENCE_SPARSE_ATTENTION_PARAMS_INIT;
  static const MinferenceVsIndexParams vs_index = MINFERENCE_VS_INDEX_PARAMS_INIT;
  static const MinferenceConvertVsIndexParams convert = MINFERENCE_CONVERT_VS_INDEX_PARAMS_INIT;
  static const MinferenceHeadPattern pattern = MINFERENCE_HEAD_PATTERN_INIT;
  static const MinferencePrediction prediction = MINFERENCE_PREDICTION_INIT;
  static const MinferenceKernelInfo kernel = MINFERENCE_KERNEL_INFO_INIT;
  static const AttentionArgs cpp_args;
  static const SparseAttentionParams cpp_sparse;
  static const VsIndexParams cpp_vs_index;
  static const ConvertVsIndexParams cpp_convert;
  static const HeadPattern cpp_pattern;
  static const Prediction cpp_prediction;
  static const KernelInfo cpp_kernel;
  check(args, cpp_args, "AttentionArgs");
  check(sparse, cpp_sparse, "SparseAttentionParams");
  check(vs_index, cpp_vs_index, "VsIndexParams");
  check(convert, cpp_convert, "ConvertVsIndexParams");
  check(pattern, cpp_pattern, "HeadPattern");
  check(prediction, cpp_prediction, "Prediction");
  check(kernel, cpp_kernel, "KernelInfo");
}

void test_same_results() {
  const Op* const cpp_ops[] = {&kSparse, &kPlanStats, &kVsIndex};
  for (int n = 0; n < 3; ++n) {
    const Fixture through_c, through_cpp;
    CHECK(run(*kCOps[n], through_c) == run(*cpp_ops[n], through_cpp), "%s: other bits than in C++",
          kCOps[n]->name);
  }
  Fixture through_c, through_cpp;
  for (Fixture* f : {&through_c, &through_cpp}) {
    f->patterns[0] = {};
    f->patterns[1] = {PatternKind::kAShape, {3, 9}};
    f->patterns[2] = {PatternKind::kBlockSparse, {1}};
  }
  CHECK(run(kCSparse, through_c) == run(kSparse, through_cpp), "other patterns: other bits");
}

void test_same_answers() {
  const auto is_same = [](const char* a, const char* b) { return std::string(a) == b; };
  for (int status = 0; status >= -6; --status) {
    CHECK(is_same(minference_status_string(status), status_string(to_cpp(status))), "status %d: %s",
          status, minference_status_string(status));
  }
  CHECK(is_same(minference_version(), version()), "%s", minference_version());
  CHECK(minference_has_cuda() == (has_cuda() ? 1 : 0), "%d", minference_has_cuda());
  CHECK(minference_cpu_kernel_count() == cpu_kernel_count(), "%d", minference_cpu_kernel_count());
  const char *c_name = "none", *name = nullptr;
  std::int32_t c_supported = -1, supported = -2;
  for (std::int32_t n = 0; n < cpu_kernel_count(); ++n) {
    CHECK(minference_cpu_kernel_info(n, &c_name, &c_supported) == MINFERENCE_OK &&
              cpu_kernel_info(n, &name, &supported) == Status::kOk && is_same(c_name, name) &&
              c_supported == supported,
          "kernel %d: %s", n, c_name);
  }
  CHECK(minference_cpu_kernel_for(MINFERENCE_BFLOAT16, &c_name) == MINFERENCE_OK &&
            cpu_kernel_for(DType::kBFloat16, &name) == Status::kOk && is_same(c_name, name),
        "bfloat16: %s", c_name);
  CHECK(minference_cpu_kernel_for(MINFERENCE_FLOAT8_E4M3, &c_name) == MINFERENCE_UNSUPPORTED &&
            has_word(minference_last_error(), "float8_e4m3fn"),
        "float8: %s", minference_last_error());

  const MinferenceHeadPattern c_pattern = {MINFERENCE_PATTERN_VERTICAL_SLASH, {1000, 6096, 0}};
  const HeadPattern pattern = {PatternKind::kVerticalSlash, {1000, 6096}};
  MinferencePrediction c_prediction = MINFERENCE_PREDICTION_INIT;
  Prediction prediction;
  CHECK(minference_predict(&c_pattern, 9000, 90000, &c_prediction) == MINFERENCE_OK &&
            predict(pattern, 9000, 90000, &prediction) == Status::kOk &&
            c_prediction.is_dense == prediction.is_dense &&
            c_prediction.cost_dense == prediction.cost_dense &&
            c_prediction.cost_sparse == prediction.cost_sparse,
        "cost_sparse %g", c_prediction.cost_sparse);

  const Fixture f;
  static MinferenceKernelInfo c_info = MINFERENCE_KERNEL_INFO_INIT;
  static KernelInfo info;
  CHECK(minference_attention_kernel(c_args(f), c_sparse(f), &c_info) == MINFERENCE_OK &&
            attention_kernel(f.args, f.sparse, &info) == Status::kOk &&
            std::memcmp(&c_info, &info, sizeof info) == 0,
        "%s and %s", c_info.name, info.name);
  CHECK(cpu_kernel_for(f.args.q.dtype, &name) == Status::kOk && is_same(info.name, name) &&
            info.tile_rows == 64 && info.tile_keys == 32 && info.num_multiprocessors == 0 &&
            has_word(info.reason, "best"),
        "%s: %d x %d, %s", info.name, info.tile_rows, info.tile_keys, info.reason);
}

void test_convert() {
  const std::int32_t q_len = 100, kv_len = 110;
  const HeapIndex vertical_idx{{1, 1, 3}}, slash_idx{{1, 1, 2}};
  for (int n = 0; n < 3; ++n) vertical_idx.data()[n] = n * 30;
  for (int n = 0; n < 2; ++n) slash_idx.data()[n] = n * 40;
  std::string lists[2];
  for (const bool is_c : {false, true}) {
    const HeapIndex block_count{{2}}, block_offset{{2, 2}}, column_count{{2}}, column_index{{2, 3}};
    ConvertVsIndexParams params;
    params.q_seqlens = &q_len;
    params.kv_seqlens = &kv_len;
    params.vertical_idx = vertical_idx.view;
    params.slash_idx = slash_idx.view;
    params.num_row_blocks = 2;
    params.block_count = block_count.data();
    params.block_offset = block_offset.data();
    params.column_count = column_count.data();
    params.column_index = column_index.data();
    const auto* c_params = to_c<MinferenceConvertVsIndexParams>(params);
    std::size_t bytes = 0;
    Status status = is_c ? to_cpp(minference_convert_vs_index_workspace_bytes(c_params, &bytes))
                         : convert_vs_index_workspace_bytes(params, &bytes);
    CHECK(status == Status::kOk, "%s", last_error());
    const HeapBytes workspace(bytes);
    status = is_c ? to_cpp(minference_convert_vs_index(c_params, workspace.data(), bytes))
                  : convert_vs_index(params, workspace.data(), bytes);
    CHECK(status == Status::kOk, "%s", last_error());
    for (const HeapIndex* index : {&block_count, &block_offset, &column_count, &column_index}) {
      CHECK(!index->bytes.is_poisoned(), "a list was not written");
      lists[is_c].append(reinterpret_cast<const char*>(index->data()), index->bytes.size());
    }
  }
  CHECK(lists[0] == lists[1], "minference_convert_vs_index: other lists than in C++");
}

/// Structs that end where an older header's did: AddressSanitizer sees a read past them.
void test_older_client(std::size_t args_size) {
  const Fixture expected, f;
  run(kSparse, expected);
  const HeapBytes args_bytes(args_size);
  const HeapBytes params_bytes(offsetof(MinferenceSparseAttentionParams, estimate_every));
  std::memcpy(args_bytes.data(), &f.args, args_bytes.size());
  std::memcpy(params_bytes.data(), &f.sparse, params_bytes.size());
  auto* args = reinterpret_cast<MinferenceAttentionArgs*>(args_bytes.data());
  auto* params = reinterpret_cast<MinferenceSparseAttentionParams*>(params_bytes.data());
  args->struct_size = static_cast<std::uint32_t>(args_bytes.size());
  params->struct_size = static_cast<std::uint32_t>(params_bytes.size());
  std::size_t bytes = 0;
  MinferenceStatus status = minference_sparse_attention_workspace_bytes(args, params, &bytes);
  CHECK(status == MINFERENCE_OK, "%s", minference_last_error());
  const HeapBytes workspace(bytes);
  status = minference_sparse_attention(args, params, workspace.data(), bytes);
  CHECK(status == MINFERENCE_OK, "%s", minference_last_error());
  CHECK(std::memcmp(f.out.bytes.data(), expected.out.bytes.data(), f.out.bytes.size()) == 0,
        "AttentionArgs of %zu bytes: other bits", args_size);
}

void check_invalid(MinferenceStatus status, const char* name) {
  check_refusal(to_cpp(status), {"a bad pointer or struct_size", {name}}, "a C function");
}

void test_bad_calls() {
  const Fixture f;
  const HeapBytes workspace(1 << 20);
  void* const memory = workspace.data();
  const std::size_t size = workspace.size();
  std::size_t bytes = 0;
  const auto* args = c_args(f);
  const auto* sparse = c_sparse(f);
  const auto* index = c_vs_index(f);
  check_invalid(minference_sparse_attention_supports(nullptr, sparse), "args");
  check_invalid(minference_sparse_attention_supports(args, nullptr), "params");
  check_invalid(minference_sparse_attention_workspace_bytes(nullptr, sparse, &bytes), "args");
  check_invalid(minference_sparse_attention_workspace_bytes(args, nullptr, &bytes), "params");
  check_invalid(minference_sparse_attention_workspace_bytes(args, sparse, nullptr), "bytes");
  check_invalid(minference_sparse_attention(nullptr, sparse, memory, size), "args");
  check_invalid(minference_sparse_attention(args, nullptr, memory, size), "params");
  check_invalid(minference_sparse_attention(args, sparse, nullptr, size), "workspace");
  check_invalid(minference_plan_stats_supports(nullptr, sparse), "args");
  check_invalid(minference_plan_stats_supports(args, nullptr), "params");
  check_invalid(minference_plan_stats_workspace_bytes(nullptr, sparse, &bytes), "args");
  check_invalid(minference_plan_stats_workspace_bytes(args, nullptr, &bytes), "params");
  check_invalid(minference_plan_stats_workspace_bytes(args, sparse, nullptr), "bytes");
  check_invalid(minference_plan_stats(nullptr, sparse, c_stats(f), memory, size), "args");
  check_invalid(minference_plan_stats(args, nullptr, c_stats(f), memory, size), "params");
  check_invalid(minference_plan_stats(args, sparse, nullptr, memory, size), "stats");
  check_invalid(minference_plan_stats(args, sparse, c_stats(f), nullptr, size), "workspace");
  check_invalid(minference_estimate_vs_index_supports(nullptr, index), "args");
  check_invalid(minference_estimate_vs_index_supports(args, nullptr), "params");
  check_invalid(minference_estimate_vs_index_workspace_bytes(nullptr, index, &bytes), "args");
  check_invalid(minference_estimate_vs_index_workspace_bytes(args, nullptr, &bytes), "params");
  check_invalid(minference_estimate_vs_index_workspace_bytes(args, index, nullptr), "bytes");
  check_invalid(minference_estimate_vs_index(nullptr, index, memory, size), "args");
  check_invalid(minference_estimate_vs_index(args, nullptr, memory, size), "params");
  check_invalid(minference_estimate_vs_index(args, index, nullptr, size), "workspace");
  CHECK(f.is_untouched(), "a C function that refuses wrote");

  MinferenceConvertVsIndexParams convert = MINFERENCE_CONVERT_VS_INDEX_PARAMS_INIT;
  const MinferenceHeadPattern pattern = MINFERENCE_HEAD_PATTERN_INIT;
  MinferencePrediction prediction = MINFERENCE_PREDICTION_INIT;
  const char* name = nullptr;
  std::int32_t supported = 0;
  check_invalid(minference_convert_vs_index_workspace_bytes(nullptr, &bytes), "params");
  check_invalid(minference_convert_vs_index_workspace_bytes(&convert, nullptr), "bytes");
  check_invalid(minference_convert_vs_index(nullptr, memory, size), "params");
  check_invalid(minference_predict(nullptr, 64, 64, &prediction), "pattern");
  check_invalid(minference_predict(&pattern, 64, 64, nullptr), "prediction");
  MinferenceKernelInfo info = MINFERENCE_KERNEL_INFO_INIT;
  check_invalid(minference_attention_kernel(nullptr, sparse, &info), "args");
  check_invalid(minference_attention_kernel(args, nullptr, &info), "params");
  check_invalid(minference_attention_kernel(args, sparse, nullptr), "info");
  check_invalid(minference_cpu_kernel_info(0, nullptr, &supported), "name");
  check_invalid(minference_cpu_kernel_info(0, &name, nullptr), "supported");
  check_invalid(minference_cpu_kernel_for(MINFERENCE_FLOAT32, nullptr), "name");

  Fixture no_size;
  no_size.args.struct_size = 0;
  check_invalid(minference_sparse_attention(c_args(no_size), sparse, memory, size), "struct_size");
  Fixture scaled;
  scaled.args.q_scale = scaled.scales;
  check_invalid(minference_sparse_attention(c_args(scaled), sparse, memory, size), "q_scale");
  no_size.sparse.struct_size = no_size.vs_index.struct_size = 0;
  check_invalid(minference_sparse_attention(args, c_sparse(no_size), memory, size), "struct_size");
  check_invalid(minference_plan_stats(args, c_sparse(no_size), c_stats(f), memory, size),
                "struct_size");
  check_invalid(minference_estimate_vs_index(args, c_vs_index(no_size), memory, size),
                "struct_size");
  convert.struct_size = prediction.struct_size = info.struct_size = 0;
  check_invalid(minference_convert_vs_index(&convert, memory, size), "struct_size");
  check_invalid(minference_predict(&pattern, 64, 64, &prediction), "struct_size");
  check_invalid(minference_attention_kernel(args, sparse, &info), "struct_size");
  CHECK(f.is_untouched(), "a C function that refuses wrote");
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  unsetenv("MINFERENCE_CPU_KERNEL");
  test::test_defaults();
  test::test_same_results();
  test::test_same_answers();
  test::test_convert();
  test::test_older_client(offsetof(MinferenceAttentionArgs, parallel_for));
  test::test_older_client(offsetof(MinferenceAttentionArgs, q_scale));
  test::test_bad_calls();
  return test::finish("c_api_test");
}
