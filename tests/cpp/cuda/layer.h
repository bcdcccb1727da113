// The tensors and lists of a Case (attention_cases.h) twice: on the host, where the double oracle
// and the CPU backend read them, and on the device. Lists on the device hold entries out of range
// in between, which the host's, where they would be refused, lack: kernels have to ignore them.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "../attention_cases.h"
#include "../attention_check.h"
#include "cpu/reference/reference.h"
#include "device_tensor.h"
#include "minference/minference.h"
#include "plan/problem.h"

namespace minference::test {

inline const char* dtype_name(DType dtype) {
  constexpr const char* kNames[] = {"fp32", "bf16", "fp16", "fp8"};
  return kNames[static_cast<int>(dtype)];
}

/// Of inputs of `dtype`.
inline DType out_dtype(DType dtype) {
  return dtype == DType::kFloat8E4M3 ? DType::kBFloat16 : dtype;
}

struct Layer {
  Layer(const Case& of, DType dtype, unsigned seed = 0, std::int64_t num_entries_ignored = 3)
      : c(of),
        num_ignored(num_entries_ignored),
        q({c.batch, c.num_heads_q, c.seq_q, c.head_dim}, dtype, c.layout),
        k({c.batch, c.num_heads_kv, c.seq_kv, c.head_dim}, dtype, c.layout_kv),
        v({c.batch, c.num_heads_kv, c.seq_kv, c.head_dim}, dtype, c.layout_kv),
        out({c.batch, c.num_heads_q, c.seq_q, c.head_dim}, out_dtype(dtype),
            c.layout == Layout::kExpanded ? Layout::kPlain : c.layout) {
    for (std::int64_t head = 0; head < c.num_heads_q; ++head) {
      patterns.push_back(c.patterns[head % c.patterns.size()]);
    }
    host.q = q.view;
    host.k = k.view;
    host.v = v.view;
    host.out = out.view;
    if (c.has_lse) {
      // [batch, seq_q, num_heads_q] in memory where the tensors are rows first.
      const bool is_rows_first = c.layout == Layout::kRowsFirst;
      lse = HeapBytes(c.batch * c.num_heads_q * c.seq_q * sizeof(float));
      host.lse = reinterpret_cast<float*>(lse.data());
      host.lse_stride[0] = c.num_heads_q * c.seq_q;
      host.lse_stride[1] = is_rows_first ? 1 : c.seq_q;
      host.lse_stride[2] = is_rows_first ? c.num_heads_q : 1;
    }
    if (is_float8()) {
      q_scale.resize(c.num_heads_q);
      k_scale.resize(c.num_heads_kv);
      v_scale.resize(c.num_heads_kv);
      host.q_scale = q_scale.data();
      host.k_scale = k_scale.data();
      host.v_scale = v_scale.data();
    }
    host.softmax_scale = c.scale;
    host.num_threads = 2;
    set_lengths();
    host_params.mode = c.mode;
    host_params.estimate_every = c.estimate_every;
    host_params.head_patterns = patterns.data();
    host_params.dense_fallback = 0;
    fill(seed);
    copy_to_device();
  }
  Layer(const Layer&) = delete;
  Layer& operator=(const Layer&) = delete;

  std::int64_t num_sequences() const {
    return host.cu_seqlens_q ? host.num_sequences : host.q.shape[0];
  }
  std::int64_t num_lists() const { return num_sequences() * c.num_heads_q; }
  bool is_float8() const { return host.q.dtype == DType::kFloat8E4M3; }
  std::int64_t row_bytes() const {
    return c.head_dim * static_cast<std::int64_t>(element_bytes(host.q.dtype));
  }

  /// Points the host's arguments to the lengths of the case.
  void set_lengths() {
    const auto data = [](const Sizes& sizes) { return sizes.empty() ? nullptr : sizes.data(); };
    host.first_valid_key = data(c.first_valid_key);
    host.cu_seqlens_q = data(c.cu_seqlens_q);
    host.cu_seqlens_kv = data(c.cu_seqlens_kv);
    if (host.cu_seqlens_q) {
      host.num_sequences = static_cast<std::int64_t>(c.cu_seqlens_q.size()) - 1;
    }
  }

  /// Other contents, on the host. Padding stays NaN: a row must give what the unpadded row gives.
  void fill(unsigned seed) {
    std::mt19937 generator(static_cast<unsigned>(1000 * c.seq_q + c.seq_kv) + 1000000 * seed);
    for (std::int64_t b = 0; b < c.batch; ++b) {
      const std::int64_t begin = c.first_valid_key.empty() ? 0 : c.first_valid_key[b];
      const std::int64_t q_begin = std::max<std::int64_t>(0, begin - (c.seq_kv - c.seq_q));
      fill_rows(q, b, q_begin, c.seq_q, c.amplitude, generator);
      fill_rows(k, b, begin, c.seq_kv, 1, generator);
      fill_rows(v, b, begin, c.seq_kv, 1, generator);
    }
    if (c.has_nonfinite) spoil_values(k, v);
    fill_scales(q_scale, 0.3, 0.17, seed);
    fill_scales(k_scale, 1.7, -0.19, seed);
    fill_scales(v_scale, 0.4, 0.23, seed);
    fill_lists(generator);
  }

  /// Copies everything into new device memory.
  void copy_to_device() {
    device = host;
    device.device = Device::kCuda;
    device.q = test::copy_to_device(q, &device_q);
    device.k = test::copy_to_device(k, &device_k);
    device.v = test::copy_to_device(v, &device_v);
    device.out = test::copy_to_device(out, &device_out);
    device_lse = DeviceBytes(lse.data(), lse.size());
    device.lse = host.lse == nullptr ? nullptr : device_lse.as<float>();
    device.first_valid_key = test::copy_to_device(c.first_valid_key, &device_first_valid);
    device.cu_seqlens_q = test::copy_to_device(c.cu_seqlens_q, &device_cu_q);
    device.cu_seqlens_kv = test::copy_to_device(c.cu_seqlens_kv, &device_cu_kv);
    device.q_scale = copy_scales(q_scale, &device_q_scale);
    device.k_scale = copy_scales(k_scale, &device_k_scale);
    device.v_scale = copy_scales(v_scale, &device_v_scale);
    device_params = host_params;
    device_params.vertical_idx = with_ignored(vertical_idx, 3, &device_vertical);
    device_params.slash_idx = with_ignored(slash_idx, 3, &device_slash);
    device_params.block_idx = with_ignored(block_idx, 4, &device_block);
  }

  /// Copies everything into the device memory that there is.
  void update_device() const {
    device_q.write(q.bytes.data());
    device_k.write(k.bytes.data());
    device_v.write(v.bytes.data());
    device_first_valid.write(c.first_valid_key.data());
    device_cu_q.write(c.cu_seqlens_q.data());
    device_cu_kv.write(c.cu_seqlens_kv.data());
    device_q_scale.write(q_scale.data());
    device_k_scale.write(k_scale.data());
    device_v_scale.write(v_scale.data());
    device_vertical.write(entries_with_ignored(vertical_idx, 3).data());
    device_slash.write(entries_with_ignored(slash_idx, 3).data());
    device_block.write(entries_with_ignored(block_idx, 4).data());
  }

  /// Fills out and lse of the device with what no kernel writes.
  void poison_results() const {
    device_out.fill(0xFF);
    device_lse.fill(0xFF);
  }

  /// Copies out and lse to the host's.
  void read_results() const {
    const std::vector<unsigned char> rows = device_out.read(), sums = device_lse.read();
    std::copy(rows.begin(), rows.end(), out.bytes.data());
    std::copy(sums.begin(), sums.end(), lse.data());
  }

  /// As core makes it from valid arguments. `params` are read while the problem is used.
  plan::Problem device_problem(bool may_fall_back, bool needs_values) const {
    plan::Problem problem;
    problem.args = device;
    problem.patterns.each = patterns.data();
    problem.mode = c.mode;
    problem.vertical_idx = device_params.vertical_idx;
    problem.slash_idx = device_params.slash_idx;
    problem.block_idx = device_params.block_idx;
    problem.estimate_every = c.estimate_every;
    problem.dense_fallback = may_fall_back;
    problem.needs_values = needs_values;
    problem.scale_log2 = static_cast<float>(reference::softmax_scale(host) * 1.4426950408889634);
    return problem;
  }

  Case c;
  std::int64_t num_ignored;  // of them in each list on the device
  HeapTensor q, k, v, out;
  HeapBytes lse;
  HeapIndex vertical_idx, slash_idx, block_idx;
  std::vector<float> q_scale, k_scale, v_scale;  // empty but for float8
  Patterns patterns;
  AttentionArgs host, device;
  SparseAttentionParams host_params, device_params;
  DeviceBytes device_q, device_k, device_v, device_out, device_lse, device_first_valid, device_cu_q,
      device_cu_kv;
  DeviceBytes device_q_scale, device_k_scale, device_v_scale;
  DeviceBytes device_vertical, device_slash, device_block;

 private:
  /// Another for every head, none a power of two; with another seed other ones.
  static void fill_scales(std::vector<float>& scales, double first, double step, unsigned seed) {
    constexpr std::size_t kPeriod = 8;
    for (std::size_t head = 0; head < scales.size(); ++head) {
      scales[head] = static_cast<float>(first + step * ((head + seed) % kPeriod));
    }
  }

  /// At no more than their alignment. Null for none.
  static const float* copy_scales(const std::vector<float>& scales, DeviceBytes* memory) {
    *memory = DeviceBytes(scales.data(), scales.size() * sizeof(float), sizeof(float));
    return scales.empty() ? nullptr : memory->as<float>();
  }

  /// Random entries in [0, limit), in any order, some twice, every fifth missing (-1).
  static void fill_list(std::int32_t* list, std::int64_t count, std::int64_t limit,
                        std::mt19937& generator) {
    for (std::int64_t n = 0; n < count; ++n) {
      list[n] = limit <= 0 || n % 5 == 4 ? -1 : static_cast<std::int32_t>(generator() % limit);
    }
  }

  void fill_lists(std::mt19937& generator) {
    const std::vector<reference::Sequence> sequences = reference::sequences(host);
    const std::int64_t count = sequences.size(), row_blocks = (c.seq_q + 63) / 64;
    vertical_idx = HeapIndex({count, c.num_heads_q, c.num_vertical});
    slash_idx = HeapIndex({count, c.num_heads_q, c.num_slash});
    block_idx = HeapIndex({count, c.num_heads_q, row_blocks, c.num_blocks});
    for (std::int64_t n = 0; n < count * c.num_heads_q; ++n) {
      const std::int64_t kv_len = sequences[n / c.num_heads_q].kv_len;
      std::int32_t* const slash = slash_idx.data() + n * c.num_slash;
      fill_list(vertical_idx.data() + n * c.num_vertical, c.num_vertical, kv_len, generator);
      fill_list(slash, c.num_slash, kv_len, generator);
      // Every other list in clusters, so that ranges of columns touch and overlap.
      for (std::int64_t i = 0; n % 2 == 1 && i + 2 < c.num_slash; i += 3) {
        for (int next : {1, 2}) {
          if (slash[i] >= 0 && slash[i] + 40 * next < kv_len)
            slash[i + next] = slash[i] + 40 * next;
        }
      }
      if (c.has_offset_0 && kv_len > 0) slash[0] = 0;
      fill_list(block_idx.data() + n * row_blocks * c.num_blocks, row_blocks * c.num_blocks,
                (kv_len + 63) / 64, generator);
    }
    host_params.vertical_idx = vertical_idx.view;
    host_params.slash_idx = slash_idx.view;
    host_params.block_idx = block_idx.view;
  }

  std::int64_t ignored_in(std::int64_t count) const { return count == 0 ? 0 : num_ignored; }

  std::vector<std::int32_t> entries_with_ignored(const HeapIndex& index, int rank) const {
    const std::vector<reference::Sequence> sequences = reference::sequences(host);
    const std::int64_t count = index.view.shape[rank - 1], more = ignored_in(count);
    std::vector<std::int32_t> entries;
    for (std::size_t n = 0; n < index.count(); ++n) {
      entries.push_back(index.data()[n]);
      const std::int64_t per_sequence = index.view.stride[0];
      const std::int64_t kv_len = sequences[static_cast<std::int64_t>(n) / per_sequence].kv_len;
      const std::int64_t limit = rank == 3 ? kv_len : (kv_len + 63) / 64;
      const std::int32_t ignored[] = {static_cast<std::int32_t>(limit), -2,
                                      std::numeric_limits<std::int32_t>::max(),
                                      std::numeric_limits<std::int32_t>::min()};
      const std::int64_t place = static_cast<std::int64_t>(n) % count;
      for (std::int64_t i = 0; i < more; ++i) {
        if (i * count / more == place) entries.push_back(ignored[i % 4]);
      }
    }
    return entries;
  }

  IndexView with_ignored(const HeapIndex& index, int rank, DeviceBytes* memory) const {
    const std::vector<std::int32_t> entries = entries_with_ignored(index, rank);
    *memory = DeviceBytes(entries.data(), entries.size() * sizeof(std::int32_t));
    IndexView view = index.view;
    view.data = memory->as<std::int32_t>();
    const std::int64_t more = ignored_in(view.shape[rank - 1]);
    view.shape[rank - 1] += more;
    for (int axis = rank - 2; axis >= 0; --axis) {
      view.stride[axis] = view.shape[axis + 1] * view.stride[axis + 1];
    }
    return view;
  }
};

/// Device memory of exactly `bytes`, at an odd address.
inline DeviceBytes device_workspace(std::size_t bytes) { return DeviceBytes(bytes, 1); }

}  // namespace minference::test
