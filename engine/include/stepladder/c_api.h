/* The C API (C99): opaque handles, status codes, and the last error of each thread as text. Option
 * structs carry their size first, so that a program built with an older header keeps working.
 *
 *   sl_model* model;  sl_stream* stream;  sl_chunk chunk;
 *   sl_model_params params;  sl_model_params_init(&params, sizeof params);
 *   params.draft = "cast:int8,lookup";
 *   if (sl_model_open("models/SmolLM2", &params, &model)) puts(sl_last_error());
 *   sl_request request;  sl_request_init(&request, sizeof request);
 *   request.prompt = ids, request.prompt_count = n;
 *   sl_stream_begin(model, &request, &stream);
 *   chunk.struct_size = sizeof chunk;
 *   while (sl_stream_next(stream, &chunk) == SL_OK) use(chunk.tokens, chunk.count);
 *   sl_stream_free(stream);
 *   sl_model_close(model);
 */
#ifndef STEPLADDER_C_API_H
#define STEPLADDER_C_API_H

#include <stddef.h>
#include <stdint.h>

#ifndef SL_API
#if defined(_WIN32)
#define SL_API
#else
#define SL_API __attribute__((visibility("default")))
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* Raised when a program built with an older header could no longer work. */
#define SL_ABI_VERSION 1

typedef enum sl_status {
  SL_OK = 0,
  SL_END = 1,              /* sl_stream_next: the last chunk has been given */
  SL_INVALID_ARGUMENT = 2, /* an option or request the caller can correct */
  SL_UNSUPPORTED = 3,      /* well formed, but not something the engine does */
  SL_IO = 4,               /* a file could not be opened or read */
  SL_MODEL_FORMAT = 5,     /* a file's content breaks its format */
  SL_VOCAB_MISMATCH = 6,   /* draft and target do not speak the same tokens */
  SL_OUT_OF_MEMORY = 7,
  SL_CANCELLED = 8, /* loading was stopped by its progress callback */
  SL_INTERNAL = 9,
  SL_DEVICE = 10 /* a device failed or was lost, and what it held with it */
} sl_status;

typedef enum sl_finish {
  SL_FINISH_NONE = 0,
  SL_FINISH_STOP = 1,   /* an end token */
  SL_FINISH_LENGTH = 2, /* max_tokens, or the context is full */
  SL_FINISH_CANCELLED = 3
} sl_finish;

typedef struct sl_model sl_model;
typedef struct sl_stream sl_stream;

/* The library's version, "0.1.0", and the ABI version it was built with. */
SL_API const char* sl_version(void);
SL_API int32_t sl_abi_version(void);
/* A short name of the status. Never null. */
SL_API const char* sl_status_string(sl_status status);
/* What the last call of this thread that failed had to say: what, where, how to fix it. Valid until
 * the thread's next failing call. Never null. */
SL_API const char* sl_last_error(void);

/* A backend of this build or, where it could not be built, what that took. */
typedef struct sl_backend_info {
  size_t struct_size;
  char name[32];     /* what `device` may say, with an index behind a colon or without */
  int32_t devices;   /* how many there are; 0 = it cannot run */
  char missing[512]; /* then what it lacks, and why */
} sl_backend_info;

SL_API int32_t sl_backend_count(void);
/* Fills *out up to out->struct_size, which the caller sets. */
SL_API sl_status sl_backend_get_info(int32_t index, sl_backend_info* out);

/* Called while loading; a result other than 0 stops it with SL_CANCELLED. */
typedef int (*sl_progress_fn)(uint64_t done_bytes, uint64_t total_bytes, void* user);

typedef struct sl_model_params {
  size_t struct_size;
  const char* draft;     /* levels below the target, "cast:int8,lookup"; null = none */
  int32_t context;       /* tokens a sequence may hold; 0 = the model's own, at most 8192 */
  int32_t max_sequences; /* served side by side; further requests queue */
  int32_t threads;       /* 0 = the machine's cores */
  const char* device;    /* "auto", "cpu", "cuda:1"; null = "auto" */
  const char* isa;       /* cpu: null = the best there is */
  const char* head;      /* the target's lm_head format; null = as stored */
  sl_progress_fn progress;
  void* progress_user;
} sl_model_params;

typedef struct sl_model_info {
  size_t struct_size;
  int32_t vocab, context, model_context, threads, level_count;
  int64_t parameters;
  uint64_t total_bytes;
  char architecture[64], backend[64];
} sl_model_info;

typedef struct sl_level_info {
  size_t struct_size;
  int32_t tokens; /* drafts a round asks of it at most; 0 for the target */
  uint64_t weight_bytes, pass_bytes, cache_bytes;
  char name[256], format[32];
  int32_t recordings; /* shapes of rounds that were recorded at load */
} sl_level_info;

typedef struct sl_bias {
  int32_t token;
  float value;
} sl_bias;

typedef struct sl_request {
  size_t struct_size;
  const int32_t* prompt; /* token ids, copied */
  size_t prompt_count;
  int32_t max_tokens;
  float temperature; /* 0 = greedy */
  float top_p, min_p;
  int32_t top_k; /* 0 = all */
  uint64_t seed;
  float repetition_penalty, frequency_penalty, presence_penalty;
  const sl_bias* logit_bias;
  size_t logit_bias_count;
  const int32_t* stop_token_ids; /* besides the model's own end tokens */
  size_t stop_token_count;
  int32_t ignore_eos;
  int32_t logprobs; /* -1 = none; n = the choice's and the n likeliest */
  int32_t draft;    /* 0 = plain decoding */
} sl_request;

/* What one round gave. The pointers stay valid until the stream's next sl_stream_next or
 * sl_stream_free. The last chunk carries `finish` and may be empty. */
typedef struct sl_chunk {
  size_t struct_size; /* set by the caller */
  const int32_t* tokens;
  const float* logits;
  size_t count;
  sl_finish finish;
  int32_t stop_token;        /* the end token that finished the text, else -1 */
  const float* logprobs;     /* [count], or null when not asked for */
  int32_t top_count;         /* likeliest tokens each */
  const int32_t* top_tokens; /* [count, top_count] */
  const float* top_logprobs; /* [count, top_count] */
} sl_chunk;

typedef struct sl_stats {
  size_t struct_size;
  int64_t prompt_tokens, cached_tokens, tokens;
  double first_token_ms, decode_ms, tokens_per_second;
  uint64_t seed;
  int32_t level_count;
} sl_stats;

typedef struct sl_level_stats {
  size_t struct_size;
  int64_t rounds, drafted, accepted, emitted, rows;
  double draft_ms, verify_ms, acceptance_length;
  char name[256];
} sl_level_stats;

/* Fill a struct of `struct_size` bytes with the defaults. */
SL_API sl_status sl_model_params_init(sl_model_params* params, size_t struct_size);
SL_API sl_status sl_request_init(sl_request* request, size_t struct_size);

/* Loads the checkpoint directory; `params` may be null. On failure *out is null and everything
 * taken is given back. */
SL_API sl_status sl_model_open(const char* directory, const sl_model_params* params,
                               sl_model** out);
/* Streams that still run end as cancelled; they are freed by their own sl_stream_free, before or
 * after. Null is allowed. */
SL_API void sl_model_close(sl_model* model);
/* Fill *out up to out->struct_size, which the caller sets. */
SL_API sl_status sl_model_get_info(const sl_model* model, sl_model_info* out);
SL_API sl_status sl_model_get_level(const sl_model* model, int32_t level, sl_level_info* out);

/* Checks the request, queues it and returns at once. Any thread. */
SL_API sl_status sl_stream_begin(sl_model* model, const sl_request* request, sl_stream** out);
/* Waits for the next chunk. SL_END once the last has been given. One thread at a time. A
 * struct_size below that of the first header's sl_chunk is refused, and no chunk is taken. */
SL_API sl_status sl_stream_next(sl_stream* stream, sl_chunk* out);
/* Ends the stream within one round, or between two prompt blocks. Any thread, also while another
 * waits in sl_stream_next. */
SL_API void sl_stream_cancel(sl_stream* stream);
SL_API sl_status sl_stream_get_stats(const sl_stream* stream, sl_stats* out);
/* Level 0 is the target; each further verifying level is one more. */
SL_API sl_status sl_stream_get_level_stats(const sl_stream* stream, int32_t level,
                                           sl_level_stats* out);
/* Cancels what still runs. Null is allowed. */
SL_API void sl_stream_free(sl_stream* stream);

#ifdef __cplusplus
}
#endif

#endif /* STEPLADDER_C_API_H */
