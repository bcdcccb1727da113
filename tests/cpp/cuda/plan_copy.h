// The plan of a layer, copied from the device and read as params.h says, in words of its own:
// where rows of a sequence begin, which queries a chunk holds, and which keys the plan lets a query
// attend. That last walk is the proof that attention needs nothing but the plan.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cuda/layer_index.h"
#include "layer.h"

namespace minference::test {

template <class T>
std::vector<T> read_device(const T* data, std::int64_t count) {
  std::vector<T> values(data == nullptr ? 0 : count);
  if (!values.empty()) {
    must(cudaMemcpy(values.data(), data, values.size() * sizeof(T), cudaMemcpyDeviceToHost),
         "cudaMemcpy");
  }
  return values;
}

/// One sequence, or with estimate_every one chunk of its queries.
struct PlannedRows {
  reference::Sequence sequence;
  std::int64_t index;  // of the sequence
  std::int64_t row_begin, row_end;

  std::int64_t num_rows() const { return row_end - row_begin; }
  std::int64_t shift() const { return sequence.kv_len - sequence.q_len; }
  std::int64_t chunk_kv_len() const { return row_end + shift(); }
};

inline PlannedRows planned_rows(const std::vector<reference::Sequence>& sequences,
                                std::int64_t index, std::int64_t chunk_rows, std::int64_t chunk) {
  const std::int64_t q_len = sequences[index].q_len;
  const std::int64_t begin = chunk_rows == 0 ? 0 : std::min(q_len, chunk * chunk_rows);
  const std::int64_t end = chunk_rows == 0 ? q_len : std::min(q_len, begin + chunk_rows);
  return {sequences[index], index, begin, end};
}

inline std::int64_t row_in(const cuda::Rows& rows, std::int64_t sequence, std::int64_t begin) {
  if (rows.divisor == 0) return sequence * rows.stride;
  return (begin / rows.divisor + sequence * rows.slack) * rows.multiple;
}

inline bool test_bit(const std::uint32_t* words, std::int64_t bit) {
  return (words[bit / 32] >> (bit % 32) & 1) != 0;
}

struct PlanCopy {
  /// `bytes_of_row`: of k or v.
  PlanCopy(const cuda::LayerPlan& from, std::int64_t num_heads_q, std::int64_t num_sequences,
           std::int64_t bytes_of_row)
      : plan(from), num_heads(num_heads_q), row_bytes(bytes_of_row) {
    heads = read_device(plan.heads, num_sequences * num_heads);
    verticals = read_device(plan.verticals, num_heads * plan.vertical_rows.total);
    slashes = read_device(plan.slashes, num_heads * plan.slash_rows.total);
    chunks = read_device(plan.chunks, num_heads * plan.chunk_rows.total);
    covered = read_device(plan.covered, num_heads * plan.bit_words.total);
    slash_bits = read_device(plan.slash_bits, num_heads * plan.bit_words.total);
    vertical_bits = read_device(plan.vertical_bits, num_heads * plan.bit_words.total);
    tiles = read_device(plan.tiles, num_heads * plan.row_blocks.total * plan.max_tiles);
    num_tiles = read_device(plan.num_tiles, num_heads * plan.row_blocks.total);
    const std::int64_t gathered_bytes = num_heads * plan.vertical_rows.total * row_bytes;
    gathered_k = read_device(static_cast<const unsigned char*>(plan.gathered_k), gathered_bytes);
    gathered_v = read_device(static_cast<const unsigned char*>(plan.gathered_v), gathered_bytes);
  }

  cuda::LayerPlan plan;
  std::int64_t num_heads, row_bytes;
  std::vector<cuda::HeadPlan> heads;
  std::vector<std::int32_t> verticals, slashes, tiles, num_tiles;
  std::vector<plan::PlanChunk> chunks;
  std::vector<std::uint32_t> covered, slash_bits, vertical_bits;
  std::vector<unsigned char> gathered_k, gathered_v;
};

/// The plan of one head, for the rows that are planned.
class HeadView {
 public:
  HeadView(const PlanCopy& copy, const PlannedRows& rows, std::int64_t head)
      : copy_(copy), rows_(rows), head_(head) {}

  const cuda::HeadPlan& plan() const { return copy_.heads[rows_.index * copy_.num_heads + head_]; }
  std::vector<std::int32_t> verticals() const {
    const std::int32_t* const first = copy_.verticals.data() + at_keys(copy_.plan.vertical_rows);
    return {first, first + plan().num_vertical};
  }
  std::vector<std::int32_t> slashes() const {
    const std::int32_t* const first = copy_.slashes.data() + at_keys(copy_.plan.slash_rows);
    return {first, first + plan().num_slash};
  }
  std::vector<plan::PlanChunk> chunks() const {
    const plan::PlanChunk* const first = copy_.chunks.data() + at_keys(copy_.plan.chunk_rows);
    return {first, first + plan().num_chunks};
  }
  const std::uint32_t* covered() const { return words(copy_.covered); }
  const std::uint32_t* slash_bits() const { return words(copy_.slash_bits); }
  const std::uint32_t* vertical_bits() const { return words(copy_.vertical_bits); }
  const unsigned char* gathered(const std::vector<unsigned char>& of, std::int64_t i) const {
    return of.data() + (at_keys(copy_.plan.vertical_rows) + i) * copy_.row_bytes;
  }
  /// `block`: of the sequence, 64 queries each.
  std::vector<std::int32_t> tiles(std::int64_t block) const {
    const cuda::Rows& rows = copy_.plan.row_blocks;
    const std::int64_t row = head_ * rows.total +
                             row_in(rows, rows_.index, rows_.sequence.q_begin) + block -
                             rows_.row_begin / 64;
    const std::int32_t* const first = copy_.tiles.data() + row * copy_.plan.max_tiles;
    return {first, first + copy_.num_tiles[row]};
  }

  /// How often the plan lets each query of the block at `row_begin` attend each key: [64, kv_len].
  /// More than once would count a key twice.
  std::vector<std::uint8_t> attended(std::int64_t row_begin, SlashMode mode) const {
    const std::int64_t kv_len = rows_.sequence.kv_len;
    const std::int64_t e = row_begin + 64 + rows_.shift();
    std::vector<std::uint8_t> counts(64 * kv_len, 0);
    const cuda::HeadPlan& head = plan();
    const auto allow = [&](std::int64_t key, const auto& row_may) {
      if (key < 0 || key >= kv_len) return;
      for (std::int64_t r = row_begin; r < std::min(row_begin + 64, rows_.row_end); ++r) {
        const std::int64_t offset = r + rows_.shift() - key;
        if (offset >= 0 && row_may(r, offset)) ++counts[(r - row_begin) * kv_len + key];
      }
    };
    const auto always = [](std::int64_t, std::int64_t) { return true; };
    switch (head.kind) {
      case PatternKind::kDense:
        for (std::int64_t key = 0; key < kv_len; ++key) allow(key, always);
        break;
      case PatternKind::kAShape:
      case PatternKind::kTriShape:
        for (std::int64_t key = 0; key < kv_len; ++key) {
          allow(key, [&](std::int64_t r, std::int64_t offset) {
            return key < head.size[0] || offset < head.size[1] ||
                   (head.kind == PatternKind::kTriShape &&
                    r >= rows_.sequence.q_len - head.size[2]);
          });
        }
        break;
      case PatternKind::kBlockSparse:
      case PatternKind::kBlockIndex:
        for (std::int32_t tile : tiles(row_begin / 64)) {
          for (std::int64_t key = std::int64_t{64} * tile; key < 64 * (tile + 1); ++key) {
            allow(key, always);
          }
        }
        break;
      case PatternKind::kVerticalSlash:
      case PatternKind::kVerticalSlashIndex:
        for (const plan::PlanChunk& chunk : chunks()) {
          if (chunk.rel - (plan::kChunk - 1) > e) break;  // so are all that follow
          for (int column = 0; column < plan::kChunk; ++column) {
            const std::int64_t key = e - chunk.rel + column;
            if ((chunk.valid >> column & 1) == 0 || key < 0 || key >= kv_len) continue;
            if (mode == SlashMode::kCover) {
              allow(key, always);
            } else if (!test_bit(vertical_bits(), key)) {
              allow(key, [&](std::int64_t, std::int64_t offset) {
                return test_bit(slash_bits(), offset);
              });
            }
          }
        }
        for (std::int32_t key : verticals()) {
          if (key >= std::min(e, kv_len)) break;
          if (mode == SlashMode::kExact || !test_bit(covered(), e - key)) allow(key, always);
        }
        break;
    }
    return counts;
  }

 private:
  std::int64_t at_keys(const cuda::Rows& rows) const {
    return head_ * rows.total + row_in(rows, rows_.index, rows_.sequence.kv_begin);
  }
  const std::uint32_t* words(const std::vector<std::uint32_t>& of) const {
    return of.data() + at_keys(copy_.plan.bit_words);
  }

  const PlanCopy& copy_;
  PlannedRows rows_;
  std::int64_t head_;
};

}  // namespace minference::test
