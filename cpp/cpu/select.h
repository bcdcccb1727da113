// Exact top-k by radix select.
#pragma once

#include <cstdint>

namespace minference::cpu {

/// Writes the indices of the k largest of scores[0..n) to `selected`, ascending. Indices below
/// `num_forced` rank first; ties go to the lowest index; a NaN ranks last. Scores are any
/// floats. Requires k <= n.
void select_top_k(const float* scores, std::int64_t n, std::int64_t k, std::int64_t num_forced,
                  std::int32_t* selected);

}  // namespace minference::cpu
