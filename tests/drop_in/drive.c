/* drive MODEL DRAFT: a greedy text of 40 tokens; their ids, prompt included, on one line, then how
 * many guesses were accepted. With `backends` alone, the backends and what they lack. */
#include <stdio.h>
#include <string.h>

#include "stepladder/c_api.h"

static const int32_t kPrompt[] = {1, 17, 42, 99, 17, 42};

static int fail(void) {
  fprintf(stderr, "%s\n", sl_last_error());
  return 1;
}

static int backends(void) {
  int32_t i;
  for (i = 0; i < sl_backend_count(); ++i) {
    sl_backend_info info;
    info.struct_size = sizeof info;
    if (sl_backend_get_info(i, &info) != SL_OK) return fail();
    printf("%s %d %s\n", info.name, (int)info.devices, info.missing);
  }
  return 0;
}

int main(int argc, char** argv) {
  sl_model_params params;
  sl_model* model;
  sl_request request;
  sl_stream* stream;
  sl_chunk chunk;
  sl_level_stats stats;
  size_t i;
  sl_status status;

  if (argc < 3) return backends();
  sl_model_params_init(&params, sizeof params);
  params.draft = argv[2];
  if (sl_model_open(argv[1], &params, &model) != SL_OK) return fail();
  sl_request_init(&request, sizeof request);
  request.prompt = kPrompt;
  request.prompt_count = sizeof kPrompt / sizeof *kPrompt;
  request.max_tokens = 40;
  request.ignore_eos = 1;
  if (sl_stream_begin(model, &request, &stream) != SL_OK) return fail();
  for (i = 0; i < request.prompt_count; ++i) printf("%d ", (int)kPrompt[i]);
  chunk.struct_size = sizeof chunk;
  while ((status = sl_stream_next(stream, &chunk)) == SL_OK)
    for (i = 0; i < chunk.count; ++i) printf("%d ", (int)chunk.tokens[i]);
  if (status != SL_END) return fail();
  stats.struct_size = sizeof stats;
  if (sl_stream_get_level_stats(stream, 0, &stats) != SL_OK) return fail();
  printf("\n%d\n", (int)stats.accepted);
  sl_stream_free(stream);
  sl_model_close(model);
  return 0;
}
