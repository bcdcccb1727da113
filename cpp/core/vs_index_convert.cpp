// convert_vs_index: vertical/slash lines -> the original implementation's lists per row block.
// Meaning: minference/vs_index.h. On the CPU it runs on the calling thread.
#include "core/vs_index_convert.h"

#include <algorithm>
#include <cinttypes>
#include <cstddef>
#include <cstdint>
#include <limits>

#include "core/attention_problem.h"
#include "core/status.h"
#include "cpu/api.h"
#include "cuda/api.h"
#include "minference/vs_index.h"
#include "plan/reference_lists.h"

namespace minference {
namespace core {
namespace {

constexpr std::int64_t kMaxEntry = std::numeric_limits<std::int32_t>::max();

const std::int32_t* first_entry(const IndexList& list) {
  return list.view->data + list.sequence * list.view->stride[0] + list.head * list.view->stride[1];
}

Status check_view(const IndexView& view, const char* name) {
  for (int axis = 0; axis < 3; ++axis) {
    if (view.shape[axis] < 0 || view.shape[axis] > kMaxEntry) {
      return fail(Status::kInvalidArgument, "%s has shape[%d] %" PRId64 "; it must be in [0, 2^31)",
                  name, axis, view.shape[axis]);
    }
  }
  if (view.shape[2] > 1 && view.stride[2] != 1) {
    return fail(Status::kInvalidArgument, "%s has stride[2] %" PRId64 "; it must be 1", name,
                view.stride[2]);
  }
  if (!view.data && view.shape[0] != 0 && view.shape[1] != 0 && view.shape[2] != 0) {
    return fail(Status::kInvalidArgument, "%s is null", name);
  }
  return Status::kOk;
}

Status check_shapes(const ConvertVsIndexParams& params) {
  Status status = check_view(params.vertical_idx, "vertical_idx");
  if (status == Status::kOk) status = check_view(params.slash_idx, "slash_idx");
  if (status != Status::kOk) return status;
  for (int axis = 0; axis < 2; ++axis) {
    if (params.vertical_idx.shape[axis] != params.slash_idx.shape[axis]) {
      return fail(Status::kInvalidArgument,
                  "slash_idx has shape[%d] %" PRId64 "; vertical_idx has %" PRId64, axis,
                  params.slash_idx.shape[axis], params.vertical_idx.shape[axis]);
    }
  }
  if (params.num_row_blocks < 0 || params.num_row_blocks > kMaxEntry) {
    return fail(Status::kInvalidArgument, "num_row_blocks is %" PRId64 "; it must be in [0, 2^31)",
                params.num_row_blocks);
  }
  if (params.device != Device::kCpu && params.device != Device::kCuda) {
    return fail(Status::kInvalidArgument, "device is %d; it must be a value of Device",
                static_cast<int>(params.device));
  }
  if (params.causal != 0 && params.causal != 1) {
    return fail(Status::kInvalidArgument, "causal is %" PRId32 "; it must be 0 or 1",
                params.causal);
  }
  return Status::kOk;
}

Status check_outputs(const ConvertVsIndexParams& params) {
  const std::int64_t rows = params.vertical_idx.shape[0] * params.vertical_idx.shape[1] *
                            std::min<std::int64_t>(params.num_row_blocks, 1);
  if (rows == 0) return Status::kOk;
  const struct {
    const void* data;
    bool is_needed;
    const char* name;
  } outputs[] = {
      {params.block_count, true, "block_count"},
      {params.block_offset, params.slash_idx.shape[2] != 0, "block_offset"},
      {params.column_count, true, "column_count"},
      {params.column_index, params.vertical_idx.shape[2] != 0, "column_index"},
  };
  for (const auto& output : outputs) {
    if (output.is_needed && !output.data) {
      return fail(Status::kInvalidArgument, "%s is null", output.name);
    }
  }
  return Status::kOk;
}

/// What there must be whether or not the host can read it.
Status check_length_pointers(const ConvertVsIndexParams& params) {
  if (params.vertical_idx.shape[0] == 0) return Status::kOk;
  if (!params.q_seqlens) return fail(Status::kInvalidArgument, "q_seqlens is null");
  if (!params.kv_seqlens) return fail(Status::kInvalidArgument, "kv_seqlens is null");
  return Status::kOk;
}

Status check_lengths(const ConvertVsIndexParams& params) {
  for (std::int64_t b = 0; b < params.vertical_idx.shape[0]; ++b) {
    const std::int64_t q_len = params.q_seqlens[b], kv_len = params.kv_seqlens[b];
    if (q_len < 0 || q_len > params.num_row_blocks * plan::kRowBlock) {
      return fail(Status::kInvalidArgument,
                  "q_seqlens[%" PRId64 "] is %" PRId64 "; num_row_blocks %" PRId64
                  " allows 0 to %" PRId64,
                  b, q_len, params.num_row_blocks, params.num_row_blocks * plan::kRowBlock);
    }
    if (kv_len < 0) {
      return fail(Status::kInvalidArgument, "kv_seqlens[%" PRId64 "] is %" PRId64, b, kv_len);
    }
    if (params.causal && q_len > kv_len) {
      return fail(Status::kInvalidArgument,
                  "q_seqlens[%" PRId64 "] is %" PRId64 "; causal rows need kv_seqlens (%" PRId64
                  ") to be at least that",
                  b, q_len, kv_len);
    }
  }
  return Status::kOk;
}

/// Every entry of every list, before anything is written.
Status check_lists(const ConvertVsIndexParams& params) {
  for (std::int64_t b = 0; b < params.vertical_idx.shape[0]; ++b) {
    const std::int64_t kv_len = params.kv_seqlens[b];
    // Segments of a longer prompt share one list: lines that reach no row of theirs are skipped.
    const std::int64_t offset_limit = params.causal ? kv_len : kMaxEntry;
    for (std::int64_t head = 0; head < params.vertical_idx.shape[1]; ++head) {
      Status status = check_entries({&params.vertical_idx, "vertical_idx", b, head}, kv_len);
      if (status == Status::kOk) {
        status = check_entries({&params.slash_idx, "slash_idx", b, head}, offset_limit);
      }
      if (status != Status::kOk) return status;
    }
  }
  return Status::kOk;
}

std::int64_t sort_list(const IndexList& list, std::int32_t* sorted) {
  const std::int64_t count = list.view->shape[2];
  return count == 0 ? 0 : cpu::sort_unique(first_entry(list), count, sorted);
}

/// All row blocks of one head. `input` holds its sorted lists.
void convert_head(const ConvertVsIndexParams& params, plan::RowListInput input,
                  std::int64_t first_row) {
  const std::int64_t vertical_count = params.vertical_idx.shape[2];
  const std::int64_t slash_count = params.slash_idx.shape[2];
  for (std::int64_t n = 0; n < params.num_row_blocks; ++n) {
    const std::int64_t row = first_row + n;
    plan::RowTiles lists;
    if (slash_count != 0) lists.tiles = params.block_offset + row * slash_count;
    if (vertical_count != 0) lists.columns = params.column_index + row * vertical_count;
    input.row_begin = n * plan::kRowBlock;
    if (input.row_begin < input.q_len) plan::reference_row_lists(input, &lists);
    std::fill_n(lists.tiles + lists.num_tiles, slash_count - lists.num_tiles, 0);
    std::fill_n(lists.columns + lists.num_columns, vertical_count - lists.num_columns, 0);
    params.block_count[row] = lists.num_tiles;
    params.column_count[row] = lists.num_columns;
  }
}

/// Copies the caller's struct and checks what it says without its memory.
Status prepare_convert(const ConvertVsIndexParams& params, ConvertVsIndexParams* copy) {
  const Status status =
      read_struct(params, "ConvertVsIndexParams",
                  MINFERENCE_REQUIRED_SIZE(ConvertVsIndexParams, column_index), copy);
  return status == Status::kOk ? check_shapes(*copy) : status;
}

Status convert_workspace_bytes(const ConvertVsIndexParams& params, std::size_t* bytes) {
  if (params.device == Device::kCuda) return cuda::convert_workspace_bytes(params, bytes);
  // The lists of one head, and room to align them: the caller's memory may start anywhere.
  const std::int64_t entries = params.vertical_idx.shape[2] + params.slash_idx.shape[2];
  *bytes = static_cast<std::size_t>(entries) * sizeof(std::int32_t) + alignof(std::int32_t) - 1;
  return Status::kOk;
}

void convert_on_host(const ConvertVsIndexParams& params, void* workspace) {
  const std::uintptr_t align = alignof(std::int32_t);
  const std::uintptr_t skip = (align - reinterpret_cast<std::uintptr_t>(workspace) % align) % align;
  auto* vertical = reinterpret_cast<std::int32_t*>(static_cast<unsigned char*>(workspace) + skip);
  std::int32_t* slash = vertical + params.vertical_idx.shape[2];
  const std::int64_t num_heads = params.vertical_idx.shape[1];
  for (std::int64_t b = 0; b < params.vertical_idx.shape[0]; ++b) {
    for (std::int64_t head = 0; head < num_heads; ++head) {
      const plan::RowListInput input = {
          .vertical = vertical,
          .num_vertical = sort_list({&params.vertical_idx, nullptr, b, head}, vertical),
          .slash = slash,
          .num_slash = sort_list({&params.slash_idx, nullptr, b, head}, slash),
          .q_len = params.q_seqlens[b],
          .kv_len = params.kv_seqlens[b],
          .is_causal = params.causal != 0,
      };
      convert_head(params, input, (b * num_heads + head) * params.num_row_blocks);
    }
  }
}

}  // namespace

Status check_entries(const IndexList& list, std::int64_t limit) {
  const std::int64_t count = list.view->shape[2];
  const std::int32_t* entries = count != 0 ? first_entry(list) : nullptr;
  for (std::int64_t n = 0; n < count; ++n) {
    if (entries[n] >= -1 && entries[n] < limit) continue;
    return fail(Status::kInvalidArgument,
                "%s[%" PRId64 ", %" PRId64 ", %" PRId64 "] is %" PRId32
                "; it must be in [0, %" PRId64 ") or -1 for no entry",
                list.name, list.sequence, list.head, n, entries[n], limit);
  }
  return Status::kOk;
}

}  // namespace core

Status convert_vs_index_workspace_bytes(const ConvertVsIndexParams& params, std::size_t* bytes) {
  ConvertVsIndexParams copy;
  const Status status = core::prepare_convert(params, &copy);
  if (status != Status::kOk) return status;
  if (!bytes) return core::fail(Status::kInvalidArgument, "bytes is null");
  return core::convert_workspace_bytes(copy, bytes);
}

Status convert_vs_index(const ConvertVsIndexParams& params, void* workspace, std::size_t bytes) {
  ConvertVsIndexParams copy;
  std::size_t needed_bytes = 0;
  Status status = core::prepare_convert(params, &copy);
  if (status == Status::kOk) status = core::convert_workspace_bytes(copy, &needed_bytes);
  if (status == Status::kOk) status = core::check_outputs(copy);
  if (status == Status::kOk) status = core::check_length_pointers(copy);
  const bool is_cuda = copy.device == Device::kCuda;
  if (status == Status::kOk && !is_cuda) status = core::check_lengths(copy);
  if (status == Status::kOk && !is_cuda) status = core::check_lists(copy);
  if (status != Status::kOk) return status;
  if (bytes < needed_bytes) {
    return core::fail(Status::kWorkspaceTooSmall, "workspace has %zu bytes; %zu are needed", bytes,
                      needed_bytes);
  }
  if (!workspace) return core::fail(Status::kInvalidArgument, "workspace is null");
  if (is_cuda) return cuda::convert(copy, workspace);
  core::convert_on_host(copy, workspace);
  return Status::kOk;
}

}  // namespace minference
