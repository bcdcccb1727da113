// Times work on a stream with CUDA events: every run by itself, as many runs as fill the same time
// for every contender, so that none of them meets a cooler device. kernel_bench.cu calls it.
//
// Before each run the stream is kept busy, with a write of more than the L2 cache holds (flushed)
// or with arithmetic alone (warm): the host is then ahead and its launches do not show.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace minference::bench {

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernel_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

enum class L2 { kFlushed, kWarm };

struct Times {
  double median_ms = 0, p10_ms = 0, p90_ms = 0;
  int runs = 0;
};

/// Occupies one multiprocessor for about 50 us; touches no memory.
__global__ void spin(int steps, float* never) {
  float value = static_cast<float>(threadIdx.x);
  for (int i = 0; i < steps; ++i) value = fmaf(value, 0.999f, 1.0f);
  if (value < 0) *never = value;  // it never is; without it nothing would be computed
}

class DeviceTimer {
 public:
  /// `seconds`: about how long all runs of a measurement take together.
  DeviceTimer(cudaStream_t stream, double seconds, std::size_t flush_bytes, int spin_steps)
      : stream_(stream), seconds_(seconds), flush_bytes_(flush_bytes), spin_steps_(spin_steps) {
    require(cudaMalloc(&flush_, flush_bytes), "cudaMalloc of the flushed buffer");
    for (cudaEvent_t& event : events_) require(cudaEventCreate(&event), "cudaEventCreate");
  }
  DeviceTimer(const DeviceTimer&) = delete;
  DeviceTimer& operator=(const DeviceTimer&) = delete;
  ~DeviceTimer() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
    cudaFree(flush_);
  }

  /// `run()` enqueues one run on the stream.
  template <class Run>
  Times measure(L2 l2, Run run) {
    run();  // loads modules and sets attributes
    enqueue(l2, 0, run);
    const double once_ms = std::max(elapsed(0), 1e-4);
    const int wanted = static_cast<int>(std::min(seconds_ * 1e3 / once_ms, 1e6));
    // A run of seconds is not repeated: the first has warmed up what it needs.
    const double runs_of_all = once_ms / (seconds_ * 1e3);
    const int least = runs_of_all <= 1 ? kLeastRuns : runs_of_all <= kLongRuns ? kFewRuns : 1;
    const int runs = std::clamp(wanted, least, kMostRuns);
    if (runs == 1) return {once_ms, once_ms, once_ms, 1};
    for (int i = 0; i < runs; ++i) enqueue(l2, i, run);
    std::vector<double> sorted(runs);
    for (int i = 0; i < runs; ++i) sorted[i] = elapsed(i);
    std::sort(sorted.begin(), sorted.end());
    const auto at = [&](double share) {
      return sorted[static_cast<std::size_t>(share * (runs - 1) + 0.5)];
    };
    return {at(0.5), at(0.1), at(0.9), runs};
  }

 private:
  static constexpr int kLeastRuns = 5, kMostRuns = 200;
  static constexpr int kFewRuns = 3;      // of what takes longer than all runs should
  static constexpr double kLongRuns = 5;  // and how many times as long, at most

  template <class Run>
  void enqueue(L2 l2, int index, Run run) {
    if (l2 == L2::kFlushed) {
      require(cudaMemsetAsync(flush_, index, flush_bytes_, stream_), "cudaMemsetAsync");
    } else {
      spin<<<1, 32, 0, stream_>>>(spin_steps_, static_cast<float*>(flush_));
    }
    require(cudaEventRecord(events_[2 * index], stream_), "cudaEventRecord");
    run();
    require(cudaEventRecord(events_[2 * index + 1], stream_), "cudaEventRecord");
  }

  double elapsed(int index) {
    float ms = 0;
    require(cudaEventSynchronize(events_[2 * index + 1]), "the timed run");
    require(cudaEventElapsedTime(&ms, events_[2 * index], events_[2 * index + 1]),
            "cudaEventElapsedTime");
    return ms;
  }

  cudaStream_t stream_;
  double seconds_;
  std::size_t flush_bytes_;
  int spin_steps_;
  void* flush_ = nullptr;
  cudaEvent_t events_[2 * kMostRuns];
};

}  // namespace minference::bench
