// Valid arguments of every op over one set of tensors, and the ops as a table: what the tests of
// the public interface spoil, count and repeat.
#pragma once

#include <cstddef>
#include <cstdint>
#include <random>

#include "heap_tensor.h"
#include "minference/minference.h"

namespace minference::test {

constexpr std::int64_t kHeads = 4, kSeqQ = 70, kSeqKv = 100, kHeadDim = 16;
constexpr std::int64_t kRowBlocks = 2, kKeyBlocks = 2;

struct Fixture {
  explicit Fixture(std::int64_t batch = 1)
      : q({batch, kHeads, kSeqQ, kHeadDim}, DType::kFloat32, Layout::kPlain),
        k({batch, 2, kSeqKv, kHeadDim}, DType::kFloat32, Layout::kPlain),
        v({batch, 2, kSeqKv, kHeadDim}, DType::kFloat32, Layout::kPlain),
        out({batch, kHeads, kSeqQ, kHeadDim}, DType::kFloat32, Layout::kPlain),
        lse(batch * kHeads * kSeqQ * sizeof(float)),
        vertical_idx({batch, kHeads, 3}),
        slash_idx({batch, kHeads, 2}),
        block_idx({batch, kHeads, kRowBlocks, 1}),
        estimated_vertical({batch, kHeads, kSeqKv}),
        estimated_slash({batch, kHeads, kSeqKv}),
        stats_bytes(batch * kHeads * sizeof(PlanStats)) {
    std::mt19937 generator(5);
    for (std::int64_t b = 0; b < batch; ++b) {
      fill_rows(q, b, 0, kSeqQ, 1, generator);
      fill_rows(k, b, 0, kSeqKv, 1, generator);
      fill_rows(v, b, 0, kSeqKv, 1, generator);
    }
    for (std::size_t n = 0; n < vertical_idx.count(); ++n) vertical_idx.data()[n] = n * 7 % kSeqKv;
    for (std::size_t n = 0; n < slash_idx.count(); ++n) slash_idx.data()[n] = n * 11 % kSeqKv;
    for (std::size_t n = 0; n < block_idx.count(); ++n) block_idx.data()[n] = n % kKeyBlocks;
    args.q = q.view;
    args.k = k.view;
    args.v = v.view;
    args.out = out.view;
    args.lse = reinterpret_cast<float*>(lse.data());
    args.lse_stride[0] = kHeads * kSeqQ;
    args.lse_stride[1] = kSeqQ;
    args.lse_stride[2] = 1;
    args.num_threads = 2;
    sparse.head_patterns = patterns;
    sparse.vertical_idx = vs_with_index.vertical_idx = vertical_idx.view;
    sparse.slash_idx = vs_with_index.slash_idx = slash_idx.view;
    sparse.block_idx = block_idx.view;
    vs.vertical_size = vs_index.vertical_size = vertical_size;
    vs.slash_size = vs_index.slash_size = slash_size;
    vs_index.vertical_idx = estimated_vertical.data();
    vs_index.slash_idx = estimated_slash.data();
    vs_index.vertical_count = vs_index.slash_count = kSeqKv;
  }

  void set_head_dim(std::int64_t head_dim) {
    args.q.shape[3] = args.k.shape[3] = args.v.shape[3] = args.out.shape[3] = head_dim;
  }
  void set_dtype(DType dtype) {
    args.q.dtype = args.k.dtype = args.v.dtype = args.out.dtype = dtype;
  }
  /// float8 inputs, whose output is bfloat16. For calls that are refused: memory stays as it is.
  void set_float8() {
    set_dtype(DType::kFloat8E4M3);
    args.out.dtype = DType::kBFloat16;
  }
  void set_heads_kv(std::int64_t num_heads) { args.k.shape[1] = args.v.shape[1] = num_heads; }
  /// Three sequences; the last lengths end at seq_q and seq_kv.
  void set_packed() {
    args.cu_seqlens_q = cu_q;
    args.cu_seqlens_kv = cu_kv;
    args.num_sequences = 3;
  }
  bool is_untouched() const {
    return out.bytes.is_poisoned() && lse.is_poisoned() && stats_bytes.is_poisoned() &&
           estimated_vertical.bytes.is_poisoned() && estimated_slash.bytes.is_poisoned();
  }
  PlanStats* plan_stats() const { return reinterpret_cast<PlanStats*>(stats_bytes.data()); }

  AttentionArgs args;
  SparseAttentionParams sparse;
  AShapeParams a_shape = {.sink = 3, .window = 9};
  TriShapeParams tri_shape = {.sink = 3, .window = 9, .last = 5};
  BlockSparseParams block = {.top_k = 1, .block_idx = {}};
  VsAttentionParams vs;
  VsAttentionWithIndexParams vs_with_index;
  VsIndexParams vs_index;
  HeadPattern patterns[kHeads] = {{PatternKind::kVerticalSlash, {30, 50}},
                                  {PatternKind::kVerticalSlashIndex, {}},
                                  {PatternKind::kBlockIndex, {}},
                                  {PatternKind::kTriShape, {3, 9, 5}}};
  std::int64_t vertical_size[kHeads] = {30, 31, 40, 0}, slash_size[kHeads] = {50, 60, 0, 70};
  std::int32_t cu_q[4] = {0, 20, 50, 70}, cu_kv[4] = {0, 20, 60, 100};
  std::int32_t first_valid[2] = {0, 0};
  float scales[kHeads] = {1, 2, 0.5, 3};
  HeapTensor q, k, v, out;
  HeapBytes lse;
  HeapIndex vertical_idx, slash_idx, block_idx, estimated_vertical, estimated_slash;
  HeapBytes stats_bytes;
};

struct Op {
  const char* name;
  Status (*supports)(const Fixture& f);
  Status (*workspace_bytes)(const Fixture& f, std::size_t* bytes);
  Status (*run)(const Fixture& f, void* workspace, std::size_t bytes);
};

/// The three functions of an op whose parameters are the fixture's `member`.
#define MINFERENCE_TEST_OP(op, member)                                    \
  {#op, [](const Fixture& f) { return op##_supports(f.args, f.member); }, \
   [](const Fixture& f, std::size_t* bytes) {                             \
     return op##_workspace_bytes(f.args, f.member, bytes);                \
   },                                                                     \
   [](const Fixture& f, void* workspace, std::size_t bytes) {             \
     return op(f.args, f.member, workspace, bytes);                       \
   }}

inline const Op kSparse = MINFERENCE_TEST_OP(sparse_attention, sparse);
inline const Op kAShape = MINFERENCE_TEST_OP(a_shape_attention, a_shape);
inline const Op kTriShape = MINFERENCE_TEST_OP(tri_shape_attention, tri_shape);
inline const Op kBlockSparse = MINFERENCE_TEST_OP(block_sparse_attention, block);
inline const Op kVs = MINFERENCE_TEST_OP(vs_attention, vs);
inline const Op kVsWithIndex = MINFERENCE_TEST_OP(vs_attention_with_index, vs_with_index);
inline const Op kVsIndex = MINFERENCE_TEST_OP(estimate_vs_index, vs_index);
inline const Op kDense = {"dense_attention",
                          [](const Fixture& f) { return dense_attention_supports(f.args); },
                          [](const Fixture& f, std::size_t* bytes) {
                            return dense_attention_workspace_bytes(f.args, bytes);
                          },
                          [](const Fixture& f, void* workspace, std::size_t bytes) {
                            return dense_attention(f.args, workspace, bytes);
                          }};
inline const Op kPlanStats = {
    "plan_stats", [](const Fixture& f) { return plan_stats_supports(f.args, f.sparse); },
    [](const Fixture& f, std::size_t* bytes) {
      return plan_stats_workspace_bytes(f.args, f.sparse, bytes);
    },
    [](const Fixture& f, void* workspace, std::size_t bytes) {
      return plan_stats(f.args, f.sparse, f.plan_stats(), workspace, bytes);
    }};
inline const Op* const kOps[] = {&kSparse, &kAShape,      &kTriShape, &kBlockSparse, &kVs,
                                 &kDense,  &kVsWithIndex, &kVsIndex,  &kPlanStats};

#undef MINFERENCE_TEST_OP

}  // namespace minference::test
