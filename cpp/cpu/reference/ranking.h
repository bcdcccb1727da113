// Ranking of lines and blocks: the highest scores win, ties go to the lowest index.
#pragma once

#include <cstdint>
#include <vector>

namespace minference::reference {

/// Indices of the `count` best scores (all if there are fewer), ascending. The first `num_forced`
/// indices rank before all others. `margin` (may be null): see select_lines.
std::vector<std::int32_t> best(const std::vector<double>& scores, std::int64_t num_forced,
                               std::int64_t count, double* margin);

}  // namespace minference::reference
