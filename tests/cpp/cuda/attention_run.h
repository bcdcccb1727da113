// Attention of a Layer: run as a user does, or with its keys cut in parts, on numbers that the
// oracle can judge. attention_check.h has the comparison.
#pragma once

#include <string>
#include <vector>

#include "../check.h"
#include "layer.h"
#include "layer_attention.h"
#include "slots.h"

namespace minference::test {

/// Runs the op as a user would and copies the results to the host.
inline void run_sparse(const Layer& layer, const std::string& what) {
  layer.poison_results();
  const std::size_t bytes = checked_workspace_bytes(layer.device, layer.device_params, what);
  const DeviceBytes workspace = device_workspace(bytes);
  const Status status =
      sparse_attention(layer.device, layer.device_params, workspace.data(), bytes);
  CHECK(status == Status::kOk, "%s: %s", what.c_str(), last_error());
  wait_for_device(what.c_str());
  CHECK(workspace.has_guards() && layer.device_out.has_guards() && layer.device_lse.has_guards(),
        "%s: memory around a buffer was written", what.c_str());
  layer.read_results();
}

inline std::vector<unsigned char> results(const Layer& layer) {
  std::vector<unsigned char> all = layer.device_out.read();
  const std::vector<unsigned char> sums = layer.device_lse.read();
  all.insert(all.end(), sums.begin(), sums.end());
  return all;
}

/// As run_sparse(), on a device that runs as many blocks at once as it takes to cut keys in parts.
inline void run_in_parts(const Layer& layer, const std::string& what) {
  layer.poison_results();
  const plan::Problem problem = layer.device_problem(false, true);
  const cuda::Slots slots = slots_of(problem, 1 << 20);
  const std::size_t bytes = cuda::LayerAttention(problem, slots, nullptr).workspace_bytes();
  CHECK(bytes > cuda::LayerAttention(problem, slots_of(problem, 1), nullptr).workspace_bytes(),
        "%s: keys are not cut in parts", what.c_str());
  const DeviceBytes workspace = device_workspace(bytes);
  cuda::LayerAttention attention(problem, slots, workspace.data());
  CHECK(attention.run() == Status::kOk, "%s: %s", what.c_str(), last_error());
  wait_for_device(what.c_str());
  CHECK(workspace.has_guards() && layer.device_out.has_guards() && layer.device_lse.has_guards(),
        "%s: memory around a buffer was written", what.c_str());
  layer.read_results();
}

/// Calls `test(layer, expected)` for numbers whose lines and blocks do not depend on the last bits
/// of a score.
template <class Test>
void with_clear_numbers(const Case& c, DType dtype, const std::string& what, const Test& test) {
  constexpr unsigned kMaxSeeds = 50;
  for (unsigned seed = 0; seed < kMaxSeeds; ++seed) {
    Layer layer(c, dtype, seed);
    const reference::Result expected = reference::attention(layer.host, layer.host_params);
    if (expected.margin <= tie_tolerance(dtype)) continue;
    test(layer, expected);
    return;
  }
  CHECK(false, "%s: always a tie", what.c_str());
}

}  // namespace minference::test
