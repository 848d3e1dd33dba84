// The C API over the C++ one. Every exception stops here and becomes a status and a text.
#include "stepladder/c_api.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <string>

#include "api/request.h"
#include "backends/backend.h"
#include "core/error.h"
#include "stepladder/engine.h"
#include "stepladder/version.h"

struct sl_model {
  std::shared_ptr<stepladder::Engine> engine;
};

struct sl_stream {
  std::shared_ptr<stepladder::Stream> stream;
  stepladder::Chunk chunk;
  std::vector<float> logprobs, top_logprobs;
  std::vector<int32_t> top_tokens;
};

namespace {

using namespace stepladder;

// Fixed storage: a failing call must be able to say so even when there is no memory left.
thread_local char last_error[2048] = "";

sl_status fail_with(sl_status status, const char* message) noexcept {
  std::strncpy(last_error, message, sizeof last_error - 1);
  last_error[sizeof last_error - 1] = 0;
  return status;
}

sl_status status_of(Code code) noexcept {
  switch (code) {
    case Code::invalid_argument:
      return SL_INVALID_ARGUMENT;
    case Code::unsupported:
      return SL_UNSUPPORTED;
    case Code::io:
      return SL_IO;
    case Code::model_format:
      return SL_MODEL_FORMAT;
    case Code::vocab_mismatch:
      return SL_VOCAB_MISMATCH;
    case Code::out_of_memory:
      return SL_OUT_OF_MEMORY;
    case Code::cancelled:
      return SL_CANCELLED;
    case Code::internal:
      return SL_INTERNAL;
    case Code::device:
      return SL_DEVICE;
  }
  return SL_INTERNAL;
}

/// Runs the body of an API function; it returns a status or throws.
template <class Body>
sl_status guarded(Body&& body) noexcept {
  try {
    return body();
  } catch (const Error& e) {
    return fail_with(status_of(e.code()), e.what());
  } catch (const std::bad_alloc&) {
    return fail_with(SL_OUT_OF_MEMORY, "out of host memory");
  } catch (const std::exception& e) {
    return fail_with(SL_INTERNAL, e.what());
  } catch (...) {
    return fail_with(SL_INTERNAL, "unknown exception");
  }
}

void need(const void* pointer, const char* name) {
  check(pointer != nullptr, Code::invalid_argument, name, " is null");
}

/// A caller's struct, which may be shorter or longer than ours, as ours: what it lacks keeps its
/// default, what it has beyond must be zero.
template <class T>
T read_struct(const T* given, T defaults, const char* name) {
  const size_t size = given->struct_size;
  check(size >= sizeof(size_t) && size <= 65536, Code::invalid_argument, name, "->struct_size is ",
        size, "; call its init function, or set it to sizeof");
  // A struct of any version ends where one can; a size that does not may cut a pointer in half.
  check(size % alignof(T) == 0, Code::invalid_argument, name, "->struct_size is ", size,
        ", which ends inside a field; set it to sizeof");
  const auto* bytes = reinterpret_cast<const unsigned char*>(given);
  for (size_t i = sizeof(T); i < size; ++i)
    check(bytes[i] == 0, Code::unsupported, name, " sets an option that this library (",
          STEPLADDER_VERSION, ") does not know; it was built with a newer header");
  std::memcpy(&defaults, given, std::min(size, sizeof(T)));
  return defaults;
}

template <class T>
void need_struct(const T* out, const char* name) {
  need(out, name);
  check(out->struct_size >= sizeof(size_t) && out->struct_size <= 65536, Code::invalid_argument,
        name, "->struct_size is ", out->struct_size, "; set it to sizeof");
}

/// Copies as much of `value` as the caller's struct has room for.
template <class T>
void write_struct(T* out, T value, const char* name) {
  need_struct(out, name);
  const size_t size = out->struct_size;
  value.struct_size = size;
  std::memcpy(out, &value, std::min(size, sizeof(T)));
}

template <size_t N>
void copy_text(char (&to)[N], const std::string& from) {
  const size_t n = std::min(from.size(), N - 1);
  std::memcpy(to, from.data(), n);
  to[n] = 0;
}

std::string text(const char* given, const char* otherwise = "") {
  return given ? given : otherwise;
}

sl_model_params default_params() {
  const Options o;
  sl_model_params p{};
  p.struct_size = sizeof p;
  p.context = o.context, p.max_sequences = o.max_sequences, p.threads = o.threads;
  return p;
}

sl_request default_request() {
  const Request r;
  sl_request q{};
  q.struct_size = sizeof q;
  q.max_tokens = r.max_tokens, q.logprobs = r.logprobs, q.draft = r.draft,
  q.ignore_eos = r.ignore_eos;
  q.temperature = r.sampling.temperature, q.top_p = r.sampling.top_p, q.min_p = r.sampling.min_p;
  q.top_k = r.sampling.top_k, q.seed = r.sampling.seed;
  q.repetition_penalty = r.sampling.repetition_penalty;
  q.frequency_penalty = r.sampling.frequency_penalty,
  q.presence_penalty = r.sampling.presence_penalty;
  return q;
}

template <class T>
sl_status init(T* out, size_t size, const T& defaults, const char* name) {
  return guarded([&] {
    need(out, name);
    check(size >= sizeof(size_t) && size <= 65536, Code::invalid_argument, name, ": a struct of ",
          size, " bytes");
    std::memset(out, 0, size);
    std::memcpy(out, &defaults, std::min(size, sizeof(T)));
    out->struct_size = size;
    return SL_OK;
  });
}

Request to_request(const sl_request& q, const Info& info) {
  // Before they are copied: a count that is wrong may be any number.
  check_counts({q.prompt_count, q.stop_token_count, q.logit_bias_count},
               {info.vocab, info.context, info.model_context});
  const auto list = [](const int32_t* ids, size_t n, const char* name) {
    check(ids || n == 0, Code::invalid_argument, name, " is null, but its count is ", n);
    return std::vector<Token>(ids, ids + n);
  };
  Request r;
  r.prompt = list(q.prompt, q.prompt_count, "prompt");
  r.stop_token_ids = list(q.stop_token_ids, q.stop_token_count, "stop_token_ids");
  check(q.logit_bias || q.logit_bias_count == 0, Code::invalid_argument,
        "logit_bias is null, but its count is ", q.logit_bias_count);
  for (size_t i = 0; i < q.logit_bias_count; ++i)
    r.sampling.logit_bias.emplace_back(q.logit_bias[i].token, q.logit_bias[i].value);
  r.max_tokens = q.max_tokens, r.logprobs = q.logprobs, r.ignore_eos = q.ignore_eos != 0,
  r.draft = q.draft != 0;
  r.sampling.temperature = q.temperature, r.sampling.top_p = q.top_p, r.sampling.min_p = q.min_p;
  r.sampling.top_k = q.top_k, r.sampling.seed = q.seed;
  r.sampling.repetition_penalty = q.repetition_penalty;
  r.sampling.frequency_penalty = q.frequency_penalty,
  r.sampling.presence_penalty = q.presence_penalty;
  return r;
}

/// What the first header's sl_chunk took: a shorter one is a mistake, and would lose tokens.
constexpr size_t kLeastChunk = offsetof(sl_chunk, top_logprobs) + sizeof(const float*);

sl_chunk to_chunk(sl_stream& s) {
  const Chunk& c = s.chunk;
  sl_chunk out{};
  out.tokens = c.tokens.data(), out.logits = c.logits.data(), out.count = c.tokens.size();
  out.finish = static_cast<sl_finish>(c.finish), out.stop_token = c.stop_token;
  if (c.logprobs.empty()) return out;
  s.logprobs.clear(), s.top_tokens.clear(), s.top_logprobs.clear();
  for (const TokenLogprobs& l : c.logprobs) {
    s.logprobs.push_back(l.chosen);
    for (const auto& [token, value] : l.top)
      s.top_tokens.push_back(token), s.top_logprobs.push_back(value);
  }
  out.top_count = static_cast<int32_t>(c.logprobs[0].top.size());
  out.logprobs = s.logprobs.data(), out.top_tokens = s.top_tokens.data(),
  out.top_logprobs = s.top_logprobs.data();
  return out;
}

static_assert(SL_FINISH_STOP == static_cast<int>(Finish::stop) &&
              SL_FINISH_LENGTH == static_cast<int>(Finish::length) &&
              SL_FINISH_CANCELLED == static_cast<int>(Finish::cancelled));

}  // namespace

extern "C" {

const char* sl_version(void) { return STEPLADDER_VERSION; }
int32_t sl_abi_version(void) { return SL_ABI_VERSION; }
const char* sl_last_error(void) { return last_error; }

const char* sl_status_string(sl_status status) {
  switch (status) {
    case SL_OK:
      return "ok";
    case SL_END:
      return "end";
    case SL_INVALID_ARGUMENT:
      return "invalid argument";
    case SL_UNSUPPORTED:
      return "unsupported";
    case SL_IO:
      return "file error";
    case SL_MODEL_FORMAT:
      return "model format";
    case SL_VOCAB_MISMATCH:
      return "vocabulary mismatch";
    case SL_OUT_OF_MEMORY:
      return "out of memory";
    case SL_CANCELLED:
      return "cancelled";
    case SL_INTERNAL:
      return "internal error";
    case SL_DEVICE:
      return "device failed";
  }
  return "unknown status";
}

int32_t sl_backend_count(void) { return static_cast<int32_t>(backend_entries().size()); }

sl_status sl_backend_get_info(int32_t index, sl_backend_info* out) {
  return guarded([&] {
    const auto all = backends();
    check(index >= 0 && static_cast<size_t>(index) < all.size(), Code::invalid_argument,
          "index: ", index, " is out of range; there are ", all.size(), " backends");
    const BackendInfo& info = all[index];
    sl_backend_info i{};
    // Several are named by themselves and one by one.
    const size_t names = info.devices.size();
    i.devices = static_cast<int32_t>(names > 1 ? names - 1 : names);
    copy_text(i.name, info.name);
    copy_text(i.missing, info.missing);
    write_struct(out, i, "out");
    return SL_OK;
  });
}

sl_status sl_model_params_init(sl_model_params* params, size_t struct_size) {
  return init(params, struct_size, default_params(), "params");
}
sl_status sl_request_init(sl_request* request, size_t struct_size) {
  return init(request, struct_size, default_request(), "request");
}

sl_status sl_model_open(const char* directory, const sl_model_params* params, sl_model** out) {
  return guarded([&] {
    need(out, "out");
    *out = nullptr;
    need(directory, "directory");
    const sl_model_params p =
        params ? read_struct(params, default_params(), "params") : default_params();
    Options options;
    options.draft = parse_draft(text(p.draft));
    options.context = p.context, options.max_sequences = p.max_sequences,
    options.threads = p.threads;
    options.device = text(p.device, "auto"), options.isa = text(p.isa), options.head = text(p.head);
    if (p.progress)
      options.progress = [&p](size_t done, size_t total) {
        return p.progress(done, total, p.progress_user) == 0;
      };
    auto model = std::make_unique<sl_model>();
    model->engine = Engine::load(directory, options);
    *out = model.release();
    return SL_OK;
  });
}

void sl_model_close(sl_model* model) { delete model; }

sl_status sl_model_get_info(const sl_model* model, sl_model_info* out) {
  return guarded([&] {
    need(model, "model");
    const Info& info = model->engine->info();
    sl_model_info i{};
    i.vocab = info.vocab, i.context = info.context, i.model_context = info.model_context,
    i.threads = info.threads;
    i.level_count = static_cast<int32_t>(info.levels.size());
    i.parameters = info.parameters, i.total_bytes = info.total_bytes;
    copy_text(i.architecture, info.architecture);
    copy_text(i.backend, info.backend);
    write_struct(out, i, "out");
    return SL_OK;
  });
}

sl_status sl_model_get_level(const sl_model* model, int32_t level, sl_level_info* out) {
  return guarded([&] {
    need(model, "model");
    const auto& levels = model->engine->info().levels;
    check(level >= 0 && static_cast<size_t>(level) < levels.size(), Code::invalid_argument,
          "level: ", level, " is out of range; this model has ", levels.size());
    const LevelInfo& info = levels[level];
    sl_level_info i{};
    i.tokens = info.tokens;
    i.weight_bytes = info.weight_bytes, i.pass_bytes = info.pass_bytes,
    i.cache_bytes = info.cache_bytes, i.recordings = info.recordings;
    copy_text(i.name, info.name);
    copy_text(i.format, info.format);
    write_struct(out, i, "out");
    return SL_OK;
  });
}

sl_status sl_stream_begin(sl_model* model, const sl_request* request, sl_stream** out) {
  return guarded([&] {
    need(out, "out");
    *out = nullptr;
    need(model, "model");
    need(request, "request");
    auto stream = std::make_unique<sl_stream>();
    stream->stream = model->engine->submit(
        to_request(read_struct(request, default_request(), "request"), model->engine->info()));
    *out = stream.release();
    return SL_OK;
  });
}

sl_status sl_stream_next(sl_stream* stream, sl_chunk* out) {
  return guarded([&] {
    need(stream, "stream");
    // Before a chunk is taken that could not be handed over.
    need(out, "out");
    check(out->struct_size >= kLeastChunk, Code::invalid_argument, "out->struct_size is ",
          out->struct_size, "; a chunk takes ", kLeastChunk, " bytes or more: set it to sizeof");
    need_struct(out, "out");
    if (!stream->stream->next(stream->chunk)) {
      sl_chunk none{};
      none.stop_token = -1;
      write_struct(out, none, "out");
      return SL_END;
    }
    write_struct(out, to_chunk(*stream), "out");
    return SL_OK;
  });
}

void sl_stream_cancel(sl_stream* stream) {
  if (stream) stream->stream->cancel();
}

sl_status sl_stream_get_stats(const sl_stream* stream, sl_stats* out) {
  return guarded([&] {
    need(stream, "stream");
    const Stats stats = stream->stream->stats();
    sl_stats s{};
    s.prompt_tokens = stats.prompt_tokens, s.cached_tokens = stats.cached_tokens,
    s.tokens = stats.tokens;
    s.first_token_ms = stats.first_token_ms, s.decode_ms = stats.decode_ms;
    s.tokens_per_second = stats.tokens_per_second();
    s.seed = stats.seed, s.level_count = static_cast<int32_t>(stats.levels.size());
    write_struct(out, s, "out");
    return SL_OK;
  });
}

sl_status sl_stream_get_level_stats(const sl_stream* stream, int32_t level, sl_level_stats* out) {
  return guarded([&] {
    need(stream, "stream");
    const Stats stats = stream->stream->stats();
    check(level >= 0 && static_cast<size_t>(level) < stats.levels.size(), Code::invalid_argument,
          "level: ", level, " is out of range; this stream has ", stats.levels.size(),
          " verifying levels");
    const LevelStats& from = stats.levels[level];
    sl_level_stats s{};
    s.rounds = from.rounds, s.drafted = from.drafted, s.accepted = from.accepted,
    s.emitted = from.emitted;
    s.rows = from.rows, s.draft_ms = from.draft_ms, s.verify_ms = from.verify_ms;
    s.acceptance_length = from.acceptance_length();
    copy_text(s.name, from.name);
    write_struct(out, s, "out");
    return SL_OK;
  });
}

void sl_stream_free(sl_stream* stream) { delete stream; }

}  // extern "C"
