// Index and plan of one layer: memory, order of the kernels, launches.
//
//   row stats -> merge -> line sums | pool -> list tiles, then select lines -> build plan -> gather
//   -> reference lists, in mode kReference
//
// At most 9 launches, once per chunk of queries that estimates anew; whatever a call's heads do not
// need is left out. Memory and launch shapes follow from extents alone.
#pragma once

#include <driver_types.h>

#include <cstddef>
#include <cstdint>

#include "minference/types.h"
#include "params.h"
#include "plan/arena.h"
#include "plan/problem.h"

namespace minference::cuda {

inline constexpr std::size_t kAlignment = 256;  ///< of everything in a workspace, bytes

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

Tensor device_tensor(const TensorView& view);
HeadScales head_scales(const AttentionArgs& args);

class LayerIndex {
 public:
  LayerIndex(const plan::Problem& problem, void* workspace);

  std::size_t workspace_bytes() const { return workspace_bytes_; }
  /// Chunks of queries: 1, or with estimate_every as many as the longest sequence may have.
  std::int32_t num_query_chunks() const { return num_query_chunks_; }

  /// Scores and lines of the last queries, into `lines`.
  Status estimate(const plan::EstimatedLines& lines);
  /// The plans of a chunk of queries, ready for attention on the same stream.
  Status build(std::int32_t query_chunk);
  /// Statistics of what build() made, added to those of the chunks before.
  Status add_stats(PlanStats* stats);

  const LayerPlan& plan() const { return plan_.plan; }
  const ColumnLists& columns() const { return columns_; }
  /// What the kernels of this layer get, for who launches them one by one.
  const EstimateParams& estimate_params() const { return estimate_; }
  const PlanParams& plan_params() const { return plan_; }

 private:
  void measure();
  void take_memory(plan::Arena* arena);
  Rows rows(std::int64_t extent, std::int64_t per_sequence, Rows packed) const;
  void set_query_chunk(std::int32_t index);
  Status estimate_scores();

  const plan::Problem& problem_;
  cudaStream_t stream_;
  std::size_t workspace_bytes_ = 0;
  std::int32_t num_query_chunks_ = 1;

  // Upper bounds over all sequences and heads.
  std::int64_t max_vertical_ = 0;
  std::int64_t max_slash_ = 0;
  std::int64_t max_tiles_ = 0;
  bool has_estimates_ = false;
  bool has_lines_ = false;
  bool has_pooling_ = false;
  bool has_tiles_ = false;  // also where the caller's lists are empty

  // What kernels get; call, patterns and shared pointers are the same in all of them.
  EstimateParams estimate_{};
  PlanParams plan_{};
  TileParams tiles_{};
  ColumnLists columns_{};
};

}  // namespace minference::cuda
