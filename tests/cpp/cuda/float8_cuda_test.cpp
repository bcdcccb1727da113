// Attention of float8 on CUDA, beside the cases that attention_cuda_test runs in every dtype: head
// dimensions that are padded, lengths of several stages and tasks, and numbers that show what is
// rounded where: equal scores, one dominant key, the largest and the smallest values, large scales.
// Then scales that are null, out where copies cannot follow, and arguments that have to be refused.
// float8_cuda_test REASON runs the cases whose reason contains the word.
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../check.h"
#include "attention_run.h"
#include "float8.h"
#include "layer.h"

namespace minference::test {
namespace {

constexpr DType kFloat8 = DType::kFloat8E4M3;

const Case kFloat8Cases[] = {
    {.reason = "head of 128, every pattern, several tasks of several stages",
     .seq_q = 300,
     .seq_kv = 700,
     .head_dim = 128,
     .num_vertical = 90,
     .num_slash = 40,
     .num_blocks = 7},
    {.reason = "head of 128, estimated per chunk, rows first",
     .batch = 2,
     .num_heads_q = 4,
     .num_heads_kv = 1,
     .seq_q = 280,
     .seq_kv = 300,
     .head_dim = 128,
     .patterns = {kVs, kTopK, kVsIndex, kTriShape},
     .estimate_every = 128,
     .layout = Layout::kRowsFirst,
     .layout_kv = Layout::kRowsFirst},
    {.reason = "head of 48, packed, estimated per chunk",
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 330,
     .seq_kv = 620,
     .head_dim = 48,
     .patterns = {kVs, kVsIndex, kBlockIndex, kDense},
     .estimate_every = 64,
     .num_vertical = 60,
     .cu_seqlens_q = {0, 130, 130, 197, 330},
     .cu_seqlens_kv = {0, 200, 240, 310, 620}},
    {.reason = "head of 112, left padding, mode reference",
     .batch = 3,
     .num_heads_q = 4,
     .num_heads_kv = 4,
     .seq_q = 200,
     .seq_kv = 260,
     .head_dim = 112,
     .patterns = {kVsIndex, kVs, kBlockIndex, kDense},
     .mode = SlashMode::kReference,
     .num_vertical = 30,
     .first_valid_key = {0, 133, 259}},
    {.reason = "head of 208, mode exact, a group of 4 heads",
     .num_heads_q = 4,
     .num_heads_kv = 1,
     .seq_q = 170,
     .seq_kv = 390,
     .head_dim = 208,
     .patterns = {kVsIndex, kVs},
     .mode = SlashMode::kExact,
     .num_vertical = 40,
     .num_slash = 60},
    {.reason = "head of 64, a group of 8 heads, wider rows",
     .batch = 2,
     .num_heads_kv = 1,
     .seq_q = 140,
     .seq_kv = 330,
     .head_dim = 64,
     .layout = Layout::kWide,
     .layout_kv = Layout::kWide},
    {.reason = "head of 128, NaN, mode exact",
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 200,
     .seq_kv = 330,
     .head_dim = 128,
     .patterns = {kVsIndex},
     .mode = SlashMode::kExact,
     .num_vertical = 50,
     .num_slash = 90,
     .has_nonfinite = true},
    {.reason = "head of 80, NaN, every list, left padding",
     .num_heads_q = 6,
     .num_heads_kv = 3,
     .seq_q = 300,
     .seq_kv = 330,
     .head_dim = 80,
     .patterns = {kVsIndex, kBlockIndex, kDense, kAShape, kTriShape, kVsIndex},
     .num_vertical = 60,
     .first_valid_key = {3},
     .has_nonfinite = true},
};

const Case kFloat8PartCases[] = {
    {.reason = "parts, head of 128, every pattern",
     .num_heads_kv = 2,
     .seq_q = 140,
     .seq_kv = 1700,
     .head_dim = 128,
     .num_vertical = 300,
     .num_slash = 60,
     .num_blocks = 15},
    {.reason = "parts, head of 48, packed, NaN",
     .num_heads_q = 2,
     .num_heads_kv = 2,
     .seq_q = 150,
     .seq_kv = 2300,
     .head_dim = 48,
     .patterns = {kDense, kVsIndex},
     .num_vertical = 200,
     .cu_seqlens_q = {0, 40, 150},
     .cu_seqlens_kv = {0, 1200, 2300},
     .has_nonfinite = true},
    {.reason = "parts, head of 256, one query",
     .batch = 2,
     .num_heads_q = 4,
     .num_heads_kv = 2,
     .seq_q = 1,
     .seq_kv = 2500,
     .head_dim = 256,
     .patterns = {kDense, kVsIndex, kBlockIndex, kVs},
     .num_vertical = 700,
     .num_slash = 100,
     .num_blocks = 30},
};

/// Runs a layer twice, as the user does or in parts.
template <class Run>
void check_layer(const Layer& layer, const reference::Result& expected, const std::string& what,
                 const Run& run) {
  run(layer, what);
  compare(layer.host, layer.out, expected, what);
  const std::vector<unsigned char> first = results(layer);
  run(layer, what + ", again");
  CHECK(results(layer) == first, "%s: a second run gives other bits", what.c_str());
}

template <class Run>
void test_case(const Case& c, const Run& run) {
  with_clear_numbers(c, kFloat8, c.reason, [&](const Layer& layer, const auto& expected) {
    check_layer(layer, expected, c.reason, run);
  });
}

// ---- Numbers ------------------------------------------------------------------------------------

template <class Value>
void set_elements(const HeapTensor& tensor, const Value& value) {
  const std::int64_t* const shape = tensor.view.shape;
  for (std::int64_t h = 0; h < shape[1]; ++h) {
    for (std::int64_t r = 0; r < shape[2]; ++r) {
      for (std::int64_t d = 0; d < shape[3]; ++d) {
        store_element(tensor.at(0, h, r, d), kFloat8, value(r, d));
      }
    }
  }
}

/// Other contents for a layer of one batch row.
struct NumbersCase {
  Case shape;
  std::function<void(Layer&)> set;
};

constexpr std::int64_t kDominantKey = 700;  // after some stages, before many

/// Scores are 0, but those of one key `gap` in log2 units, times the scales of the head. Its values
/// are 0 in even dimensions: there is only what all the others have, which are near 1.
NumbersCase dominant_key(const char* reason, double gap) {
  const Case shape = {.reason = reason,
                      .num_heads_q = 2,
                      .num_heads_kv = 1,
                      .seq_q = 140,
                      .seq_kv = 2100,
                      .head_dim = 64,
                      .patterns = {kDense, {PatternKind::kAShape, {2100, 1}}},
                      .scale = gap * std::log(2.0) / 64};
  return {shape, [](Layer& layer) {
            std::mt19937 generator(5);
            set_elements(layer.q, [](auto, auto) { return 1; });
            set_elements(layer.k, [](auto row, auto) { return row == kDominantKey ? 1 : 0; });
            set_elements(layer.v, [&](auto row, auto dim) {
              const double other = 1 + generator() % 4 / 8.0;
              return row != kDominantKey ? other : dim % 2 == 0 ? 0 : -3;
            });
          }};
}

std::vector<NumbersCase> numbers_cases() {
  const Patterns patterns = {kDense, kVsIndex, kBlockIndex, kAShape};
  std::vector<NumbersCase> cases = {
      {{.reason = "equal scores: long flat rows",
        .num_heads_q = 2,
        .num_heads_kv = 1,
        .seq_q = 70,
        .seq_kv = 4500,
        .head_dim = 64,
        .patterns = {kDense, kVsIndex},
        .num_vertical = 3000},
       [](Layer& layer) {
         std::mt19937 generator(1);
         set_elements(layer.k, [](auto, auto dim) { return 0.25 * (dim % 9) - 1; });
         set_elements(layer.v, [&](auto, auto) { return normal(generator) + 0.5; });
       }},
      // Multiples of 32: sums of 128 products of them are exact in float32.
      {{.reason = "values near the largest",
        .num_heads_q = 4,
        .num_heads_kv = 2,
        .seq_q = 150,
        .seq_kv = 300,
        .head_dim = 128,
        .patterns = patterns,
        .scale = 0x1p-20},
       [](Layer& layer) {
         std::mt19937 generator(2);
         for (const HeapTensor* tensor : {&layer.q, &layer.k, &layer.v}) {
           set_elements(*tensor, [&](auto, auto) {
             const double magnitude = 448 - 32.0 * (generator() % 6);
             return generator() % 2 == 0 ? magnitude : -magnitude;
           });
         }
       }},
      {{.reason = "subnormal values",
        .num_heads_q = 4,
        .num_heads_kv = 2,
        .seq_q = 150,
        .seq_kv = 300,
        .head_dim = 96,
        .patterns = patterns,
        .scale = 0x1p11},
       [](Layer& layer) {
         std::mt19937 generator(3);
         for (const HeapTensor* tensor : {&layer.q, &layer.k, &layer.v}) {
           set_elements(*tensor, [&](auto, auto) {
             return (static_cast<int>(generator() % 15) - 7) * 0x1p-9;
           });
         }
       }},
      {{.reason = "large and small scales",
        .num_heads_q = 4,
        .num_heads_kv = 2,
        .seq_q = 150,
        .seq_kv = 300,
        .head_dim = 64,
        .patterns = patterns},
       [](Layer& layer) {
         layer.q_scale = {0.013f, 0.21f, 300, 0.7f};
         layer.k_scale = {27, 0.045f};
         layer.v_scale = {3100, 0.0021f};
       }},
  };
  cases.push_back(dominant_key("one key of a few times the others' weight", 6));
  cases.push_back(dominant_key("one key of a thousand times the others' weight", 16));
  cases.push_back(dominant_key("one key alone: the others vanish", 80));
  return cases;
}

void test_numbers(const NumbersCase& c) {
  Layer layer(c.shape, kFloat8);
  c.set(layer);
  layer.update_device();
  const reference::Result expected = reference::attention(layer.host, layer.host_params);
  check_layer(layer, expected, c.shape.reason, run_sparse);
}

// ---- Scales -------------------------------------------------------------------------------------

/// A scale that is null is 1, to the last bit.
void test_null_scales() {
  const Case shape = {.reason = "null scales",
                      .num_heads_q = 4,
                      .num_heads_kv = 2,
                      .seq_q = 200,
                      .seq_kv = 330,
                      .head_dim = 64,
                      .patterns = {kVs, kDense, kVsIndex, kTopK}};
  Layer layer(shape, kFloat8);
  const struct {
    const char* name;
    const float* AttentionArgs::* argument;
    const std::vector<float>& scales;
    const DeviceBytes& memory;
  } all[] = {{"q_scale", &AttentionArgs::q_scale, layer.q_scale, layer.device_q_scale},
             {"k_scale", &AttentionArgs::k_scale, layer.k_scale, layer.device_k_scale},
             {"v_scale", &AttentionArgs::v_scale, layer.v_scale, layer.device_v_scale}};
  const auto run = [&](const char* what) {
    run_sparse(layer, what);
    return results(layer);
  };
  const std::vector<unsigned char> scaled = run("all scales");
  for (const auto& one : all) {
    const float* const given = layer.device.*one.argument;
    one.memory.write(std::vector<float>(one.scales.size(), 1).data());
    const std::vector<unsigned char> expected = run(one.name);
    CHECK(expected != scaled, "%s changes nothing", one.name);
    layer.device.*one.argument = nullptr;
    CHECK(run(one.name) == expected, "%s of null is not 1", one.name);
    layer.device.*one.argument = given;
    one.memory.write(one.scales.data());
  }
  for (const auto& one : all) layer.device.*one.argument = layer.host.*one.argument = nullptr;
  const reference::Result expected = reference::attention(layer.host, layer.host_params);
  CHECK(expected.margin > tie_tolerance(kFloat8), "no scales: a tie");
  run("no scales");
  compare(layer.host, layer.out, expected, "no scales");
}

// ---- out ----------------------------------------------------------------------------------------

/// out at no more than its alignment, in rows that copies cannot address.
void test_out_anywhere() {
  for (const Layout layout : {Layout::kSliced, Layout::kOddStride, Layout::kReversed}) {
    Layer layer({.reason = "out anywhere",
                 .num_heads_q = 4,
                 .num_heads_kv = 2,
                 .seq_q = 200,
                 .seq_kv = 230,
                 .head_dim = 128,
                 .patterns = {kDense, kVsIndex}},
                kFloat8);
    const HeapTensor out({1, 4, 200, 128}, DType::kBFloat16, layout);
    DeviceBytes memory;
    layer.device.out = copy_to_device(out, &memory);
    layer.host.out = out.view;
    const std::string what =
        std::string(layer.c.reason) + ", layout " + std::to_string(static_cast<int>(layout));
    run_sparse(layer, what);
    CHECK(memory.has_guards(), "%s: memory around out was written", what.c_str());
    const std::vector<unsigned char> bytes = memory.read();
    std::copy(bytes.begin(), bytes.end(), out.bytes.data());
    compare(layer.host, out, reference::attention(layer.host, layer.host_params), what);
  }
}

// ---- Refusals -----------------------------------------------------------------------------------

struct BadArguments {
  const char* what;
  std::function<void(AttentionArgs&)> spoil;
  bool has_wrong_v = false;  // and nothing else
};

void move(TensorView& view, std::int64_t bytes) {
  view.data = static_cast<unsigned char*>(view.data) + bytes;
}

const BadArguments kUnservedArguments[] = {
    {"head_dim 24",
     [](AttentionArgs& args) {
       for (TensorView* view : {&args.q, &args.k, &args.v, &args.out}) view->shape[3] = 24;
     }},
    {"head_dim 8",
     [](AttentionArgs& args) {
       for (TensorView* view : {&args.q, &args.k, &args.v, &args.out}) view->shape[3] = 8;
     }},
    {"tokens of q at multiples of 8 bytes", [](AttentionArgs& args) { args.q.stride[2] = 40; }},
    {"tokens of k at odd places", [](AttentionArgs& args) { args.k.stride[2] = 33; }},
    {"heads of k at multiples of 8 bytes", [](AttentionArgs& args) { args.k.stride[1] += 8; }},
    {"batch rows of q at multiples of 4 bytes", [](AttentionArgs& args) { args.q.stride[0] += 4; }},
    {"tokens of v at multiples of 8 bytes", [](AttentionArgs& args) { args.v.stride[2] = 40; },
     true},
    {"q 8 bytes past a multiple of 16", [](AttentionArgs& args) { move(args.q, 8); }},
    {"k 1 byte past a multiple of 16", [](AttentionArgs& args) { move(args.k, 1); }},
    {"v 4 bytes past a multiple of 16", [](AttentionArgs& args) { move(args.v, 4); }, true},
    {"keys backwards",
     [](AttentionArgs& args) {
       move(args.k, 32 * (args.k.shape[2] - 1));
       args.k.stride[2] = -32;
     }},
    {"one row for all queries", [](AttentionArgs& args) { args.q.stride[2] = 0; }},
    {"one row for all values", [](AttentionArgs& args) { args.v.stride[2] = 0; }, true},
    {"batch rows of k 2^40 bytes apart",
     [](AttentionArgs& args) { args.k.stride[0] = std::int64_t{1} << 40; }},
};

const Case kServed = {.reason = "served",
                      .batch = 2,
                      .num_heads_q = 4,
                      .num_heads_kv = 2,
                      .seq_q = 70,
                      .seq_kv = 130,
                      .head_dim = 32,
                      .patterns = {kVs, kVsIndex, kBlockIndex, kTopK}};

void test_refusals() {
  for (const BadArguments& bad : kUnservedArguments) {
    const Layer layer(kServed, kFloat8);
    AttentionArgs args = layer.device;
    bad.spoil(args);
    check_refused(layer, args, bad.what, bad.has_wrong_v);
  }
  // What is not read, because there is only one, or nothing at all.
  Layer layer({.reason = "strides of one",
               .num_heads_q = 1,
               .num_heads_kv = 1,
               .seq_q = 1,
               .seq_kv = 1,
               .head_dim = 32},
              kFloat8);
  for (TensorView* view : {&layer.device.q, &layer.device.k, &layer.device.v}) {
    for (int axis = 0; axis < 3; ++axis) view->stride[axis] = -3;
  }
  run_sparse(layer, layer.c.reason);
  compare(layer.host, layer.out, reference::attention(layer.host, layer.host_params),
          layer.c.reason);
}

/// Wrong on every machine.
void test_dtypes() {
  const struct {
    const char* what;
    DType q, k, v, out;
    std::vector<const char*> names;
  } wrong[] = {
      {"out of float8", kFloat8, kFloat8, kFloat8, kFloat8, {"out"}},
      {"out of float16", kFloat8, kFloat8, kFloat8, DType::kFloat16, {"out"}},
      {"out of float32", kFloat8, kFloat8, kFloat8, DType::kFloat32, {"out"}},
      {"k of bfloat16", kFloat8, DType::kBFloat16, kFloat8, DType::kBFloat16, {"k"}},
      {"v of float16", kFloat8, kFloat8, DType::kFloat16, DType::kBFloat16, {"v"}},
      {"q of bfloat16", DType::kBFloat16, kFloat8, kFloat8, DType::kBFloat16, {"k", "q_scale"}},
  };
  const Layer layer(kServed, kFloat8);
  for (const auto& dtypes : wrong) {
    AttentionArgs args = layer.device;
    args.q.dtype = dtypes.q;
    args.k.dtype = dtypes.k;
    args.v.dtype = dtypes.v;
    args.out.dtype = dtypes.out;
    const Refusal refusal = {dtypes.what, dtypes.names};
    layer.device_out.fill(0x7F);
    check_refusal(sparse_attention_supports(args, layer.device_params), refusal, "supports");
    const DeviceBytes workspace(1 << 16);
    check_refusal(sparse_attention(args, layer.device_params, workspace.data(), workspace.size()),
                  refusal, "sparse_attention");
    wait_for_device(dtypes.what);
    CHECK(layer.device_out.holds_only(0x7F), "%s: something was written", dtypes.what);
  }
}

void test_attention(int argc, char** argv) {
  for (const Case& c : kFloat8Cases) {
    if (is_chosen(c.reason, argc, argv)) test_case(c, run_sparse);
  }
  for (const Case& c : kFloat8PartCases) {
    if (is_chosen(c.reason, argc, argv)) test_case(c, run_in_parts);
  }
  for (const NumbersCase& c : numbers_cases()) {
    if (is_chosen(c.shape.reason, argc, argv)) test_numbers(c);
  }
  if (argc > 1) return;
  test_null_scales();
  test_out_anywhere();
  test_refusals();
}

}  // namespace
}  // namespace minference::test

int main(int argc, char** argv) {
  using namespace minference;
  if (test::device_has_float8()) {
    test::test_attention(argc, argv);
  } else {
    const test::Layer layer(test::kServed, test::kFloat8);
    test::check_refused(layer, layer.device, "a device without the kernel of sm_90");
  }
  if (argc == 1) test::test_dtypes();
  return test::finish("float8_cuda_test");
}
