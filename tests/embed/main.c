/* embed MODEL [DRAFT]: streams 48 tokens as they come, with the levels of DRAFT below the model,
 * and checks that plain decoding says the same. */
#include <stdio.h>
#include <string.h>

#include "stepladder/c_api.h"
#include "stepladder/version.h"

enum { kMost = 48 };

/* Streams into `tokens`; their number, or -1 after saying what went wrong. */
static int generate(sl_model* model, int draft, int32_t* tokens) {
  static const int32_t prompt[] = {1, 17, 42, 99, 17, 42};
  sl_request request;
  sl_stream* stream;
  sl_chunk chunk;
  sl_stats stats;
  sl_status status;
  int count = 0;
  size_t i;

  sl_request_init(&request, sizeof request);
  request.prompt = prompt;
  request.prompt_count = sizeof prompt / sizeof *prompt;
  request.max_tokens = kMost;
  request.ignore_eos = 1;
  request.temperature = 0.8f;
  request.seed = 7;
  request.draft = draft;
  if (sl_stream_begin(model, &request, &stream) != SL_OK) return -1;

  chunk.struct_size = sizeof chunk;
  while ((status = sl_stream_next(stream, &chunk)) == SL_OK)
    for (i = 0; i < chunk.count; ++i) {
      printf("%d ", (int)chunk.tokens[i]);
      tokens[count++] = chunk.tokens[i];
    }
  stats.struct_size = sizeof stats;
  sl_stream_get_stats(stream, &stats);
  printf("\n%s: %d tokens, %.0f tokens/s\n", draft ? "levels" : "plain", count,
         stats.tokens_per_second);
  sl_stream_free(stream);
  return status == SL_END ? count : -1;
}

int main(int argc, char** argv) {
  sl_model_params params;
  sl_model* model;
  int32_t with[kMost], without[kMost];
  int n, m;

  if (argc < 2) {
    fprintf(stderr, "usage: embed MODEL [DRAFT]\n");
    return 2;
  }
  if (strcmp(sl_version(), STEPLADDER_VERSION) != 0 || sl_abi_version() != SL_ABI_VERSION) {
    fprintf(stderr, "library %s does not fit headers %s\n", sl_version(), STEPLADDER_VERSION);
    return 1;
  }
  sl_model_params_init(&params, sizeof params);
  params.draft = argc > 2 ? argv[2] : "lookup";
  if (sl_model_open(argv[1], &params, &model) != SL_OK) {
    fprintf(stderr, "%s\n", sl_last_error());
    return 1;
  }
  n = generate(model, 1, with);
  m = generate(model, 0, without);
  if (n < 0 || m < 0) fprintf(stderr, "%s\n", sl_last_error());
  sl_model_close(model);
  return n == kMost && m == n && memcmp(with, without, sizeof with) == 0 ? 0 : 1;
}
