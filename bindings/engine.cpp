// Engine and streams. The interpreter is free while the engine works: a stream's chunks are fetched
// by a thread that never touches Python, so that next() can wait for a while and then look for
// Ctrl-C.
#include <nanobind/nanobind.h>
#include <nanobind/stl/function.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>
#ifdef __GLIBC__
#include <malloc.h>
#endif

#include "arrivals.h"
#include "bindings.h"
#include "released.h"
#include "stepladder/answer.h"
#include "stepladder/engine.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace stepladder {
namespace {

constexpr int kSignalPeriodMs = 50;

/// A stream that lets its caller look for Ctrl-C, and keeps its engine alive.
class PythonStream {
 public:
  PythonStream(std::shared_ptr<Engine> engine, std::shared_ptr<Stream> stream)
      : engine_(std::move(engine)), stream_(std::move(stream)) {}

  ~PythonStream() {
    // The last reference to an engine waits for its thread.
    std::optional<Released> released;
    if (!ending()) released.emplace();
    stream_.reset();
    engine_.reset();
  }

  /// The next chunk; None after the last one; False when none came within `seconds`.
  nb::object next(double seconds) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    for (;;) {
      const std::chrono::duration<double, std::milli> left =
          deadline - std::chrono::steady_clock::now();
      const int wait = static_cast<int>(std::clamp(left.count(), 0.0, double(kSignalPeriodMs)));
      Chunk chunk;
      bool ready, more = false;
      {
        const Released released;
        ready = stream_->wait(wait);
        if (ready) more = stream_->next(chunk);
      }
      if (ready) return more ? to_python(chunk) : nb::none();
      if (PyErr_CheckSignals()) throw nb::python_error();
      if (left.count() <= kSignalPeriodMs) return nb::bool_(false);
    }
  }

  /// Once there is a chunk to take, the last one included, `key` is among the arrivals.
  void notify(const Arrivals& arrivals, uint64_t key) { stream_->notify(arrivals.expect(key)); }
  void withdraw() { stream_->notify(nullptr); }

  void cancel() noexcept { stream_->cancel(); }
  Stats stats() const { return stream_->stats(); }

 private:
  static nb::object to_python(const Chunk& chunk) {
    nb::list logprobs;
    for (const TokenLogprobs& t : chunk.logprobs) logprobs.append(nb::make_tuple(t.chosen, t.top));
    return nb::make_tuple(chunk.tokens, chunk.logits, logprobs, chunk.finish, chunk.stop_token);
  }

  std::shared_ptr<Engine> engine_;
  std::shared_ptr<Stream> stream_;
};

/// A caller's callback, run by the loading thread: an exception in it ends the load and is raised.
class LoadProgress {
 public:
  explicit LoadProgress(nb::object callback) : callback_(std::move(callback)) {}

  bool operator()(size_t done, size_t total) {
    nb::gil_scoped_acquire held;
    if (raised_) return false;
    if (PyErr_CheckSignals()) return keep_error();
    if (callback_.is_none()) return true;
    PyObject* answer = PyObject_CallFunction(callback_.ptr(), "nn", static_cast<Py_ssize_t>(done),
                                             static_cast<Py_ssize_t>(total));
    if (!answer) return keep_error();
    const bool stop = answer == Py_False;
    Py_DECREF(answer);
    return !stop;
  }

  void rethrow() {
    if (!raised_) return;
    PyErr_Restore(type_, value_, trace_);
    raised_ = false;
    throw nb::python_error();
  }

 private:
  bool keep_error() {
    PyErr_Fetch(&type_, &value_, &trace_);
    raised_ = true;
    return false;
  }
  nb::object callback_;
  bool raised_ = false;
  PyObject *type_ = nullptr, *value_ = nullptr, *trace_ = nullptr;
};

std::shared_ptr<Engine> load(const std::string& directory, Options options, nb::object callback) {
  LoadProgress progress(std::move(callback));
  options.progress = [&](size_t done, size_t total) { return progress(done, total); };
  std::shared_ptr<Engine> engine;
  try {
    const Released released;
    engine = Engine::load(directory, options);
  } catch (const Error&) {
    progress.rethrow();
    throw;
  }
  if (PyErr_CheckSignals()) throw nb::python_error();
  return engine;
}

/// Gives the system what the C library keeps of freed memory: pieces of a tokenizer that a load has
/// read in vain lie between others, in arenas of threads that have ended.
void trim_memory() {
#ifdef __GLIBC__
  malloc_trim(0);
#endif
}

std::shared_ptr<PythonStream> submit(std::shared_ptr<Engine> engine, const Request& request) {
  std::shared_ptr<Stream> stream;
  {
    const Released released;
    stream = engine->submit(request);
  }
  return std::make_shared<PythonStream>(std::move(engine), std::move(stream));
}

/// Name(field=value, ...) of all that a class was bound with, as dataclasses show themselves.
std::string fields_of(nb::handle object) {
  std::string fields;
  for (nb::handle key : nb::object(object.type().attr("__dict__"))) {
    const std::string name = nb::cast<std::string>(key);
    if (name.starts_with("_")) continue;
    fields += (fields.empty() ? "" : ", ") + name + "=" + nb::repr(object.attr(key)).c_str();
  }
  return nb::cast<std::string>(object.type().attr("__name__")) + "(" + fields + ")";
}

void bind_options(nb::module_& m) {
  nb::enum_<LevelSpec::Kind>(m, "LevelKind")
      .value("model", LevelSpec::Kind::model)
      .value("cast", LevelSpec::Kind::cast)
      .value("activations", LevelSpec::Kind::activations)
      .value("lookup", LevelSpec::Kind::lookup)
      .value("drafter", LevelSpec::Kind::drafter);
  nb::class_<LevelSpec>(m, "LevelSpec", "One level below the target.")
      .def(nb::init<>())
      .def_rw("kind", &LevelSpec::kind)
      .def_rw("path", &LevelSpec::path)
      .def_rw("format", &LevelSpec::format)
      .def_rw("shared_cache", &LevelSpec::shared_cache)
      .def_rw("tokens", &LevelSpec::tokens)
      .def_rw("head", &LevelSpec::head)
      .def_rw("ngram_max", &LevelSpec::ngram_max)
      .def_rw("ngram_min", &LevelSpec::ngram_min)
      .def_rw("word", &LevelSpec::word)
      .def_rw("options", &LevelSpec::options);
  nb::class_<DrafterInfo::Option>(m, "DrafterOption", "A whole number that a user may set.")
      .def_ro("name", &DrafterInfo::Option::name)
      .def_ro("about", &DrafterInfo::Option::about)
      .def_ro("low", &DrafterInfo::Option::low)
      .def_ro("high", &DrafterInfo::Option::high)
      .def_ro("initial", &DrafterInfo::Option::initial)
      .def("__repr__", &fields_of);
  nb::class_<DrafterInfo>(m, "DrafterInfo", "A drafter: it proposes and verifies nothing.")
      .def_ro("word", &DrafterInfo::word)
      .def_ro("about", &DrafterInfo::about)
      .def_ro("argument", &DrafterInfo::argument)
      .def_ro("tokens", &DrafterInfo::tokens)
      .def_ro("options", &DrafterInfo::options)
      .def("__repr__", &fields_of);
  m.def("drafters", &drafters, "The drafters of this build.");
  m.def("parse_draft", &parse_draft, "text"_a,
        "Levels of a spec such as 'cast:mxfp4:shared:tokens=4,lookup'.");
  m.def("draft_forms", &draft_forms, "What a level of a spec can be, for messages.");
  m.def("fixed_draft", &fixed_draft, "levels"_a,
        "The same levels with every draft length fixed, at its default where none is given.");
  m.def(
      "draft_to_string", [](const std::vector<LevelSpec>& levels) { return to_string(levels); },
      "levels"_a, "The spec that parse_draft reads back.");
  nb::class_<Options>(m, "Options", "How a model is loaded.")
      .def(nb::init<>())
      .def_rw("draft", &Options::draft)
      .def_rw("context", &Options::context)
      .def_rw("max_sequences", &Options::max_sequences)
      .def_rw("threads", &Options::threads)
      .def_rw("device", &Options::device)
      .def_rw("isa", &Options::isa)
      .def_rw("head", &Options::head);
  nb::class_<Sampling>(m, "Sampling", "How a token is chosen.")
      .def(nb::init<>())
      .def_rw("temperature", &Sampling::temperature)
      .def_rw("top_p", &Sampling::top_p)
      .def_rw("min_p", &Sampling::min_p)
      .def_rw("top_k", &Sampling::top_k)
      .def_rw("seed", &Sampling::seed)
      .def_rw("repetition_penalty", &Sampling::repetition_penalty)
      .def_rw("frequency_penalty", &Sampling::frequency_penalty)
      .def_rw("presence_penalty", &Sampling::presence_penalty)
      .def_rw("logit_bias", &Sampling::logit_bias);
  nb::class_<Request>(m, "Request", "One prompt and what is wanted.")
      .def(nb::init<>())
      .def_rw("prompt", &Request::prompt)
      .def_rw("sampling", &Request::sampling)
      .def_rw("max_tokens", &Request::max_tokens)
      .def_rw("stop_token_ids", &Request::stop_token_ids)
      .def_rw("ignore_eos", &Request::ignore_eos)
      .def_rw("logprobs", &Request::logprobs)
      .def_rw("draft", &Request::draft);
}

void bind_info(nb::module_& m) {
  nb::class_<LevelStats>(m, "LevelStats",
                         "One verifying level of a stream; the first is the target.")
      .def_ro("name", &LevelStats::name)
      .def_ro("rounds", &LevelStats::rounds)
      .def_ro("drafted", &LevelStats::drafted)
      .def_ro("accepted", &LevelStats::accepted)
      .def_ro("emitted", &LevelStats::emitted)
      .def_ro("rows", &LevelStats::rows)
      .def_ro("draft_ms", &LevelStats::draft_ms)
      .def_ro("verify_ms", &LevelStats::verify_ms)
      .def_ro("accepted_at", &LevelStats::accepted_at)
      .def_ro("drafted_at", &LevelStats::drafted_at)
      .def_prop_ro("acceptance_length", &LevelStats::acceptance_length);
  nb::class_<Stats>(m, "Stats", "What a stream took and gave.")
      .def_ro("prompt_tokens", &Stats::prompt_tokens)
      .def_ro("cached_tokens", &Stats::cached_tokens)
      .def_ro("tokens", &Stats::tokens)
      .def_ro("first_token_ms", &Stats::first_token_ms)
      .def_ro("decode_ms", &Stats::decode_ms)
      .def_ro("seed", &Stats::seed)
      .def_ro("levels", &Stats::levels)
      .def_prop_ro("tokens_per_second", &Stats::tokens_per_second);
  nb::class_<LevelInfo>(m, "LevelInfo", "One level of a loaded model.")
      .def_ro("name", &LevelInfo::name)
      .def_ro("format", &LevelInfo::format)
      .def_ro("head", &LevelInfo::head)
      .def_ro("act", &LevelInfo::act)
      .def_ro("weight_bytes", &LevelInfo::weight_bytes)
      .def_ro("pass_bytes", &LevelInfo::pass_bytes)
      .def_ro("cache_bytes", &LevelInfo::cache_bytes)
      .def_ro("tokens", &LevelInfo::tokens)
      .def_ro("recordings", &LevelInfo::recordings,
              "Shapes of rounds that were recorded at load; none is recorded later.")
      .def("__repr__", &fields_of);
  nb::class_<Info>(m, "Info", "What can be told of a model.")
      .def_ro("architecture", &Info::architecture)
      .def_ro("backend", &Info::backend)
      .def_ro("vocab", &Info::vocab)
      .def_ro("context", &Info::context)
      .def_ro("model_context", &Info::model_context)
      .def_ro("layers", &Info::layers)
      .def_ro("width", &Info::width)
      .def_ro("threads", &Info::threads)
      .def_ro("parameters", &Info::parameters)
      .def_ro("total_bytes", &Info::total_bytes)
      .def_ro("end_tokens", &Info::end_tokens)
      .def_ro("notes", &Info::notes)
      .def_ro("levels", &Info::levels)
      .def("__repr__", &fields_of);
  nb::class_<BackendInfo>(m, "BackendInfo", "A backend of this build, or what it lacks.")
      .def_ro("name", &BackendInfo::name)
      .def_ro("devices", &BackendInfo::devices)
      .def_ro("missing", &BackendInfo::missing)
      .def_prop_ro("runs", [](const BackendInfo& b) { return b.missing.empty(); })
      .def("__repr__", &fields_of);
  m.def("backends", &backends,
        "The backends of this build: name, the devices that load() may name, whether it runs and, "
        "where it does not, what is missing and why.");
  m.def("inspect", &inspect, "directory"_a, nb::call_guard<Released>(),
        "What can be told of a checkpoint without loading its weights.");
}

void bind_answers(nb::module_& m) {
  nb::class_<AnswerHash>(m, "AnswerHash", "Of tokens and the 32 bits of each one's logit.")
      .def(nb::init<>())
      .def(
          "add",
          [](AnswerHash& hash, const std::vector<Token>& tokens, const std::vector<float>& logits) {
            if (tokens.size() != logits.size())
              throw Error(Code::invalid_argument, "tokens and logits are not equally many");
            hash.add(tokens, logits);
          },
          "tokens"_a, "logits"_a)
      .def("__str__", &AnswerHash::text);
  m.def(
      "count_grams",
      [](const std::vector<Token>& tokens, size_t n) {
        const Grams grams = count_grams(tokens, n);
        return std::pair(grams.repeated, grams.all);
      },
      "tokens"_a, "n"_a = 8,
      "How many of a text's runs of n tokens it has had before, and how many it has.");
}

void bind_streams(nb::module_& m) {
  nb::enum_<Finish>(m, "Finish", "Why a stream ended.")
      .value("none", Finish::none)
      .value("stop", Finish::stop)
      .value("length", Finish::length)
      .value("cancelled", Finish::cancelled)
      .value("error", Finish::error);
  nb::class_<Arrivals>(m, "Arrivals", "Which of many streams have something to take.")
      .def(nb::init<>())
      .def("fileno", &Arrivals::descriptor, "Readable while take() has something to give.")
      .def("take", &Arrivals::take, "The keys of streams that have arrived since the last call.");
  nb::class_<PythonStream>(m, "Stream", "A running request.")
      .def("next", &PythonStream::next, "seconds"_a,
           "(tokens, logits, logprobs, finish, stop_token) of the next round; None after the last "
           "one; False when `seconds` have passed.")
      .def("notify", &PythonStream::notify, "arrivals"_a, "key"_a,
           "Once next() would return at once, puts `key` among the arrivals. Another call takes "
           "the place of this one.")
      .def("withdraw", &PythonStream::withdraw, "Takes the last notify() back.")
      .def("cancel", &PythonStream::cancel, "Ends the stream within one round; any thread.")
      .def("stats", &PythonStream::stats);
}

}  // namespace

void bind_engine(nb::module_& m) {
  bind_options(m);
  bind_info(m);
  bind_answers(m);
  bind_streams(m);
  m.def("close_down", &close_down,
        "Before the interpreter ends: waits for the threads that are inside the engine, and lets "
        "nobody in any more.");
  m.def("trim_memory", &trim_memory, nb::call_guard<Released>(),
        "Gives the system what the C library keeps of freed memory.");
  nb::class_<Engine>(m, "Engine", "A loaded model with its levels.")
      .def_static("load", &load, "directory"_a, "options"_a, "progress"_a.none() = nb::none())
      .def(
          "submit",
          [](std::shared_ptr<Engine> e, const Request& r) { return submit(std::move(e), r); },
          "request"_a)
      .def_prop_ro("info", [](const Engine& e) { return e.info(); });
}

}  // namespace stepladder
