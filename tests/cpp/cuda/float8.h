// Which layers of float8 CUDA serves, in words of the tests' own, and what it has to say of all
// others: kUnsupported by every function of every op, a sentence with what was found, and nothing
// written.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../check.h"
#include "../refusal.h"
#include "layer.h"

namespace minference::test {

/// Whether the device that is there runs the kernel of sm_90, the only one for float8.
inline bool device_has_float8() {
  AttentionArgs args;
  args.device = Device::kCuda;
  for (TensorView* view : {&args.q, &args.k, &args.v, &args.out}) {
    *view = {nullptr, {1, 1, 64, 64}, {4096, 4096, 64, 1}, DType::kBFloat16};
  }
  const HeadPattern pattern;
  SparseAttentionParams params;
  params.head_patterns = &pattern;
  KernelInfo info;
  CHECK(attention_kernel(args, params, &info) == Status::kOk, "%s", last_error());
  return std::string(info.name) == "sm90";
}

/// What of a call no kernel of float8 takes.
struct Unserved {
  std::string name;    // of a tensor, or "head_dim"
  std::string number;  // that is wrong
};

inline void add_unserved(const TensorView& view, const char* name, std::vector<Unserved>* all) {
  const auto offset = reinterpret_cast<std::uintptr_t>(view.data) % 16;
  if (offset != 0) all->push_back({name, std::to_string(offset)});
  for (int axis = 0; axis < 3; ++axis) {
    const std::int64_t stride = view.stride[axis];
    const bool is_wrong = stride % 16 != 0 || stride < 0 || stride >= std::int64_t{1} << 40 ||
                          (axis == 2 && stride == 0);
    if (view.shape[axis] > 1 && is_wrong) all->push_back({name, std::to_string(stride)});
  }
}

inline std::vector<Unserved> unserved(const AttentionArgs& args) {
  std::vector<Unserved> all;
  const std::int64_t head_dim = args.q.shape[3];
  if (head_dim % 16 != 0) all.push_back({"head_dim", std::to_string(head_dim)});
  add_unserved(args.q, "q", &all);
  add_unserved(args.k, "k", &all);
  add_unserved(args.v, "v", &all);
  return all;
}

/// Whether a layer of any dtype can run here.
inline bool is_served(const Layer& layer) {
  return !layer.is_float8() || (device_has_float8() && unserved(layer.device).empty());
}

/// Whether a case can run in float8 here.
inline bool runs_in_float8(const Case& c) {
  return device_has_float8() && is_served(Layer(c, DType::kFloat8E4M3));
}

/// Whether last_error() has the dtype or a tensor, and what of it was found. On a device without
/// the kernel the dtype is enough.
inline bool names_unserved(const std::vector<Unserved>& all, bool has_kernel) {
  const std::string sentence = last_error();
  const bool has_dtype = has_word(sentence, "float8_e4m3fn");
  if (!has_kernel && has_dtype) return true;
  for (const Unserved& one : all) {
    if (has_word(sentence, one.number) && (has_dtype || has_word(sentence, one.name))) return true;
  }
  return false;
}

/// Every op refuses the arguments, which are those of `layer` or come from them. `has_wrong_v`:
/// nothing but v is wrong, which attention alone reads.
inline void check_refused(const Layer& layer, const AttentionArgs& args, const std::string& what,
                          bool has_wrong_v = false) {
  const std::vector<Unserved> all = unserved(args);
  const bool has_kernel = device_has_float8();
  const auto check = [&](Status found, const char* call) {
    CHECK(found == Status::kUnsupported, "%s: %s: %s", what.c_str(), call, status_string(found));
    if (found != Status::kUnsupported) return;
    CHECK(names_unserved(all, has_kernel), "%s: %s does not say what it found: %s", what.c_str(),
          call, last_error());
  };
  const DeviceBytes workspace(1 << 16), lines(2 * layer.num_lists() * layer.c.seq_kv * 4),
      stats(layer.num_lists() * sizeof(PlanStats));
  const std::vector<const DeviceBytes*> outputs = {&workspace, &lines, &stats, &layer.device_out,
                                                   &layer.device_lse};
  for (const DeviceBytes* memory : outputs) memory->fill(0x7F);
  const SparseAttentionParams& sparse = layer.device_params;
  std::size_t bytes = 0;
  KernelInfo info;
  check(sparse_attention_supports(args, sparse), "sparse_attention_supports");
  check(sparse_attention_workspace_bytes(args, sparse, &bytes), "sparse_attention_workspace_bytes");
  check(sparse_attention(args, sparse, workspace.data(), workspace.size()), "sparse_attention");
  check(dense_attention_supports(args), "dense_attention_supports");
  check(attention_kernel(args, sparse, &info), "attention_kernel");

  const std::vector<std::int64_t> sizes(layer.c.num_heads_q, 40);
  VsIndexParams index;
  index.vertical_size = index.slash_size = sizes.data();
  index.vertical_idx = lines.as<std::int32_t>();
  index.slash_idx = index.vertical_idx + layer.num_lists() * layer.c.seq_kv;
  index.vertical_count = index.slash_count = layer.c.seq_kv;
  if (has_wrong_v) {
    Status status = plan_stats_supports(args, sparse);
    CHECK(status == Status::kOk, "%s: plan_stats_supports: %s", what.c_str(), last_error());
    status = estimate_vs_index_supports(args, index);
    CHECK(status == Status::kOk, "%s: estimate_vs_index_supports: %s", what.c_str(), last_error());
  } else {
    check(plan_stats_supports(args, sparse), "plan_stats_supports");
    check(plan_stats_workspace_bytes(args, sparse, &bytes), "plan_stats_workspace_bytes");
    check(plan_stats(args, sparse, stats.as<PlanStats>(), workspace.data(), workspace.size()),
          "plan_stats");
    check(estimate_vs_index_supports(args, index), "estimate_vs_index_supports");
    check(estimate_vs_index_workspace_bytes(args, index, &bytes),
          "estimate_vs_index_workspace_bytes");
    check(estimate_vs_index(args, index, workspace.data(), workspace.size()), "estimate_vs_index");
  }
  wait_for_device(what.c_str());
  for (const DeviceBytes* memory : outputs) {
    CHECK(memory->holds_only(0x7F) && memory->has_guards(), "%s: something was written",
          what.c_str());
  }
}

}  // namespace minference::test
