// Kernels for AVX2 with FMA and F16C.
#define MINFERENCE_LANES 8
#include "cpu/isa/estimate.h"
#include "cpu/isa/kernel_sets.h"
#include "cpu/isa/row_dot.h"

namespace minference::cpu {

const KernelTable kAvx2Kernels = {&kKernelOf<RowDot<float>>, &kKernelOf<RowDot<BFloat16>>,
                                  &kKernelOf<RowDot<Float16>>};

}  // namespace minference::cpu
