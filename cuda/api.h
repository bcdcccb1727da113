// What core may call of the CUDA backend. Arguments are validated as far as the host can: what lies
// in device memory (lengths, lists) is checked by the kernels, which ignore entries out of range.
// Nothing here allocates, waits for the device or throws. A build without CUDA compiles absent.cpp
// instead of this folder's other files.
#pragma once

#include <cstddef>

#include "minference/sparse_attention.h"
#include "minference/types.h"
#include "minference/vs_index.h"
#include "plan/problem.h"

namespace minference::cuda {

/// Whether this build holds CUDA kernels.
bool is_built();

/// The architectures they were compiled for, e.g. "80;90a"; empty without CUDA.
const char* architectures();

/// kOk if the problem can run on the device of q (of the calling thread where q is null).
Status supports(const plan::Problem& problem);

/// Of attention where the problem needs values, else of its estimation and plan.
Status workspace_bytes(const plan::Problem& problem, std::size_t* bytes);

/// Fills `info`: which kernel attention() runs on the device of q (as in supports()), and why.
Status attention_kernel(const plan::Problem& problem, KernelInfo* info);

/// Enqueues index, plan and attention on the stream of `problem`.
Status attention(const plan::Problem& problem, void* workspace);

/// Enqueues the estimation on the stream of `problem`. Results and scores are in device memory.
Status estimate(const plan::Problem& problem, const plan::EstimatedLines& lines, void* workspace);

/// Enqueues plans and their statistics; `stats` [num_sequences, num_heads_q] in device memory.
Status plan_stats(const plan::Problem& problem, PlanStats* stats, void* workspace);

Status convert_workspace_bytes(const ConvertVsIndexParams& params, std::size_t* bytes);

/// Enqueues the conversion of lines to lists of row blocks. `params` are checked as far as the host
/// can read.
Status convert(const ConvertVsIndexParams& params, void* workspace);

}  // namespace minference::cuda
