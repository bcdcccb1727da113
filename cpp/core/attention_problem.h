// From public arguments to a validated problem: what every attention op does before it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/backend.h"
#include "core/status.h"
#include "minference/types.h"
#include "plan/format.h"

namespace minference::core {

/// Tokens, and every other extent: positions and offsets of row blocks stay in 32 bits.
inline constexpr std::int64_t kMaxLength =
    std::numeric_limits<std::int32_t>::max() - 2 * plan::kRowBlock;

/// What of the arguments an op uses, and so has to be valid.
struct Use {
  bool values;  ///< v and out
  bool data;    ///< memory: when running, not when asking for support or workspace
};

/// Copies what the caller's struct holds, up to its struct_size, over the defaults.
template <class Args>
Status read_struct(const Args& args, const char* name, std::size_t required_size, Args* copy) {
  if (args.struct_size < required_size) {
    return fail(Status::kInvalidArgument, "%s has struct_size %u; it must be at least %zu", name,
                args.struct_size, required_size);
  }
  *copy = Args{};
  std::memcpy(static_cast<void*>(copy), &args,
              args.struct_size < sizeof(Args) ? args.struct_size : sizeof(Args));
  return Status::kOk;
}

/// Size of a struct up to its last member without which an op cannot run.
#define MINFERENCE_REQUIRED_SIZE(Struct, member) \
  (offsetof(Struct, member) + sizeof(static_cast<Struct*>(nullptr)->member))

/// kInvalidArgument if kind or a size is out of range. For the sentence: which head, and whether
/// the sizes come as head_patterns or as arguments of their own.
Status check_pattern(const HeadPattern& pattern, std::int64_t head, bool is_listed);

/// Validates `args` and what the op has put into the problem of `call` (patterns, mode, lists),
/// chooses who computes and completes the problem. Lengths and lists in device memory are not read.
Status prepare(const AttentionArgs& args, Use use, Call* call);

/// The three functions of an attention op. `make` fills the op's part of a problem; `uses_values`
/// as in Use.
template <class Make>
Status supports(const AttentionArgs& args, const Make& make, bool uses_values = true) {
  Call call;
  const Status status = make(&call.problem);
  return status == Status::kOk ? prepare(args, {.values = uses_values, .data = false}, &call)
                               : status;
}

template <class Make>
Status workspace_bytes(const AttentionArgs& args, const Make& make, std::size_t* bytes,
                       bool uses_values = true) {
  if (bytes == nullptr) return fail(Status::kInvalidArgument, "bytes is null");
  Call call;
  Status status = make(&call.problem);
  if (status == Status::kOk) status = prepare(args, {.values = uses_values, .data = false}, &call);
  return status == Status::kOk ? workspace_bytes(call, bytes) : status;
}

template <class Make>
Status run(const AttentionArgs& args, const Make& make, void* workspace, std::size_t bytes) {
  Call call;
  Status status = make(&call.problem);
  if (status == Status::kOk) status = prepare(args, {.values = true, .data = true}, &call);
  if (status == Status::kOk) status = check_workspace(call, workspace, bytes);
  return status == Status::kOk ? attention(call, workspace) : status;
}

}  // namespace minference::core
