// The public C++ API: load a model with any list of draft levels, submit token prompts, take
// tokens. Text never enters here: tokenization, templates and stop strings belong to the caller.
//
//     Options options{.draft = parse_draft("cast:int8,lookup")};
//     auto engine = Engine::load("models/SmolLM2", options);
//     auto stream = engine->submit({.prompt = {1, 2, 3}, .max_tokens = 64});
//     for (Chunk chunk; stream->next(chunk);) use(chunk.tokens);
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "stepladder/error.h"

namespace stepladder {

using Token = int32_t;

/// One level below the target, outermost first in Options::draft.
struct LevelSpec {
  enum class Kind { model, cast, activations, lookup, drafter };
  Kind kind = Kind::lookup;
  std::string path{};    // model: a checkpoint directory; drafter: its argument, if it takes one
  std::string format{};  // cast: "mxfp4" "w4a16" "int8" "w8a8"; activations: "a8"
  bool shared_cache = false;  // cast: use the cache of the level it copies (activations: always)
  int tokens = 0;      // drafts a round asks of it; 0 = as many as pay, up to the drafter's default
  std::string head{};  // lm_head's format; "" = int8 for casts, as stored for models
  int ngram_max = 0, ngram_min = 0;  // lookup: longest and shortest match; 0 = default
  std::string word{};                // drafter: which of drafters(); lookup is one of them
  std::vector<std::pair<std::string, int>> options{};  // drafter: its options that are given
};

/// A drafter of this build: what proposes tokens and verifies none, so that it stands last.
struct DrafterInfo {
  struct Option {
    std::string name, about;
    int low = 0, high = 0, initial = 0;
  };
  std::string word, about;
  std::string argument;  // what follows the word, as "PATH"; "" = nothing
  int tokens = 0;        // drafts a round asks of it at most, unless told otherwise
  std::vector<Option> options;
};
std::vector<DrafterInfo> drafters();

/// "cast:mxfp4:shared:tokens=4,lookup" -> levels. Forms: cast:FORMAT, switch:a8, model:PATH or a
/// bare path, and the word of a drafter; options after a colon: shared, own, tokens=N, head=FORMAT
/// and those of the drafter. Throws Error(invalid_argument) naming the part it cannot read.
std::vector<LevelSpec> parse_draft(const std::string& text);
/// What a level of a spec can be, for messages: "lookup, cast:FORMAT, ...".
std::string draft_forms();
/// The same levels with every draft length fixed, at its default where none is given: they draft
/// whether it pays or not.
std::vector<LevelSpec> fixed_draft(std::vector<LevelSpec>);
/// The spec that parse_draft reads back.
std::string to_string(const std::vector<LevelSpec>&);

struct Options {
  std::vector<LevelSpec> draft{};
  int context = 0;        // tokens a sequence may hold; 0 = the model's own, at most 8192
  int max_sequences = 1;  // served side by side; further requests queue; unread streams make way
  int threads = 0;        // 0 = the machine's cores
  std::string device = "auto";  // or one that backends() names: "cpu", "cuda:1"
  std::string isa{};            // cpu: "" = best; "portable", "avx2", "avx512"
  std::string head{};           // the target's lm_head format; "" = as stored
  int tree = 0;  // nodes, root included, that the target can check at once; 0 = what drafts need
  /// Called while loading with done and total bytes; returning false aborts with Error(cancelled).
  std::function<bool(size_t done, size_t total)> progress{};
};

struct Sampling {
  float temperature = 0;  // 0 = greedy
  float top_p = 1, min_p = 0;
  int top_k = 0;  // 0 = all
  uint64_t seed = 0;
  float repetition_penalty = 1;                       // over prompt and output
  float frequency_penalty = 0, presence_penalty = 0;  // over the output
  std::vector<std::pair<Token, float>> logit_bias{};
};

struct Request {
  std::vector<Token> prompt{};
  Sampling sampling{};
  int max_tokens = 256;
  std::vector<Token> stop_token_ids{};  // besides the model's own end tokens
  bool ignore_eos = false;
  int logprobs = -1;  // -1 = none; n = the choice's and the n likeliest, of the raw logits
  bool draft = true;  // false: plain decoding on the same copy of the target
};

enum class Finish { none, stop, length, cancelled, error };

struct TokenLogprobs {
  float chosen = 0;
  std::vector<std::pair<Token, float>> top;
};

/// What one round gave. The last chunk carries finish and may be empty.
struct Chunk {
  std::vector<Token> tokens;
  std::vector<float> logits;            // raw logit of each token
  std::vector<TokenLogprobs> logprobs;  // when asked for
  Finish finish = Finish::none;
  Token stop_token = -1;  // the end token that finished it; not among tokens
};

/// One verifying level of a stream. Level 0 is the target.
struct LevelStats {
  std::string name;
  int64_t rounds = 0, drafted = 0, accepted = 0, emitted = 0, rows = 0;
  double draft_ms = 0, verify_ms = 0;
  double idle_ms = 0;  // that a device waited for the host before these rounds, as far as it tells
  std::vector<int64_t> accepted_at, drafted_at;  // by position in the draft
  /// Tokens a round emits, bonus included.
  double acceptance_length() const { return rounds ? double(emitted) / double(rounds) : 0; }
};
struct Stats {
  int64_t prompt_tokens = 0, cached_tokens = 0, tokens = 0;
  double first_token_ms = 0, decode_ms = 0;  // decode: from the first token to the last
  uint64_t seed = 0;
  std::vector<LevelStats> levels;
  double tokens_per_second() const {
    return decode_ms > 0 ? double(tokens - 1) * 1e3 / decode_ms : 0;
  }
};

/// A running request. next() and cancel() may be called from different threads.
class Stream {
 public:
  virtual ~Stream() = default;  // cancels what still runs
  /// Waits for the next chunk; false once the last has been given. Throws what went wrong.
  virtual bool next(Chunk& out) = 0;
  /// Waits at most so long until next() would return at once; false when it still would not.
  virtual bool wait(int milliseconds) = 0;
  /// Calls `then` once, as soon as next() would return at once: right here, or later on the
  /// engine's thread, where it has to be quick, must not throw and must not use this stream. Until
  /// then its caller counts as waiting. Another call replaces it, null takes it back.
  virtual void notify(std::function<void()> then) = 0;
  /// Ends the stream within one round, or between two prompt blocks. Any thread.
  virtual void cancel() noexcept = 0;
  virtual Stats stats() const = 0;
};

struct LevelInfo {
  std::string name, format, head, act;
  size_t weight_bytes = 0;  // held for this level alone
  size_t pass_bytes = 0;    // read by one forward pass, cache excluded
  size_t cache_bytes = 0;
  int tokens = 0;      // drafts a round asks of it at most; 0 for the target
  int recordings = 0;  // shapes of rounds that were recorded at load
};
struct Info {
  std::string architecture, backend;
  int vocab = 0, context = 0, model_context = 0, layers = 0, width = 0, threads = 0;
  int64_t parameters = 0;
  size_t total_bytes = 0;  // all memory the load took; of inspect(), the checkpoint's bytes
  std::vector<Token> end_tokens;
  std::vector<std::string> notes;  // what the loader decided or met: a capped context and the like
  std::vector<LevelInfo> levels;
};

/// A matrix in a backend's memory, which the host may not be able to read.
struct WeightMemory {
  const void* data = nullptr;
  size_t bytes = 0;
};

/// A loaded model with its levels. One thread of its own runs all requests.
class Engine {
 public:
  /// Throws Error; on failure everything taken is given back.
  static std::shared_ptr<Engine> load(const std::string& directory, const Options& = {});
  virtual ~Engine() = default;  // streams that still run end as cancelled
  /// Checks the request and queues it. Throws Error(invalid_argument) naming the field.
  virtual std::shared_ptr<Stream> submit(Request) = 0;
  virtual const Info& info() const = 0;
  /// The matrices that one pass of the target reads, in its order, where they lie for as long as
  /// the engine lives: what a bench reads to know the time that no pass can beat.
  virtual const std::vector<WeightMemory>& weights() const = 0;
  /// Milliseconds one pass of the target takes to check a tree of each of `rows` nodes behind
  /// `context` tokens: the median of `repeats`. A tree is a chain, or several from one root where
  /// it has more nodes than a round can emit; Options::tree says how many there can be. Waits until
  /// no request runs, and holds up new ones.
  virtual std::vector<double> verify_ms(const std::vector<int>& rows, int context = 64,
                                        int repeats = 9) = 0;
};

/// A backend of this build or, where it could not be built, what that took.
struct BackendInfo {
  std::string name;
  std::vector<std::string> devices;  // what Options::device may name of it
  std::string missing;               // "" = it can run; else what it lacks here, and why
};
std::vector<BackendInfo> backends();

/// What can be told of a checkpoint without loading its weights.
Info inspect(const std::string& directory);

}  // namespace stepladder
