// Kernels for AVX-512 (x86-64-v4).
#define MINFERENCE_LANES 16
#include "cpu/isa/estimate.h"
#include "cpu/isa/kernel_sets.h"
#include "cpu/isa/row_dot.h"

namespace minference::cpu {

const KernelTable kAvx512Kernels = {&kKernelOf<RowDot<float>>, &kKernelOf<RowDot<BFloat16>>,
                                    &kKernelOf<RowDot<Float16>>};

}  // namespace minference::cpu
