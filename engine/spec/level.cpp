// The recursion: sync by common prefix, let the drafter below guess, verify, and hand up what the
// verifier chose. Guesses go up as trees and come back as round results; nothing here allocates
// once the level stands.
#include "spec/level.h"

#include <algorithm>
#include <numeric>

#include "core/error.h"

namespace stepladder {

namespace {

constexpr size_t kPositions = 32;  // positions the statistics tell apart

/// A sum, none where a part of it was not measured.
std::optional<double> sum(std::optional<double> a, std::optional<double> b) {
  if (!a || !b) return std::nullopt;
  return *a + *b;
}

void clear(LevelStats& stats) {
  stats.rounds = stats.drafted = stats.accepted = stats.emitted = stats.rows = 0;
  stats.draft_ms = stats.verify_ms = stats.idle_ms = 0;
  std::fill(stats.accepted_at.begin(), stats.accepted_at.end(), 0);
  std::fill(stats.drafted_at.begin(), stats.drafted_at.end(), 0);
}

}  // namespace

/// A level's own copy of a sequence: the tokens above it, then what this level chose since.
struct Level::Own {
  Sequence sequence;
  // No room for a root: the sequence above, or what this level made of it, fills the context. In
  // the first case no tokens are held.
  bool full = false;
};

Level::Level(std::unique_ptr<Verifier> verifier, std::unique_ptr<Drafter> inner,
             LevelOptions options)
    : verifier_(std::move(verifier)),
      inner_(std::move(inner)),
      options_(std::move(options)),
      own_(options_.sequences),
      stats_(options_.sequences),
      choices_(below().choices),
      row_cost_(options_.row_cost),
      guess_cost_(options_.tree_capacity - 1),
      planner_(options_.sequences, below().traits),
      trees_(options_.sequences, options_.tree_capacity),
      budgets_(options_.sequences),
      asked_budgets_(options_.sequences),
      limits_(options_.sequences),
      rows_(options_.sequences),
      asked_(options_.sequences, -1),
      drafts_(options_.sequences),
      results_(options_.sequences),
      offers_(choices_.size()) {
  check(verifier_ && options_.sequences > 0 && options_.tree_capacity > 0 && options_.context > 0,
        Code::internal, "level ", options_.name, ": needs a verifier, slots, a tree and a context");
  for (const Choice& choice : choices_) choice.drafter->attach(verifier_->trees());
  row_cost_.fill(1, guess_cost_);
  own_batch_.reserve(options_.sequences);
  active_.reserve(options_.sequences);
  asking_.reserve(options_.sequences);
  for (int slot = 0; slot < options_.sequences; ++slot) {
    own_[slot].sequence.slot = slot;
    // A round starts with a root inside the context, so its tokens end one beyond it at most.
    own_[slot].sequence.tokens.reserve(options_.context + kMaxEmitted);
    stats_[slot].name = options_.name;
    stats_[slot].accepted_at.resize(kPositions);
    stats_[slot].drafted_at.resize(kPositions);
  }
}

Level::~Level() = default;

size_t Level::bytes(const LevelOptions& o, int choices) {
  const size_t tokens = static_cast<size_t>(o.context) + kMaxEmitted;
  const size_t slot = sizeof(Own) + tokens * sizeof(Token) + sizeof(LevelStats) +
                      2 * kPositions * sizeof(int64_t) + sizeof(RoundResult);
  const size_t tree = o.tree_capacity * 2 * sizeof(int32_t);
  return o.sequences * (slot + tree) + o.tree_capacity * sizeof(float) +
         Planner::bytes(o.sequences, o.tree_capacity, choices);
}

/// Whom this level may ask: down to the first whose length is fixed, which is never left out.
Level::Below Level::below() const {
  Below out;
  float price = 1;
  for (const Level* at = this; at && at->inner_ && at->options_.tokens > 0;) {
    const LevelOptions& o = at->options_;
    Drafter* const inner = at->inner_.get();
    const bool fixed = !o.plan && !inner->forecasts();
    price *= o.guess_cost;
    if (at == this || !inner->reads_rows_above()) {
      out.choices.push_back({inner, o.most});
      out.traits.push_back({.tokens = o.tokens,
                            .nodes = options_.tree_capacity - 1,
                            .branches = inner->branches(),
                            .forecasts = inner->forecasts(),
                            .fixed = fixed,
                            .price = price});
    }
    at = fixed ? nullptr : dynamic_cast<const Level*>(inner);
  }
  return out;
}

Batch Level::own_batch(Batch batch) {
  own_batch_.clear();
  for (const Sequence* s : batch)
    if (Own& own = own_[s->slot]; !own.full) own_batch_.push_back(&own.sequence);
  return own_batch_;
}

void Level::sync(Batch batch) {
  for (const Sequence* above : batch) {
    Own& own = own_[above->slot];
    std::vector<Token>& mine = own.sequence.tokens;
    own.sequence.committed = above->committed;
    if (verifier_->room(*above) < 1) {
      mine.clear();
      own.full = true;
      continue;
    }
    const auto [a, b] =
        std::mismatch(mine.begin(), mine.end(), above->tokens.begin(), above->tokens.end());
    if (b != above->tokens.end()) {  // else it agrees, and may go further
      mine.erase(a, mine.end());
      mine.insert(mine.end(), b, above->tokens.end());
    }
    own.full = verifier_->room(own.sequence) < 1;
  }
  out_of_line_ = false;
  const Batch own = own_batch(batch);
  if (own.empty()) return;
  verifier_->sync(own);
  if (inner_) inner_->sync(own);
}

bool Level::ready(const Sequence& s) const {
  const Own& own = own_[s.slot];
  return own.full || verifier_->lacking(own.sequence) <= verifier_->catch_up();
}

bool Level::read(Batch batch, int rows) {
  const Batch own = own_batch(batch);
  const auto behind = [this](const Sequence* s) {
    return verifier_->lacking(*s) > verifier_->catch_up();
  };
  active_.clear();
  std::copy_if(own.begin(), own.end(), std::back_inserter(active_), behind);
  if (!active_.empty()) {
    verifier_->read(active_, rows);
    return !inner_ && std::none_of(active_.begin(), active_.end(), behind);
  }
  return own.empty() || read_below(own, rows);
}

bool Level::read_below(Batch batch, int rows) {
  // The cheapest first: it can be asked while the others still read.
  for (int k = static_cast<int>(choices_.size()); k-- > 0;) {
    asking_.clear();
    for (Sequence* s : batch) {
      // Reading has its price: whoever is not going to be asked anyway goes without.
      const Planner::Round round{depth_left(*s, kMaxEmitted), guess_cost_, row_cost_};
      if (!planner_.resting(s->slot, k) &&
          (choices_[k].drafter->ready(*s) || planner_.wanted(s->slot, k, round)))
        asking_.push_back(s);
    }
    if (asking_.empty()) continue;
    sync_choice(k, asking_);
    if (!choices_[k].drafter->read(asking_, rows)) return false;
  }
  return true;
}

void Level::forget(int slot) {
  own_[slot].sequence.tokens.clear();
  own_[slot].full = false;
  clear(stats_[slot]);
  planner_.forget(slot);
  if (inner_) inner_->forget(slot);
}

const LevelStats& Level::stats(int slot) const { return stats_[slot]; }

bool Level::wants_round(const Own& own, size_t above, const Budget& budget) const {
  if (own.full || budget.at_most < 1) return false;
  const Sequence& s = own.sequence;
  const auto have = static_cast<int>(s.tokens.size() - above);
  const auto guessed = static_cast<int>(s.tokens.size() - s.committed);
  return have < std::min(budget.at_least, budget.at_most) && guessed < options_.ahead &&
         verifier_->lacking(s) <= verifier_->catch_up();
}

void Level::draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) {
  std::optional<double> took = 0;
  for (bool first = true;; first = false) {
    active_.clear();
    for (size_t i = 0; i < batch.size(); ++i) {
      Own& own = own_[batch[i]->slot];
      if (!wants_round(own, batch[i]->tokens.size(), budgets[i])) continue;
      limits_[active_.size()] = inner_ ? kMaxEmitted : chain_length(own, *batch[i], budgets[i]);
      drafts_[active_.size()] = true;
      active_.push_back(&own.sequence);
    }
    if (active_.empty()) break;
    if (!first) {
      verifier_->sync(active_);
      if (inner_) inner_->sync(active_);
    }
    const size_t n = active_.size();
    if (inner_)
      advance(active_, std::span(limits_).first(n), std::span(drafts_).first(n),
              std::span(results_).first(n));
    else
      extend(active_, std::span(limits_).first(n), std::span(results_).first(n));
    took = sum(took, round_ms_);
    for (size_t i = 0; i < n; ++i) {
      Own& own = own_[active_[i]->slot];
      own.sequence.tokens.insert(own.sequence.tokens.end(), results_[i].token,
                                 results_[i].token + results_[i].emitted);
      own.full = verifier_->room(own.sequence) < 1;
    }
  }
  drafting_ms_ = took;
  for (size_t i = 0; i < batch.size(); ++i) {
    const int most = std::min(budgets[i].at_most, budgets[i].nodes), tree = static_cast<int>(i);
    if (most < 1) continue;
    const std::vector<Token>& above = batch[i]->tokens;
    const std::vector<Token>& mine = own_[batch[i]->slot].sequence.tokens;
    out.reset(tree, above.back());
    for (size_t d = 0; d < static_cast<size_t>(most) && above.size() + d < mine.size(); ++d)
      if (out.add(tree, static_cast<int>(d), mine[above.size() + d]) < 0) break;
  }
}

/// Tokens that a level without a drafter makes at once for the sequence above.
int Level::chain_length(const Own& own, const Sequence& above, const Budget& budget) const {
  const auto have = static_cast<int>(own.sequence.tokens.size() - above.tokens.size());
  const auto guessed = static_cast<int>(own.sequence.tokens.size() - own.sequence.committed);
  return std::min(
      {std::min(budget.at_least, budget.at_most) - have, options_.ahead - guessed, kMaxEmitted});
}

/// One chain of rounds for each sequence.
void Level::extend(Batch batch, std::span<const int> tokens, std::span<RoundResult> out) {
  const auto n = static_cast<int>(batch.size());
  for (int i = 0; i < n; ++i) rows_[i] = verifier_->lacking(*batch[i]);
  verifier_->extend(batch, tokens, out);
  round_ms_ = verifier_->last_ms();
  for (int i = 0; i < n; ++i) {
    LevelStats& stats = stats_[batch[i]->slot];
    note_idle(stats, n);
    stats.rounds += out[i].emitted, stats.emitted += out[i].emitted;
    stats.rows += rows_[i] + out[i].emitted;
    stats.verify_ms += round_ms_.value_or(0) / n;
  }
}

/// What the backend waited before a round of n sequences; before the first of a stream it may have
/// waited for the request itself.
void Level::note_idle(LevelStats& stats, int n) const {
  if (stats.rounds > 0) stats.idle_ms += verifier_->last_idle_ms().value_or(0) / n;
}

int Level::depth_left(const Sequence& s, int limit) const {
  return std::min({trees_.capacity - 1, verifier_->room(s) - 1, kMaxEmitted - 1, limit - 1});
}

void Level::sync_choice(int k, Batch batch) {
  if (k == 0 && !out_of_line_) return;
  choices_[k].drafter->sync(batch);
  if (k > 0) out_of_line_ = true;
}

/// Whom sequence i of the batch asks for what.
void Level::choose(Batch batch, int i, int limit) {
  const Sequence& s = *batch[i];
  const int depth = depth_left(s, limit);
  if (depth < 1) return;
  for (size_t k = 0; k < choices_.size(); ++k) {
    Drafter& d = *choices_[k].drafter;
    offers_[k] = {d.ready(s), {}};
    if (choices_.size() == 1 || !offers_[k].ready || !d.forecasts()) continue;
    sync_choice(static_cast<int>(k), batch.subspan(i, 1));
    d.weigh_rows(guess_cost_);
    offers_[k].forecast = d.forecast(s, depth);
  }
  const Planner::Plan plan = planner_.plan(
      s.slot, {depth, guess_cost_, row_cost_, static_cast<int>(batch.size())}, offers_);
  if (plan.drafter < 0) return;
  const Choice& choice = choices_[plan.drafter];
  const int most = choice.most > 0 ? std::min(depth, choice.most) : depth;
  asked_[i] = plan.drafter;
  budgets_[i] = {std::min(plan.depth, most), most, choice.drafter->branches() ? plan.nodes : most};
}

/// Trees made on the backend are those of the whole batch: where one sequence asks for such, those
/// that would ask somebody else ask nobody this time.
void Level::keep_to_one_side(int sequences) {
  const auto there = [this](int k) { return k >= 0 && choices_[k].drafter->drafts_on_backend(); };
  const auto end = asked_.begin() + sequences, first = std::find_if(asked_.begin(), end, there);
  if (first == end) return;
  const int one = *first;
  for (int i = 0; i < sequences; ++i)
    if (asked_[i] != one) asked_[i] = -1, budgets_[i] = {};
}

/// Lets the drafters that were chosen draft. Returns milliseconds, none where one was not measured.
std::optional<double> Level::fill_trees(Batch batch, std::span<const int> limit,
                                        std::span<const char> drafts) {
  const int n = static_cast<int>(batch.size());
  trees_.on_backend = false;
  for (int i = 0; i < n; ++i) {
    trees_.reset(i, batch[i]->tokens.back());
    planner_.tick(batch[i]->slot);
    asked_[i] = -1, budgets_[i] = {};
    if (drafts[i]) choose(batch, i, limit[i]);
  }
  keep_to_one_side(n);
  std::optional<double> took = 0;
  for (int k = 0; k < static_cast<int>(choices_.size()); ++k) took = sum(took, ask(k, batch));
  return took;
}

/// Choice k drafts for those that ask it.
std::optional<double> Level::ask(int k, Batch batch) {
  const size_t n = batch.size();
  Drafter& drafter = *choices_[k].drafter;
  asking_.clear();
  for (size_t i = 0; i < n; ++i)
    if (asked_[i] == k) asking_.push_back(batch[i]);
  if (asking_.empty()) return 0;
  sync_choice(k, asking_);
  for (size_t i = 0; i < n; ++i) {
    // Whether it is ready for this level's copy shows once it is in line with it.
    if (asked_[i] == k && k > 0 && !drafter.ready(*batch[i])) asked_[i] = -1, budgets_[i] = {};
    asked_budgets_[i] = asked_[i] == k ? budgets_[i] : Budget{};
  }
  const auto asking = std::count(asked_.begin(), asked_.begin() + static_cast<long>(n), k);
  if (asking == 0) return 0;
  drafter.weigh_rows(guess_cost_);
  drafter.draft(batch, std::span(asked_budgets_).first(n), trees_);
  const std::optional<double> ms = drafter.last_ms();
  int depth = 0;
  for (size_t i = 0; i < n; ++i) {
    if (asked_[i] != k) continue;
    depth += trees_.depth[i];
    stats_[batch[i]->slot].draft_ms += ms.value_or(0) / static_cast<double>(asking);
  }
  if (depth > 0) planner_.paid(k, depth, ms);
  return ms;
}

void Level::advance(Batch batch, std::span<const int> limit, std::span<const char> drafts,
                    std::span<RoundResult> out) {
  const int n = static_cast<int>(batch.size());
  const std::optional<double> drafting = fill_trees(batch, limit, drafts);
  for (int i = 0; i < n; ++i) rows_[i] = verifier_->lacking(*batch[i]) + trees_.count[i];
  verifier_->verify(batch, trees_, out);
  const std::optional<double> verifying = verifier_->last_ms();
  round_ms_ = sum(drafting, verifying);
  if (verifying) row_cost_.add(std::accumulate(rows_.begin(), rows_.begin() + n, 0), *verifying);
  row_cost_.fill(n, guess_cost_);
  for (int i = 0; i < n; ++i) {
    LevelStats& stats = stats_[batch[i]->slot];
    stats.verify_ms += verifying.value_or(0) / n;
    note_idle(stats, n);
    record(*batch[i], i, rows_[i], out[i]);
  }
}

/// Of a tree made in backend memory the host knows bounds: how many nodes at most, and how deep.
void Level::record(const Sequence& s, int i, int rows, const RoundResult& result) {
  LevelStats& stats = stats_[s.slot];
  const int drafted = trees_.count[i] - 1, depth = trees_.depth[i], accepted = result.emitted - 1;
  if (asked_[i] >= 0) planner_.learn(s.slot, asked_[i], drafted, depth, accepted);
  ++stats.rounds;
  stats.rows += rows;
  stats.drafted += drafted;
  stats.accepted += accepted;
  stats.emitted += result.emitted;
  for (int d = 0; d < std::min<int>(depth, kPositions); ++d) ++stats.drafted_at[d];
  for (int d = 0; d < std::min<int>(accepted, kPositions); ++d) ++stats.accepted_at[d];
}

}  // namespace stepladder
