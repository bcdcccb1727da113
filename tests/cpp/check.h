// CHECK(condition, "format", ...) counts a failure and goes on; finish() is the exit status of
// main.
#pragma once

#include <atomic>
#include <cstdio>

namespace minference::test {

inline std::atomic<int> num_checks{0};
inline std::atomic<int> num_failures{0};

/// Prints at most this many failures: one defect often breaks thousands of values.
constexpr int kMaxPrinted = 40;

inline int finish(const char* name) {
  std::printf("%s: %d checks, %d failures\n", name, num_checks.load(), num_failures.load());
  return num_failures == 0 && num_checks > 0 ? 0 : 1;
}

}  // namespace minference::test

#define CHECK(condition, ...)                                                  \
  do {                                                                         \
    ++minference::test::num_checks;                                            \
    if (!(condition)) {                                                        \
      if (++minference::test::num_failures <= minference::test::kMaxPrinted) { \
        std::printf("%s:%d: not true: %s; ", __FILE__, __LINE__, #condition);  \
        std::printf(__VA_ARGS__);                                              \
        std::printf("\n");                                                     \
        std::fflush(stdout);                                                   \
      }                                                                        \
    }                                                                          \
  } while (false)
