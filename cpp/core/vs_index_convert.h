// The checks of index lists that convert_vs_index and the ops with explicit lists share.
#pragma once

#include <cstdint>

#include "minference/types.h"

namespace minference::core {

/// One list of an IndexView [sequences, num_heads, count].
struct IndexList {
  const IndexView* view = nullptr;
  const char* name = nullptr;  ///< for the sentence of an error
  std::int64_t sequence = 0;
  std::int64_t head = 0;
};

/// kInvalidArgument if an entry is neither -1 nor in [0, limit).
Status check_entries(const IndexList& list, std::int64_t limit);

}  // namespace minference::core
