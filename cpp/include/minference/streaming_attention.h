// Sink plus window attention: A-shape (StreamingLLM) and tri-shape. Meaning: sparse_attention.h.
#pragma once

#include "minference/sparse_attention.h"
#include "minference/types.h"

namespace minference {

/// Query i attends key j <= i iff j < sink or i - j < window.
struct AShapeParams {
  std::uint32_t struct_size = sizeof(AShapeParams);
  std::int64_t sink = 0;    ///< tokens >= 0
  std::int64_t window = 0;  ///< tokens >= 0
};

MINFERENCE_API Status a_shape_attention_supports(const AttentionArgs& args,
                                                 const AShapeParams& params);
MINFERENCE_API Status a_shape_attention_workspace_bytes(const AttentionArgs& args,
                                                        const AShapeParams& params,
                                                        std::size_t* bytes);
MINFERENCE_API Status a_shape_attention(const AttentionArgs& args, const AShapeParams& params,
                                        void* workspace, std::size_t bytes);

/// As a_shape; the last `last` queries of each sequence attend every key j <= i.
struct TriShapeParams {
  std::uint32_t struct_size = sizeof(TriShapeParams);
  std::int64_t sink = 0;    ///< tokens >= 0
  std::int64_t window = 0;  ///< tokens >= 0
  std::int64_t last = 0;    ///< queries >= 0
};

MINFERENCE_API Status tri_shape_attention_supports(const AttentionArgs& args,
                                                   const TriShapeParams& params);
MINFERENCE_API Status tri_shape_attention_workspace_bytes(const AttentionArgs& args,
                                                          const TriShapeParams& params,
                                                          std::size_t* bytes);
MINFERENCE_API Status tri_shape_attention(const AttentionArgs& args, const TriShapeParams& params,
                                          void* workspace, std::size_t bytes);

}  // namespace minference
