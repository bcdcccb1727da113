// LayerIndex::build on CUDA. From the lines that the device holds the CPU's code makes a plan, and
// both must be equal bit for bit: chunks, cover, line sets, counts, pieces, the decision to go
// dense. Lines are the caller's lists, or those of the estimation (vs_index_cuda_test looks at
// them). Then the plan alone is expanded to the keys that every query attends, which must be those
// of the double oracle, each once; and gathered rows are compared with the rows of K and V.
// Last, lengths in device memory that make no sense: they must not lead out of any memory.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <initializer_list>
#include <string>
#include <vector>

#include "../check.h"
#include "cpu/plan.h"
#include "float8.h"
#include "layer.h"
#include "plan/cost.h"
#include "plan_copy.h"

namespace minference::test {
namespace {

using List = std::vector<std::int32_t>;

/// Lists of the device's own making are ranked by fp32 scores: means that are closer than this,
/// relative to the largest score, may be ranked either way.
constexpr double kTieTolerance = 1e-5;
constexpr std::int64_t kMaxMaskedPairs = 400000;  // of a head: the oracle takes its time

struct PlanCase {
  Case shape;
  std::int64_t slash_step = 0;  // offsets of explicit lists in steps of this, descending
};

const HeadPattern kWide = {PatternKind::kVerticalSlash, {300, 500}};

const PlanCase kPlanCases[] = {
    {.shape = {.reason = "isolated lines, descending",
               .seq_q = 1100,
               .seq_kv = 1300,
               .patterns = {kVsIndex},
               .num_vertical = 130,
               .num_slash = 13},
     .slash_step = 97},
    {.shape = {.reason = "lines whose columns touch",
               .num_heads_q = 4,
               .num_heads_kv = 4,
               .seq_q = 300,
               .seq_kv = 1000,
               .patterns = {kVsIndex},
               .num_vertical = 129,
               .num_slash = 15},
     .slash_step = 64},
    {.shape = {.reason = "lines with gaps of one column",
               .num_heads_q = 4,
               .num_heads_kv = 4,
               .seq_q = 300,
               .seq_kv = 1000,
               .patterns = {kVsIndex},
               .num_slash = 15},
     .slash_step = 65},
    {.shape = {.reason = "every offset a line",
               .num_heads_q = 2,
               .num_heads_kv = 1,
               .seq_q = 90,
               .seq_kv = 1025,
               .patterns = {kVsIndex},
               .num_vertical = 1500,
               .num_slash = 1025},
     .slash_step = 1},
    {.shape = {.reason = "a long sequence: more words of cover than a block takes at once",
               .num_heads_q = 4,
               .num_heads_kv = 2,
               .seq_q = 64,
               .seq_kv = 150000,
               .head_dim = 8,
               .patterns = {kVsIndex},
               .num_vertical = 1000,
               .num_slash = 2000},
     .slash_step = 73},
    {.shape = {.reason = "random lists of a long sequence",
               .num_heads_q = 4,
               .num_heads_kv = 2,
               .seq_q = 64,
               .seq_kv = 132000,
               .head_dim = 8,
               .patterns = {kVsIndex},
               .num_vertical = 1300,
               .num_slash = 6096}},
    {.shape = {.reason = "128K queries and keys",
               .num_heads_q = 4,
               .num_heads_kv = 1,
               .seq_q = 131072,
               .seq_kv = 131072,
               .head_dim = 8,
               .patterns = {{PatternKind::kVerticalSlash, {1000, 6096}},
                            kVsIndex,
                            {PatternKind::kVerticalSlash, {30, 100}},
                            {PatternKind::kTriShape, {4, 1000, 100}}},
               .num_vertical = 1000,
               .num_slash = 3000}},
    {.shape = {.reason = "every pattern, packed, estimated per chunk",
               .seq_q = 420,
               .seq_kv = 700,
               .estimate_every = 128,
               .cu_seqlens_q = {0, 200, 200, 265, 420},
               .cu_seqlens_kv = {0, 200, 260, 330, 700}}},
    {.shape = {.reason = "every pattern, batch, estimated per chunk, mode exact",
               .batch = 2,
               .seq_q = 330,
               .seq_kv = 365,
               .mode = SlashMode::kExact,
               .estimate_every = 64}},
    {.shape = {.reason = "estimated, longer than a strip",
               .batch = 2,
               .num_heads_q = 4,
               .num_heads_kv = 2,
               .seq_q = 600,
               .seq_kv = 1100,
               .head_dim = 64,
               .patterns = {kWide, kVs, kVsIndex, {PatternKind::kVerticalSlash, {0, 0}}}}},
    {.shape = {.reason = "estimated per chunk, longer than a strip",
               .num_heads_q = 2,
               .num_heads_kv = 1,
               .seq_q = 1100,
               .seq_kv = 1100,
               .patterns = {kWide, kVs},
               .estimate_every = 512}},
    {.shape = {.reason =
                   "block lists of a long sequence: more key blocks than a warp ranks at once",
               .num_heads_q = 2,
               .num_heads_kv = 1,
               .seq_q = 130,
               .seq_kv = 9000,
               .head_dim = 32,
               .patterns = {{PatternKind::kBlockSparse, {30}},
                            {PatternKind::kBlockSparse, {200}}}}},
    {.shape = {.reason = "no lists at all",
               .num_heads_q = 3,
               .num_heads_kv = 1,
               .seq_q = 70,
               .seq_kv = 70,
               .patterns = {kDense, kAShape, kTriShape}}},
};

struct Run {
  bool may_fall_back;
  bool needs_values;
};

std::int64_t chunk_rows(const Layer& layer) {
  const bool estimates = std::any_of(layer.patterns.begin(), layer.patterns.end(),
                                     [](auto& p) { return p.kind == PatternKind::kVerticalSlash; });
  const std::int64_t every = layer.c.estimate_every;
  return estimates && every > 0 && every < layer.c.seq_q ? every : 0;
}

bool has_line_kind(PatternKind kind) {
  return kind == PatternKind::kVerticalSlash || kind == PatternKind::kVerticalSlashIndex;
}

/// The CPU's plan of the same lines.
struct CpuPlan {
  CpuPlan(List vertical_lines, List slash_lines, std::int64_t kv_len)
      : verticals(std::move(vertical_lines)),
        slashes(std::move(slash_lines)),
        chunks(plan::max_plan_chunks(slashes.size(), kv_len) + 1),
        covered(cpu::BitSet::num_words(kv_len + 65)),
        offsets(cpu::BitSet::num_words(kv_len + 128)),
        is_vertical(cpu::BitSet::num_words(kv_len)) {
    plan.mode = SlashMode::kExact;  // makes every bit set
    plan.verticals = verticals.data();
    plan.slashes = slashes.data();
    plan.chunks = chunks.data();
    plan.covered.words = covered.data();
    plan.offsets.words = offsets.data();
    plan.is_vertical.words = is_vertical.data();
    plan.num_vertical = static_cast<std::int32_t>(verticals.size());
    plan.num_slash = static_cast<std::int32_t>(slashes.size());
    cpu::build_vs_plan(kv_len, &plan);
  }

  cpu::HeadPlan plan{};
  List verticals, slashes;
  std::vector<plan::PlanChunk> chunks;
  std::vector<std::uint64_t> covered, offsets, is_vertical;
};

bool is_ascending(const List& list, std::int64_t limit) {
  for (std::size_t n = 0; n < list.size(); ++n) {
    if (list[n] < 0 || list[n] >= limit || (n > 0 && list[n] <= list[n - 1])) return false;
  }
  return true;
}

/// Counts, chunks, bit sets and the decision against the CPU's code.
void check_lines(const Layer& layer, const HeadView& view, const PlannedRows& rows,
                 std::int64_t head, bool may_fall_back, const std::string& what) {
  const cuda::HeadPlan& found = view.plan();
  const HeadPattern& pattern = layer.patterns[head];
  const std::int64_t kv_len = rows.sequence.kv_len, q_len = rows.num_rows();
  const std::int64_t chunk_kv_len = rows.chunk_kv_len();
  HeadPattern clamped = pattern;
  for (std::int64_t& size : clamped.size) size = std::min(size, kv_len);
  may_fall_back = may_fall_back && layer.c.mode == SlashMode::kCover;
  const bool estimates = pattern.kind == PatternKind::kVerticalSlash && q_len > 0 &&
                         !(may_fall_back && plan::predict(clamped, q_len, chunk_kv_len).is_dense());
  const bool has_lines =
      estimates || (pattern.kind == PatternKind::kVerticalSlashIndex && q_len > 0);
  CHECK(found.is_estimated == estimates, "%s: is_estimated is %d", what.c_str(),
        found.is_estimated);
  if (!has_lines) {
    CHECK(found.num_vertical == 0 && found.num_slash == 0 && found.num_chunks == 0,
          "%s: %d, %d lines, %d chunks without lines", what.c_str(), found.num_vertical,
          found.num_slash, found.num_chunks);
    const bool may_be_dense = pattern.kind == PatternKind::kVerticalSlash;
    CHECK(found.kind == pattern.kind || (may_be_dense && found.kind == PatternKind::kDense),
          "%s: kind %d", what.c_str(), int(found.kind));
    CHECK(q_len == 0 || !may_be_dense || found.kind == PatternKind::kDense,
          "%s: neither lines nor dense", what.c_str());
    return;
  }
  const List verticals = view.verticals(), slashes = view.slashes();
  if (!estimates) {
    const auto listed = [&](const IndexView& index) {
      return reference::read_list(index, rows.index, head);
    };
    CHECK(verticals == listed(layer.host_params.vertical_idx), "%s: V is not the list",
          what.c_str());
    CHECK(slashes == listed(layer.host_params.slash_idx), "%s: S is not the list", what.c_str());
  } else {
    const auto wanted = [&](std::int64_t size, std::int64_t least) {
      return static_cast<std::size_t>(std::min(chunk_kv_len, std::max(size, least)));
    };
    CHECK(verticals.size() == wanted(pattern.size[0], 30), "%s: %zu verticals", what.c_str(),
          verticals.size());
    CHECK(slashes.size() == wanted(pattern.size[1], 50), "%s: %zu offsets", what.c_str(),
          slashes.size());
  }
  const bool is_sorted = is_ascending(verticals, kv_len) && is_ascending(slashes, kv_len);
  CHECK(is_sorted, "%s: lists are not ascending in range", what.c_str());
  if (!is_sorted) return;

  CpuPlan expected(verticals, slashes, kv_len);
  const std::int64_t pieces = cpu::vs_pieces(expected.plan, q_len, chunk_kv_len);
  const bool is_dense =
      estimates && may_fall_back && plan::plan_costs_dense(pieces, q_len, chunk_kv_len);
  CHECK(found.kind == (is_dense ? PatternKind::kDense : pattern.kind), "%s: kind %d", what.c_str(),
        int(found.kind));
  CHECK(found.pieces == pieces, "%s: %lld pieces, expected %lld", what.c_str(),
        static_cast<long long>(found.pieces), static_cast<long long>(pieces));
  CHECK(found.num_chunks == expected.plan.num_chunks, "%s: %d chunks, expected %d", what.c_str(),
        found.num_chunks, expected.plan.num_chunks);
  if (found.num_chunks != expected.plan.num_chunks) return;
  const std::vector<plan::PlanChunk> chunks = view.chunks();
  for (std::int32_t n = 0; n < found.num_chunks; ++n) {
    const bool is_equal =
        chunks[n].rel == expected.chunks[n].rel && chunks[n].valid == expected.chunks[n].valid;
    CHECK(is_equal, "%s: chunk %d is {%d, %x}, expected {%d, %x}", what.c_str(), n, chunks[n].rel,
          chunks[n].valid, expected.chunks[n].rel, expected.chunks[n].valid);
    if (!is_equal) break;
  }
  // Up to the last bit that the memory holds: kv_len + 129 of them.
  std::int64_t bad_cover = -1, bad_offset = -1, bad_vertical = -1;
  for (std::int64_t bit = 0; bit < kv_len + 129; ++bit) {
    const bool covers = bit < kv_len + 65 && expected.plan.covered.test(bit);
    const bool is_offset = bit < kv_len && expected.plan.offsets.test(64 + bit);
    const bool is_vertical = bit < kv_len && expected.plan.is_vertical.test(bit);
    if (test_bit(view.covered(), bit) != covers) bad_cover = bit;
    if (test_bit(view.slash_bits(), bit) != is_offset) bad_offset = bit;
    if (test_bit(view.vertical_bits(), bit) != is_vertical) bad_vertical = bit;
  }
  CHECK(bad_cover < 0, "%s: bit %d of the cover", what.c_str(), int(bad_cover));
  CHECK(bad_offset < 0, "%s: bit %d of the offsets", what.c_str(), int(bad_offset));
  CHECK(bad_vertical < 0, "%s: bit %d of the verticals", what.c_str(), int(bad_vertical));
}

/// K[v] and V[v] of every vertical, then zeros up to a multiple of 128 rows.
void check_gathered(const Layer& layer, const PlanCopy& copy, const HeadView& view,
                    const PlannedRows& rows, std::int64_t head, const std::string& what) {
  if (!has_line_kind(view.plan().kind) || rows.num_rows() == 0) return;
  const std::int64_t head_kv = head / (layer.c.num_heads_q / layer.c.num_heads_kv);
  const List verticals = view.verticals();
  const std::int64_t count = verticals.size();
  const std::vector<unsigned char> zeros(copy.row_bytes, 0);
  for (std::int64_t n = 0; n < (count + 127) / 128 * 128; ++n) {
    const void* k = zeros.data();
    const void* v = zeros.data();
    if (n < count) {
      const std::int64_t key = rows.sequence.kv_begin + verticals[n];
      k = layer.k.at(rows.sequence.batch, head_kv, key, 0);
      v = layer.v.at(rows.sequence.batch, head_kv, key, 0);
    }
    const bool is_equal = std::memcmp(view.gathered(copy.gathered_k, n), k, copy.row_bytes) == 0 &&
                          std::memcmp(view.gathered(copy.gathered_v, n), v, copy.row_bytes) == 0;
    CHECK(is_equal, "%s: gathered row %d of %d", what.c_str(), int(n), int(count));
    if (!is_equal) break;
  }
}

/// Listed key blocks that hold a key of the row block, ascending, once.
void check_listed_tiles(const Layer& layer, const HeadView& view, const PlannedRows& rows,
                        std::int64_t head, const std::string& what) {
  if (layer.patterns[head].kind != PatternKind::kBlockIndex) return;
  for (std::int64_t row = rows.row_begin; row < rows.row_end; row += 64) {
    List expected = reference::read_list(layer.host_params.block_idx, rows.index, head, row / 64);
    const std::int64_t key_end = std::min(row + 64 + rows.shift(), rows.sequence.kv_len);
    while (!expected.empty() && std::int64_t{expected.back()} * 64 >= key_end) expected.pop_back();
    CHECK(view.tiles(row / 64) == expected, "%s: tiles of row block %d", what.c_str(),
          int(row / 64));
  }
}

/// What the plan lets every query attend, against the oracle. Estimated lines are given to the
/// oracle as a list.
void check_mask(const Layer& layer, const HeadView& view, const PlannedRows& rows,
                std::int64_t head, const std::string& what) {
  const std::int64_t kv_len = rows.sequence.kv_len;
  if (rows.num_rows() == 0 || rows.sequence.q_len * kv_len > kMaxMaskedPairs) return;
  Patterns patterns = layer.patterns;
  SparseAttentionParams params = layer.host_params;
  params.head_patterns = patterns.data();
  List verticals, slashes;
  if (view.plan().kind == PatternKind::kDense) {
    patterns[head] = kDense;
  } else if (patterns[head].kind == PatternKind::kVerticalSlash) {
    patterns[head] = kVsIndex;
    verticals = view.verticals();
    slashes = view.slashes();
    const auto list_view = [](const List& list) {  // of every sequence and head
      IndexView index;
      index.data = list.data();
      index.shape[2] = static_cast<std::int64_t>(list.size());
      index.stride[2] = 1;
      return index;
    };
    params.vertical_idx = list_view(verticals);
    params.slash_idx = list_view(slashes);
  }
  double margin = 1;
  const std::vector<std::uint8_t> expected =
      reference::mask(layer.host, params, rows.index, head, &margin);
  if (margin < kTieTolerance) return;
  for (std::int64_t begin = rows.row_begin; begin < rows.row_end; begin += 64) {
    const std::vector<std::uint8_t> found = view.attended(begin, layer.c.mode);
    const std::int64_t count = std::min<std::int64_t>(64, rows.row_end - begin) * kv_len;
    const auto* const first = expected.data() + begin * kv_len;
    const std::int64_t bad = std::mismatch(first, first + count, found.begin()).first - first;
    CHECK(bad == count, "%s: query %d attends key %d %d times", what.c_str(),
          int(begin + bad / kv_len), int(bad % kv_len), bad < count ? int(found[bad]) : 0);
  }
}

/// The lines of an estimated chunk are those of a call of its own, with the keys up to its last
/// query. For batches without padding.
void check_own_call(const Layer& layer, const PlanCopy& copy, std::int64_t every,
                    std::int64_t chunk, const Run& run, const std::string& what) {
  if (every == 0 || layer.host.cu_seqlens_q || layer.host.first_valid_key) return;
  const std::int64_t begin = chunk * every, end = std::min(layer.c.seq_q, begin + every);
  const std::int64_t keys = layer.c.seq_kv - (layer.c.seq_q - end);
  plan::Problem problem = layer.device_problem(run.may_fall_back, false);
  problem.args.q.data =
      static_cast<char*>(problem.args.q.data) +
      begin * layer.q.view.stride[2] * static_cast<std::int64_t>(element_bytes(layer.host.q.dtype));
  problem.args.q.shape[2] = end - begin;
  problem.args.k.shape[2] = problem.args.v.shape[2] = keys;
  problem.estimate_every = 0;
  Patterns patterns = layer.patterns;  // only what is estimated: lists are for the whole sequence
  for (HeadPattern& pattern : patterns) {
    if (pattern.kind != PatternKind::kVerticalSlash) pattern = kDense;
  }
  problem.patterns.each = patterns.data();
  const std::size_t bytes = cuda::LayerIndex(problem, nullptr).workspace_bytes();
  const DeviceBytes workspace = device_workspace(bytes);
  cuda::LayerIndex index(problem, workspace.data());
  CHECK(index.build(0) == Status::kOk, "%s: own call: %s", what.c_str(), last_error());
  wait_for_device(what.c_str());
  const PlanCopy own(index.plan(), layer.c.num_heads_q, layer.num_sequences(), layer.row_bytes());
  const std::vector<reference::Sequence> sequences = reference::sequences(layer.host);
  for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
    const std::int64_t head = n % layer.c.num_heads_q, sequence = n / layer.c.num_heads_q;
    if (patterns[head].kind != PatternKind::kVerticalSlash) continue;
    reference::Sequence shorter = sequences[sequence];
    shorter.q_begin = begin;
    shorter.q_len = end - begin;
    shorter.kv_len = keys;
    const HeadView a(copy, planned_rows(sequences, sequence, every, chunk), head);
    const HeadView b(own, {shorter, sequence, 0, end - begin}, head);
    CHECK(a.verticals() == b.verticals() && a.slashes() == b.slashes() &&
              a.plan().pieces == b.plan().pieces && a.plan().kind == b.plan().kind,
          "%s, sequence %d, head %d: a call of its own gives another plan", what.c_str(),
          int(sequence), int(head));
  }
}

void test_run(const Layer& layer, const Run& run, const std::string& what) {
  const plan::Problem problem = layer.device_problem(run.may_fall_back, run.needs_values);
  const std::size_t bytes = cuda::LayerIndex(problem, nullptr).workspace_bytes();
  const DeviceBytes workspace = device_workspace(bytes);
  cuda::LayerIndex index(problem, workspace.data());
  const std::vector<reference::Sequence> sequences = reference::sequences(layer.host);
  const std::int64_t every = chunk_rows(layer);
  const std::int64_t num_chunks = every == 0 ? 1 : (layer.c.seq_q + every - 1) / every;
  CHECK(index.num_query_chunks() == num_chunks, "%s: %d chunks of queries", what.c_str(),
        index.num_query_chunks());
  for (std::int32_t chunk = 0; chunk < num_chunks; ++chunk) {
    const Status status = index.build(chunk);
    CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
    if (status != Status::kOk) return;
    wait_for_device(what.c_str());
    const PlanCopy copy(index.plan(), layer.c.num_heads_q, layer.num_sequences(),
                        layer.row_bytes());
    CHECK(run.needs_values || index.plan().gathered_k == nullptr, "%s: values gathered",
          what.c_str());
    for (std::int64_t n = 0; n < layer.num_lists(); ++n) {
      const std::int64_t head = n % layer.c.num_heads_q;
      const PlannedRows rows = planned_rows(sequences, n / layer.c.num_heads_q, every, chunk);
      const HeadView view(copy, rows, head);
      const std::string where =
          what + ", chunk " + std::to_string(chunk) + ", list " + std::to_string(n);
      check_lines(layer, view, rows, head, run.may_fall_back, where);
      check_listed_tiles(layer, view, rows, head, where);
      check_mask(layer, view, rows, head, where);
      if (run.needs_values) check_gathered(layer, copy, view, rows, head, where);
    }
    check_own_call(layer, copy, every, chunk, run, what + ", chunk " + std::to_string(chunk));
  }
  CHECK(workspace.has_guards(), "%s: memory around the workspace was written", what.c_str());
}

void test_case(const PlanCase& c, DType dtype, const Run& run) {
  const std::string what = std::string(c.shape.reason) + ", " + dtype_name(dtype) +
                           (run.may_fall_back ? ", may fall back" : "");
  Layer layer(c.shape, dtype);
  if (c.slash_step > 0) {
    const std::int64_t count = c.shape.num_slash;
    for (std::size_t n = 0; n < layer.slash_idx.count(); ++n) {
      layer.slash_idx.data()[n] = static_cast<std::int32_t>(
          (count - 1 - static_cast<std::int64_t>(n) % count) * c.slash_step % c.shape.seq_kv);
    }
    layer.update_device();
  }
  test_run(layer, run, what);
}

/// Packed sequences that are valid where the host looks, and what device memory holds instead.
struct SenselessLengths {
  const char* what;
  Sizes cu_seqlens_q, cu_seqlens_kv, bad_q, bad_kv;
};

const SenselessLengths kSenselessLengths[] = {
    {"queries begin far above 0", {0, 600, 1280}, {0, 900, 2000}, {640, 650, 1280}, {0, 900, 2000}},
    {"keys begin far above 0", {0, 600, 1280}, {0, 900, 2000}, {0, 600, 1280}, {320, 1500, 2000}},
    {"queries and keys begin far above 0",
     {0, 600, 1280},
     {0, 900, 2000},
     {640, 650, 1280},
     {640, 700, 2000}},
    {"the last row is the first", {0, 1280}, {0, 2000}, {1279, 1280}, {1999, 2000}},
    {"overlapping keys",
     {0, 200, 400, 1280},
     {0, 300, 600, 2000},
     {0, 200, 400, 1280},
     {0, 2000, 600, 2000}},
    {"overlapping queries",
     {0, 200, 400, 1280},
     {0, 300, 600, 2000},
     {0, 1280, 200, 1280},
     {0, 2000, 500, 2000}},
    {"every sequence is everything",
     {0, 300, 600, 900, 1280},
     {0, 500, 1000, 1500, 2000},
     {0, 1280, 0, 1280, 0},
     {0, 2000, 0, 2000, 0}},
};

/// Lengths whose rows would not fit where a plan lies, if it were laid out by them: for every
/// pattern that has lists, alone, so that nothing lies behind its arrays but the end of memory.
void test_senseless_rows(const SenselessLengths& lengths, const HeadPattern& pattern,
                         std::int64_t estimate_every) {
  Case shape = {.reason = "senseless lengths",
                .num_heads_q = 4,
                .num_heads_kv = 2,
                .seq_q = 1280,
                .seq_kv = 2000};
  shape.patterns = {pattern};
  shape.estimate_every = estimate_every;
  shape.num_vertical = 2000;
  shape.num_slash = 300;
  shape.num_blocks = 40;
  shape.cu_seqlens_q = lengths.cu_seqlens_q;
  shape.cu_seqlens_kv = lengths.cu_seqlens_kv;
  const std::string what = std::string(lengths.what) + ", pattern " +
                           std::to_string(static_cast<int>(pattern.kind)) + ", every " +
                           std::to_string(estimate_every);
  const Layer layer(shape, DType::kBFloat16);
  layer.device_cu_q.write(lengths.bad_q.data());
  layer.device_cu_kv.write(lengths.bad_kv.data());
  // Lists as long as the memory for them: every key, whatever the length.
  std::vector<std::int32_t> all(layer.device_vertical.size() / sizeof(std::int32_t));
  const std::int64_t count = layer.device_params.vertical_idx.shape[2];
  for (std::size_t n = 0; n < all.size(); ++n) all[n] = static_cast<std::int32_t>(n % count);
  layer.device_vertical.write(all.data());

  const auto check_inputs = [&](const char* call) {
    wait_for_device((what + ", " + call).c_str());
    const auto is_kept = [](const DeviceBytes& memory, const HeapBytes& bytes) {
      const std::vector<unsigned char> found = memory.read();
      return std::equal(found.begin(), found.end(), bytes.data());
    };
    CHECK(is_kept(layer.device_q, layer.q.bytes) && is_kept(layer.device_k, layer.k.bytes) &&
              layer.device_cu_q.read<std::int32_t>() == lengths.bad_q &&
              layer.device_cu_kv.read<std::int32_t>() == lengths.bad_kv &&
              layer.device_vertical.read<std::int32_t>() == all,
          "%s: %s wrote what it reads", what.c_str(), call);
  };
  const auto check_guards = [&](std::initializer_list<const DeviceBytes*> buffers) {
    for (const DeviceBytes* memory : buffers) {
      CHECK(memory->has_guards(), "%s: memory around a buffer was written", what.c_str());
    }
  };
  std::size_t bytes = 0;
  if (pattern.kind == PatternKind::kVerticalSlash) {
    const std::vector<std::int64_t> sizes(layer.patterns.size(), 500);
    const DeviceBytes vertical(layer.num_lists() * shape.seq_kv * sizeof(std::int32_t));
    const DeviceBytes slash(vertical.size());
    VsIndexParams params;
    params.vertical_size = params.slash_size = sizes.data();
    params.vertical_idx = vertical.as<std::int32_t>();
    params.slash_idx = slash.as<std::int32_t>();
    params.vertical_count = params.slash_count = shape.seq_kv;
    CHECK(estimate_vs_index_workspace_bytes(layer.device, params, &bytes) == Status::kOk, "%s",
          last_error());
    const DeviceBytes memory = device_workspace(bytes);
    const Status status = estimate_vs_index(layer.device, params, memory.data(), bytes);
    CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
    check_inputs("estimate_vs_index");
    check_guards({&vertical, &slash, &memory});
    for (const DeviceBytes* output : {&vertical, &slash}) {
      const List lines = output->read<std::int32_t>();
      CHECK(std::all_of(lines.begin(), lines.end(),
                        [&](std::int32_t line) { return line >= -1 && line < shape.seq_kv; }),
            "%s: lines out of range", what.c_str());
    }
  }
  CHECK(plan_stats_workspace_bytes(layer.device, layer.device_params, &bytes) == Status::kOk, "%s",
        last_error());
  const DeviceBytes memory = device_workspace(bytes);
  const DeviceBytes stats(layer.num_lists() * sizeof(PlanStats));
  const Status status =
      plan_stats(layer.device, layer.device_params, stats.as<PlanStats>(), memory.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  check_inputs("plan_stats");
  check_guards({&stats, &memory});
  const plan::Problem problem = layer.device_problem(false, true);
  const DeviceBytes workspace =
      device_workspace(cuda::LayerIndex(problem, nullptr).workspace_bytes());
  cuda::LayerIndex index(problem, workspace.data());
  for (std::int32_t chunk = 0; chunk < index.num_query_chunks(); ++chunk) {
    CHECK(index.build(chunk) == Status::kOk, "%s: %s", what.c_str(), last_error());
    check_inputs("LayerIndex::build");
    check_guards({&workspace});
  }
}

void test_senseless_layouts() {
  for (const SenselessLengths& lengths : kSenselessLengths) {
    for (const HeadPattern& pattern :
         {kBlockIndex, HeadPattern{PatternKind::kBlockSparse, {7}}, kVsIndex, kVs}) {
      test_senseless_rows(lengths, pattern, 0);
    }
    test_senseless_rows(lengths, kVs, 512);
  }
}

}  // namespace
}  // namespace minference::test

int main(int argc, char** argv) {
  using namespace minference;
  std::vector<test::PlanCase> cases(std::begin(test::kPlanCases), std::end(test::kPlanCases));
  for (const test::Case& c : test::kCases) {
    if (c.mode != SlashMode::kReference) cases.push_back({.shape = c});  // has CPU kernels only
  }
  for (const test::PlanCase& c : cases) {
    if (!test::is_chosen(c.shape.reason, argc, argv)) continue;
    for (DType dtype : {DType::kBFloat16, DType::kFloat16}) {
      test::test_case(c, dtype, {.may_fall_back = false, .needs_values = true});
      test::test_case(c, dtype, {.may_fall_back = true, .needs_values = false});
    }
    // Of another type the estimation and gathered rows alone are others.
    if (test::runs_in_float8(c.shape)) {
      test::test_case(c, DType::kFloat8E4M3, {.may_fall_back = false, .needs_values = true});
    }
  }
  if (test::is_chosen("senseless lengths", argc, argv)) test::test_senseless_layouts();
  return test::finish("plan_cuda_test");
}
