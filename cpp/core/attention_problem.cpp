#include "core/attention_problem.h"

#include <algorithm>
#include <cinttypes>
#include <cmath>
#include <cstdio>

#include "core/choose.h"
#include "core/vs_index_convert.h"
#include "cuda/api.h"

namespace minference::core {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr double kMaxScale = 0x1p100;
constexpr double kMinScale = 0x1p-100;
constexpr std::int32_t kMaxThreads = 1024;

const char* dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kBFloat16:
      return "bfloat16";
    case DType::kFloat16:
      return "float16";
    case DType::kFloat8E4M3:
      return "float8_e4m3fn";
  }
  return "an unknown dtype";
}

Status check_tensor(const TensorView& view, const char* name) {
  static constexpr const char* kAxes[] = {"batch", "heads", "tokens", "head_dim"};
  for (int axis = 0; axis < 4; ++axis) {
    if (view.shape[axis] < 0 || view.shape[axis] > kMaxLength) {
      return fail(Status::kInvalidArgument,
                  "%s has shape[%d] (%s) %" PRId64 "; it must be in [0, %" PRId64 "]", name, axis,
                  kAxes[axis], view.shape[axis], kMaxLength);
    }
  }
  if (view.stride[3] != 1 && view.shape[3] > 1) {
    return fail(Status::kInvalidArgument,
                "%s has stride %" PRId64 " on its last axis; it must be contiguous (stride 1)",
                name, view.stride[3]);
  }
  if (view.dtype < DType::kFloat32 || view.dtype > DType::kFloat8E4M3) {
    return fail(Status::kInvalidArgument,
                "%s has dtype %d; it must be float32, bfloat16, float16 or float8_e4m3fn", name,
                static_cast<int>(view.dtype));
  }
  return Status::kOk;
}

Status check_equal(std::int64_t found, const char* name, const char* axis, std::int64_t expected,
                   const char* source) {
  if (found == expected) return Status::kOk;
  return fail(Status::kInvalidArgument, "%s has %s %" PRId64 "; it must be %" PRId64 " as in %s",
              name, axis, found, expected, source);
}

Status check_dtype(const TensorView& view, const char* name, const TensorView& q) {
  if (view.dtype == q.dtype) return Status::kOk;
  return fail(Status::kInvalidArgument, "%s has dtype %s; it must be %s as q", name,
              dtype_name(view.dtype), dtype_name(q.dtype));
}

/// Of float8 inputs the output is bfloat16, else of their type.
Status check_out_dtype(const TensorView& out, const TensorView& q) {
  if (q.dtype != DType::kFloat8E4M3) return check_dtype(out, "out", q);
  if (out.dtype == DType::kBFloat16) return Status::kOk;
  return fail(Status::kInvalidArgument, "out has dtype %s; it must be bfloat16 for %s q",
              dtype_name(out.dtype), dtype_name(q.dtype));
}

/// k, or v, which must have k's shape.
Status check_keys(const TensorView& view, const char* name, const TensorView& q) {
  Status status = check_tensor(view, name);
  if (status == Status::kOk) status = check_dtype(view, name, q);
  if (status == Status::kOk) status = check_equal(view.shape[0], name, "batch", q.shape[0], "q");
  if (status == Status::kOk) {
    status = check_equal(view.shape[3], name, "head_dim", q.shape[3], "q");
  }
  return status;
}

Status check_shapes(const AttentionArgs& args, Use use) {
  const TensorView& q = args.q;
  const TensorView& k = args.k;
  Status status = check_tensor(q, "q");
  if (status != Status::kOk) return status;
  if (q.shape[3] <= 0 || q.shape[3] % 8 != 0 || q.shape[3] > cpu::kMaxHeadDim) {
    return fail(Status::kInvalidArgument,
                "q has head_dim %" PRId64 "; it must be a positive multiple of 8, at most %d",
                q.shape[3], cpu::kMaxHeadDim);
  }
  status = check_keys(k, "k", q);
  if (status != Status::kOk) return status;
  if (q.shape[1] < 1 || k.shape[1] < 1 || q.shape[1] % k.shape[1] != 0) {
    return fail(Status::kInvalidArgument,
                "q has %" PRId64 " heads and k has %" PRId64
                "; the heads of k must divide those of q",
                q.shape[1], k.shape[1]);
  }
  if (!use.values) return Status::kOk;
  status = check_keys(args.v, "v", q);
  if (status == Status::kOk) status = check_equal(args.v.shape[1], "v", "heads", k.shape[1], "k");
  if (status == Status::kOk) status = check_equal(args.v.shape[2], "v", "tokens", k.shape[2], "k");
  if (status == Status::kOk) status = check_tensor(args.out, "out");
  if (status == Status::kOk) status = check_out_dtype(args.out, q);
  static constexpr const char* kAxes[] = {"batch", "heads", "tokens", "head_dim"};
  for (int axis = 0; axis < 4 && status == Status::kOk; ++axis) {
    status = check_equal(args.out.shape[axis], "out", kAxes[axis], q.shape[axis], "q");
  }
  return status;
}

Status check_scales(const AttentionArgs& args, Use use) {
  const struct {
    const float* scale;
    const char* name;
  } scales[] = {{args.q_scale, "q_scale"},
                {args.k_scale, "k_scale"},
                {use.values ? args.v_scale : nullptr, "v_scale"}};
  for (const auto& given : scales) {
    if (given.scale == nullptr || args.q.dtype == DType::kFloat8E4M3) continue;
    return fail(Status::kInvalidArgument,
                "%s is given and q has dtype %s; scales are for float8_e4m3fn", given.name,
                dtype_name(args.q.dtype));
  }
  return Status::kOk;
}

/// Whether the host can read lengths and lists. Kernels ignore entries out of range.
bool is_readable(const AttentionArgs& args) { return args.device == Device::kCpu; }

Status check_sequences(const AttentionArgs& args) {
  const std::int64_t seq_q = args.q.shape[2];
  const std::int64_t seq_kv = args.k.shape[2];
  if ((args.cu_seqlens_q == nullptr) != (args.cu_seqlens_kv == nullptr)) {
    return fail(Status::kInvalidArgument,
                "%s is missing; cu_seqlens_q and cu_seqlens_kv must be given together",
                args.cu_seqlens_q == nullptr ? "cu_seqlens_q" : "cu_seqlens_kv");
  }
  if (args.cu_seqlens_q == nullptr) {
    if (seq_q > seq_kv) {
      return fail(Status::kInvalidArgument,
                  "q has %" PRId64 " tokens and k has %" PRId64
                  "; causal attention needs q_len <= kv_len",
                  seq_q, seq_kv);
    }
    const bool has_padding = args.first_valid_key != nullptr && is_readable(args);
    for (std::int64_t b = 0; has_padding && b < args.q.shape[0]; ++b) {
      if (args.first_valid_key[b] < 0 || args.first_valid_key[b] > seq_kv) {
        return fail(Status::kInvalidArgument,
                    "first_valid_key[%" PRId64 "] is %" PRId32 "; it must be in [0, %" PRId64 "]",
                    b, args.first_valid_key[b], seq_kv);
      }
    }
    return Status::kOk;
  }
  if (args.first_valid_key != nullptr) {
    return fail(Status::kInvalidArgument,
                "first_valid_key is given together with cu_seqlens_q; packed sequences have no "
                "padding");
  }
  if (args.q.shape[0] != 1) {
    return fail(Status::kInvalidArgument, "q has batch %" PRId64 "; with cu_seqlens_q it must be 1",
                args.q.shape[0]);
  }
  if (args.num_sequences < 0 || args.num_sequences > kMaxLength) {
    return fail(Status::kInvalidArgument, "num_sequences is %" PRId64 "; it must be >= 0",
                args.num_sequences);
  }
  if (!is_readable(args)) return Status::kOk;
  const struct {
    const std::int32_t* offsets;
    const char* name;
    std::int64_t total;
  } lists[] = {{args.cu_seqlens_q, "cu_seqlens_q", seq_q},
               {args.cu_seqlens_kv, "cu_seqlens_kv", seq_kv}};
  for (const auto& list : lists) {
    if (list.offsets[0] != 0) {
      return fail(Status::kInvalidArgument, "%s[0] is %" PRId32 "; it must be 0", list.name,
                  list.offsets[0]);
    }
    for (std::int64_t i = 0; i < args.num_sequences; ++i) {
      if (list.offsets[i + 1] < list.offsets[i]) {
        return fail(Status::kInvalidArgument,
                    "%s[%" PRId64 "] is %" PRId32 " after %" PRId32 "; it must not decrease",
                    list.name, i + 1, list.offsets[i + 1], list.offsets[i]);
      }
    }
    if (list.offsets[args.num_sequences] != list.total) {
      return fail(Status::kInvalidArgument,
                  "%s[num_sequences = %" PRId64 "] is %" PRId32
                  "; it must be the number of tokens, %" PRId64,
                  list.name, args.num_sequences, list.offsets[args.num_sequences], list.total);
    }
  }
  for (std::int64_t i = 0; i < args.num_sequences; ++i) {
    const std::int32_t q_len = args.cu_seqlens_q[i + 1] - args.cu_seqlens_q[i];
    const std::int32_t kv_len = args.cu_seqlens_kv[i + 1] - args.cu_seqlens_kv[i];
    if (q_len > kv_len) {
      return fail(Status::kInvalidArgument,
                  "sequence %" PRId64 " has %" PRId32 " tokens in cu_seqlens_q and %" PRId32
                  " in cu_seqlens_kv; causal attention needs q_len <= kv_len",
                  i, q_len, kv_len);
    }
  }
  return Status::kOk;
}

bool is_empty(const TensorView& view) {
  return view.shape[0] == 0 || view.shape[1] == 0 || view.shape[2] == 0 || view.shape[3] == 0;
}

Status check_data(const AttentionArgs& args, Use use) {
  if (!use.data) return Status::kOk;
  const struct {
    const TensorView& view;
    const char* name;
    bool is_used;
  } tensors[] = {{args.q, "q", true},
                 {args.k, "k", true},
                 {args.v, "v", use.values},
                 {args.out, "out", use.values}};
  for (const auto& tensor : tensors) {
    if (!tensor.is_used || is_empty(tensor.view)) continue;
    if (tensor.view.data == nullptr) {
      return fail(Status::kInvalidArgument, "%s is null", tensor.name);
    }
  }
  if (!use.values || is_empty(args.out)) return Status::kOk;
  for (int i = 0; i < 3; ++i) {
    if (args.out.data == tensors[i].view.data && !is_empty(tensors[i].view)) {
      return fail(Status::kInvalidArgument, "out is the memory of %s; it must not overlap inputs",
                  tensors[i].name);
    }
  }
  for (int axis = 0; axis < 3; ++axis) {
    if (args.out.shape[axis] > 1 && args.out.stride[axis] == 0) {
      return fail(Status::kInvalidArgument,
                  "out has stride 0 on axis %d of length %" PRId64
                  "; its elements must not overlap",
                  axis, args.out.shape[axis]);
    }
  }
  return Status::kOk;
}

/// Shape of an index list; `rank` 3 for lines, 4 for blocks.
Status check_index(const IndexView& view, const char* name, int rank, const plan::Problem& problem,
                   Use use) {
  const std::int64_t expected[] = {problem.num_sequences(), problem.num_heads_q()};
  static constexpr const char* kAxes[] = {"sequences", "heads"};
  for (int axis = 0; axis < 2; ++axis) {
    const Status status = check_equal(view.shape[axis], name, kAxes[axis], expected[axis], "q");
    if (status != Status::kOk) return status;
  }
  if (rank == 4) {
    std::int64_t needed = 0;
    if (is_readable(problem.args)) {
      for (std::int64_t i = 0; i < problem.num_sequences(); ++i) {
        needed = std::max(needed, plan::num_row_blocks(cpu::sequence_at(problem, i).q_len));
      }
    } else if (!problem.is_packed() && problem.num_sequences() > 0) {
      needed = plan::num_row_blocks(problem.seq_q());
    }
    if (view.shape[2] < needed) {
      return fail(Status::kInvalidArgument,
                  "%s has %" PRId64 " row blocks; it must have at least %" PRId64
                  ", one per 64 queries",
                  name, view.shape[2], needed);
    }
  }
  const std::int64_t count = view.shape[rank - 1];
  if (count < 0 || count > kMaxLength) {
    return fail(Status::kInvalidArgument,
                "%s has %" PRId64 " entries; it must be in [0, %" PRId64 "]", name, count,
                kMaxLength);
  }
  if (count > 1 && view.stride[rank - 1] != 1) {
    return fail(Status::kInvalidArgument,
                "%s has stride %" PRId64 " on its last axis; it must be contiguous (stride 1)",
                name, view.stride[rank - 1]);
  }
  const bool has_entries = count > 0 && expected[0] > 0 && (rank == 3 || view.shape[2] > 0);
  if (use.data && has_entries && view.data == nullptr) {
    return fail(Status::kInvalidArgument, "%s is null", name);
  }
  return Status::kOk;
}

Status check_line_entries(const plan::Problem& problem, std::int64_t head) {
  for (std::int64_t i = 0; i < problem.num_sequences(); ++i) {
    const std::int64_t kv_len = cpu::sequence_at(problem, i).kv_len;
    Status status = check_entries({&problem.vertical_idx, "vertical_idx", i, head}, kv_len);
    if (status == Status::kOk) {
      status = check_entries({&problem.slash_idx, "slash_idx", i, head}, kv_len);
    }
    if (status != Status::kOk) return status;
  }
  return Status::kOk;
}

Status check_block_entries(const plan::Problem& problem, std::int64_t head) {
  const IndexView& view = problem.block_idx;
  for (std::int64_t i = 0; i < problem.num_sequences(); ++i) {
    const cpu::Sequence sequence = cpu::sequence_at(problem, i);
    const std::int64_t limit = plan::num_row_blocks(sequence.kv_len);
    const std::int64_t rows = plan::num_row_blocks(sequence.q_len);
    for (std::int64_t row = 0; row < rows; ++row) {
      const std::int32_t* const entries =
          view.data + i * view.stride[0] + head * view.stride[1] + row * view.stride[2];
      for (std::int64_t n = 0; n < view.shape[3]; ++n) {
        if (entries[n] >= -1 && entries[n] < limit) continue;
        return fail(Status::kInvalidArgument,
                    "block_idx[%" PRId64 ", %" PRId64 ", %" PRId64 ", %" PRId64 "] is %" PRId32
                    "; it must be in [0, %" PRId64 ") or -1 for no entry",
                    i, head, row, n, entries[n], limit);
      }
    }
  }
  return Status::kOk;
}

Status check_patterns(const plan::Problem& problem, Use use) {
  bool any_lines = false;
  bool any_blocks = false;
  for (std::int64_t head = 0; head < problem.num_heads_q(); ++head) {
    const HeadPattern pattern = problem.patterns.at(head);
    const Status status = check_pattern(pattern, head, problem.patterns.each != nullptr);
    if (status != Status::kOk) return status;
    any_lines |= pattern.kind == PatternKind::kVerticalSlashIndex;
    any_blocks |= pattern.kind == PatternKind::kBlockIndex;
  }
  Status status = Status::kOk;
  if (any_lines) {
    status = check_index(problem.vertical_idx, "vertical_idx", 3, problem, use);
    if (status == Status::kOk)
      status = check_index(problem.slash_idx, "slash_idx", 3, problem, use);
  }
  if (any_blocks && status == Status::kOk) {
    status = check_index(problem.block_idx, "block_idx", 4, problem, use);
  }
  const bool has_entries = use.data && is_readable(problem.args);
  for (std::int64_t head = 0; has_entries && head < problem.num_heads_q(); ++head) {
    if (status != Status::kOk) break;
    const PatternKind kind = problem.patterns.at(head).kind;
    if (kind == PatternKind::kVerticalSlashIndex) status = check_line_entries(problem, head);
    if (kind == PatternKind::kBlockIndex) status = check_block_entries(problem, head);
  }
  return status;
}

Status check_options(const plan::Problem& problem) {
  const int mode = static_cast<int>(problem.mode);
  if (mode < 0 || mode > static_cast<int>(SlashMode::kReference)) {
    return fail(Status::kInvalidArgument, "mode is %d; it must be a value of SlashMode", mode);
  }
  if (problem.estimate_every < 0 || problem.estimate_every % plan::kRowBlock != 0) {
    return fail(Status::kInvalidArgument,
                "estimate_every is %" PRId64 "; it must be 0 or a positive multiple of %d",
                problem.estimate_every, plan::kRowBlock);
  }
  const double scale = problem.args.softmax_scale;
  if (scale != 0 && !(scale >= kMinScale && scale <= kMaxScale)) {
    return fail(Status::kInvalidArgument,
                "softmax_scale is %g; it must be in [2^-100, 2^100], or 0 for 1 / sqrt(head_dim)",
                scale);
  }
  if (problem.args.num_threads < 0) {
    return fail(Status::kInvalidArgument, "num_threads is %" PRId32 "; it must be >= 0",
                problem.args.num_threads);
  }
  if (problem.args.reserved_multiprocessors < 0) {
    return fail(Status::kInvalidArgument,
                "reserved_multiprocessors is %" PRId32 "; it must be >= 0",
                problem.args.reserved_multiprocessors);
  }
  return Status::kOk;
}

}  // namespace

Status check_pattern(const HeadPattern& pattern, std::int64_t head, bool is_listed) {
  static constexpr const char* kSizes[][3] = {{"", "", ""},
                                              {"sink", "window", ""},
                                              {"sink", "window", "last"},
                                              {"vertical_size", "slash_size", ""},
                                              {"top_k", "", ""},
                                              {"", "", ""},
                                              {"", "", ""}};
  const int kind = static_cast<int>(pattern.kind);
  if (kind < 0 || kind > static_cast<int>(PatternKind::kBlockIndex)) {
    return fail(Status::kInvalidArgument,
                "head_patterns[%" PRId64 "] has kind %d; it must be a value of PatternKind", head,
                kind);
  }
  for (int i = 0; i < 3 && kSizes[kind][i][0] != '\0'; ++i) {
    const std::int64_t least = pattern.kind == PatternKind::kBlockSparse ? 1 : 0;
    if (pattern.size[i] >= least) continue;
    char place[64] = "";
    if (is_listed) std::snprintf(place, sizeof(place), " (size[%d] of head_patterns)", i);
    return fail(Status::kInvalidArgument,
                "%s%s of head %" PRId64 " is %" PRId64 "; it must be >= %" PRId64, kSizes[kind][i],
                place, head, pattern.size[i], least);
  }
  return Status::kOk;
}

Status prepare(const AttentionArgs& args, Use use, Call* call) {
  plan::Problem& problem = call->problem;
  Status status = read_struct(args, "AttentionArgs", MINFERENCE_REQUIRED_SIZE(AttentionArgs, out),
                              &problem.args);
  if (status != Status::kOk) return status;
  AttentionArgs& copy = problem.args;
  if (copy.device != Device::kCpu && copy.device != Device::kCuda) {
    return fail(Status::kInvalidArgument, "device is %d; it must be a value of Device",
                static_cast<int>(copy.device));
  }
  problem.needs_values = use.values;
  status = check_shapes(copy, use);
  if (status == Status::kOk) status = check_scales(copy, use);
  if (status == Status::kOk && !call->is_cuda()) status = choose(copy.q.dtype, &call->cpu_kernel);
  if (status == Status::kOk) status = check_sequences(copy);
  if (status == Status::kOk) status = check_options(problem);
  if (status == Status::kOk) status = check_data(copy, use);
  if (status == Status::kOk) status = check_patterns(problem, use);
  if (status == Status::kOk && call->is_cuda()) status = cuda::supports(problem);
  if (status != Status::kOk) return status;
  const double scale = copy.softmax_scale == 0
                           ? 1.0 / std::sqrt(static_cast<double>(problem.head_dim()))
                           : copy.softmax_scale;
  problem.scale_log2 = static_cast<float>(scale * kLog2E);
  if (copy.num_threads == 0) copy.num_threads = cpu::available_threads();
  copy.num_threads = std::min(copy.num_threads, kMaxThreads);
  return Status::kOk;
}

}  // namespace minference::core
