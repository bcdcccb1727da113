// convert_vs_index on CUDA against the reference: lists equal entry by entry. Lists on the device
// hold what the CPU refuses and kernels have to ignore.
#include <cstdio>
#include <cstring>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../check.h"
#include "cpu/reference/reference.h"
#include "device_tensor.h"
#include "minference/minference.h"

namespace minference::test {
namespace {

using List = std::vector<std::int32_t>;

struct ConvertCase {
  const char* reason;
  std::int64_t num_heads, num_vertical, num_slash, num_row_blocks;
  List q_seqlens, kv_seqlens;
  bool is_causal = true;
};

const ConvertCase kConvertCases[] = {
    {"two rows of different lengths", 3, 40, 30, 8, {500, 130}, {500, 130}},
    {"one entry each", 1, 1, 1, 3, {190}, {190}},
    {"no verticals", 2, 0, 9, 4, {200}, {256}},
    {"no slashes", 2, 17, 0, 4, {200}, {256}},
    {"no lines", 1, 0, 0, 4, {200}, {256}},
    {"no queries in a row, more row blocks than any needs", 2, 20, 20, 9, {0, 70}, {64, 333}},
    {"long lists, more row blocks than a thread block has threads",
     1,
     3000,
     1100,
     200,
     {12000},
     {12700}},
    {"not causal: offsets past the keys", 2, 33, 50, 6, {300, 384}, {700, 90}, false},
    {"not causal, one key", 1, 3, 70, 5, {300}, {1}, false},
};

/// Random lines below `limit` and, ignored by kernels, some that are not.
void fill_lists(const HeapIndex& index, const List& limits, std::mt19937& generator) {
  const std::int64_t per_row = index.view.stride[0];
  for (std::size_t n = 0; n < index.count(); ++n) {
    const std::int32_t limit = limits[n / per_row];
    index.data()[n] = n % 7 == 6 || limit == 0 ? -1 : std::int32_t(generator() % limit);
  }
}

void test_case(const ConvertCase& c) {
  std::mt19937 generator(5);
  const std::int64_t batch = static_cast<std::int64_t>(c.q_seqlens.size());
  HeapIndex vertical({batch, c.num_heads, c.num_vertical}),
      slash({batch, c.num_heads, c.num_slash});
  List offset_limits = c.kv_seqlens;
  for (std::int64_t b = 0; b < batch && !c.is_causal; ++b) offset_limits[b] += c.q_seqlens[b] + 99;
  fill_lists(vertical, c.kv_seqlens, generator);
  fill_lists(slash, offset_limits, generator);
  ConvertVsIndexParams params;
  params.q_seqlens = c.q_seqlens.data();
  params.kv_seqlens = c.kv_seqlens.data();
  params.vertical_idx = vertical.view;
  params.slash_idx = slash.view;
  params.num_row_blocks = c.num_row_blocks;
  params.causal = c.is_causal ? 1 : 0;
  const reference::ConvertedIndex expected = reference::convert_vs_index(params);

  // Every entry that is missing is out of range instead.
  const auto spoil = [&](const HeapIndex& index, bool is_slash) {
    const std::int64_t per_row = index.view.stride[0];
    for (std::size_t n = 0; n < index.count(); ++n) {
      std::int32_t& entry = index.data()[n];
      const std::int32_t too_far = is_slash && !c.is_causal
                                       ? std::numeric_limits<std::int32_t>::max()
                                       : c.kv_seqlens[n / per_row];
      const std::int32_t ignored[] = {-1, -2, too_far, std::numeric_limits<std::int32_t>::min()};
      if (entry == -1) entry = ignored[n / 7 % 4];
    }
  };
  spoil(vertical, false);
  spoil(slash, true);
  DeviceBytes q_seqlens, kv_seqlens, vertical_memory, slash_memory;
  params.device = Device::kCuda;
  params.q_seqlens = copy_to_device(c.q_seqlens, &q_seqlens);
  params.kv_seqlens = copy_to_device(c.kv_seqlens, &kv_seqlens);
  params.vertical_idx = copy_to_device(vertical, &vertical_memory);
  params.slash_idx = copy_to_device(slash, &slash_memory);
  const std::int64_t rows = batch * c.num_heads * c.num_row_blocks;
  const DeviceBytes block_count(4 * rows), block_offset(4 * rows * c.num_slash);
  const DeviceBytes column_count(4 * rows), column_index(4 * rows * c.num_vertical);
  params.block_count = block_count.as<std::int32_t>();
  params.block_offset = block_offset.as<std::int32_t>();
  params.column_count = column_count.as<std::int32_t>();
  params.column_index = column_index.as<std::int32_t>();
  std::size_t bytes = 0;
  CHECK(convert_vs_index_workspace_bytes(params, &bytes) == Status::kOk, "%s: %s", c.reason,
        last_error());
  const DeviceBytes workspace(bytes, 1);
  CHECK(convert_vs_index(params, workspace.data(), bytes) == Status::kOk, "%s: %s", c.reason,
        last_error());
  wait_for_device(c.reason);
  const struct {
    const char* name;
    const DeviceBytes& found;
    const List& expected;
  } outputs[] = {{"block_count", block_count, expected.block_count},
                 {"block_offset", block_offset, expected.block_offset},
                 {"column_count", column_count, expected.column_count},
                 {"column_index", column_index, expected.column_index}};
  for (const auto& output : outputs) {
    CHECK(output.found.read<std::int32_t>() == output.expected, "%s: another %s", c.reason,
          output.name);
    CHECK(output.found.has_guards(), "%s: memory around %s was written", c.reason, output.name);
  }
  CHECK(workspace.has_guards(), "%s: memory around the workspace was written", c.reason);
}

/// Lengths that break the rules (but the last), on the device where the host cannot see them.
void test_senseless_lengths() {
  for (const auto& [q_len, kv_len] :
       {std::pair{-5, 100}, {100, -7}, {100, 50}, {129, 200}, {1 << 30, 1 << 30}, {128, 1 << 30}}) {
    const List q_seqlens = {q_len}, kv_seqlens = {kv_len};
    HeapIndex lines({1, 1, 3});
    for (int n = 0; n < 3; ++n) lines.data()[n] = 10 * n;
    DeviceBytes q_memory, kv_memory, line_memory;
    ConvertVsIndexParams params;
    params.device = Device::kCuda;
    params.q_seqlens = copy_to_device(q_seqlens, &q_memory);
    params.kv_seqlens = copy_to_device(kv_seqlens, &kv_memory);
    params.vertical_idx = params.slash_idx = copy_to_device(lines, &line_memory);
    params.num_row_blocks = 2;
    const DeviceBytes counts[2] = {DeviceBytes(8), DeviceBytes(8)};
    const DeviceBytes lists[2] = {DeviceBytes(24), DeviceBytes(24)};
    params.block_count = counts[0].as<std::int32_t>();
    params.column_count = counts[1].as<std::int32_t>();
    params.block_offset = lists[0].as<std::int32_t>();
    params.column_index = lists[1].as<std::int32_t>();
    std::size_t bytes = 0;
    CHECK(convert_vs_index_workspace_bytes(params, &bytes) == Status::kOk, "%s", last_error());
    const DeviceBytes workspace(bytes, 1);
    CHECK(convert_vs_index(params, workspace.data(), bytes) == Status::kOk, "%s", last_error());
    wait_for_device("senseless lengths");
    for (int i = 0; i < 2; ++i) {
      CHECK(counts[i].has_guards() && lists[i].has_guards(), "lengths %d and %d", q_len, kv_len);
      const bool is_empty = counts[i].read<std::int32_t>() == List{0, 0};
      CHECK(is_empty == (q_len != 128), "lengths %d and %d: lists", q_len, kv_len);
    }
  }
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  for (const test::ConvertCase& c : test::kConvertCases) test::test_case(c);
  test::test_senseless_lengths();
  return test::finish("convert_cuda_test");
}
