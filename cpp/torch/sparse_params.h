// Op arguments that several ops share -> SparseAttentionParams: slash mode, head patterns, lists.
#pragma once

#include <torch/csrc/stable/c/shim.h>

#include <string_view>

#include "attention_call.h"

namespace minference::binding {

/// A `str` argument as the dispatcher hands it over. Not std::string: torch's conversion to it
/// leaks the string on every call (ToImpl<std::string>, torch 2.13). An op owns it from its first
/// line (OwnedString), so that an error in another argument does not leak it.
using StringArgument = StringHandle;

struct OwnedString {
  explicit OwnedString(StringArgument string) : handle(string) {}
  ~OwnedString() { torch_delete_string(handle); }
  OwnedString(const OwnedString&) = delete;
  OwnedString& operator=(const OwnedString&) = delete;

  StringArgument handle;
};

/// What owns an op's argument while the op runs: itself, or an OwnedString.
template <class Argument>
struct Owner {
  explicit Owner(const Argument&) {}
};
template <>
struct Owner<StringArgument> : OwnedString {
  using OwnedString::OwnedString;
};

inline SlashMode slash_mode(StringArgument argument) {
  const char* text = nullptr;
  std::size_t length = 0;
  TORCH_ERROR_CODE_CHECK(torch_string_c_str(argument, &text));
  TORCH_ERROR_CODE_CHECK(torch_string_length(argument, &length));
  const std::string_view mode(text, length);
  if (mode == "cover") return SlashMode::kCover;
  if (mode == "exact") return SlashMode::kExact;
  require(mode == "reference", "mode is '", mode, "'; it must be 'cover', 'exact' or 'reference'");
  return SlashMode::kReference;
}

inline SparseAttentionParams sparse_params(AttentionCall& call,
                                           const std::vector<std::int64_t>& head_patterns,
                                           const OptionalTensor& vertical_idx,
                                           const OptionalTensor& slash_idx,
                                           const OptionalTensor& block_idx, StringArgument mode,
                                           std::int64_t estimate_every, bool dense_fallback) {
  return {.mode = slash_mode(mode),
          .head_patterns = call.head_patterns(head_patterns),
          .vertical_idx = index_view(vertical_idx, "vertical_idx", 3, call.device()),
          .slash_idx = index_view(slash_idx, "slash_idx", 3, call.device()),
          .block_idx = index_view(block_idx, "block_idx", 4, call.device()),
          .estimate_every = estimate_every,
          .dense_fallback = dense_fallback};
}

}  // namespace minference::binding
