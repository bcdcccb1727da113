// The C functions: each passes its arguments on to the C++ function of the same name, whose structs
// and values are asserted to be the same.
#include "minference/c_api.h"

#include <cstddef>
#include <type_traits>

#include "core/status.h"
#include "minference/minference.h"

namespace minference {
namespace {

// ---- The structs and values of both headers -----------------------------------------------------

#define MINFERENCE_SAME_STRUCT(Struct)                            \
  static_assert(sizeof(Minference##Struct) == sizeof(Struct) &&   \
                alignof(Minference##Struct) == alignof(Struct) && \
                std::is_standard_layout_v<Struct>)
#define MINFERENCE_SAME_MEMBER(Struct, member)                                      \
  static_assert(offsetof(Minference##Struct, member) == offsetof(Struct, member) && \
                sizeof(Minference##Struct::member) == sizeof(Struct::member))
#define MINFERENCE_SAME_VALUE(c_value, cpp_value) \
  static_assert(c_value == static_cast<std::int32_t>(cpp_value))

MINFERENCE_SAME_STRUCT(TensorView);
MINFERENCE_SAME_MEMBER(TensorView, data);
MINFERENCE_SAME_MEMBER(TensorView, shape);
MINFERENCE_SAME_MEMBER(TensorView, stride);
MINFERENCE_SAME_MEMBER(TensorView, dtype);
MINFERENCE_SAME_STRUCT(IndexView);
MINFERENCE_SAME_MEMBER(IndexView, data);
MINFERENCE_SAME_MEMBER(IndexView, shape);
MINFERENCE_SAME_MEMBER(IndexView, stride);
MINFERENCE_SAME_STRUCT(ParallelFor);
MINFERENCE_SAME_MEMBER(ParallelFor, run);
MINFERENCE_SAME_MEMBER(ParallelFor, context);
MINFERENCE_SAME_STRUCT(AttentionArgs);
MINFERENCE_SAME_MEMBER(AttentionArgs, struct_size);
MINFERENCE_SAME_MEMBER(AttentionArgs, device);
MINFERENCE_SAME_MEMBER(AttentionArgs, q);
MINFERENCE_SAME_MEMBER(AttentionArgs, k);
MINFERENCE_SAME_MEMBER(AttentionArgs, v);
MINFERENCE_SAME_MEMBER(AttentionArgs, out);
MINFERENCE_SAME_MEMBER(AttentionArgs, lse);
MINFERENCE_SAME_MEMBER(AttentionArgs, lse_stride);
MINFERENCE_SAME_MEMBER(AttentionArgs, first_valid_key);
MINFERENCE_SAME_MEMBER(AttentionArgs, cu_seqlens_q);
MINFERENCE_SAME_MEMBER(AttentionArgs, cu_seqlens_kv);
MINFERENCE_SAME_MEMBER(AttentionArgs, num_sequences);
MINFERENCE_SAME_MEMBER(AttentionArgs, softmax_scale);
MINFERENCE_SAME_MEMBER(AttentionArgs, stream);
MINFERENCE_SAME_MEMBER(AttentionArgs, num_threads);
MINFERENCE_SAME_MEMBER(AttentionArgs, parallel_for);
MINFERENCE_SAME_MEMBER(AttentionArgs, reserved_multiprocessors);
MINFERENCE_SAME_MEMBER(AttentionArgs, q_scale);
MINFERENCE_SAME_MEMBER(AttentionArgs, k_scale);
MINFERENCE_SAME_MEMBER(AttentionArgs, v_scale);
MINFERENCE_SAME_STRUCT(HeadPattern);
MINFERENCE_SAME_MEMBER(HeadPattern, kind);
MINFERENCE_SAME_MEMBER(HeadPattern, size);
MINFERENCE_SAME_STRUCT(SparseAttentionParams);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, struct_size);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, mode);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, head_patterns);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, vertical_idx);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, slash_idx);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, block_idx);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, estimate_every);
MINFERENCE_SAME_MEMBER(SparseAttentionParams, dense_fallback);
MINFERENCE_SAME_STRUCT(KernelInfo);
MINFERENCE_SAME_MEMBER(KernelInfo, struct_size);
MINFERENCE_SAME_MEMBER(KernelInfo, name);
MINFERENCE_SAME_MEMBER(KernelInfo, tile_rows);
MINFERENCE_SAME_MEMBER(KernelInfo, tile_keys);
MINFERENCE_SAME_MEMBER(KernelInfo, num_multiprocessors);
MINFERENCE_SAME_MEMBER(KernelInfo, reason);
MINFERENCE_SAME_STRUCT(PlanStats);
MINFERENCE_SAME_MEMBER(PlanStats, is_dense);
MINFERENCE_SAME_MEMBER(PlanStats, num_vertical);
MINFERENCE_SAME_MEMBER(PlanStats, num_slash);
MINFERENCE_SAME_MEMBER(PlanStats, num_chunks);
MINFERENCE_SAME_MEMBER(PlanStats, computed_pairs);
MINFERENCE_SAME_MEMBER(PlanStats, attended_pairs);
MINFERENCE_SAME_MEMBER(PlanStats, causal_pairs);
MINFERENCE_SAME_MEMBER(PlanStats, plan_bytes);
MINFERENCE_SAME_MEMBER(PlanStats, estimation_bytes);
MINFERENCE_SAME_STRUCT(Prediction);
MINFERENCE_SAME_MEMBER(Prediction, struct_size);
MINFERENCE_SAME_MEMBER(Prediction, is_dense);
MINFERENCE_SAME_MEMBER(Prediction, cost_dense);
MINFERENCE_SAME_MEMBER(Prediction, cost_sparse);
MINFERENCE_SAME_STRUCT(VsIndexParams);
MINFERENCE_SAME_MEMBER(VsIndexParams, struct_size);
MINFERENCE_SAME_MEMBER(VsIndexParams, vertical_size);
MINFERENCE_SAME_MEMBER(VsIndexParams, slash_size);
MINFERENCE_SAME_MEMBER(VsIndexParams, vertical_idx);
MINFERENCE_SAME_MEMBER(VsIndexParams, slash_idx);
MINFERENCE_SAME_MEMBER(VsIndexParams, vertical_count);
MINFERENCE_SAME_MEMBER(VsIndexParams, slash_count);
MINFERENCE_SAME_MEMBER(VsIndexParams, column_scores);
MINFERENCE_SAME_MEMBER(VsIndexParams, slash_scores);
MINFERENCE_SAME_STRUCT(ConvertVsIndexParams);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, struct_size);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, q_seqlens);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, kv_seqlens);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, vertical_idx);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, slash_idx);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, num_row_blocks);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, causal);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, block_count);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, block_offset);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, column_count);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, column_index);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, device);
MINFERENCE_SAME_MEMBER(ConvertVsIndexParams, stream);

static_assert(sizeof(MinferenceStatus) == sizeof(Status));
MINFERENCE_SAME_VALUE(MINFERENCE_OK, Status::kOk);
MINFERENCE_SAME_VALUE(MINFERENCE_INVALID_ARGUMENT, Status::kInvalidArgument);
MINFERENCE_SAME_VALUE(MINFERENCE_UNSUPPORTED, Status::kUnsupported);
MINFERENCE_SAME_VALUE(MINFERENCE_WORKSPACE_TOO_SMALL, Status::kWorkspaceTooSmall);
MINFERENCE_SAME_VALUE(MINFERENCE_DEVICE_ERROR, Status::kDeviceError);
MINFERENCE_SAME_VALUE(MINFERENCE_INTERNAL, Status::kInternal);
MINFERENCE_SAME_VALUE(MINFERENCE_FLOAT32, DType::kFloat32);
MINFERENCE_SAME_VALUE(MINFERENCE_BFLOAT16, DType::kBFloat16);
MINFERENCE_SAME_VALUE(MINFERENCE_FLOAT16, DType::kFloat16);
MINFERENCE_SAME_VALUE(MINFERENCE_FLOAT8_E4M3, DType::kFloat8E4M3);
MINFERENCE_SAME_VALUE(MINFERENCE_CPU, Device::kCpu);
MINFERENCE_SAME_VALUE(MINFERENCE_CUDA, Device::kCuda);
MINFERENCE_SAME_VALUE(MINFERENCE_PATTERN_DENSE, PatternKind::kDense);
MINFERENCE_SAME_VALUE(MINFERENCE_PATTERN_A_SHAPE, PatternKind::kAShape);
MINFERENCE_SAME_VALUE(MINFERENCE_PATTERN_TRI_SHAPE, PatternKind::kTriShape);
MINFERENCE_SAME_VALUE(MINFERENCE_PATTERN_VERTICAL_SLASH, PatternKind::kVerticalSlash);
MINFERENCE_SAME_VALUE(MINFERENCE_PATTERN_BLOCK_SPARSE, PatternKind::kBlockSparse);
MINFERENCE_SAME_VALUE(MINFERENCE_PATTERN_VERTICAL_SLASH_INDEX, PatternKind::kVerticalSlashIndex);
MINFERENCE_SAME_VALUE(MINFERENCE_PATTERN_BLOCK_INDEX, PatternKind::kBlockIndex);
MINFERENCE_SAME_VALUE(MINFERENCE_SLASH_COVER, SlashMode::kCover);
MINFERENCE_SAME_VALUE(MINFERENCE_SLASH_EXACT, SlashMode::kExact);
MINFERENCE_SAME_VALUE(MINFERENCE_SLASH_REFERENCE, SlashMode::kReference);

// ---- Passing on ---------------------------------------------------------------------------------

MinferenceStatus to_c(Status status) { return static_cast<MinferenceStatus>(status); }

MinferenceStatus refuse_null(const char* name) {
  return to_c(core::fail(Status::kInvalidArgument, "%s is null", name));
}

#define MINFERENCE_TO_CPP(Struct) \
  const Struct& to_cpp(const Minference##Struct* c) { return *reinterpret_cast<const Struct*>(c); }
MINFERENCE_TO_CPP(AttentionArgs)
MINFERENCE_TO_CPP(HeadPattern)
MINFERENCE_TO_CPP(SparseAttentionParams)
MINFERENCE_TO_CPP(VsIndexParams)
MINFERENCE_TO_CPP(ConvertVsIndexParams)

/// Calls a C++ op with what the C structs hold, unless there is none.
template <class Op, class Params, class... Rest>
MinferenceStatus call(Op op, const MinferenceAttentionArgs* args, const Params* params,
                      Rest... rest) {
  if (args == nullptr) return refuse_null("args");
  if (params == nullptr) return refuse_null("params");
  return to_c(op(to_cpp(args), to_cpp(params), rest...));
}

}  // namespace
}  // namespace minference

extern "C" {

const char* minference_status_string(MinferenceStatus status) {
  return minference::status_string(static_cast<minference::Status>(status));
}

const char* minference_last_error() { return minference::last_error(); }

const char* minference_version() { return minference::version(); }

int32_t minference_cpu_kernel_count() { return minference::cpu_kernel_count(); }

MinferenceStatus minference_cpu_kernel_info(int32_t index, const char** name, int32_t* supported) {
  return minference::to_c(minference::cpu_kernel_info(index, name, supported));
}

MinferenceStatus minference_cpu_kernel_for(MinferenceDType dtype, const char** name) {
  return minference::to_c(minference::cpu_kernel_for(static_cast<minference::DType>(dtype), name));
}

int32_t minference_has_cuda() { return minference::has_cuda() ? 1 : 0; }

const char* minference_cuda_architectures() { return minference::cuda_architectures(); }

MinferenceStatus minference_sparse_attention_supports(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params) {
  return minference::call(minference::sparse_attention_supports, args, params);
}

MinferenceStatus minference_sparse_attention_workspace_bytes(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params,
    size_t* bytes) {
  return minference::call(minference::sparse_attention_workspace_bytes, args, params, bytes);
}

MinferenceStatus minference_sparse_attention(const MinferenceAttentionArgs* args,
                                             const MinferenceSparseAttentionParams* params,
                                             void* workspace, size_t bytes) {
  return minference::call(minference::sparse_attention, args, params, workspace, bytes);
}

MinferenceStatus minference_attention_kernel(const MinferenceAttentionArgs* args,
                                             const MinferenceSparseAttentionParams* params,
                                             MinferenceKernelInfo* info) {
  return minference::call(minference::attention_kernel, args, params,
                          reinterpret_cast<minference::KernelInfo*>(info));
}

MinferenceStatus minference_plan_stats_supports(const MinferenceAttentionArgs* args,
                                                const MinferenceSparseAttentionParams* params) {
  return minference::call(minference::plan_stats_supports, args, params);
}

MinferenceStatus minference_plan_stats_workspace_bytes(
    const MinferenceAttentionArgs* args, const MinferenceSparseAttentionParams* params,
    size_t* bytes) {
  return minference::call(minference::plan_stats_workspace_bytes, args, params, bytes);
}

MinferenceStatus minference_plan_stats(const MinferenceAttentionArgs* args,
                                       const MinferenceSparseAttentionParams* params,
                                       MinferencePlanStats* stats, void* workspace, size_t bytes) {
  return minference::call(minference::plan_stats, args, params,
                          reinterpret_cast<minference::PlanStats*>(stats), workspace, bytes);
}

MinferenceStatus minference_predict(const MinferenceHeadPattern* pattern, int64_t q_len,
                                    int64_t kv_len, MinferencePrediction* prediction) {
  if (pattern == nullptr) return minference::refuse_null("pattern");
  return minference::to_c(
      minference::predict(minference::to_cpp(pattern), q_len, kv_len,
                          reinterpret_cast<minference::Prediction*>(prediction)));
}

MinferenceStatus minference_estimate_vs_index_supports(const MinferenceAttentionArgs* args,
                                                       const MinferenceVsIndexParams* params) {
  return minference::call(minference::estimate_vs_index_supports, args, params);
}

MinferenceStatus minference_estimate_vs_index_workspace_bytes(const MinferenceAttentionArgs* args,
                                                              const MinferenceVsIndexParams* params,
                                                              size_t* bytes) {
  return minference::call(minference::estimate_vs_index_workspace_bytes, args, params, bytes);
}

MinferenceStatus minference_estimate_vs_index(const MinferenceAttentionArgs* args,
                                              const MinferenceVsIndexParams* params,
                                              void* workspace, size_t bytes) {
  return minference::call(minference::estimate_vs_index, args, params, workspace, bytes);
}

MinferenceStatus minference_convert_vs_index_workspace_bytes(
    const MinferenceConvertVsIndexParams* params, size_t* bytes) {
  if (params == nullptr) return minference::refuse_null("params");
  return minference::to_c(
      minference::convert_vs_index_workspace_bytes(minference::to_cpp(params), bytes));
}

MinferenceStatus minference_convert_vs_index(const MinferenceConvertVsIndexParams* params,
                                             void* workspace, size_t bytes) {
  if (params == nullptr) return minference::refuse_null("params");
  return minference::to_c(
      minference::convert_vs_index(minference::to_cpp(params), workspace, bytes));
}

}  // extern "C"
