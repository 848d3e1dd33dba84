// The composition root: opens a backend, loads the models a plan names, stacks the levels innermost
// first, and starts the loop over them.
#include "stepladder/engine.h"

#include <algorithm>
#include <chrono>

#include "api/load.h"
#include "api/loop.h"
#include "api/plan.h"
#include "core/error.h"
#include "core/round_up.h"
#include "core/thread_pool.h"
#include "spec/model_verifier.h"
#include "spec/rule_table.h"

namespace stepladder {
namespace {

/// The rule table and the target's verifier, as the loop wants them.
class ModelSide final : public TargetSide {
 public:
  ModelSide(std::shared_ptr<RuleTable> rules, ModelVerifier& target)
      : rules_(std::move(rules)), target_(target) {}
  void begin(int slot, const Sampling& sampling, std::span<const Token> prompt,
             std::span<const Token> output) override {
    rules_->begin(slot, sampling, prompt);
    rules_->count_output(slot, output);
  }
  void ask_logprobs(int top) override { target_.ask_logprobs(top); }
  TokenLogprobs logprobs(int i, int k) const override { return target_.logprobs(i, k); }

 private:
  std::shared_ptr<RuleTable> rules_;
  ModelVerifier& target_;
};

/// Loading progress over several models as one count of bytes.
class Progress {
 public:
  Progress(const Options& options, size_t total) : call_(options.progress), total_(total) {
    if (call_) check(call_(0, total_), Code::cancelled, "loading was cancelled");
  }
  /// For a model that takes `share` of the total.
  std::function<bool(size_t, size_t)> part(size_t share) {
    if (!call_) return {};
    const size_t before = done_;
    done_ += share;
    return [this, before, share](size_t done, size_t total) {
      const double fraction = total ? double(done) / double(total) : 1;
      return call_(std::min(total_, before + static_cast<size_t>(fraction * double(share))),
                   total_);
    };
  }
  void finish() {
    if (call_) check(call_(total_, total_), Code::cancelled, "loading was cancelled");
  }

 private:
  std::function<bool(size_t, size_t)> call_;
  size_t total_, done_ = 0;
};

/// A level with its weights and cache, before the recursion is stacked.
struct Loaded {
  std::shared_ptr<const Model> model;
  std::shared_ptr<KVCache> cache;
  std::unique_ptr<ModelVerifier> verifier;
  Act act = Act::a16;
  size_t weight_bytes = 0, cache_bytes = 0;
};

class Loader {
 public:
  Loader(const LoadPlan& plan, const Options& options, Backend& backend)
      : plan_(plan),
        backend_(backend),
        progress_(options, weight_bytes(plan)),
        models_(plan.levels.size()) {}

  /// Also tells what was loaded.
  LoopParts load(Info& info, std::vector<WeightMemory>& weights) {
    rules_ = std::make_shared<RuleTable>(backend_, plan_.sequences, plan_.vocab, plan_.context);
    for (size_t s = 0; s < plan_.sources.size(); ++s) load_source(static_cast<int>(s));
    for (size_t k = 0; k < plan_.levels.size(); ++k)
      loaded_.push_back(load_level(static_cast<int>(k)));
    backend_.wait();
    progress_.finish();
    describe(info);
    weights = weights_of(*loaded_[0].model, loaded_[0].act);
    return stack();
  }

 private:
  static size_t weight_bytes(const LoadPlan& plan) {
    size_t bytes = 0;
    for (const Source& s : plan.sources) bytes += s.bytes;
    for (const LevelPlan& l : plan.levels) bytes += l.bytes;
    return bytes;
  }

  /// The models of all levels that run a checkpoint or a cast of it.
  void load_source(int index) {
    const Source& s = plan_.sources[index];
    ModelOptions options;
    options.head = s.head, options.also_a8 = s.also_a8, options.positions = positions(s);
    options.threads = plan_.threads;
    std::vector<Cast> casts;
    size_t bytes = s.bytes;
    for (const LevelPlan& level : plan_.levels)
      if (level.source == index && level.spec.kind == LevelSpec::Kind::cast) {
        casts.push_back({format_name(level.spec.format), format_name(level.spec.head)});
        bytes += level.bytes;
      }
    options.progress = progress_.part(bytes);
    options.notes = &notes_;
    const auto models = load_models(backend_, *s.checkpoint, s.config, options, casts);
    size_t cast = 0;
    for (size_t k = 0; k < plan_.levels.size(); ++k)
      if (plan_.levels[k].source == index)
        models_[k] = models[plan_.levels[k].spec.kind == LevelSpec::Kind::cast ? ++cast : 0];
  }

  static int positions(const Source& s) { return round_up(s.context, kAttentionStep); }

  Loaded load_level(int k) {
    const LevelPlan& level = plan_.levels[k];
    Loaded out;
    out.model = models_[k];
    out.act = level.spec.kind == LevelSpec::Kind::activations ? Act::a8 : out.model->default_act();
    const auto above = models_.begin() + k;
    if (std::find(models_.begin(), above, out.model) == above)
      out.weight_bytes = out.model->bytes();
    if (level.cache_of == k) {
      out.cache = std::make_shared<KVCache>(backend_, cache_spec(plan_, k));
      out.cache_bytes = out.cache->bytes();
    } else {
      out.cache = loaded_[level.cache_of].cache;
    }
    out.verifier = std::make_unique<ModelVerifier>(backend_, out.model, out.cache, rules_,
                                                   verifier_options(plan_, backend_, k, out.act));
    return out;
  }

  /// What checking one more row costs a level, as a share of its round of one row, until it has
  /// timed rounds of its own. Reading 16-bit weights hides the multiplications of some ten rows;
  /// the fewer bytes a pass reads, the fewer it hides. Measured on 2 cores of Zen 4: 8 rows
  /// cost 1.03x with bf16, 2.1x with int8 and 2.7x with 4-bit weights; int8 activations multiply
  /// four times as fast.
  static float row_cost(const Loaded& level) {
    const double dense = 2.0 * double(level.model->parameters());
    const double fewer = dense / double(level.model->pass_bytes(level.act));
    if (level.act == Act::a8) return static_cast<float>(0.02 * std::max(1.0, fewer));
    return static_cast<float>(fewer < 1.5 ? 0.04 : 0.075 * fewer);
  }

  /// What a guess of the drafter below level k costs beside a pass of the level, by the bytes they
  /// read, until both have timed their own.
  float guess_cost(size_t k) const {
    const auto bytes = [](const Loaded& l) { return double(l.model->pass_bytes(l.act)); };
    const double guess = k + 1 < loaded_.size() ? bytes(loaded_[k + 1]) : leaf_need().pass_bytes;
    return static_cast<float>(guess / bytes(loaded_[k]));
  }
  DrafterNeed leaf_need() const {
    return plan_.leaf ? plan_.leaf->kind->memory(plan_.leaf->setup, backend_) : DrafterNeed{};
  }

  /// Levels over their drafters, innermost first.
  LoopParts stack() {
    LoopParts parts;
    parts.side = std::make_unique<ModelSide>(rules_, *loaded_[0].verifier);
    std::unique_ptr<Drafter> inner;
    if (plan_.leaf) {
      const DrafterSite site{backend_, *loaded_.back().verifier, rules_, row_cost(loaded_.back())};
      inner = plan_.leaf->kind->make(plan_.leaf->setup, site);
    }
    for (size_t k = plan_.levels.size(); k-- > 0;) {
      LevelOptions options = level_options(plan_, static_cast<int>(k));
      options.row_cost = row_cost(loaded_[k]);
      options.guess_cost = guess_cost(k);
      auto level = std::make_unique<Level>(std::move(loaded_[k].verifier), std::move(inner),
                                           std::move(options));
      if (k == 0)
        parts.target = std::move(level);
      else
        inner = std::move(level);
    }
    parts.end_tokens = plan_.sources[0].config.end_tokens;
    parts.limits = {plan_.vocab, plan_.context, plan_.sources[0].config.max_context()};
    parts.sequences = plan_.sequences;
    parts.block = backend_.row_buckets().back();
    return parts;
  }

  void describe(Info& info) const {
    const ModelConfig& c = plan_.sources[0].config;
    info.architecture = c.architecture, info.backend = backend_.name();
    info.vocab = plan_.vocab, info.context = plan_.context, info.model_context = c.max_context();
    info.layers = c.layers, info.width = c.width;
    info.parameters = loaded_[0].model->parameters();
    info.end_tokens = c.end_tokens, info.notes = plan_.notes;
    info.notes.insert(info.notes.end(), notes_.begin(), notes_.end());
    for (size_t k = 0; k < loaded_.size(); ++k) {
      const Loaded& l = loaded_[k];
      LevelInfo out;
      out.name = plan_.levels[k].name;
      out.format = format_label(l.model->layers()[0].qkv.desc());
      out.head = format_label(l.model->head().desc());
      out.act = l.act == Act::a8 ? "a8" : "a16";
      out.weight_bytes = l.weight_bytes, out.pass_bytes = l.model->pass_bytes(l.act);
      out.cache_bytes = l.cache_bytes, out.recordings = l.verifier->recordings();
      out.tokens = k ? plan_.levels[k - 1].drafts : 0;
      info.total_bytes += l.weight_bytes;
      info.levels.push_back(std::move(out));
    }
    const MemoryNeed need = memory_need(plan_, backend_);
    for (const MemoryPart& part : {need.backend, need.host})
      info.total_bytes += part.caches + part.work;
    if (plan_.leaf) {
      LevelInfo out;
      out.name = plan_.leaf->name, out.tokens = plan_.leaf->setup.tokens;
      out.pass_bytes = leaf_need().pass_bytes;
      info.levels.push_back(std::move(out));
    }
  }

  static std::vector<WeightMemory> weights_of(const Model& model, Act act) {
    std::vector<WeightMemory> out;
    const auto add = [&](const Linear& linear) {
      const PackedWeight packed = linear.in(act_of(linear, act)).packed;
      out.push_back({packed.data, packed.bytes});
    };
    for (const Layer& layer : model.layers())
      for (const Linear* linear : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down}) add(*linear);
    add(model.head());
    return out;
  }

  const LoadPlan& plan_;
  Backend& backend_;
  Progress progress_;
  std::vector<std::string> notes_;                    // of reading
  std::vector<std::shared_ptr<const Model>> models_;  // by level
  std::shared_ptr<RuleTable> rules_;
  std::vector<Loaded> loaded_;
};

class LoadedEngine final : public Engine {
 public:
  LoadedEngine(const std::string& directory, const Options& options,
               std::unique_ptr<Backend> backend)
      : backend_(std::move(backend)) {
    const LoadPlan plan = make_plan(directory, options);
    check_memory(plan, *backend_, memory_need(plan, *backend_), memory_there(*backend_));
    info_.threads = options.threads ? options.threads : usable_cores();
    largest_tree_ = largest_tree(plan, 0);
    loop_ = std::make_unique<Loop>(Loader(plan, options, *backend_).load(info_, weights_));
  }
  ~LoadedEngine() override {
    if (!loop_->forked()) return;
    // A forked child has neither the loop's thread nor the backend's workers: what they share with
    // the child cannot be taken apart in an orderly way, so it is left to the end of the process.
    loop_.release();
    backend_.release();
  }

  std::shared_ptr<Stream> submit(Request request) override {
    return loop_->submit(std::move(request));
  }
  const Info& info() const override { return info_; }
  const std::vector<WeightMemory>& weights() const override { return weights_; }
  std::vector<double> verify_ms(const std::vector<int>& rows, int context, int repeats) override;

 private:
  std::unique_ptr<Backend> backend_;
  Info info_;
  std::vector<WeightMemory> weights_;
  int largest_tree_ = 0;
  std::unique_ptr<Loop> loop_;  // before the backend goes, it ends its thread and frees the levels
};

std::vector<double> LoadedEngine::verify_ms(const std::vector<int>& rows, int context,
                                            int repeats) {
  const int most = rows.empty() ? 1 : *std::max_element(rows.begin(), rows.end());
  for (int n : rows)
    check(n >= 1 && n <= largest_tree_, Code::invalid_argument, "rows: ", n,
          " is out of range; it must be from 1 to ", largest_tree_, ", which Options::tree raises");
  const int deep = std::min(most, kMaxEmitted);
  check(context >= 0 && context + deep <= info_.context, Code::invalid_argument,
        "context: ", context, " tokens and ", deep, " positions of ", most,
        " rows do not fit the context of ", info_.context);
  check(repeats >= 1, Code::invalid_argument, "repeats: ", repeats,
        " is out of range; it must be 1 or more");
  std::vector<std::vector<double>> times(rows.size());
  const int block = backend_->row_buckets().back();
  loop_->run_idle([&](Level& target, TargetSide& side) {
    Sequence sequence;
    for (int i = 0; i <= context; ++i) sequence.tokens.push_back((i * 7919 + 13) % info_.vocab);
    sequence.committed = sequence.tokens.size();
    Sequence* const one[] = {&sequence};
    Verifier& verifier = target.verifier();
    side.begin(0, {}, sequence.tokens, {});
    side.ask_logprobs(-1);
    verifier.sync(one);
    while (verifier.lacking(sequence) > 0) verifier.read(one, block);
    DraftTrees trees(1, most);
    RoundResult result;
    // Sizes alternate, so that a change of the machine's speed meets them all; the first is
    // warm-up.
    for (int r = -1; r < repeats; ++r)
      for (size_t i = 0; i < rows.size(); ++i) {
        trees.reset(0, sequence.tokens.back());
        // As deep as a round can accept, then from the root again.
        for (int n = 1; n < rows[i]; ++n)
          trees.add(0, n % (kMaxEmitted - 1) == 1 ? 0 : n - 1, (n * 104729 + 7) % info_.vocab);
        verifier.sync(one);
        const auto start = std::chrono::steady_clock::now();
        verifier.verify(one, trees, {&result, 1});
        const std::chrono::duration<double, std::milli> took =
            std::chrono::steady_clock::now() - start;
        if (r >= 0) times[i].push_back(took.count());
      }
  });
  std::vector<double> out;
  for (auto& t : times) {
    std::nth_element(t.begin(), t.begin() + t.size() / 2, t.end());
    out.push_back(t[t.size() / 2]);
  }
  return out;
}

}  // namespace

std::shared_ptr<Engine> load_engine(const std::string& directory, const Options& options,
                                    std::unique_ptr<Backend> backend) {
  return std::make_shared<LoadedEngine>(directory, options, std::move(backend));
}

std::shared_ptr<Engine> Engine::load(const std::string& directory, const Options& options) {
  return load_engine(directory, options,
                     open_backend({options.device, options.isa, options.threads}));
}

}  // namespace stepladder
