// Index lists as sets: what convert_vs_index and the ops that take explicit lists make of the
// caller's entries, which may come in any order, twice, or as -1 (no entry).
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

/// Writes the entries other than -1, ascending and unique, to sorted[0, view->shape[2]) and returns
/// how many there are.
std::int64_t sort_entries(const IndexList& list, std::int32_t* sorted);

}  // namespace minference::core
