// The cases of the attention tests of every backend, each with the reason it is there.
#pragma once

#include <cstdint>
#include <vector>

#include "heap_tensor.h"
#include "minference/minference.h"

namespace minference::test {

using Sizes = std::vector<std::int32_t>;
using Patterns = std::vector<HeadPattern>;

inline const HeadPattern kDense = {PatternKind::kDense, {}};
inline const HeadPattern kAShape = {PatternKind::kAShape, {3, 17}};
inline const HeadPattern kTriShape = {PatternKind::kTriShape, {5, 20, 9}};
inline const HeadPattern kVs = {PatternKind::kVerticalSlash, {40, 110}};
inline const HeadPattern kVsIndex = {PatternKind::kVerticalSlashIndex, {}};
inline const HeadPattern kTopK = {PatternKind::kBlockSparse, {2}};
inline const HeadPattern kBlockIndex = {PatternKind::kBlockIndex, {}};
inline const Patterns kAll = {kDense,    kVs,   kAShape,     kVsIndex,
                              kTriShape, kTopK, kBlockIndex, kVsIndex};

struct Case {
  const char* reason;
  std::int64_t batch = 1, num_heads_q = 8, num_heads_kv = 4, seq_q = 0, seq_kv = 0, head_dim = 16;
  Patterns patterns = kAll;  // of the heads, repeated
  SlashMode mode = SlashMode::kCover;
  std::int64_t estimate_every = 0;
  std::int64_t num_vertical = 12, num_slash = 5, num_blocks = 3;  // entries of explicit lists
  bool has_offset_0 = false;                                      // in explicit slash lists
  Layout layout = Layout::kPlain;
  Layout layout_kv = Layout::kPlain;
  Sizes first_valid_key = {}, cu_seqlens_q = {}, cu_seqlens_kv = {};
  double scale = 0, amplitude = 1;
  std::int32_t num_threads = 2;
  bool has_lse = true;
  bool has_nonfinite = false;  // infinities and NaN in some values and in the last key
};

inline const Case kCases[] = {
    {.reason = "one query, one key", .seq_q = 1, .seq_kv = 1},
    {.reason = "decode: one query, many keys", .batch = 2, .seq_q = 1, .seq_kv = 131},
    {.reason = "one row short of a row block", .seq_q = 63, .seq_kv = 63},
    {.reason = "exactly one row block", .seq_q = 64, .seq_kv = 64, .head_dim = 64},
    {.reason = "one row more than a row block", .seq_q = 65, .seq_kv = 65, .num_threads = 1},
    {.reason = "every pattern at odd lengths", .batch = 2, .seq_q = 211, .seq_kv = 211},
    {.reason = "prefix that is no multiple of 64", .seq_q = 130, .seq_kv = 263, .num_threads = 3},
    {.reason = "prefix that is a multiple of 64", .seq_q = 96, .seq_kv = 224, .has_offset_0 = true},
    {.reason = "mode exact", .seq_q = 190, .seq_kv = 207, .mode = SlashMode::kExact},
    {.reason = "mode exact, estimated only, V and S of one line each beyond the forced ones",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 250,
     .seq_kv = 250,
     .patterns = {{PatternKind::kVerticalSlash, {31, 101}}},
     .mode = SlashMode::kExact},
    {.reason = "mode reference without offset 0: columns right of the last tile are kept",
     .seq_q = 190,
     .seq_kv = 207,
     .mode = SlashMode::kReference},
    {.reason = "mode reference with offset 0",
     .seq_q = 201,
     .seq_kv = 201,
     .mode = SlashMode::kReference,
     .num_slash = 9,
     .has_offset_0 = true},
    {.reason = "no lines at all: rows without keys",
     .num_heads_q = 2,
     .num_heads_kv = 2,
     .seq_q = 70,
     .seq_kv = 90,
     .patterns = {kVsIndex, kBlockIndex},
     .num_vertical = 0,
     .num_slash = 0,
     .num_blocks = 0},
    {.reason = "one far slash line: the first rows have no keys",
     .num_heads_q = 6,
     .num_heads_kv = 2,
     .seq_q = 150,
     .seq_kv = 150,
     .patterns = {kVsIndex, {PatternKind::kAShape, {0, 0}}, {PatternKind::kTriShape, {0, 0, 3}}},
     .num_vertical = 0,
     .num_slash = 1},
    {.reason = "many lines: lists longer than the sequence, with duplicates",
     .num_heads_q = 4,
     .num_heads_kv = 1,
     .seq_q = 129,
     .seq_kv = 180,
     .patterns = {kVsIndex, kBlockIndex},
     .num_vertical = 200,
     .num_slash = 300,
     .num_blocks = 7},
    {.reason = "sizes that exceed the sequence, and sizes 0 that are raised to 30 and 50",
     .num_heads_q = 4,
     .num_heads_kv = 4,
     .seq_q = 170,
     .seq_kv = 170,
     .patterns = {{PatternKind::kVerticalSlash, {1000, 6096}},
                  {PatternKind::kVerticalSlash, {0, 0}},
                  {PatternKind::kAShape, {1000, 1000}},
                  {PatternKind::kTriShape, {0, 1, 1000}}}},
    {.reason = "estimated per chunk of 64 queries",
     .seq_q = 199,
     .seq_kv = 232,
     .patterns = {kVs, kVs, kTopK, kTriShape},
     .estimate_every = 64},
    {.reason = "estimated per chunk, mode exact, more than 64 queries in a chunk",
     .num_heads_q = 2,
     .num_heads_kv = 2,
     .seq_q = 260,
     .seq_kv = 260,
     .patterns = {kVs},
     .mode = SlashMode::kExact,
     .estimate_every = 128},
    {.reason = "estimated per chunk, mode reference",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 200,
     .seq_kv = 200,
     .patterns = {kVs, kVsIndex},
     .mode = SlashMode::kReference,
     .estimate_every = 128},
    {.reason = "group of 8 heads on one kv head, rows first as models hold them",
     .batch = 2,
     .num_heads_kv = 1,
     .seq_q = 100,
     .seq_kv = 140,
     .layout = Layout::kRowsFirst,
     .layout_kv = Layout::kRowsFirst},
    {.reason = "no grouping, sliced from wider rows, off alignment",
     .num_heads_kv = 8,
     .seq_q = 97,
     .seq_kv = 97,
     .head_dim = 24,
     .layout = Layout::kSliced,
     .layout_kv = Layout::kSliced},
    {.reason = "rows backwards", .seq_q = 83, .seq_kv = 101, .layout_kv = Layout::kReversed},
    {.reason = "kv heads expanded by stride 0",
     .batch = 2,
     .seq_q = 83,
     .seq_kv = 101,
     .layout_kv = Layout::kExpanded},
    {.reason = "left padding: in the keys, across the queries, none, all but one, all",
     .batch = 5,
     .seq_q = 80,
     .seq_kv = 100,
     .first_valid_key = {7, 61, 0, 99, 100}},
    {.reason = "left padding, whole prompts, sliced",
     .batch = 3,
     .seq_q = 150,
     .seq_kv = 150,
     .layout = Layout::kSliced,
     .layout_kv = Layout::kSliced,
     .first_valid_key = {1, 70, 149}},
    {.reason = "left padding, estimated per chunk of the valid queries",
     .batch = 2,
     .seq_q = 180,
     .seq_kv = 180,
     .patterns = {kVs, kTriShape},
     .estimate_every = 64,
     .first_valid_key = {13, 70}},
    {.reason = "packed: empty sequences, one row, prefixes of different lengths",
     .seq_q = 197,
     .seq_kv = 290,
     .cu_seqlens_q = {0, 65, 65, 66, 66, 197},
     .cu_seqlens_kv = {0, 80, 80, 91, 95, 290}},
    {.reason = "packed, rows first, estimated per chunk",
     .seq_q = 200,
     .seq_kv = 200,
     .patterns = {kVs, kVsIndex, kBlockIndex, kAShape},
     .estimate_every = 64,
     .layout = Layout::kRowsFirst,
     .layout_kv = Layout::kRowsFirst,
     .cu_seqlens_q = {0, 130, 200},
     .cu_seqlens_kv = {0, 130, 200}},
    {.reason = "smallest head", .seq_q = 70, .seq_kv = 75, .head_dim = 8},
    {.reason = "head of 40", .seq_q = 70, .seq_kv = 75, .head_dim = 40},
    {.reason = "head of 80", .seq_q = 70, .seq_kv = 75, .head_dim = 80},
    {.reason = "head of 96", .seq_q = 70, .seq_kv = 75, .head_dim = 96},
    {.reason = "head of 128", .seq_q = 70, .seq_kv = 131, .head_dim = 128},
    {.reason = "largest head", .seq_q = 70, .seq_kv = 75, .head_dim = 256},
    {.reason = "head of 248, sliced",
     .seq_q = 33,
     .seq_kv = 75,
     .head_dim = 248,
     .layout_kv = Layout::kSliced},
    {.reason = "peaked rows: the running maximum moves late and far",
     .seq_q = 150,
     .seq_kv = 170,
     .amplitude = 5},
    {.reason = "scale of the caller", .seq_q = 90, .seq_kv = 90, .scale = 0.71},
    {.reason = "more threads than work", .seq_q = 5, .seq_kv = 40, .num_threads = 13},
    {.reason = "more verticals than a segment of packed values, gathered keys of a partial chunk",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 70,
     .seq_kv = 900,
     .patterns = {kVsIndex, {PatternKind::kVerticalSlash, {300, 50}}},
     .num_vertical = 700},
    {.reason = "more keys than an estimation segment",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 75,
     .seq_kv = 4160,
     .head_dim = 8,
     .patterns = {kVs}},
    {.reason = "not finite: a key counts where it is attended and nowhere else",
     .num_heads_q = 6,
     .num_heads_kv = 3,
     .seq_q = 150,
     .seq_kv = 190,
     .head_dim = 40,
     .patterns = {kDense, kAShape, kVsIndex, kBlockIndex, kTriShape, kVsIndex},
     .has_nonfinite = true},
    {.reason = "not finite, mode exact",
     .num_heads_q = 2,
     .num_heads_kv = 1,
     .seq_q = 150,
     .seq_kv = 190,
     .patterns = {kVsIndex},
     .mode = SlashMode::kExact,
     .has_nonfinite = true},
    {.reason = "no lse", .seq_q = 66, .seq_kv = 70, .has_lse = false},
    {.reason = "no queries", .seq_q = 0, .seq_kv = 70},
    {.reason = "no batch", .batch = 0, .seq_q = 5, .seq_kv = 7},
};

/// A head whose lines cover everything, one whose may, and the caller's lists, which nothing
/// replaces.
inline const Case kFallbackCase = {.reason = "dense fallback",
                                   .num_heads_q = 3,
                                   .num_heads_kv = 1,
                                   .seq_q = 200,
                                   .seq_kv = 200,
                                   .patterns = {{PatternKind::kVerticalSlash, {1000, 6096}},
                                                {PatternKind::kVerticalSlash, {30, 100}},
                                                kVsIndex},
                                   .num_slash = 150};

}  // namespace minference::test
