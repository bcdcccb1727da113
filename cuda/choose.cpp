#include "choose.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <iterator>

#include "device_error.h"
#include "layer_index.h"
#include "params.h"
#include "sm90/launch.h"

namespace minference::cuda {
namespace {

/// What a thread block of the sm_90 kernel may take: all that compute capability 9.0 has.
constexpr std::int32_t kSm90SharedBytes = 227 << 10;
constexpr std::int64_t kTmaStrideBytes = std::int64_t{1} << 40;

struct TileShape {
  AttentionKernel kernel;
  std::int32_t head_dim;  ///< the largest that it serves
  std::int32_t rows;
  std::int32_t keys;
};

constexpr TileShape kTileShapes[] = {
    {AttentionKernel::kSm80, 64, 128, 64},   {AttentionKernel::kSm80, 96, 128, 64},
    {AttentionKernel::kSm80, 128, 128, 64},  {AttentionKernel::kSm80, kMaxHeadDim, 128, 32},
    {AttentionKernel::kSm90, 64, 128, 128},  {AttentionKernel::kSm90, 96, 128, 128},
    {AttentionKernel::kSm90, 128, 128, 128}, {AttentionKernel::kSm90, kMaxHeadDim, 128, 64}};

/// The shape of the least head_dim that is enough. Core refuses those above kMaxHeadDim.
const TileShape& tile_shape(AttentionKernel kernel, int head_dim) {
  return *std::ranges::find_if(kTileShapes, [&](const TileShape& shape) {
    return shape.kernel == kernel && shape.head_dim >= head_dim;
  });
}

/// Writes the reason; true, for who returns that there is one.
[[gnu::format(printf, 2, 3)]] bool say(KernelChoice* choice, const char* format, ...) {
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(choice->reason, sizeof(choice->reason), format, arguments);
  va_end(arguments);
  return true;
}

/// Whether the device or the build is none for the sm_90 kernel; if so, says it.
bool lacks_sm90(const DeviceFacts& facts, KernelChoice* choice) {
  if (facts.major != 9 || facts.minor != 0) {
    return say(choice, "device of compute capability %d.%d: the kernel with wgmma runs on 9.0 only",
               facts.major, facts.minor);
  }
  if (!facts.has_sm90a_code) return say(choice, "this build has no code for sm_90a");
  if (facts.max_shared_bytes < kSm90SharedBytes) {
    return say(choice,
               "device with %d bytes of shared memory for a thread block: the kernel with wgmma "
               "takes up to %d",
               facts.max_shared_bytes, kSm90SharedBytes);
  }
  return false;
}

/// Whether TMA cannot read a tensor; if so, says why.
bool is_beyond_tma(const TensorView& view, const char* name, KernelChoice* choice) {
  const Tensor tensor = device_tensor(view);
  const std::int64_t strides[] = {tensor.stride_batch, tensor.stride_head, tensor.stride_token};
  const auto axis_where = [&](auto is_wrong) {
    return static_cast<int>(std::ranges::find_if(strides, is_wrong) - strides);
  };
  constexpr int kNone = std::size(strides);
  const std::int64_t bytes = element_bytes(tensor.dtype);
  if (!has_aligned_rows(tensor)) {
    constexpr const char* kRule = "TMA reads rows that begin at multiples of 16 bytes";
    const int axis =
        axis_where([&](std::int64_t stride) { return stride * bytes % kRowAlignment != 0; });
    if (axis != kNone) {
      return say(choice, "%s has stride[%d] %" PRId64 ": %s", name, axis, strides[axis], kRule);
    }
    const int offset =
        static_cast<int>(reinterpret_cast<std::uintptr_t>(tensor.data) % kRowAlignment);
    return say(choice, "%s begins %d bytes past a multiple of 16: %s", name, offset, kRule);
  }
  if (tensor.stride_token == 0 && view.shape[2] > 1) {
    return say(choice, "%s has stride[2] 0: TMA does not read one row for all tokens", name);
  }
  const int axis = axis_where(
      [&](std::int64_t stride) { return stride < 0 || stride >= kTmaStrideBytes / bytes; });
  if (axis == kNone) return false;
  return say(choice, "%s has stride[%d] %" PRId64 ": TMA follows strides in [0, 2^40) bytes", name,
             axis, strides[axis]);
}

bool is_beyond_tma(const plan::Problem& problem, KernelChoice* choice) {
  const AttentionArgs& args = problem.args;
  // Rows of gathered keys lie side by side.
  const std::int64_t head_dim = args.q.shape[3];
  if (head_dim * element_bytes(args.q.dtype) % kRowAlignment != 0) {
    return say(choice, "q has head_dim %" PRId64 ": TMA reads rows of a multiple of 16 bytes",
               head_dim);
  }
  return is_beyond_tma(args.q, "q", choice) || is_beyond_tma(args.k, "k", choice) ||
         (problem.needs_values && is_beyond_tma(args.v, "v", choice));
}

}  // namespace

const char* kernel_name(AttentionKernel kernel) {
  return kernel == AttentionKernel::kSm90 ? "sm90" : "sm80";
}

Status device_facts(DeviceFacts* facts) {
  const struct {
    cudaDeviceAttr attribute;
    std::int32_t* answer;
  } questions[] = {{cudaDevAttrComputeCapabilityMajor, &facts->major},
                   {cudaDevAttrComputeCapabilityMinor, &facts->minor},
                   {cudaDevAttrMultiProcessorCount, &facts->num_multiprocessors},
                   {cudaDevAttrMaxSharedMemoryPerBlockOptin, &facts->max_shared_bytes}};
  facts->has_sm90a_code = sm90::is_built();
  int device = 0;
  cudaError_t error = cudaGetDevice(&device);
  for (const auto& question : questions) {
    if (error != cudaSuccess) break;
    error = cudaDeviceGetAttribute(question.answer, question.attribute, device);
  }
  return device_answered(error, "asking the device for its compute capability and size");
}

bool can_overlap_kernels(const DeviceFacts& facts) {
  return facts.major == 9 && facts.minor == 0 && facts.has_sm90a_code;
}

KernelChoice choose_kernel(const plan::Problem& problem, const DeviceFacts& facts) {
  KernelChoice choice{};
  const bool is_sm80 = lacks_sm90(facts, &choice) || is_beyond_tma(problem, &choice);
  if (!is_sm80) {
    say(&choice,
        "device of compute capability 9.0, and every row of q, k and v begins at a "
        "multiple of 16 bytes");
    choice.num_reserved = std::clamp(problem.args.reserved_multiprocessors, 0,
                                     std::max(0, facts.num_multiprocessors - 1));
  }
  choice.kernel = is_sm80 ? AttentionKernel::kSm80 : AttentionKernel::kSm90;
  const TileShape& shape = tile_shape(choice.kernel, problem.head_dim());
  choice.tile_rows = shape.rows;
  choice.tile_keys = shape.keys;
  return choice;
}

}  // namespace minference::cuda
