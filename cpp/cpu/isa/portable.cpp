// Kernels for any processor: what the compiler's baseline has.
#define MINFERENCE_LANES 4
#include "cpu/isa/estimate.h"
#include "cpu/isa/kernel_sets.h"
#include "cpu/isa/row_dot.h"

namespace minference::cpu {

const KernelTable kPortableKernels = {&kKernelOf<RowDot<float>>, &kKernelOf<RowDot<BFloat16>>,
                                      &kKernelOf<RowDot<Float16>>};

}  // namespace minference::cpu
