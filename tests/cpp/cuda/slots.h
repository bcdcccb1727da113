// The kernel of attention that serves a problem, as many of its blocks at once as a test wants.
#pragma once

#include <cstdint>

#include "../check.h"
#include "layer_attention.h"

namespace minference::test {

/// As on a device that runs `count` blocks at once.
inline cuda::Slots slots_of(const plan::Problem& problem, std::int32_t count) {
  cuda::DeviceFacts facts{};
  CHECK(cuda::device_facts(&facts) == Status::kOk, "%s", last_error());
  return {cuda::choose_kernel(problem, facts).kernel, count};
}

}  // namespace minference::test
