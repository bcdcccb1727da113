// What an engine may rely on besides numbers and refusals: clients built against an older or newer
// header work, the caller's threads are used, nothing is allocated, and calls on several threads do
// not disturb each other.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "heap_tensor.h"
#include "minference/minference.h"
#include "op_fixture.h"

namespace {

std::atomic<bool> counts_allocations{false};
std::atomic<int> num_allocations{0};

}  // namespace

// The library's operator new is this one too: there is one dynamic symbol per program.
// Not inlined: the compiler would see malloc paired with delete and warn.
[[gnu::noinline]] void* operator new(std::size_t size) {
  if (counts_allocations) ++num_allocations;
  if (void* memory = std::malloc(size ? size : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  if (counts_allocations) ++num_allocations;
  return std::malloc(size ? size : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace minference::test {
namespace {

/// Everything an op writes.
std::string outputs(const Fixture& f) {
  std::string bytes;
  for (const HeapBytes* part : {&f.out.bytes, &f.lse, &f.estimated_vertical.bytes,
                                &f.estimated_slash.bytes, &f.stats_bytes}) {
    bytes.append(reinterpret_cast<const char*>(part->data()), part->size());
  }
  return bytes;
}

/// Runs `op` and returns what it wrote.
std::string run(const Op& op, const Fixture& f, const std::string& what) {
  std::size_t bytes = 0;
  Status status = op.workspace_bytes(f, &bytes);
  CHECK(status == Status::kOk, "%s, %s: workspace_bytes: %s", op.name, what.c_str(), last_error());
  const HeapBytes workspace(bytes, 1);
  status = op.run(f, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s, %s: %s", op.name, what.c_str(), last_error());
  CHECK(!f.is_untouched(), "%s, %s: nothing was written", op.name, what.c_str());
  return outputs(f);
}

void test_texts() {
  CHECK(std::string(status_string(Status::kInvalidArgument)) == "invalid argument", "%s",
        status_string(Status::kInvalidArgument));
  std::vector<std::string> texts;
  for (int status = 0; status >= -5; --status) {
    const char* text = status_string(static_cast<Status>(status));
    CHECK(text && *text, "status %d has no text", status);
    for (const std::string& other : texts) CHECK(other != text, "%s names two statuses", text);
    texts.push_back(text);
  }
  CHECK(status_string(static_cast<Status>(-99)), "an unknown status has no text");
  CHECK(last_error(), "last_error() is null");
  int major = -1, minor = -1, patch = -1, length = 0;
  std::sscanf(version(), "%d.%d.%d%n", &major, &minor, &patch, &length);
  CHECK(patch >= 0 && version()[length] == 0, "version() is %s", version());
}

/// Members that an older header did not have are not read, whatever lies there.
void test_older_clients() {
  Fixture plain;
  plain.args.lse = nullptr;
  plain.args.num_threads = 0;
  const std::string expected = run(kSparse, plain, "all members");
  const std::size_t sizes[] = {
      offsetof(AttentionArgs, lse),           offsetof(AttentionArgs, first_valid_key),
      offsetof(AttentionArgs, softmax_scale), offsetof(AttentionArgs, num_threads),
      offsetof(AttentionArgs, parallel_for),  offsetof(AttentionArgs, reserved_multiprocessors),
      offsetof(AttentionArgs, q_scale)};
  for (std::size_t size : sizes) {
    Fixture older;
    older.args.lse = nullptr;
    older.args.num_threads = 0;
    std::memset(reinterpret_cast<unsigned char*>(&older.args) + size, 0xAB,
                sizeof(AttentionArgs) - size);
    older.args.struct_size = static_cast<std::uint32_t>(size);
    const std::string what = "AttentionArgs of " + std::to_string(size) + " bytes";
    CHECK(run(kSparse, older, what) == expected, "%s: other results", what.c_str());
  }
  {
    Fixture older;
    older.args.lse = nullptr;
    older.args.num_threads = 0;
    older.sparse.struct_size = offsetof(SparseAttentionParams, estimate_every);
    older.sparse.estimate_every = 33;
    older.sparse.dense_fallback = -7;
    CHECK(run(kSparse, older, "older SparseAttentionParams") == expected, "other results");
  }
  {
    const Fixture full;
    Fixture older;
    older.vs.struct_size = offsetof(VsAttentionParams, estimate_every);
    older.vs.estimate_every = 33;
    older.vs.dense_fallback = -7;
    CHECK(run(kVs, older, "older VsAttentionParams") == run(kVs, full, "VsAttentionParams"),
          "other results");
  }
  {
    const Fixture full;
    Fixture older;
    older.vs_index.struct_size = offsetof(VsIndexParams, column_scores);
    older.vs_index.column_scores = older.vs_index.slash_scores = reinterpret_cast<float*>(8);
    CHECK(run(kVsIndex, older, "older VsIndexParams") == run(kVsIndex, full, "VsIndexParams"),
          "other results");
  }
}

/// A client with a newer header leaves members that this library does not know at 0.
void test_newer_clients() {
  struct NewerArgs {
    AttentionArgs args;
    std::int64_t unknown[3] = {0, 0, 0};
  };
  const Fixture f;
  const std::string expected = run(kDense, f, "this header");
  const Fixture again;
  NewerArgs newer = {.args = again.args};
  newer.args.struct_size = sizeof(NewerArgs);
  std::size_t bytes = 0;
  Status status = dense_attention_workspace_bytes(newer.args, &bytes);
  CHECK(status == Status::kOk, "newer header: workspace_bytes: %s", last_error());
  const HeapBytes workspace(bytes);
  status = dense_attention(newer.args, workspace.data(), bytes);
  CHECK(status == Status::kOk, "newer header: %s", last_error());
  CHECK(outputs(again) == expected, "newer header: other results");
}

/// Runs every worker on the calling thread, the last one first.
struct SerialThreads {
  std::int64_t num_calls = 0, num_workers = 0, most_workers = 0;

  static void run(void* context, std::int64_t num_workers, void (*body)(void*, std::int64_t),
                  void* argument) {
    auto* self = static_cast<SerialThreads*>(context);
    ++self->num_calls;
    self->num_workers += num_workers;
    self->most_workers = std::max(self->most_workers, num_workers);
    while (num_workers-- > 0) body(argument, num_workers);
  }
};

/// One std::thread per worker.
void run_threads(void*, std::int64_t num_workers, void (*body)(void*, std::int64_t),
                 void* argument) {
  std::vector<std::thread> threads;
  for (std::int64_t n = 0; n < num_workers; ++n) threads.emplace_back(body, argument, n);
  for (std::thread& thread : threads) thread.join();
}

void test_parallel_for() {
  for (const Op* op : kOps) {
    const Fixture own;
    const std::string expected = run(*op, own, "own threads");
    Fixture lent;
    SerialThreads serial;
    lent.args.num_threads = 3;
    lent.args.parallel_for = {SerialThreads::run, &serial};
    CHECK(run(*op, lent, "serial threads") == expected, "%s: other bits on serial threads",
          op->name);
    CHECK(serial.num_calls > 0 && serial.num_workers > 0, "%s: the caller's threads are idle",
          op->name);
    CHECK(serial.most_workers <= 3, "%s: %d workers, not 3", op->name, int(serial.most_workers));
    Fixture threaded;
    threaded.args.num_threads = 3;
    threaded.args.parallel_for = {run_threads, nullptr};
    CHECK(run(*op, threaded, "real threads") == expected, "%s: other bits on real threads",
          op->name);
  }
}

void test_no_allocation() {
  for (const Op* op : kOps) {
    Fixture f;
    SerialThreads serial;
    f.args.parallel_for = {SerialThreads::run, &serial};
    std::size_t bytes = 0;
    Status status = op->workspace_bytes(f, &bytes);
    const HeapBytes workspace(bytes);
    num_allocations = 0;
    counts_allocations = true;
    status = op->run(f, workspace.data(), bytes);
    counts_allocations = false;
    CHECK(status == Status::kOk, "%s: %s", op->name, last_error());
    CHECK(num_allocations == 0, "%s allocates %d times", op->name, num_allocations.load());
  }
}

/// Each thread has its own sentence.
void test_last_error() {
  Prediction prediction;
  const HeadPattern pattern;
  CHECK(predict(pattern, -7, 64, &prediction) == Status::kInvalidArgument, "no error");
  const std::string mine = last_error();
  std::string before, theirs;
  std::thread([&] {
    before = last_error();
    CHECK(predict(pattern, 99, 64, &prediction) == Status::kInvalidArgument, "no error");
    theirs = last_error();
  }).join();
  CHECK(before.empty(), "a new thread has a sentence: %s", before.c_str());
  CHECK(!theirs.empty() && theirs != mine, "not a sentence of its own: %s", theirs.c_str());
  CHECK(mine == last_error(), "another thread changed the sentence to: %s", last_error());
}

/// Two engines in one process, each on its own thread, over one library.
void test_concurrent_calls() {
  for (const Op* op : {&kSparse, &kVsIndex}) {
    const Fixture alone;
    const std::string expected = run(*op, alone, "alone");
    const auto repeat = [&] {
      for (int n = 0; n < 10; ++n) {
        const Fixture f;
        CHECK(run(*op, f, "concurrent") == expected, "%s: other bits beside another call",
              op->name);
        Fixture bad;
        bad.args.q.stride[3] = 2;
        CHECK(op->supports(bad) == Status::kInvalidArgument, "%s: no error", op->name);
      }
    };
    std::thread first(repeat), second(repeat);
    first.join();
    second.join();
  }
}

}  // namespace
}  // namespace minference::test

int main() {
  using namespace minference;
  unsetenv("MINFERENCE_CPU_KERNEL");
  test::test_texts();
  test::test_older_clients();
  test::test_newer_clients();
  test::test_parallel_for();
  test::test_no_allocation();
  test::test_last_error();
  test::test_concurrent_calls();
  return test::finish("abi_test");
}
