// The one parallel loop of the CPU backend; nothing else starts threads.
#pragma once

#include <atomic>
#include <cstdint>

#include "minference/types.h"

namespace minference::cpu {

struct Workers {
  std::int64_t count;        ///< >= 1
  ParallelFor parallel_for;  ///< run == null: OpenMP
};

/// Calls body(argument, worker) for every worker in [0, count).
void run_workers(const Workers& workers, std::int64_t count, void (*body)(void*, std::int64_t),
                 void* argument);

/// Calls task(index, worker) once for every index in [0, num_tasks). Which worker takes which task
/// is open; tasks start in ascending order.
template <class Task>
void parallel_for(const Workers& workers, std::int64_t num_tasks, const Task& task) {
  const std::int64_t count = workers.count < num_tasks ? workers.count : num_tasks;
  if (count <= 1) {
    for (std::int64_t index = 0; index < num_tasks; ++index) task(index, std::int64_t{0});
    return;
  }
  struct Shared {
    const Task& task;
    std::int64_t num_tasks;
    std::atomic<std::int64_t> next{0};
  } shared{task, num_tasks};
  run_workers(
      workers, count,
      [](void* argument, std::int64_t worker) {
        Shared& all = *static_cast<Shared*>(argument);
        while (true) {
          const std::int64_t index = all.next.fetch_add(1, std::memory_order_relaxed);
          if (index >= all.num_tasks) return;
          all.task(index, worker);
        }
      },
      &shared);
}

}  // namespace minference::cpu
