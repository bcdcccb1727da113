#include "cpu/plan.h"

#include <algorithm>

#include "cpu/api.h"

namespace minference::cpu {
namespace {

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

/// Row blocks whose end e is at least `least`.
std::int64_t row_blocks_reaching(std::int64_t least, std::int64_t q_len, std::int64_t kv_len) {
  const std::int64_t first_end = kRowBlock + kv_len - q_len;
  const std::int64_t skipped =
      least <= first_end ? 0 : ceil_div(least - first_end, std::int64_t{kRowBlock});
  return std::max<std::int64_t>(0, num_row_blocks(q_len) - skipped);
}

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

std::int64_t max_plan_chunks(std::int64_t num_slash, std::int64_t kv_len) {
  // Every merged range wastes less than a chunk and is followed by a gap.
  const std::int64_t columns = kv_len + kRowBlock;
  const std::int64_t by_columns = columns / kChunk + columns / (kRowBlock + 1) + 2;
  return std::min(2 * num_slash, by_columns);
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

std::int64_t dense_pieces(std::int64_t q_len, std::int64_t kv_len) {
  std::int64_t pieces = 0;
  for (std::int64_t row = 0; row < q_len; row += kRowBlock) {
    pieces += ceil_div(std::min(row + kRowBlock + kv_len - q_len, kv_len), kChunk);
  }
  return pieces;
}

std::int64_t vs_pieces(const HeadPlan& plan, std::int64_t q_len, std::int64_t kv_len) {
  std::int64_t pieces = 0;
  for (std::int32_t i = 0; i < plan.num_chunks; ++i) {
    const PlanChunk chunk = plan.chunks[i];
    const std::int64_t nearest = chunk.rel - (31 - __builtin_clz(chunk.valid));
    pieces += row_blocks_reaching(nearest, q_len, kv_len);
  }
  for (std::int32_t i = 0; i < plan.num_vertical; i += kChunk) {
    pieces += row_blocks_reaching(std::int64_t{plan.verticals[i]} + 1, q_len, kv_len);
  }
  return pieces;
}

double predicted_pieces(const HeadPattern& pattern, std::int64_t q_len, std::int64_t kv_len) {
  const double dense = static_cast<double>(dense_pieces(q_len, kv_len));
  std::int64_t columns = 0;  // of a row block far from the start
  const auto size = [&](int i) { return std::min(pattern.size[i], kv_len); };
  double estimation = 0, piece_cost = 1;
  switch (pattern.kind) {
    case PatternKind::kDense:
    case PatternKind::kVerticalSlashIndex:
    case PatternKind::kBlockIndex:
      return dense;
    case PatternKind::kAShape:
    case PatternKind::kTriShape:
      columns = size(0) + size(1) + kRowBlock;
      break;
    case PatternKind::kVerticalSlash:
      columns = num_estimated_vertical(size(0), kv_len) + num_estimated_slash(size(1), kv_len) +
                kRowBlock;
      // Two passes over the keys, each half of attention's work, their sums and the selection.
      estimation = 2.5 * static_cast<double>(ceil_div(kv_len, kChunk));
      piece_cost = kPlanPieceCost;
      break;
    case PatternKind::kBlockSparse:
      columns = size(0) * kRowBlock;
      estimation = 0.05 * dense;
      break;
  }
  double pieces = estimation;
  for (std::int64_t row = 0; row < q_len; row += kRowBlock) {
    const std::int64_t end = std::min(row + kRowBlock + kv_len - q_len, kv_len);
    const bool is_last =
        pattern.kind == PatternKind::kTriShape && row + kRowBlock > q_len - size(2);
    const std::int64_t chunks = ceil_div(is_last ? end : std::min(columns, end), kChunk);
    pieces += piece_cost * static_cast<double>(chunks);
  }
  return pieces;
}

}  // namespace minference::cpu
