/* c_api_test MODEL: every function of the C API from C99, with what a careless caller may pass. */
#include "stepladder/c_api.h"

#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "stepladder/version.h"

static int failures = 0;

#define EXPECT(condition)                                                                      \
  do {                                                                                         \
    if (!(condition)) {                                                                        \
      ++failures;                                                                              \
      printf("%s:%d: %s (last error: %s)\n", __FILE__, __LINE__, #condition, sl_last_error()); \
    }                                                                                          \
  } while (0)

#define EXPECT_REFUSED(call, status, word)           \
  do {                                               \
    EXPECT((call) == (status));                      \
    EXPECT(strstr(sl_last_error(), (word)) != NULL); \
  } while (0)

enum { kMost = 200 };

static const int32_t kPrompt[] = {1, 17, 42, 99, 17, 42};

static sl_request default_request(void) {
  sl_request request;
  EXPECT(sl_request_init(&request, sizeof request) == SL_OK);
  request.prompt = kPrompt;
  request.prompt_count = sizeof kPrompt / sizeof *kPrompt;
  request.max_tokens = 40;
  request.ignore_eos = 1;
  return request;
}

/* Takes the whole text; returns its length. */
static size_t take(sl_stream* stream, int32_t* tokens, sl_finish* finish) {
  sl_chunk chunk;
  size_t count = 0;
  sl_status status;
  chunk.struct_size = sizeof chunk;
  *finish = SL_FINISH_NONE;
  while ((status = sl_stream_next(stream, &chunk)) == SL_OK) {
    EXPECT(*finish == SL_FINISH_NONE);
    EXPECT(chunk.logprobs == NULL && chunk.top_count == 0);
    if (count + chunk.count <= kMost) {
      size_t i;
      for (i = 0; i < chunk.count; ++i) {
        tokens[count + i] = chunk.tokens[i];
        EXPECT(isfinite(chunk.logits[i]));
      }
    }
    count += chunk.count;
    *finish = chunk.finish;
  }
  EXPECT(status == SL_END);
  EXPECT(sl_stream_next(stream, &chunk) == SL_END && chunk.count == 0);
  return count;
}

static void test_names(void) {
  int status;
  EXPECT(strcmp(sl_version(), STEPLADDER_VERSION) == 0);
  EXPECT(sl_abi_version() == SL_ABI_VERSION);
  EXPECT(strcmp(sl_last_error(), "") == 0);
  for (status = SL_OK; status <= SL_INTERNAL; ++status)
    EXPECT(strcmp(sl_status_string((sl_status)status), "unknown status") != 0);
  EXPECT(strcmp(sl_status_string((sl_status)77), "unknown status") == 0);
}

static void test_backends(void) {
  sl_backend_info info;
  int32_t i, cpus = 0;
  EXPECT(sl_backend_count() >= 1);
  for (i = 0; i < sl_backend_count(); ++i) {
    info.struct_size = sizeof info;
    EXPECT(sl_backend_get_info(i, &info) == SL_OK);
    EXPECT((info.devices == 0) == (info.missing[0] != 0));
    if (strcmp(info.name, "cpu") == 0) cpus += info.devices;
  }
  EXPECT(cpus == 1);
  EXPECT_REFUSED(sl_backend_get_info(i, &info), SL_INVALID_ARGUMENT, "out of range");
  EXPECT_REFUSED(sl_backend_get_info(-1, &info), SL_INVALID_ARGUMENT, "index: -1");
  EXPECT_REFUSED(sl_backend_get_info(0, NULL), SL_INVALID_ARGUMENT, "out is null");
}

static void test_refusals(const char* path) {
  sl_model_params params;
  sl_model* model = (sl_model*)&params;
  sl_stream* stream = NULL;
  sl_chunk chunk;
  sl_model_info info;
  EXPECT_REFUSED(sl_model_params_init(NULL, sizeof params), SL_INVALID_ARGUMENT, "null");
  EXPECT_REFUSED(sl_model_params_init(&params, 2), SL_INVALID_ARGUMENT, "2 bytes");
  EXPECT(sl_model_params_init(&params, sizeof params) == SL_OK);
  EXPECT(params.struct_size == sizeof params && params.max_sequences == 1 && params.draft == NULL);
  EXPECT_REFUSED(sl_model_open("/no/such/model", &params, &model), SL_IO, "/no/such/model");
  EXPECT(model == NULL);
  EXPECT_REFUSED(sl_model_open(NULL, NULL, &model), SL_INVALID_ARGUMENT, "directory");
  EXPECT_REFUSED(sl_model_open(path, NULL, NULL), SL_INVALID_ARGUMENT, "out");
  params.draft = "lookup:tokns=3";
  EXPECT_REFUSED(sl_model_open(path, &params, &model), SL_INVALID_ARGUMENT, "tokns");
  params.draft = NULL;
  params.device = "abacus";
  EXPECT_REFUSED(sl_model_open(path, &params, &model), SL_UNSUPPORTED, "abacus");
  params.device = NULL;
  params.struct_size = 0;
  EXPECT_REFUSED(sl_model_open(path, &params, &model), SL_INVALID_ARGUMENT, "struct_size");
  /* Half of a pointer is none. */
  params.draft = "lookup";
  params.struct_size = sizeof(size_t) + 4;
  EXPECT_REFUSED(sl_model_open(path, &params, &model), SL_INVALID_ARGUMENT, "inside a field");
  params.draft = NULL;
  EXPECT(sl_stream_begin(NULL, NULL, &stream) == SL_INVALID_ARGUMENT && stream == NULL);
  chunk.struct_size = sizeof chunk;
  EXPECT(sl_stream_next(NULL, &chunk) == SL_INVALID_ARGUMENT);
  info.struct_size = sizeof info;
  EXPECT(sl_model_get_info(NULL, &info) == SL_INVALID_ARGUMENT);
  sl_stream_cancel(NULL);
  sl_stream_free(NULL);
  sl_model_close(NULL);
}

static int count_progress(uint64_t done, uint64_t total, void* user) {
  EXPECT(done <= total);
  return ++*(int*)user == 3;
}

static void test_progress(const char* path) {
  sl_model_params params;
  sl_model* model = NULL;
  int calls = 0;
  EXPECT(sl_model_params_init(&params, sizeof params) == SL_OK);
  params.progress = count_progress;
  params.progress_user = &calls;
  EXPECT(sl_model_open(path, &params, &model) == SL_CANCELLED);
  EXPECT(calls == 3 && model == NULL);
}

static void test_info(sl_model* model) {
  sl_model_info info;
  sl_level_info level;
  struct {
    size_t struct_size;
    int32_t vocab;
    int32_t guard;
  } small = {sizeof(size_t) + sizeof(int32_t), 0, 1234};
  info.struct_size = sizeof info;
  EXPECT(sl_model_get_info(model, &info) == SL_OK);
  EXPECT(info.vocab == 320 && info.context == 512 && info.level_count == 3);
  EXPECT(info.total_bytes > 0 && info.parameters > 0 &&
         strcmp(info.architecture, "LlamaForCausalLM") == 0);
  level.struct_size = sizeof level;
  EXPECT(sl_model_get_level(model, 1, &level) == SL_OK);
  EXPECT(strcmp(level.name, "cast:int8") == 0 && strcmp(level.format, "w8a16") == 0 &&
         level.tokens == 6);
  EXPECT_REFUSED(sl_model_get_level(model, 3, &level), SL_INVALID_ARGUMENT, "level: 3");
  EXPECT_REFUSED(sl_model_get_level(model, -1, &level), SL_INVALID_ARGUMENT, "level: -1");
  /* A program built with an older, shorter struct gets the part it knows and no byte more. */
  EXPECT(sl_model_get_info(model, (sl_model_info*)(void*)&small) == SL_OK);
  EXPECT(small.vocab == 320 && small.guard == 1234);
}

static void test_requests(sl_model* model) {
  sl_request request = default_request();
  sl_stream* stream = NULL;
  sl_bias bias = {17, (float)INFINITY};
  int32_t stop = 99999;
  struct {
    sl_request known;
    int32_t unknown;
  } newer;
  request.prompt_count = 0;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "prompt");
  request = default_request();
  request.prompt = NULL;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "prompt");
  request = default_request();
  request.prompt_count = (size_t)-1;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "prompt: ");
  request.prompt_count = (size_t)1 << 40;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "prompt: ");
  request = default_request();
  request.stop_token_ids = &stop;
  request.stop_token_count = (size_t)-1 / 4;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT,
                 "stop_token_ids: ");
  request = default_request();
  request.logit_bias = &bias;
  request.logit_bias_count = (size_t)-1;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "logit_bias: ");
  request = default_request();
  request.top_p = 0;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "top_p");
  request = default_request();
  request.temperature = (float)NAN;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "temperature");
  request = default_request();
  request.logit_bias = &bias;
  request.logit_bias_count = 1;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "logit_bias");
  request = default_request();
  request.stop_token_ids = &stop;
  request.stop_token_count = 1;
  EXPECT_REFUSED(sl_stream_begin(model, &request, &stream), SL_INVALID_ARGUMENT, "stop_token_ids");
  /* A longer struct is welcome while what it has beyond is zero. */
  memset(&newer, 0, sizeof newer);
  newer.known = default_request();
  newer.known.struct_size = sizeof newer;
  newer.unknown = 1;
  EXPECT_REFUSED(sl_stream_begin(model, &newer.known, &stream), SL_UNSUPPORTED, "newer header");
  EXPECT(stream == NULL);
  newer.unknown = 0;
  EXPECT(sl_stream_begin(model, &newer.known, &stream) == SL_OK);
  sl_stream_free(stream);
}

static void test_text(sl_model* model) {
  int32_t with[kMost], without[kMost];
  sl_finish finish;
  size_t n, m;
  int sampled;
  for (sampled = 0; sampled < 2; ++sampled) {
    sl_request request = default_request();
    sl_stream* stream = NULL;
    sl_stats stats;
    sl_level_stats level;
    if (sampled) {
      request.temperature = 0.9f;
      request.seed = 11;
      request.repetition_penalty = 1.2f;
    }
    EXPECT(sl_stream_begin(model, &request, &stream) == SL_OK);
    n = take(stream, with, &finish);
    EXPECT(n == 40 && finish == SL_FINISH_LENGTH);
    stats.struct_size = sizeof stats;
    EXPECT(sl_stream_get_stats(stream, &stats) == SL_OK);
    EXPECT(stats.tokens == 40 && stats.prompt_tokens == 6 && stats.level_count == 2);
    EXPECT(stats.seed == (sampled ? 11u : 0u) && stats.first_token_ms > 0 &&
           stats.tokens_per_second > 0);
    level.struct_size = sizeof level;
    EXPECT(sl_stream_get_level_stats(stream, 1, &level) == SL_OK);
    EXPECT(strcmp(level.name, "cast:int8") == 0 && level.rounds > 0);
    EXPECT_REFUSED(sl_stream_get_level_stats(stream, 2, &level), SL_INVALID_ARGUMENT, "level: 2");
    sl_stream_free(stream);

    request.draft = 0;
    EXPECT(sl_stream_begin(model, &request, &stream) == SL_OK);
    m = take(stream, without, &finish);
    sl_stream_free(stream);
    EXPECT(n == m && memcmp(with, without, n * sizeof *with) == 0);

    request.draft = 1;
    request.stop_token_ids = &with[20];
    request.stop_token_count = 1;
    EXPECT(sl_stream_begin(model, &request, &stream) == SL_OK);
    m = take(stream, without, &finish);
    EXPECT(finish == SL_FINISH_STOP && m <= 20 && with[m] == with[20]);
    sl_stream_free(stream);
  }
}

static void test_logprobs(sl_model* model) {
  sl_request request = default_request();
  sl_stream* stream = NULL;
  sl_chunk chunk;
  size_t seen = 0, i;
  request.logprobs = 3;
  EXPECT(sl_stream_begin(model, &request, &stream) == SL_OK);
  chunk.struct_size = sizeof chunk;
  while (sl_stream_next(stream, &chunk) == SL_OK) {
    if (chunk.count == 0) continue;
    EXPECT(chunk.logprobs != NULL && chunk.top_count == 3);
    for (i = 0; i < chunk.count && chunk.logprobs; ++i, ++seen) {
      EXPECT(chunk.logprobs[i] <= 0);
      EXPECT(chunk.top_tokens[3 * i] == chunk.tokens[i]); /* greedy: the likeliest */
      EXPECT(chunk.top_logprobs[3 * i] == chunk.logprobs[i] &&
             chunk.top_logprobs[3 * i + 1] <= chunk.logprobs[i]);
    }
  }
  EXPECT(seen == 40);
  sl_stream_free(stream);
}

/* A struct too short for what a chunk holds is refused, and the next call gets all of the text. */
static void test_short_chunks(sl_model* model) {
  sl_request request = default_request();
  sl_stream* stream = NULL;
  sl_chunk chunk;
  int32_t tokens[kMost];
  sl_finish finish;
  const size_t sizes[] = {0, sizeof(size_t), offsetof(sl_chunk, count), sizeof chunk - 1};
  size_t i;
  EXPECT(sl_stream_begin(model, &request, &stream) == SL_OK);
  for (i = 0; i < sizeof sizes / sizeof *sizes; ++i) {
    chunk.struct_size = sizes[i];
    EXPECT_REFUSED(sl_stream_next(stream, &chunk), SL_INVALID_ARGUMENT, "struct_size");
  }
  EXPECT(take(stream, tokens, &finish) == 40);
  sl_stream_free(stream);
}

static void* cancel_it(void* stream) {
  sl_stream_cancel((sl_stream*)stream);
  return NULL;
}

static void test_cancel(sl_model* model) {
  sl_request request = default_request();
  sl_stream* stream = NULL;
  sl_chunk chunk;
  pthread_t thread;
  int32_t tokens[kMost];
  sl_finish finish;
  request.max_tokens = 500;
  EXPECT(sl_stream_begin(model, &request, &stream) == SL_OK);
  chunk.struct_size = sizeof chunk;
  EXPECT(sl_stream_next(stream, &chunk) == SL_OK && chunk.count == 1);
  /* The queue holds 32 rounds, so a text of 500 tokens cannot have ended before anyone reads on. */
  EXPECT(pthread_create(&thread, NULL, cancel_it, stream) == 0);
  EXPECT(pthread_join(thread, NULL) == 0);
  take(stream, tokens, &finish);
  EXPECT(finish == SL_FINISH_CANCELLED || finish == SL_FINISH_LENGTH);
  sl_stream_free(stream);
}

/* Each thread has an error of its own. */
static void* fail_elsewhere(void* path) {
  sl_model* model;
  EXPECT(strcmp(sl_last_error(), "") == 0);
  EXPECT_REFUSED(sl_model_open((const char*)path, NULL, &model), SL_IO, "elsewhere");
  return NULL;
}

static void test_errors_by_thread(void) {
  pthread_t thread;
  sl_model* model;
  EXPECT_REFUSED(sl_model_open("/here", NULL, &model), SL_IO, "/here");
  EXPECT(pthread_create(&thread, NULL, fail_elsewhere, (void*)"/elsewhere") == 0);
  EXPECT(pthread_join(thread, NULL) == 0);
  EXPECT(strstr(sl_last_error(), "/here") != NULL);
}

int main(int argc, char** argv) {
  sl_model_params params;
  sl_model* model = NULL;
  sl_stream* late = NULL;
  if (argc != 2) {
    fprintf(stderr, "usage: c_api_test MODEL\n");
    return 2;
  }
  test_names();
  test_refusals(argv[1]);
  test_progress(argv[1]);
  EXPECT(sl_model_params_init(&params, sizeof params) == SL_OK);
  params.draft = "cast:int8:tokens=6,lookup";
  params.threads = 1;
  if (sl_model_open(argv[1], &params, &model) != SL_OK) {
    printf("%s: %s\n", argv[1], sl_last_error());
    return 1;
  }
  test_info(model);
  test_requests(model);
  test_backends();
  test_text(model);
  test_logprobs(model);
  test_short_chunks(model);
  test_cancel(model);
  test_errors_by_thread();
  /* A stream may outlive its model. */
  {
    sl_request request = default_request();
    int32_t tokens[kMost];
    sl_finish finish;
    request.max_tokens = 500;
    EXPECT(sl_stream_begin(model, &request, &late) == SL_OK);
    sl_model_close(model);
    take(late, tokens, &finish);
    EXPECT(finish != SL_FINISH_NONE);
    sl_stream_free(late);
  }
  printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
