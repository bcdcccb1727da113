#include "cpu/parallel.h"

#include <omp.h>

#include "cpu/api.h"

namespace minference::cpu {

std::int32_t available_threads() {
  // Once: OpenMP answers for the calling thread, and workspace_bytes and run must agree.
  static const std::int32_t count = omp_get_num_procs();
  return count;
}

void run_workers(const Workers& workers, std::int64_t count, void (*body)(void*, std::int64_t),
                 void* argument) {
  if (workers.parallel_for.run != nullptr) {
    workers.parallel_for.run(workers.parallel_for.context, count, body, argument);
    return;
  }
  // An OpenMP team may come out smaller than asked for; the loop hands out what is left.
#pragma omp parallel for num_threads(static_cast<int>(count)) schedule(static, 1)
  for (std::int64_t worker = 0; worker < count; ++worker) body(argument, worker);
}

}  // namespace minference::cpu
