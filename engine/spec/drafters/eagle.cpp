#include "spec/drafters/eagle.h"

#include <algorithm>
#include <chrono>

#include "spec/drafter_kind.h"
#include "spec/model_verifier.h"

namespace stepladder {
namespace {

constexpr int kNodeBlock = 64;  // beams whose logits are there together

RoundLimits limits_of(const EagleOptions& o) {
  return {.sequences = o.sequences,
          .tree = 1,
          .ahead = o.ahead,
          .catch_up = o.catch_up,
          .block = o.block};
}

/// Its own output stands beside keys and values, where the rows of the next step find it.
KVSpec cache_spec(const ModelConfig& head, const EagleOptions& o) {
  return kv_spec(head, o.context, GrowthView::slots(o.width, o.depth), o.sequences,
                 {1, head.width, {head.layers}});
}

}  // namespace

/// What lies in backend memory beside the weights and the cache.
struct Eagle::Memory {
  Round round;
  Rows beams;
  GrowthView growth;
  DraftAsk* asks;
  Tensor residual, beam_residual;  // [rows, width] f32
  Tensor joined;                   // [rows of a block, 2 width] 16-bit
  Tensor states;                   // [nodes of a block, width] 16-bit
  Tensor logits;                   // [nodes of a block, vocab rows] f32
  PassMemory pass;
  void* fc_workspace;

  Memory(const Backend& backend, const ModelConfig& c, const EagleOptions& o, Arena& arena)
      : round(limits_of(o), arena),
        beams(take_rows(arena, o.sequences * o.width, o.depth, o.sequences)),
        pass(backend, c, o.block, arena) {
    const size_t B = o.sequences, candidates = GrowthView::candidates(o.width, o.depth);
    growth = {o.sequences,
              o.width,
              o.depth,
              arena.take_array<int32_t>(B * candidates),
              arena.take_array<float>(B * candidates),
              arena.take_array<int32_t>(B * o.depth * o.width)};
    asks = arena.take_array<DraftAsk>(B);
    residual = arena.take_tensor(DType::f32, round.limits().rows(), c.width);
    beam_residual = arena.take_tensor(DType::f32, beams.capacity, c.width);
    joined = arena.take_tensor(c.dtype, o.block, 2 * c.width);
    const int most = std::max(round.limits().node_block(), std::min(beams.capacity, kNodeBlock));
    states = arena.take_tensor(c.dtype, most, c.width);
    logits = arena.take_tensor(DType::f32, most, c.vocab);
    pass.narrowed = arena.take_tensor(c.dtype, o.block, c.width);
    ProjectArgs fc{.live = {.capacity = o.block}, .input = {.x = joined, .type = c.dtype}};
    fc.weight.packed.n = c.width, fc.weight.packed.k = 2 * c.width, fc.result = AddTo{residual};
    fc_workspace = arena.take(backend.workspace_bytes(fc));
  }
};

Eagle::Eagle(Backend& backend, std::shared_ptr<const EagleHead> head,
             std::shared_ptr<KVCache> above, std::shared_ptr<RuleTable> rules,
             const EagleOptions& options)
    : backend_(backend),
      head_(std::move(head)),
      above_(std::move(above)),
      rules_(std::move(rules)),
      options_(options),
      kv_(cache_spec(head_->config(), options_)),
      cache_(allocate_buffer(backend, backend.kv_bytes(kv_))),
      fed_(options_.sequences),
      asks_(options_.sequences) {
  const FeatureSpec& features = above_->spec().features;
  check(features.count == 1 && features.width == head_->config().width, Code::internal,
        "eagle: the cache above carries ", features.count, " features of width ", features.width);
  Arena measure;
  Memory(backend_, head_->config(), options_, measure);
  memory_ = allocate_buffer(backend_, measure.peak());
  Arena arena(memory_.data(), memory_.bytes());
  m_ = std::make_unique<Memory>(backend_, head_->config(), options_, arena);
  for (auto& tokens : fed_) tokens.reserve(options_.context + 1);
}

Eagle::~Eagle() = default;

size_t Eagle::bytes(const Backend& backend, const ModelConfig& head, const EagleOptions& options) {
  Arena measure;
  Memory(backend, head, options, measure);
  return backend.kv_bytes(cache_spec(head, options)) + measure.peak();
}

void Eagle::attach(const TreeView& trees) {
  check(!trees_.count, Code::internal, "eagle: a drafter for one verifier");
  check(trees.capacity > options_.nodes && trees.sequences == options_.sequences, Code::internal,
        "eagle: trees of ", options_.nodes, " guesses for a verifier of ", trees.capacity,
        " nodes");
  trees_ = trees;
  m_->round.record(backend_, *this);
}

// ---- what is recorded ------------------------------------------------------------------------

/// A block of rows through fc and the layers.
void Eagle::pass(const Live& live, const Rows& rows, const KVView& states, bool of_parents,
                 Tensor residual) {
  const Tensor joined = m_->joined.slice(0, live.capacity);
  backend_.join({.live = live,
                 .rows = rows,
                 .table = head_->embedding(),
                 .kv = states,
                 .of_parents = of_parents,
                 .out = joined,
                 .residual = residual});
  backend_.project({.live = live,
                    .input = {.x = joined, .type = joined.dtype},
                    .weight = head_->fc().in(Act::a16),
                    .result = AddTo{residual},
                    .workspace = m_->fc_workspace});
  run_layers(backend_, head_->stack(), {live, rows, {kv_, cache_.data()}, Act::a16, residual},
             m_->pass);
}

/// lm_head over a block of nodes, and their likeliest children.
void Eagle::give_children(const Live& live, const Rows& rows, Tensor residual, int step) {
  const Tensor states = m_->states.slice(0, live.capacity);
  const Tensor logits = m_->logits.slice(0, live.capacity);
  const Linear& lm_head = head_->lm_head();
  backend_.narrow({.live = live, .x = residual, .pick = rows.node_row, .out = states});
  backend_.project({.live = live,
                    .input = {.x = states, .type = states.dtype},
                    .weight = lm_head.in(act_of(lm_head, Act::a16)),
                    .result = Store{logits},
                    .workspace = m_->pass.workspace});
  backend_.top({.live = live,
                .logits = logits,
                .plan = m_->round.plan(),
                .rows = rows,
                .rules = rules_->view(),
                .growth = m_->growth,
                .step = step});
}

void Eagle::rows(const Live& live) {
  pass(live, m_->round.rows(), above_->view(), false, m_->residual);
}

void Eagle::nodes(const Live& live) { give_children(live, m_->round.rows(), m_->residual, 0); }

void Eagle::finish() {
  const Rows& beams = m_->beams;
  const Plan& plan = m_->round.plan();
  // Calls `work` for each block of the beams there may be.
  const auto each_block = [&](int block, int32_t* first, const int32_t* count, auto work) {
    for (int done = 0; done < beams.capacity; done += block) {
      if (done > 0) backend_.advance({first, block});
      work(Live{count, first, std::min(block, beams.capacity - done)});
    }
  };
  for (int step = 1; step < options_.depth; ++step) {
    backend_.grow({plan, m_->asks, m_->growth, step, beams});
    each_block(options_.block, beams.block_row, beams.count, [&](const Live& live) {
      pass(live, beams, {kv_, cache_.data()}, true, m_->beam_residual);
    });
    each_block(kNodeBlock, beams.block_node, beams.node_count,
               [&](const Live& live) { give_children(live, beams, m_->beam_residual, step); });
  }
  backend_.prune({plan, m_->asks, m_->growth, trees_});
}

// ---- what the host knows ---------------------------------------------------------------------

/// Rows in the region that agree with the sequence; the root's is always fed anew.
int Eagle::held(const Sequence& s) const {
  const int rows = static_cast<int>(fed_[s.slot].size()) - 1;
  return std::clamp(rows, 0, std::max(0, static_cast<int>(s.tokens.size()) - 2));
}

int Eagle::lacking(const Sequence& s) const {
  return static_cast<int>(s.tokens.size()) - 2 - held(s);
}

void Eagle::sync(Batch batch) {
  for (const Sequence* s : batch) {
    std::vector<Token>& fed = fed_[s->slot];
    const auto [end, other] =
        std::mismatch(fed.begin(), fed.end(), s->tokens.begin(), s->tokens.end());
    fed.erase(end, fed.end());
  }
}

bool Eagle::ready(const Sequence& s) const {
  const int root = static_cast<int>(s.tokens.size()) - 1;
  return root > 0 && lacking(s) <= options_.catch_up &&
         above_->usable(s.slot, s.tokens, options_.verifier) >= root;
}

/// The next `count` rows, with the tokens that follow them.
Round::Part Eagle::part(const Sequence& s, int count) const {
  const int from = held(s);
  return {.slot = s.slot,
          .root_position = from + count,
          .missing = std::span<const Token>(s.tokens).subspan(from + 1, count)};
}

bool Eagle::read(Batch batch, int rows) {
  rows = std::min(rows, options_.block);
  Round& round = m_->round;
  round.begin();
  bool all = true;
  for (Sequence* s : batch) {
    // Only what the cache above has the hidden states of can be fed.
    const int there = above_->usable(s->slot, s->tokens, options_.verifier);
    const int can = std::min(there, static_cast<int>(s->tokens.size()) - 2) - held(*s);
    if (lacking(*s) <= options_.catch_up || can <= 0) continue;
    const int count = std::min(can, rows);
    all &= count == can;
    if (count == 0) continue;
    round.add(part(*s, count));
    const int end = held(*s) + count;
    fed_[s->slot].assign(s->tokens.begin(), s->tokens.begin() + end + 1);
    rows -= count;
  }
  if (round.planned_rows() > 0) round.run(backend_);
  return all;
}

void Eagle::draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) {
  const auto started = std::chrono::steady_clock::now();
  Round& round = m_->round;
  round.begin();
  for (size_t i = 0; i < batch.size(); ++i) {
    const Sequence& s = *batch[i];
    const Budget& b = budgets[i];
    DraftAsk& ask = asks_[i];
    ask = {.root = s.tokens.back()};
    if (b.at_most > 0 && b.nodes > 0) {
      ask.depth = std::clamp(b.at_least, 1, std::min(b.at_most, options_.depth));
      ask.nodes =
          std::min({b.nodes, options_.nodes, GrowthView::candidates(options_.width, ask.depth)});
      Round::Part all = part(s, lacking(s));
      all.tentative = std::span<const Token>(s.tokens).subspan(s.committed);
      round.add(all);
      root_.reset(0, ask.root);
      round.add_tree(root_, 0);
      fed_[s.slot].assign(s.tokens.begin(), s.tokens.end() - 1);
    } else {
      round.add({.slot = s.slot});
    }
    out.count[i] = 1 + ask.nodes, out.depth[i] = ask.depth;
  }
  out.on_backend = true;
  backend_.upload(m_->asks, asks_.data(), batch.size() * sizeof(DraftAsk));
  round.run(backend_);
  ms_.reset();
  if (backend_.runs_at_once())
    ms_ = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started)
              .count();
}

// ---- as an entry of the list -----------------------------------------------------------------

namespace {

constexpr DrafterOption kOptions[] = {
    {"top", "children of a node, and nodes of a step that are given children", 1, kMaxWidth,
     EagleOptions{}.width},
    {"nodes", "guesses of a tree at most", 1, 1000, EagleOptions{}.nodes}};

EagleOptions options_of(const DrafterSetup& s) {
  EagleOptions o;
  o.depth = s.tokens, o.width = s.option("top");
  o.nodes = std::min(s.option("nodes"), GrowthView::candidates(o.width, o.depth));
  o.verifier = static_cast<LevelId>(s.level - 1);
  o.sequences = s.sequences, o.context = s.context;
  return o;
}

int nodes_of(const DrafterSetup& s) { return 1 + options_of(s).nodes; }

FeatureSpec features_of(const DrafterSetup& s) { return {1, s.above->width, {s.above->layers}}; }

int positions_of(const DrafterSetup& s) { return kv_spec({}, s.context, 0, 1).positions; }

DrafterNeed memory_of(const DrafterSetup& s, const Backend& backend) {
  const auto checkpoint = open_head_checkpoint(s.argument);
  const EagleConfig config = read_eagle_config(*checkpoint, *s.above);
  EagleOptions options = options_of(s);
  options.block = backend.row_buckets().back();
  const ModelConfig& c = config.layers;
  const size_t layer =
      size_t(c.width) * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * size_t(c.width) * c.ffn;
  return {.backend = EagleHead::bytes(backend, config, positions_of(s)) +
                     Eagle::bytes(backend, c, options),
          .host = s.sequences * size_t(s.context) * sizeof(Token),
          .pass_bytes =
              2 * (2 * size_t(c.width) * c.width + c.layers * layer + size_t(c.vocab) * c.width)};
}

std::unique_ptr<Drafter> make(const DrafterSetup& s, const DrafterSite& site) {
  const auto checkpoint = open_head_checkpoint(s.argument);
  const Model& model = site.above.model();
  auto head = std::make_shared<EagleHead>(site.backend, *checkpoint,
                                          read_eagle_config(*checkpoint, model.config()), model,
                                          positions_of(s));
  EagleOptions options = options_of(s);
  options.block = site.above.options().block, options.ahead = site.above.options().ahead;
  return std::make_unique<Eagle>(site.backend, std::move(head), site.above.shared_cache(),
                                 site.rules, options);
}

}  // namespace

namespace drafter {
extern const DrafterKind eagle{
    .word = "eagle",
    .about = "trees of an EAGLE-2 head, which reads the hidden states of the level above",
    .argument = "DIR",
    .tokens = 6,
    .forecasts = false,
    .options = kOptions,
    .check = nullptr,
    .nodes = nodes_of,
    .features = features_of,
    .memory = memory_of,
    .make = make};
}  // namespace drafter

}  // namespace stepladder
