// One layer in device memory: tensors, and the patterns of its heads with their lists. Called by
// kernel_bench.cu.
//
// A problem is built by hand here, not by core: nothing validates it, and no head falls back to
// dense.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "device_timer.cuh"
#include "line_patterns.h"
#include "minference/minference.h"
#include "plan/problem.h"
#include "prompt_inputs.cuh"

namespace minference::bench {

class DeviceMemory {
 public:
  explicit DeviceMemory(std::size_t bytes) { require(cudaMalloc(&data_, bytes), "cudaMalloc"); }
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;
  ~DeviceMemory() { cudaFree(data_); }
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

inline TensorView view(const DeviceMemory& memory, std::int64_t heads, const InputShape& shape,
                       DType dtype = DType::kBFloat16) {
  return {.data = memory.data(),
          .shape = {1, heads, shape.length, shape.head_dim},
          .stride = {heads * shape.length * shape.head_dim, shape.length * shape.head_dim,
                     shape.head_dim, 1},
          .dtype = dtype};
}

/// q, k and v in float8.
struct Float8Inputs {
  Float8Inputs(std::size_t q_bytes, std::size_t kv_bytes) : q(q_bytes), k(kv_bytes), v(kv_bytes) {}
  DeviceMemory q, k, v;
};

/// One layer's tensors, all sizes of which are known beforehand: nothing is allocated while timing.
struct Layer {
  Layer(const InputShape& shape, cudaStream_t stream)
      : shape(shape),
        queries(shape.length),
        q(bytes(shape.heads, shape)),
        k(bytes(shape.heads_kv, shape)),
        v(bytes(shape.heads_kv, shape)),
        out(bytes(shape.heads, shape)),
        stream(stream) {
    make_normal(v.data(), shape.heads_kv * shape.length * shape.head_dim, 4, stream);
  }
  static std::size_t bytes(std::int64_t heads, const InputShape& shape) {
    return static_cast<std::size_t>(heads * shape.length * shape.head_dim * 2);
  }
  void fill(bool like_a_prompt) {
    if (like_a_prompt) {
      make_prompt(q.data(), shape, Role::kQuery, stream);
      make_prompt(k.data(), shape, Role::kKey, stream);
    } else {
      make_normal(q.data(), shape.heads * shape.length * shape.head_dim, 1, stream);
      make_normal(k.data(), shape.heads_kv * shape.length * shape.head_dim, 2, stream);
    }
    require(cudaStreamSynchronize(stream), "making inputs");
  }
  /// Makes copies in float8 of what the tensors hold.
  void add_float8() {
    const std::size_t q_size = bytes(shape.heads, shape) / 2;
    const std::size_t kv_size = bytes(shape.heads_kv, shape) / 2;
    float8 = std::make_unique<Float8Inputs>(q_size, kv_size);
    make_float8(q.data(), float8->q.data(), static_cast<std::int64_t>(q_size), stream);
    make_float8(k.data(), float8->k.data(), static_cast<std::int64_t>(kv_size), stream);
    make_float8(v.data(), float8->v.data(), static_cast<std::int64_t>(kv_size), stream);
    require(cudaStreamSynchronize(stream), "making float8 inputs");
  }
  /// In float8 if add_float8() was called.
  AttentionArgs args(DType dtype = DType::kBFloat16) const {
    const bool is_float8 = dtype == DType::kFloat8E4M3;
    AttentionArgs args;
    args.device = Device::kCuda;
    args.q = view(is_float8 ? float8->q : q, shape.heads, shape, dtype);
    args.k = view(is_float8 ? float8->k : k, shape.heads_kv, shape, dtype);
    args.v = view(is_float8 ? float8->v : v, shape.heads_kv, shape, dtype);
    args.out = view(out, shape.heads, shape);
    args.q.shape[2] = args.out.shape[2] = queries;
    args.stream = stream;
    return args;
  }

  InputShape shape;
  std::int64_t queries;  ///< fewer than keys: the last chunk of a prompt
  DeviceMemory q, k, v, out;
  std::unique_ptr<Float8Inputs> float8;
  cudaStream_t stream;
};

/// Patterns of all heads, with the device memory of their lists.
struct LayerPatterns {
  std::string name;
  std::vector<HeadPattern> heads;
  std::unique_ptr<DeviceMemory> vertical_idx, slash_idx;
  IndexView vertical_view, slash_view;
  double line_bytes = 0;  ///< what its lines read from memory at least; 0: not known
};

inline IndexView upload(const std::vector<std::vector<std::int32_t>>& lists,
                        std::unique_ptr<DeviceMemory>* memory) {
  std::size_t count = 1;
  for (const auto& list : lists) count = std::max(count, list.size());
  std::vector<std::int32_t> padded(lists.size() * count, -1);
  for (std::size_t head = 0; head < lists.size(); ++head) {
    std::copy(lists[head].begin(), lists[head].end(), padded.begin() + head * count);
  }
  *memory = std::make_unique<DeviceMemory>(padded.size() * sizeof(std::int32_t));
  require(cudaMemcpy((*memory)->data(), padded.data(), padded.size() * sizeof(std::int32_t),
                     cudaMemcpyHostToDevice),
          "uploading lines");
  const auto heads = static_cast<std::int64_t>(lists.size());
  const auto length = static_cast<std::int64_t>(count);
  return {.data = static_cast<const std::int32_t*>((*memory)->data()),
          .shape = {1, heads, length, 0},
          .stride = {heads * length, length, 1, 0}};
}

/// `lines(head)`: Lines of a head.
template <class LinesOfHead>
LayerPatterns patterns_of_lines(const std::string& name, int heads, LinesOfHead lines_of_head) {
  std::vector<std::vector<std::int32_t>> verticals, slashes;
  for (int head = 0; head < heads; ++head) {
    Lines lines = lines_of_head(head);
    verticals.push_back(std::move(lines.verticals));
    slashes.push_back(std::move(lines.slashes));
  }
  LayerPatterns patterns;
  patterns.name = name;
  patterns.heads.assign(heads, {.kind = PatternKind::kVerticalSlashIndex});
  patterns.vertical_view = upload(verticals, &patterns.vertical_idx);
  patterns.slash_view = upload(slashes, &patterns.slash_idx);
  return patterns;
}

inline LayerPatterns given_lines(const std::string& name, const LineShape& shape,
                                 const InputShape& layer) {
  return patterns_of_lines(name, layer.heads, [&](int head) {
    return draw_lines(shape, layer.length, static_cast<std::uint32_t>(head));
  });
}

/// Every slash reads a key and a value per row that has one, and no other slash of any head reads
/// them at about the same time; offset 0 is shared by the heads of a kv head.
inline LayerPatterns isolated(const InputShape& layer) {
  const int heads_per_kv = layer.heads / layer.heads_kv;
  double rows = 0;
  LayerPatterns patterns = patterns_of_lines("isolated", layer.heads, [&](int head) {
    Lines lines = isolated_lines(layer.length, head, heads_per_kv);
    for (const std::int32_t slash : lines.slashes) {
      rows += static_cast<double>(layer.length - slash) / (slash == 0 ? heads_per_kv : 1);
    }
    return lines;
  });
  patterns.line_bytes = rows * 2 * layer.head_dim * 2;
  return patterns;
}

inline LayerPatterns uniform(const std::string& name, HeadPattern pattern, int heads) {
  LayerPatterns patterns;
  patterns.name = name;
  patterns.heads.assign(heads, pattern);
  return patterns;
}

/// The sizes that heads of a published configuration of Llama-3.1-8B have, in turns.
inline LayerPatterns mixed_sizes(int heads) {
  constexpr std::int64_t kSizes[][2] = {{100, 800}, {1000, 6096}, {30, 800}, {3500, 100}};
  LayerPatterns patterns;
  patterns.name = "mixed sizes";
  for (int head = 0; head < heads; ++head) {
    patterns.heads.push_back({.kind = PatternKind::kVerticalSlash,
                              .size = {kSizes[head % 4][0], kSizes[head % 4][1], 0}});
  }
  return patterns;
}

inline plan::Problem problem_of(const Layer& layer, const LayerPatterns& patterns,
                                bool needs_values, DType dtype = DType::kBFloat16) {
  plan::Problem problem;
  problem.args = layer.args(dtype);
  problem.patterns.each = patterns.heads.data();
  problem.vertical_idx = patterns.vertical_view;
  problem.slash_idx = patterns.slash_view;
  // Every head shall be planned: what falls back to dense attention before is no measurement.
  problem.dense_fallback = false;
  problem.needs_values = needs_values;
  problem.scale_log2 =
      static_cast<float>(1.4426950408889634 / std::sqrt(static_cast<double>(layer.shape.head_dim)));
  return problem;
}

}  // namespace minference::bench
