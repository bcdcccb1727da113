// The kernels that the translation units of this folder define, one table per instruction set. Only
// kernel_table.cpp, which is compiled for every machine, decides which of them may be called.
#pragma once

#include "cpu/kernels.h"

namespace minference::cpu {

/// One kernel per dtype, in the order of DType.
struct KernelTable {
  const AttentionKernel* kernels[3];
};

extern const KernelTable kPortableKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAmxBf16Kernels;

}  // namespace minference::cpu
