// The ops that attend: each is a struct that says how its own arguments become the Params of the
// public API; `Attention` adds what all of them share, for both overloads.
//
// CUDA runs the same code: core answers for a build without CUDA kernels.
#include <torch/csrc/stable/library.h>

#include "sparse_params.h"

namespace minference::binding {
namespace {

using Sizes = std::vector<std::int64_t>;

struct Dense {
  static constexpr const char* kName = "dense_attention";
  struct Params {};
  static Params params(AttentionCall&) { return {}; }
  static Status workspace_bytes(const AttentionArgs& args, const Params&, std::size_t* bytes) {
    return dense_attention_workspace_bytes(args, bytes);
  }
  static Status run(const AttentionArgs& args, const Params&, void* workspace, std::size_t bytes) {
    return dense_attention(args, workspace, bytes);
  }
};

struct AShape {
  static constexpr const char* kName = "a_shape_attention";
  static constexpr auto workspace_bytes = a_shape_attention_workspace_bytes;
  static constexpr auto run = a_shape_attention;
  static AShapeParams params(AttentionCall&, std::int64_t sink, std::int64_t window) {
    return {.sink = sink, .window = window};
  }
};

struct TriShape {
  static constexpr const char* kName = "tri_shape_attention";
  static constexpr auto workspace_bytes = tri_shape_attention_workspace_bytes;
  static constexpr auto run = tri_shape_attention;
  static TriShapeParams params(AttentionCall&, std::int64_t sink, std::int64_t window,
                               std::int64_t last) {
    return {.sink = sink, .window = window, .last = last};
  }
};

struct VerticalSlash {
  static constexpr const char* kName = "vs_attention";
  static constexpr auto workspace_bytes = vs_attention_workspace_bytes;
  static constexpr auto run = vs_attention;
  static VsAttentionParams params(AttentionCall& call, const Sizes& vertical_size,
                                  const Sizes& slash_size, StringArgument mode,
                                  std::int64_t estimate_every, bool dense_fallback) {
    return {.mode = slash_mode(mode),
            .vertical_size = call.per_head(vertical_size, "vertical_size"),
            .slash_size = call.per_head(slash_size, "slash_size"),
            .estimate_every = estimate_every,
            .dense_fallback = dense_fallback};
  }
};

struct VerticalSlashWithIndex {
  static constexpr const char* kName = "vs_attention_with_index";
  static constexpr auto workspace_bytes = vs_attention_with_index_workspace_bytes;
  static constexpr auto run = vs_attention_with_index;
  static VsAttentionWithIndexParams params(AttentionCall& call, const Tensor& vertical_idx,
                                           const Tensor& slash_idx, StringArgument mode) {
    return {.mode = slash_mode(mode),
            .vertical_idx = index_view(vertical_idx, "vertical_idx", 3, call.device()),
            .slash_idx = index_view(slash_idx, "slash_idx", 3, call.device())};
  }
};

struct BlockSparse {
  static constexpr const char* kName = "block_sparse_attention";
  static constexpr auto workspace_bytes = block_sparse_attention_workspace_bytes;
  static constexpr auto run = block_sparse_attention;
  static BlockSparseParams params(AttentionCall&, std::int64_t top_k) {
    return {.top_k = top_k, .block_idx = {}};
  }
};

struct BlockSparseWithIndex {
  static constexpr const char* kName = "block_sparse_attention_with_index";
  static constexpr auto workspace_bytes = block_sparse_attention_workspace_bytes;
  static constexpr auto run = block_sparse_attention;
  static BlockSparseParams params(AttentionCall& call, const Tensor& block_idx) {
    return {.block_idx = index_view(block_idx, "block_idx", 4, call.device())};
  }
};

struct Sparse {
  static constexpr const char* kName = "sparse_attention";
  static constexpr auto workspace_bytes = sparse_attention_workspace_bytes;
  static constexpr auto run = sparse_attention;
  static constexpr auto params = sparse_params;
};

template <class Op, class ParamsFunction = std::decay_t<decltype(Op::params)>>
struct Attention;

/// Both overloads of an op. The parameters follow the order of its schema.
template <class Op, class Params, class... OpArgs>
struct Attention<Op, Params (*)(AttentionCall&, OpArgs...)> {
  static std::tuple<Tensor, Tensor> functional(
      const Tensor& q, const Tensor& k, const Tensor& v, OpArgs... op_args,
      std::optional<double> softmax_scale, const OptionalTensor& first_valid_key,
      const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_kv,
      std::int64_t reserved_multiprocessors, const OptionalTensor& q_scale,
      const OptionalTensor& k_scale, const OptionalTensor& v_scale) {
    [[maybe_unused]] const std::tuple<Owner<std::decay_t<OpArgs>>...> owners(op_args...);
    return named(Op::kName, [&] {
      AttentionCall call(q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, q_scale,
                         k_scale);
      call.reserve(reserved_multiprocessors);
      const Params params = Op::params(call, op_args...);
      auto [out, lse] = call.allocate_outputs(q);
      call.set_value(v, v_scale);
      run(call, params, out, lse);
      return std::make_tuple(out, lse);
    });
  }

  static void into(const Tensor& q, const Tensor& k, const Tensor& v, OpArgs... op_args,
                   std::optional<double> softmax_scale, const OptionalTensor& first_valid_key,
                   const OptionalTensor& cu_seqlens_q, const OptionalTensor& cu_seqlens_kv,
                   std::int64_t reserved_multiprocessors, const OptionalTensor& q_scale,
                   const OptionalTensor& k_scale, const OptionalTensor& v_scale, const Tensor& out,
                   const Tensor& lse) {
    [[maybe_unused]] const std::tuple<Owner<std::decay_t<OpArgs>>...> owners(op_args...);
    named(Op::kName, [&] {
      AttentionCall call(q, k, softmax_scale, first_valid_key, cu_seqlens_q, cu_seqlens_kv, q_scale,
                         k_scale);
      call.reserve(reserved_multiprocessors);
      const Params params = Op::params(call, op_args...);
      call.set_value(v, v_scale);
      run(call, params, out, lse);
    });
  }

 private:
  static void run(AttentionCall& call, const Params& params, const Tensor& out, const Tensor& lse) {
    call.set_outputs(out, lse);
    call.run([&](std::size_t* bytes) { return Op::workspace_bytes(call.args, params, bytes); },
             [&](void* workspace, std::size_t bytes) {
               return Op::run(call.args, params, workspace, bytes);
             });
  }
};

template <class... Ops, class Library>
void implement(Library& m) {
  (m.impl(Ops::kName, TORCH_BOX(&Attention<Ops>::functional)), ...);
  (m.impl((std::string(Ops::kName) + ".out").c_str(), TORCH_BOX(&Attention<Ops>::into)), ...);
}

template <class Library>
void implement_all(Library& m) {
  implement<Dense, AShape, TriShape, VerticalSlash, VerticalSlashWithIndex, BlockSparse,
            BlockSparseWithIndex, Sparse>(m);
}

}  // namespace
}  // namespace minference::binding

STABLE_TORCH_LIBRARY_IMPL(minference, CPU, m) { minference::binding::implement_all(m); }
STABLE_TORCH_LIBRARY_IMPL(minference, CUDA, m) { minference::binding::implement_all(m); }
