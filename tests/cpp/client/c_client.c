// A C engine in small: its own memory, libminference.so and nothing else of ours. Runs one layer
// whose heads have four patterns, q = 0 and v = position, so that every row of the output is the
// mean position of the keys it attends; checks that against sparse_attention.h. Then what a client
// of an older header and one with mistakes gets. Returns the number of failures.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "minference/c_api.h"

enum { HEADS = 4, HEADS_KV = 2, QUERIES = 150, KEYS = 331, HEAD_DIM = 40, LINES = 2 };
enum { SINK = 3, WINDOW = 20 };

static float q[HEADS * QUERIES * HEAD_DIM];
static float k[HEADS_KV * KEYS * HEAD_DIM];
static float v[HEADS_KV * KEYS * HEAD_DIM];
static float out[HEADS * QUERIES * HEAD_DIM];
static const float scales[HEADS] = {1, 1, 1, 1};
static const int32_t columns[LINES] = {5, 200}, diagonals[LINES] = {0, 90};
static int num_failures = 0;

static void check(int is_ok, const char* what) {
  printf("%s: %s\n", is_ok ? "ok" : "FAILED", what);
  num_failures += !is_ok;
}

/// Refused with this status and a sentence that says this word.
static void check_refusal(MinferenceStatus status, MinferenceStatus expected, const char* word) {
  printf("%s: %s\n", minference_status_string(status), minference_last_error());
  check(status == expected && strstr(minference_last_error(), word) != NULL, word);
}

/// Contiguous [1, heads, tokens, HEAD_DIM].
static MinferenceTensorView tensor(float* data, int64_t heads, int64_t tokens) {
  MinferenceTensorView view = MINFERENCE_TENSOR_VIEW_INIT;
  view.data = data;
  view.shape[0] = 1;
  view.shape[1] = heads;
  view.shape[2] = tokens;
  view.shape[3] = HEAD_DIM;
  view.stride[0] = heads * tokens * HEAD_DIM;
  view.stride[1] = tokens * HEAD_DIM;
  view.stride[2] = HEAD_DIM;
  view.stride[3] = 1;
  return view;
}

/// The same LINES lines for every head: [1, HEADS, LINES] with a stride of 0 between heads.
static MinferenceIndexView lines(const int32_t* data) {
  MinferenceIndexView view = MINFERENCE_INDEX_VIEW_INIT;
  view.data = data;
  view.shape[0] = 1;
  view.shape[1] = HEADS;
  view.shape[2] = LINES;
  view.stride[2] = 1;
  return view;
}

static int attends(int head, int row, int key) {
  const int offset = row + KEYS - QUERIES - key;
  const int block_end = row / 64 * 64 + 64 + KEYS - QUERIES;
  if (offset < 0) return 0;
  if (head == 0) return 1;                              // dense
  if (head == 1) return key < SINK || offset < WINDOW;  // a_shape
  if (head == 2) return 1;                              // vertical_slash, every line selected
  for (int n = 0; n < LINES; ++n) {                     // vertical_slash, lines given
    const int end = block_end - diagonals[n];
    if (key == columns[n] || (end - 64 <= key && key < end)) return 1;
  }
  return 0;
}

static int is_mean_of_attended(void) {
  for (int head = 0; head < HEADS; ++head) {
    for (int row = 0; row < QUERIES; ++row) {
      double sum = 0, count = 0;
      for (int key = 0; key < KEYS; ++key) {
        sum += attends(head, row, key) ? key : 0;
        count += attends(head, row, key);
      }
      const double difference =
          out[(head * QUERIES + row) * HEAD_DIM + row % HEAD_DIM] - sum / count;
      if (!(-1e-2 < difference && difference < 1e-2)) return 0;
    }
  }
  return 1;
}

/// Asks for the workspace, lends it and runs; a real engine keeps it between calls.
static MinferenceStatus run(const MinferenceAttentionArgs* args,
                            const MinferenceSparseAttentionParams* params) {
  size_t bytes = 0;
  MinferenceStatus status = minference_sparse_attention_workspace_bytes(args, params, &bytes);
  if (status != MINFERENCE_OK) return status;
  void* const workspace = malloc(bytes);
  memset(out, 0xFF, sizeof(out));
  status = minference_sparse_attention(args, params, workspace, bytes);
  free(workspace);
  return status;
}

int main(void) {
  const MinferenceHeadPattern patterns[HEADS] = {
      {MINFERENCE_PATTERN_DENSE, {0, 0, 0}},
      {MINFERENCE_PATTERN_A_SHAPE, {SINK, WINDOW, 0}},
      {MINFERENCE_PATTERN_VERTICAL_SLASH, {KEYS, KEYS, 0}},
      {MINFERENCE_PATTERN_VERTICAL_SLASH_INDEX, {0, 0, 0}},
  };
  MinferenceAttentionArgs args = MINFERENCE_ATTENTION_ARGS_INIT;
  MinferenceSparseAttentionParams params = MINFERENCE_SPARSE_ATTENTION_PARAMS_INIT;
  MinferenceSparseAttentionParams older;
  MinferencePrediction prediction = MINFERENCE_PREDICTION_INIT;
  MinferenceKernelInfo info = MINFERENCE_KERNEL_INFO_INIT;
  const char* kernel = NULL;

  check(minference_cpu_kernel_for(MINFERENCE_FLOAT32, &kernel) == MINFERENCE_OK, "a kernel runs");
  printf("libminference %s, CPU kernel %s\n", minference_version(), kernel);

  for (int n = 0; n < HEADS_KV * KEYS * HEAD_DIM; ++n) v[n] = (float)(n / HEAD_DIM % KEYS);
  args.q = tensor(q, HEADS, QUERIES);
  args.k = tensor(k, HEADS_KV, KEYS);
  args.v = tensor(v, HEADS_KV, KEYS);
  args.out = tensor(out, HEADS, QUERIES);
  args.num_threads = 2;
  params.head_patterns = patterns;
  params.vertical_idx = lines(columns);
  params.slash_idx = lines(diagonals);
  check(minference_sparse_attention_supports(&args, &params) == MINFERENCE_OK, "supported");
  check(minference_attention_kernel(&args, &params, &info) == MINFERENCE_OK &&
            strcmp(info.name, kernel) == 0,
        info.reason);
  check(run(&args, &params) == MINFERENCE_OK && is_mean_of_attended(), "four patterns, one call");
  check(minference_predict(&patterns[2], QUERIES, KEYS, &prediction) == MINFERENCE_OK &&
            prediction.is_dense == 1,
        "every line of a short prompt is cheaper dense");

  // A header without estimate_every: what lies there now is not read.
  memset(&older, 0xAB, sizeof(older));
  memcpy(&older, &params, offsetof(MinferenceSparseAttentionParams, estimate_every));
  older.struct_size = (uint32_t)offsetof(MinferenceSparseAttentionParams, estimate_every);
  check(run(&args, &older) == MINFERENCE_OK && is_mean_of_attended(), "an older client");

  check_refusal(run(NULL, &params), MINFERENCE_INVALID_ARGUMENT, "args is null");
  check_refusal(run(&args, NULL), MINFERENCE_INVALID_ARGUMENT, "params is null");
  older.struct_size = 0;
  check_refusal(run(&args, &older), MINFERENCE_INVALID_ARGUMENT, "struct_size 0");
  args.q_scale = scales;
  check_refusal(run(&args, &params), MINFERENCE_INVALID_ARGUMENT, "q_scale is given");
  args.q.dtype = args.k.dtype = args.v.dtype = MINFERENCE_FLOAT8_E4M3;
  args.out.dtype = MINFERENCE_BFLOAT16;
  check_refusal(run(&args, &params), MINFERENCE_UNSUPPORTED, "float8_e4m3fn");
  args.k.shape[3] = HEAD_DIM + 8;
  check_refusal(run(&args, &params), MINFERENCE_INVALID_ARGUMENT, "k has head_dim");
  return num_failures;
}
