#include "spec/model_verifier.h"

#include <algorithm>
#include <chrono>

namespace stepladder {
namespace {

RoundLimits limits_of(int sequences, const VerifierOptions& o) {
  return {.sequences = sequences,
          .tree = o.tree_capacity,
          .ahead = o.ahead,
          .catch_up = o.catch_up,
          .block = o.block};
}

using Clock = std::chrono::steady_clock;

/// Milliseconds since `started`, where the host's clock has seen the work, else as the backend
/// measured them.
std::optional<double> measured(const Backend& backend, Clock::time_point started) {
  if (!backend.runs_at_once()) return backend.worked_ms();
  return std::chrono::duration<double, std::milli>(Clock::now() - started).count();
}

}  // namespace

/// What lies in backend memory beside the cache and the rules.
struct ModelVerifier::Memory {
  Round round;
  ChoiceView choices;
  RoundResult *results, *chain;  // [sequences] of a round, and of a chain of rounds
  int32_t *path, *path_node;     // [sequences, kMaxEmitted]
  Tensor residual;               // [rows, width] f32
  Tensor logits;                 // [nodes of a block, vocab rows] f32
  float* chosen = nullptr;       // [nodes] log-probabilities
  int32_t* top_token = nullptr;  // [nodes, most]
  float* top_logprob = nullptr;  // [nodes, most]
  PassMemory pass;
  DraftTrees roots{1, 1};  // on the host

  Memory(const RoundLimits& limits, const VerifierOptions& options, const ModelConfig& config,
         Arena& arena)
      : round(limits, arena) {
    const int nodes = limits.nodes();
    choices = {arena.take_array<int32_t>(nodes), arena.take_array<float>(nodes)};
    results = arena.take_array<RoundResult>(limits.sequences);
    chain = arena.take_array<RoundResult>(limits.sequences);
    path = arena.take_array<int32_t>(size_t(limits.sequences) * kMaxEmitted);
    path_node = arena.take_array<int32_t>(size_t(limits.sequences) * kMaxEmitted);
    residual = arena.take_tensor(DType::f32, limits.rows(), config.width);
    logits = arena.take_tensor(DType::f32, limits.node_block(), config.vocab);
    if (options.logprobs > 0) {
      chosen = arena.take_array<float>(nodes);
      top_token = arena.take_array<int32_t>(size_t(nodes) * options.logprobs);
      top_logprob = arena.take_array<float>(size_t(nodes) * options.logprobs);
    }
  }
};

ModelVerifier::ModelVerifier(Backend& backend, std::shared_ptr<const Model> model,
                             std::shared_ptr<KVCache> cache, std::shared_ptr<RuleTable> rules,
                             const VerifierOptions& options)
    : backend_(backend),
      model_(std::move(model)),
      cache_(std::move(cache)),
      rules_(std::move(rules)),
      options_(options),
      usable_(cache_->spec().sequences),
      missing_(cache_->spec().sequences) {
  check(options_.tree_capacity <= cache_->spec().scratch, Code::internal, "a tree of ",
        options_.tree_capacity, " nodes for a cache with ", cache_->spec().scratch,
        " scratch slots");
  check(
      options_.context <= cache_->spec().positions && options_.context <= model_->rope_positions(),
      Code::internal, "a context of ", options_.context, " for a cache of ",
      cache_->spec().positions, " positions");
  const RoundLimits limits = limits_of(cache_->spec().sequences, options_);
  const auto lay_out = [&](Arena& arena) {
    auto memory = std::make_unique<Memory>(limits, options_, model_->config(), arena);
    memory->pass = PassMemory(backend_, *model_, options_.act, options_.block, arena);
    return memory;
  };
  Arena measure;
  lay_out(measure);
  memory_ = allocate_buffer(backend_, measure.peak());
  Arena arena(memory_.data(), memory_.bytes());
  m_ = lay_out(arena);
  if (options_.logprobs > 0) {
    host_path_node_.resize(size_t(limits.sequences) * kMaxEmitted);
    host_chosen_.resize(limits.nodes());
    host_top_token_.resize(size_t(limits.nodes()) * options_.logprobs);
    host_top_logprob_.resize(host_top_token_.size());
  }
  m_->round.record(backend_, *this);
  for (const bool first : {true, false})
    (first ? follow_first_ : follow_) = backend_.record([this, first] {
      backend_.follow(m_->round.follow(m_->results, m_->chain, options_.context, first));
    });
}

ModelVerifier::~ModelVerifier() = default;

VerifierNeed verifier_need(const Backend& backend, const ModelConfig& config, int sequences,
                           const VerifierOptions& options) {
  const RoundLimits limits = limits_of(sequences, options);
  Arena measure;
  const ModelVerifier::Memory memory(limits, options, config, measure);
  const PassMemory pass(backend, config, options.block, measure);
  VerifierNeed need;
  need.backend = measure.peak();
  need.host = memory.round.host_bytes();
  if (options.logprobs > 0)
    need.host += size_t(sequences) * kMaxEmitted * 4 +
                 size_t(limits.nodes()) * (4 + 8 * size_t(options.logprobs));
  return need;
}

int ModelVerifier::recordings() const { return m_->round.recordings() + 2; }

// ---- what is recorded ------------------------------------------------------------------------

void ModelVerifier::rows(const Live& live) {
  const Pass pass{live, m_->round.rows(), cache_->view(), options_.act, m_->residual};
  embed_rows(backend_, *model_, pass);
  run_layers(backend_, *model_, pass, m_->pass);
}

void ModelVerifier::nodes(const Live& live) {
  const Round& round = m_->round;
  const Tensor logits = m_->logits.slice(0, live.capacity);
  run_head(backend_, *model_, live, m_->residual, round.rows().node_row, options_.act, logits,
           m_->pass);
  backend_.choose(
      {live, logits, round.plan(), round.trees(), round.rows(), rules_->view(), m_->choices});
  if (options_.logprobs > 0)
    backend_.logprobs({.live = live,
                       .logits = logits,
                       .choices = m_->choices,
                       .vocab = options_.vocab,
                       .most = options_.logprobs,
                       .asked = round.asked(),
                       .chosen = m_->chosen,
                       .top_token = m_->top_token,
                       .top_logprob = m_->top_logprob});
}

void ModelVerifier::finish() {
  const Round& round = m_->round;
  backend_.accept({.plan = round.plan(),
                   .trees = round.trees(),
                   .rows = round.rows(),
                   .choices = m_->choices,
                   .rules = rules_->view(),
                   .count = options_.level == 0,
                   .result = m_->results,
                   .path = m_->path,
                   .path_node = m_->path_node});
  backend_.keep({round.plan(), cache_->view(), m_->results, m_->path});
}

// ---- what the host knows ---------------------------------------------------------------------

void ModelVerifier::sync(Batch batch) {
  for (const Sequence* s : batch)
    usable_[s->slot] = std::min(cache_->usable(s->slot, s->tokens, options_.level),
                                static_cast<int>(s->tokens.size()) - 1);
}

int ModelVerifier::lacking(const Sequence& s) const {
  return static_cast<int>(s.tokens.size()) - 1 - usable_[s.slot];
}

int ModelVerifier::room(const Sequence& s) const {
  return options_.context - static_cast<int>(s.tokens.size()) + 1;
}

TreeView ModelVerifier::trees() const { return m_->round.trees(); }

/// The sequence's next `missing` rows, with the tokens that the level has guessed.
Round::Part ModelVerifier::part(const Sequence& s, int missing) const {
  const std::span<const Token> tokens = s.tokens;
  const int from = usable_[s.slot];
  return {.slot = s.slot,
          .root_position = from + missing,
          .missing = tokens.subspan(from, missing),
          .tentative = tokens.subspan(s.committed)};
}

/// Books the entries that a round, or a chain of them, has written.
void ModelVerifier::note(const Sequence& s, int missing, const RoundResult& result) {
  const int root = static_cast<int>(s.tokens.size()) - 1, from = usable_[s.slot];
  for (int p = from; p < from + missing; ++p) cache_->write(s.slot, p, s.tokens[p], options_.level);
  usable_[s.slot] = from + missing;
  if (result.emitted == 0) return;
  cache_->write(s.slot, root, s.tokens[root], options_.level);
  for (int d = 1; d < result.emitted; ++d)
    cache_->write(s.slot, root + d, result.token[d - 1], options_.level);
}

void ModelVerifier::read(Batch batch, int rows) {
  rows = std::min(rows, options_.block);
  Round& round = m_->round;
  round.begin();
  size_t used = 0;
  for (; used < batch.size() && rows > 0; ++used) {
    missing_[used] = std::min(rows, lacking(*batch[used]));
    rows -= missing_[used];
    Round::Part reading = part(*batch[used], missing_[used]);
    reading.tentative = {};
    round.add(reading);
  }
  if (round.planned_rows() == 0) return;
  round.run(backend_);
  backend_.wait();
  for (size_t i = 0; i < used; ++i) note(*batch[i], missing_[i], {});
}

void ModelVerifier::check_ready(Batch batch) {
  for (size_t i = 0; i < batch.size(); ++i) {
    missing_[i] = lacking(*batch[i]);
    check(missing_[i] <= options_.catch_up && room(*batch[i]) >= 1, Code::internal,
          "a round for a sequence that lacks ", missing_[i], " entries and has room for ",
          room(*batch[i]));
  }
}

void ModelVerifier::verify(Batch batch, const DraftTrees& trees, std::span<RoundResult> out) {
  const auto started = Clock::now();
  check_ready(batch);
  Round& round = m_->round;
  round.begin(asked_);
  for (size_t i = 0; i < batch.size(); ++i) {
    round.add(part(*batch[i], missing_[i]));
    round.add_tree(trees, static_cast<int>(i));
  }
  round.run(backend_, trees.on_backend);
  backend_.read(out.data(), m_->results, batch.size() * sizeof(RoundResult));
  if (asked_ >= 0) {
    const size_t nodes = round.planned_nodes(), most = options_.logprobs;
    backend_.read(host_path_node_.data(), m_->path_node, batch.size() * kMaxEmitted * 4);
    backend_.read(host_chosen_.data(), m_->chosen, nodes * sizeof(float));
    backend_.read(host_top_token_.data(), m_->top_token, nodes * most * 4);
    backend_.read(host_top_logprob_.data(), m_->top_logprob, nodes * most * 4);
  }
  backend_.wait();
  for (size_t i = 0; i < batch.size(); ++i) note(*batch[i], missing_[i], out[i]);
  ms_ = measured(backend_, started), idle_ms_ = backend_.idle_ms();
}

void ModelVerifier::extend(Batch batch, std::span<const int> wanted, std::span<RoundResult> out) {
  const auto started = Clock::now();
  check_ready(batch);
  Round& round = m_->round;
  const auto n = static_cast<int>(batch.size());
  DraftTrees& roots = m_->roots;
  int rounds = 0;
  round.begin();
  for (int i = 0; i < n; ++i) {
    Round::Part chain = part(*batch[i], missing_[i]);
    chain.wanted = std::clamp(wanted[i], 1, kMaxEmitted);
    round.add(chain);
    roots.reset(0, batch[i]->tokens.back());
    round.add_tree(roots, 0);
    rounds = std::max(rounds, std::min(chain.wanted, room(*batch[i])));
  }
  round.run(backend_);
  follow_first_->replay();
  for (int r = 1; r < rounds; ++r) {
    round.run_again(n);
    follow_->replay();
  }
  backend_.read(out.data(), m_->chain, batch.size() * sizeof(RoundResult));
  backend_.wait();
  for (int i = 0; i < n; ++i) note(*batch[i], missing_[i], out[i]);
  ms_ = measured(backend_, started), idle_ms_ = backend_.idle_ms();
}

void ModelVerifier::ask_logprobs(int top) {
  check(top <= options_.logprobs, Code::internal, "logprobs for ", top, " tokens of at most ",
        options_.logprobs);
  asked_ = top;
}

TokenLogprobs ModelVerifier::logprobs(int i, int k) const {
  const size_t node = host_path_node_[size_t(i) * kMaxEmitted + k];
  const size_t first = node * options_.logprobs;
  TokenLogprobs out{host_chosen_[node], {}};
  for (int j = 0; j < asked_; ++j)
    out.top.emplace_back(host_top_token_[first + j], host_top_logprob_[first + j]);
  return out;
}

void ModelVerifier::read_choices(std::span<int32_t> tokens, std::span<float> logits) {
  backend_.read(tokens.data(), m_->choices.token, tokens.size_bytes());
  backend_.read(logits.data(), m_->choices.logit, logits.size_bytes());
  backend_.wait();
}

}  // namespace stepladder
