// torch's current CUDA stream without a CUDA header or library.
#pragma once

#include "tensor_view.h"

namespace minference::binding {

/// The stream torch enqueues on for the calling thread; null on the CPU.
void* current_stream(const CallDevice& device);

}  // namespace minference::binding
