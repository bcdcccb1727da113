// Which CPU kernel runs a call: the one place that decides.
#pragma once

#include "cpu/api.h"
#include "minference/sparse_attention.h"
#include "minference/types.h"

namespace minference::core {

/// The best CPU kernel set of this machine, or the one that MINFERENCE_CPU_KERNEL names.
Status choose_kernel_set(const cpu::KernelSet** set);

/// What attention_kernel() says of it.
Status describe_kernel_set(KernelInfo* info);

/// The CPU kernel for q of `dtype`; kUnsupported for float8.
Status choose(DType dtype, const cpu::AttentionKernel** kernel);

}  // namespace minference::core
