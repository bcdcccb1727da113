#include "cpu/plan.h"

#include <algorithm>

#include "cpu/api.h"
#include "plan/cost.h"

namespace minference::cpu {
namespace {

/// Appends the chunks of columns t in [near, far].
void add_chunks(std::int64_t near, std::int64_t far, HeadPlan* plan) {
  plan->covered.set_range(near, far + 1);
  for (std::int64_t t = near; t <= far; t += kChunk) {
    const std::int64_t last = std::min<std::int64_t>(t + kChunk - 1, far);
    const int columns = static_cast<int>(last - t + 1);
    plan->chunks[plan->num_chunks++] = {
        static_cast<std::int32_t>(last),
        columns == kChunk ? ~std::uint32_t{0} : (std::uint32_t{1} << columns) - 1};
  }
}

}  // namespace

void BitSet::set_range(std::int64_t begin, std::int64_t end) {
  if (begin >= end) return;
  const std::int64_t first = begin >> 6;
  const std::int64_t last = (end - 1) >> 6;
  const std::uint64_t first_bits = ~std::uint64_t{0} << (begin & 63);
  const std::uint64_t last_bits = ~std::uint64_t{0} >> (63 - ((end - 1) & 63));
  if (first == last) {
    words[first] |= first_bits & last_bits;
    return;
  }
  words[first] |= first_bits;
  std::fill(words + first + 1, words + last, ~std::uint64_t{0});
  words[last] |= last_bits;
}

std::int32_t sort_unique(const std::int32_t* entries, std::int64_t count, std::int32_t* sorted) {
  std::int32_t* const end = std::remove_copy(entries, entries + count, sorted, -1);
  std::sort(sorted, end);
  return static_cast<std::int32_t>(std::unique(sorted, end) - sorted);
}

void build_vs_plan(std::int64_t kv_len, HeadPlan* plan) {
  std::fill_n(plan->covered.words, BitSet::num_words(kv_len + kRowBlock + 1), 0);
  plan->num_chunks = 0;
  // Lines whose columns touch make one range.
  for (std::int32_t i = 0; i < plan->num_slash;) {
    const std::int64_t near = std::int64_t{plan->slashes[i]} + 1;
    std::int64_t far = near - 1 + kRowBlock;
    for (++i; i < plan->num_slash && plan->slashes[i] <= far; ++i) {
      far = std::int64_t{plan->slashes[i]} + kRowBlock;
    }
    add_chunks(near, far, plan);
  }
  if (plan->mode != SlashMode::kExact) return;
  std::fill_n(plan->offsets.words, BitSet::num_words(kv_len + 2 * kRowBlock), 0);
  for (std::int32_t i = 0; i < plan->num_slash; ++i) {
    plan->offsets.set(kRowBlock + plan->slashes[i]);
  }
  std::fill_n(plan->is_vertical.words, BitSet::num_words(kv_len), 0);
  for (std::int32_t i = 0; i < plan->num_vertical; ++i) plan->is_vertical.set(plan->verticals[i]);
}

std::int64_t vs_pieces(const HeadPlan& plan, std::int64_t q_len, std::int64_t kv_len) {
  std::int64_t pieces = 0;
  for (std::int32_t i = 0; i < plan.num_chunks; ++i) {
    pieces += plan::chunk_pieces(plan.chunks[i], q_len, kv_len);
  }
  for (std::int32_t i = 0; i < plan.num_vertical; i += kChunk) {
    pieces += plan::row_blocks_reaching(std::int64_t{plan.verticals[i]} + 1, q_len, kv_len);
  }
  return pieces;
}

}  // namespace minference::cpu
