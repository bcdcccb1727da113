// The heads that a launch is about, so that a grid holds no blocks for the others. Patterns are
// host memory: building the list depends on no data.
#pragma once

#include "params.h"

namespace minference::cuda {

struct HeadList {
  std::int32_t count;
  std::uint8_t head[kMaxHeads];
};
static_assert(kMaxHeads <= 256, "a head's number must fit a byte");

/// Query heads of `kind`.
inline HeadList query_heads_of(const Patterns& patterns, const Call& call, PatternKind kind) {
  HeadList list{};
  for (std::int32_t head = 0; head < call.num_heads_q; ++head) {
    if (patterns.kind[head] != static_cast<std::uint8_t>(kind)) continue;
    list.head[list.count++] = static_cast<std::uint8_t>(head);
  }
  return list;
}

/// Key heads that some query head of `query_heads` reads; `query_heads` ascending.
inline HeadList kv_heads_of(const HeadList& query_heads, const Call& call) {
  HeadList list{};
  for (std::int32_t i = 0; i < query_heads.count; ++i) {
    const auto head = static_cast<std::uint8_t>(query_heads.head[i] / call.heads_per_kv);
    if (list.count > 0 && list.head[list.count - 1] == head) continue;
    list.head[list.count++] = head;
  }
  return list;
}

}  // namespace minference::cuda
