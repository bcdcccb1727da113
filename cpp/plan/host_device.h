// Marks the small functions that host code and CUDA kernels share.
#pragma once

#if defined(__CUDACC__)
#define MINFERENCE_HOST_DEVICE __host__ __device__
#else
#define MINFERENCE_HOST_DEVICE
#endif
