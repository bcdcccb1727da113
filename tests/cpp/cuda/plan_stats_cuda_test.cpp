// plan_stats on CUDA. Where the plan follows from the arguments alone - shapes, the caller's lists,
// lines that cover everything - all counts equal those of the CPU's op. Where the device estimates,
// its own lines are taken from its plan and given to the CPU's op as lists.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "../check.h"
#include "float8.h"
#include "layer.h"
#include "plan_copy.h"

namespace minference::test {
namespace {

using List = std::vector<std::int32_t>;

const HeadPattern kAllLines = {PatternKind::kVerticalSlash, {10000, 10000}};

const Case kStatsCases[] = {
    {.reason = "many row blocks",
     .seq_q = 2000,
     .seq_kv = 2100,
     .patterns = {kVsIndex, kBlockIndex, kTriShape, kAShape},
     .num_vertical = 200,
     .num_slash = 60,
     .num_blocks = 9},
    {.reason = "sizes that select every line",
     .batch = 2,
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 200,
     .seq_kv = 600,
     .patterns = {kAllLines}},
    {.reason = "windows and sinks of many sizes",
     .num_heads_q = 8,
     .num_heads_kv = 8,
     .seq_q = 700,
     .seq_kv = 777,
     .patterns = {{PatternKind::kAShape, {0, 1}},
                  {PatternKind::kAShape, {33, 64}},
                  {PatternKind::kAShape, {128, 256}},
                  {PatternKind::kAShape, {500, 500}},
                  {PatternKind::kTriShape, {4, 100, 65}},
                  {PatternKind::kTriShape, {0, 0, 1}},
                  {PatternKind::kTriShape, {70, 33, 10000}},
                  kDense}},
    {.reason = "every pattern, packed, estimated per chunk",
     .seq_q = 420,
     .seq_kv = 700,
     .estimate_every = 128,
     .cu_seqlens_q = {0, 200, 200, 265, 420},
     .cu_seqlens_kv = {0, 200, 260, 330, 700}},
};

/// Statistics of a call on the device.
std::vector<PlanStats> device_stats(const Layer& layer, bool may_fall_back,
                                    const std::string& what) {
  SparseAttentionParams params = layer.device_params;
  params.dense_fallback = may_fall_back ? 1 : 0;
  AttentionArgs args = layer.device;
  args.v = args.out = {};  // not used
  std::size_t bytes = 0;
  Status status = plan_stats_supports(args, params);
  CHECK(status == Status::kOk, "%s: supports: %s", what.c_str(), last_error());
  status = plan_stats_workspace_bytes(args, params, &bytes);
  CHECK(status == Status::kOk, "%s: workspace_bytes: %s", what.c_str(), last_error());
  const DeviceBytes workspace = device_workspace(bytes);
  const DeviceBytes stats(layer.num_lists() * sizeof(PlanStats));
  stats.fill(0x7F);
  status = plan_stats(args, params, stats.as<PlanStats>(), workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  wait_for_device(what.c_str());
  CHECK(stats.has_guards() && workspace.has_guards(), "%s: memory around a buffer was written",
        what.c_str());
  return stats.read<PlanStats>();
}

std::vector<PlanStats> host_stats(const AttentionArgs& args, const SparseAttentionParams& params,
                                  std::int64_t count, const std::string& what) {
  std::size_t bytes = 0;
  Status status = plan_stats_workspace_bytes(args, params, &bytes);
  CHECK(status == Status::kOk, "%s: CPU: %s", what.c_str(), last_error());
  const HeapBytes workspace(bytes, 1);
  std::vector<PlanStats> stats(count);
  status = plan_stats(args, params, stats.data(), workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: CPU: %s", what.c_str(), last_error());
  return stats;
}

/// Statistics of the CPU for the device's own lines, chunk by chunk of the queries: each as a call
/// of its own with lists, and as dense attention where the device's plan says so.
std::vector<PlanStats> expected_stats(const Layer& layer, const Layer& for_cpu, bool may_fall_back,
                                      const std::string& what) {
  const plan::Problem problem = layer.device_problem(may_fall_back, false);
  const DeviceBytes workspace =
      device_workspace(cuda::LayerIndex(problem, nullptr).workspace_bytes());
  cuda::LayerIndex index(problem, workspace.data());
  const std::vector<reference::Sequence> sequences = reference::sequences(layer.host);
  std::vector<PlanStats> sum(layer.num_lists());
  const std::int64_t every = index.num_query_chunks() == 1 ? 0 : layer.c.estimate_every;
  for (std::int32_t chunk = 0; chunk < index.num_query_chunks(); ++chunk) {
    CHECK(index.build(chunk) == Status::kOk, "%s: %s", what.c_str(), last_error());
    wait_for_device(what.c_str());
    const PlanCopy copy(index.plan(), layer.c.num_heads_q, layer.num_sequences(),
                        layer.row_bytes());
    for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
      const std::int64_t head = n % layer.c.num_heads_q,
                         group = layer.c.num_heads_q / layer.c.num_heads_kv;
      const PlannedRows rows = planned_rows(sequences, n / layer.c.num_heads_q, every, chunk);
      if (rows.num_rows() == 0) continue;
      const HeadView view(copy, rows, head);
      // One head, one sequence, the chunk's queries. tri_shape counts its last queries from the
      // end of the sequence.
      AttentionArgs args = for_cpu.host;
      args.first_valid_key = args.cu_seqlens_q = args.cu_seqlens_kv = nullptr;
      args.num_sequences = 0;
      const reference::Sequence& s = rows.sequence;
      args.q.data = for_cpu.q.at(s.batch, head, s.q_begin + rows.row_begin, 0);
      args.k.data = for_cpu.k.at(s.batch, head / group, s.kv_begin, 0);
      args.q.shape[0] = args.q.shape[1] = args.k.shape[0] = args.k.shape[1] = 1;
      args.q.shape[2] = rows.num_rows();
      args.k.shape[2] = rows.chunk_kv_len();
      HeadPattern pattern = layer.patterns[head];
      SparseAttentionParams params;
      params.mode = layer.c.mode;
      params.dense_fallback = 0;
      params.head_patterns = &pattern;
      List verticals, slashes;
      const auto view_of = [](List& list, std::int64_t limit) {
        // Lines past the chunk's keys meet none of its queries.
        while (!list.empty() && list.back() >= limit) list.pop_back();
        IndexView index;
        index.data = list.data();
        index.shape[0] = index.shape[1] = 1;
        index.shape[2] = static_cast<std::int64_t>(list.size());
        index.stride[2] = 1;
        return index;
      };
      if (pattern.kind == PatternKind::kTriShape) {
        pattern.size[2] = std::max<std::int64_t>(0, pattern.size[2] - (s.q_len - rows.row_end));
      } else if (pattern.kind == PatternKind::kVerticalSlash ||
                 pattern.kind == PatternKind::kVerticalSlashIndex) {
        verticals = view.verticals();
        slashes = view.slashes();
        params.vertical_idx = view_of(verticals, rows.chunk_kv_len());
        params.slash_idx = view_of(slashes, rows.chunk_kv_len());
        pattern.kind = view.plan().kind == PatternKind::kDense ? PatternKind::kDense
                                                               : PatternKind::kVerticalSlashIndex;
      } else if (pattern.kind == PatternKind::kBlockIndex) {
        params.block_idx = layer.host_params.block_idx;
        IndexView& blocks = params.block_idx;
        blocks.data += rows.index * blocks.stride[0] + head * blocks.stride[1] +
                       rows.row_begin / 64 * blocks.stride[2];
        blocks.shape[0] = blocks.shape[1] = 1;
        blocks.shape[2] -= rows.row_begin / 64;
      }
      // Block lists do not depend on the chunk: key blocks may hold keys past its last one.
      const bool has_blocks =
          pattern.kind == PatternKind::kBlockIndex || pattern.kind == PatternKind::kBlockSparse;
      if (has_blocks && rows.row_end < s.q_len) {
        pattern.kind = PatternKind::kDense;
        sum[n].plan_bytes = -1;  // not compared
      }
      const PlanStats own = host_stats(args, params, 1, what)[0];
      sum[n].is_dense = own.is_dense;
      sum[n].num_vertical = view.plan().num_vertical;
      sum[n].num_slash = view.plan().num_slash;
      sum[n].num_chunks = view.plan().num_chunks;
      sum[n].computed_pairs += own.computed_pairs;
      sum[n].attended_pairs += own.attended_pairs;
      sum[n].causal_pairs += own.causal_pairs;
      sum[n].estimation_bytes = view.plan().is_estimated;
    }
  }
  return sum;
}

void compare(const PlanStats& found, const PlanStats& expected, const std::string& what) {
  CHECK(found.is_dense == expected.is_dense, "%s: is_dense %d", what.c_str(), found.is_dense);
  CHECK(found.num_vertical == expected.num_vertical, "%s: num_vertical %d, expected %d",
        what.c_str(), found.num_vertical, expected.num_vertical);
  CHECK(found.num_slash == expected.num_slash, "%s: num_slash %d, expected %d", what.c_str(),
        found.num_slash, expected.num_slash);
  CHECK(found.num_chunks == expected.num_chunks, "%s: num_chunks %d, expected %d", what.c_str(),
        found.num_chunks, expected.num_chunks);
  CHECK(found.computed_pairs == expected.computed_pairs, "%s: computed_pairs %lld, expected %lld",
        what.c_str(), static_cast<long long>(found.computed_pairs),
        static_cast<long long>(expected.computed_pairs));
  CHECK(found.attended_pairs == expected.attended_pairs, "%s: attended_pairs %lld, expected %lld",
        what.c_str(), static_cast<long long>(found.attended_pairs),
        static_cast<long long>(expected.attended_pairs));
  CHECK(found.causal_pairs == expected.causal_pairs, "%s: causal_pairs %lld, expected %lld",
        what.c_str(), static_cast<long long>(found.causal_pairs),
        static_cast<long long>(expected.causal_pairs));
}

/// Whether the plan follows from the arguments alone, whatever fp32 makes of the scores.
bool is_determined(const Layer& layer, std::int64_t head, bool may_fall_back) {
  const HeadPattern& pattern = layer.patterns[head];
  switch (pattern.kind) {
    case PatternKind::kVerticalSlash:
      return !may_fall_back && std::min(pattern.size[0], pattern.size[1]) >= layer.c.seq_kv;
    case PatternKind::kBlockSparse:
      return false;
    default:
      return true;
  }
}

/// `from` times the scales of its heads, in float32.
void store_scaled(const TensorView& from, const float* scales, const HeapTensor& to) {
  for (std::int64_t b = 0; b < from.shape[0]; ++b) {
    for (std::int64_t h = 0; h < from.shape[1]; ++h) {
      for (std::int64_t r = 0; r < from.shape[2]; ++r) {
        const std::vector<double> row = reference::load_scaled_row(from, scales, b, h, r);
        for (std::size_t d = 0; d < row.size(); ++d) {
          store_element(to.at(b, h, r, d), DType::kFloat32, row[d]);
        }
      }
    }
  }
}

void test_case(const Case& c, DType dtype, bool may_fall_back) {
  const std::string what =
      std::string(c.reason) + ", " + dtype_name(dtype) + (may_fall_back ? ", may fall back" : "");
  Layer layer(c, dtype);
  // float8 is not for the CPU.
  const Layer for_cpu(c, layer.is_float8() ? DType::kFloat32 : dtype);
  if (layer.is_float8()) {
    store_scaled(layer.host.q, layer.host.q_scale, for_cpu.q);
    store_scaled(layer.host.k, layer.host.k_scale, for_cpu.k);
  }
  const std::vector<PlanStats> found = device_stats(layer, may_fall_back, what);
  SparseAttentionParams params = layer.host_params;
  params.dense_fallback = may_fall_back ? 1 : 0;
  const std::vector<PlanStats> by_cpu = host_stats(for_cpu.host, params, layer.num_lists(), what);
  const std::vector<PlanStats> expected = expected_stats(layer, for_cpu, may_fall_back, what);
  const std::vector<reference::Sequence> sequences = reference::sequences(layer.host);
  for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
    const std::int64_t head = n % c.num_heads_q;
    const std::string where = what + ", list " + std::to_string(n);
    if (is_determined(layer, head, may_fall_back)) compare(found[n], by_cpu[n], where + ", CPU");
    if (sequences[n / c.num_heads_q].q_len > 0 && expected[n].plan_bytes == 0) {
      compare(found[n], expected[n], where + ", own lines");
    }
    CHECK((found[n].estimation_bytes > 0) == (expected[n].estimation_bytes != 0),
          "%s: estimation_bytes %lld", where.c_str(),
          static_cast<long long>(found[n].estimation_bytes));
    CHECK(found[n].plan_bytes >= 0 && found[n].plan_bytes < (1 << 24), "%s: plan_bytes %lld",
          where.c_str(), static_cast<long long>(found[n].plan_bytes));
  }
}

}  // namespace
}  // namespace minference::test

int main(int argc, char** argv) {
  using namespace minference;
  std::vector<test::Case> cases(std::begin(test::kStatsCases), std::end(test::kStatsCases));
  cases.insert(cases.end(), std::begin(test::kCases), std::end(test::kCases));
  for (const test::Case& c : cases) {
    if (!test::is_chosen(c.reason, argc, argv)) continue;
    test::test_case(c, DType::kBFloat16, false);
    test::test_case(c, DType::kFloat16, true);
  }
  for (const test::Case& c : test::kStatsCases) {
    if (!test::is_chosen(c.reason, argc, argv) || !test::runs_in_float8(c)) continue;
    test::test_case(c, DType::kFloat8E4M3, false);
    test::test_case(c, DType::kFloat8E4M3, true);
  }
  return test::finish("plan_stats_cuda_test");
}
