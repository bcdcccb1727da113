// One host function per kernel: launch shape from extents, the launch, its error.
#pragma once

#include <driver_types.h>

#include "params.h"

namespace minference::cuda {

/// Whether this build holds code for the current device: cudaErrorNoKernelImageForDevice if not.
cudaError_t find_kernels();

// Estimation of heads of kVerticalSlash (estimate.cuh). row_stats: maxima and sums of the last 64
// queries per strip; merge_row_stats: over all strips; line_sums: column and diagonal sums.
cudaError_t launch_row_stats(const EstimateParams& params, cudaStream_t stream);
cudaError_t launch_merge_row_stats(const EstimateParams& params, cudaStream_t stream);
cudaError_t launch_line_sums(const EstimateParams& params, cudaStream_t stream);

/// The lines of every head as bit sets and sorted lists: top-k of the scores, or the caller's
/// lists.
cudaError_t launch_select_lines(const PlanParams& params, cudaStream_t stream);
/// HeadPlan, cover and chunks of every head from its lines; decides what falls back to dense.
cudaError_t launch_build_plan(const PlanParams& params, cudaStream_t stream);
/// K[v], V[v] of every head's verticals.
cudaError_t launch_gather(const GatherParams& params, cudaStream_t stream);

/// Means of 64 rows of q and k, for heads of kBlockSparse.
cudaError_t launch_pool(const PoolParams& params, cudaStream_t stream);
/// Key blocks of every row block: top-k of pooled scores, or the caller's lists.
cudaError_t launch_list_tiles(const TileParams& params, cudaStream_t stream);

/// out and lse from the parts that attention of a call with few tasks has left.
cudaError_t launch_combine(const AttentionFwdParams& params, cudaStream_t stream);

/// Mode kReference: the tiles and columns of every row block of heads with lines.
cudaError_t launch_reference_lists(const ReferenceParams& params, cudaStream_t stream);
/// The same for lines of any order, each of batch and heads its lists: sorts them first.
cudaError_t launch_convert_lines(const ConvertParams& params, cudaStream_t stream);

/// PlanStats of every head.
cudaError_t launch_plan_stats(const StatsParams& params, cudaStream_t stream);

}  // namespace minference::cuda
