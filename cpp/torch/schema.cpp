// Every schema of torch.ops.minference. Shapes, dtypes and errors: python/minference_ext/ops.py.
//
// q, k, v are [batch, heads, seq, head_dim], or packed [tokens, heads, head_dim] with cu_seqlens_*;
// the last axis is contiguous, the others have any stride. Attention ops return (out, lse), or fill
// them in the overload `.out`. Fake kernels and autograd are in python/minference_ext.
#include <torch/csrc/stable/library.h>

#include <string>

namespace {

using torch::stable::detail::StableLibrary;

const std::string kSequences =
    "float? softmax_scale=None, Tensor? first_valid_key=None, "
    "Tensor? cu_seqlens_q=None, Tensor? cu_seqlens_kv=None";
const std::string kReserved = ", int reserved_multiprocessors=0";
const std::string kScales = ", Tensor? q_scale=None, Tensor? k_scale=None";
const std::string kEstimation =
    "str mode=\"cover\", int estimate_every=0, bool dense_fallback=True, ";
const std::string kIndices =
    "Tensor? vertical_idx=None, Tensor? slash_idx=None, Tensor? block_idx=None, ";

void define_attention(StableLibrary& m, const std::string& name, const std::string& arguments) {
  std::string inputs = "(Tensor q, Tensor k, Tensor v, " + arguments + kSequences + kReserved +
                       kScales + ", Tensor? v_scale=None";
  m.def((name + inputs + ") -> (Tensor out, Tensor lse)").c_str());
  // torch.compile passes the arguments of an op that writes by name through a Python function with
  // a parameter `mode` of its own (torch 2.13), so there ours has another name.
  const std::string mode = "str mode";
  if (const auto at = inputs.find(mode); at != std::string::npos) {
    inputs.replace(at, mode.size(), "str slash_mode");
  }
  m.def((name + ".out" + inputs + ", Tensor(a!) out, Tensor(b!) lse) -> ()").c_str());
}

}  // namespace

STABLE_TORCH_LIBRARY(minference, m) {
  define_attention(m, "dense_attention", "*, ");
  define_attention(m, "a_shape_attention", "int sink, int window, *, ");
  define_attention(m, "tri_shape_attention", "int sink, int window, int last, *, ");
  define_attention(m, "vs_attention", "int[1] vertical_size, int[1] slash_size, *, " + kEstimation);
  define_attention(m, "vs_attention_with_index",
                   "Tensor vertical_idx, Tensor slash_idx, *, str mode=\"cover\", ");
  define_attention(m, "block_sparse_attention", "int top_k, *, ");
  define_attention(m, "block_sparse_attention_with_index", "Tensor block_idx, *, ");
  define_attention(m, "sparse_attention", "int[] head_patterns, *, " + kIndices + kEstimation);

  m.def(("plan_stats(Tensor q, Tensor k, int[] head_patterns, *, " + kIndices + kEstimation +
         kSequences + kScales + ") -> Tensor")
            .c_str());
  m.def(("estimate_vs_index(Tensor q, Tensor k, int[1] vertical_size, int[1] slash_size, *, " +
         kSequences + kScales + ") -> (Tensor vertical_idx, Tensor slash_idx)")
            .c_str());
  m.def(("estimate_vs_scores(Tensor q, Tensor k, *, " + kSequences + kScales +
         ") -> (Tensor column_scores, Tensor slash_scores)")
            .c_str());
  m.def(
      "convert_vertical_slash_indexes(Tensor q_seqlens, Tensor kv_seqlens, "
      "Tensor vertical_indexes, Tensor slash_indexes, int context_size, int block_size_M=64, "
      "int block_size_N=64, bool causal=True) -> (Tensor block_count, Tensor block_offset, "
      "Tensor column_count, Tensor column_index)");
}
