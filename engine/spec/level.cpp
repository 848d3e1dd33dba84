// The recursion: sync by common prefix, let the drafter below guess, verify, and hand up what the
// verifier chose. Guesses go up as trees and come back as round results; nothing here allocates
// once the level stands.
#include "spec/level.h"

#include <algorithm>
#include <chrono>
#include <numeric>

#include "core/error.h"

namespace stepladder {

namespace {

constexpr size_t kPositions = 32;  // positions the statistics tell apart

double milliseconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start)
      .count();
}

void clear(LevelStats& stats) {
  stats.rounds = stats.drafted = stats.accepted = stats.emitted = stats.rows = 0;
  stats.draft_ms = stats.verify_ms = 0;
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
      row_cost_(options_.row_cost),
      guess_cost_(row_cost_.guesses(1)),
      planner_(options_.sequences),
      trees_(options_.sequences, options_.tree_capacity),
      budgets_(options_.sequences),
      limits_(options_.sequences),
      rows_(options_.sequences),
      drafts_(options_.sequences),
      results_(options_.sequences) {
  check(verifier_ && options_.sequences > 0 && options_.tree_capacity > 0 && options_.context > 0,
        Code::internal, "level ", options_.name, ": needs a verifier, slots, a tree and a context");
  own_batch_.reserve(options_.sequences);
  active_.reserve(options_.sequences);
  awake_.reserve(options_.sequences);
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

size_t Level::bytes(const LevelOptions& o) {
  const size_t tokens = static_cast<size_t>(o.context) + kMaxEmitted;
  const size_t slot = sizeof(Own) + tokens * sizeof(Token) + sizeof(LevelStats) +
                      2 * kPositions * sizeof(int64_t) + sizeof(RoundResult);
  const size_t node = 2 * sizeof(int32_t) + sizeof(float);
  return o.sequences * (slot + o.tree_capacity * node);
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
  if (!inner_) return true;
  awake_.clear();
  for (Sequence* s : batch) {
    // Reading has its price: whoever is not going to be asked anyway goes without.
    if (!planner_.resting(s->slot) && (inner_->ready(*s) || plan(*s, options_.tokens, 1) > 0))
      awake_.push_back(s);
  }
  return awake_.empty() || inner_->read(awake_, rows);
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
  if (own.full) return false;
  const Sequence& s = own.sequence;
  const auto have = static_cast<int>(s.tokens.size() - above);
  const auto guessed = static_cast<int>(s.tokens.size() - s.committed);
  return have < std::min(budget.at_least, budget.at_most) && guessed < options_.tree_capacity &&
         verifier_->lacking(s) <= verifier_->catch_up();
}

void Level::draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) {
  for (bool first = true;; first = false) {
    active_.clear();
    for (size_t i = 0; i < batch.size(); ++i) {
      Own& own = own_[batch[i]->slot];
      if (!wants_round(own, batch[i]->tokens.size(), budgets[i])) continue;
      limits_[active_.size()] = kMaxEmitted;
      drafts_[active_.size()] = true;
      active_.push_back(&own.sequence);
    }
    if (active_.empty()) break;
    if (!first) {
      verifier_->sync(active_);
      if (inner_) inner_->sync(active_);
    }
    const size_t n = active_.size();
    advance(active_, std::span(limits_).first(n), std::span(drafts_).first(n),
            std::span(results_).first(n));
    for (size_t i = 0; i < n; ++i) {
      Own& own = own_[active_[i]->slot];
      own.sequence.tokens.insert(own.sequence.tokens.end(), results_[i].token,
                                 results_[i].token + results_[i].emitted);
      own.full = verifier_->room(own.sequence) < 1;
    }
  }
  for (size_t i = 0; i < batch.size(); ++i) {
    const std::vector<Token>& above = batch[i]->tokens;
    const Own& own = own_[batch[i]->slot];
    out.reset(static_cast<int>(i), above.back());
    if (own.sequence.tokens.size() <= above.size()) continue;
    const size_t have = own.sequence.tokens.size() - above.size();
    const size_t give = std::min(have, static_cast<size_t>(std::max(budgets[i].at_most, 0)));
    for (size_t d = 0; d < give; ++d)
      if (out.add(static_cast<int>(i), static_cast<int>(d), own.sequence.tokens[above.size() + d],
                  0.f) < 0)
        break;
  }
}

int Level::plan(const Sequence& s, int most, int sequences) {
  if (!options_.plan) return most;
  return planner_.ask(s.slot, most, guess_cost_, row_cost_.of(sequences), sequences);
}

Budget Level::budget(const Sequence& s, int limit, int sequences) {
  int most = std::min({trees_.capacity - 1, verifier_->room(s) - 1, kMaxEmitted - 1, limit - 1});
  if (options_.most > 0) most = std::min(most, options_.most);
  if (most < 1) return {};
  const int tokens = plan(s, std::min(options_.tokens, most), sequences);
  return tokens < 1 ? Budget{} : Budget{tokens, most};
}

// Asks the drafter below; false when nobody wants a draft and the trees are roots alone.
bool Level::fill_trees(Batch batch, std::span<const int> limit, std::span<const char> drafts) {
  const size_t n = batch.size();
  bool asked = false;
  for (size_t i = 0; i < n; ++i) {
    const int slot = batch[i]->slot;
    planner_.tick(slot);
    const bool may = inner_ && options_.tokens > 0 && drafts[i] && !planner_.resting(slot) &&
                     inner_->ready(*batch[i]);
    budgets_[i] = may ? budget(*batch[i], limit[i], static_cast<int>(n)) : Budget{};
    asked |= budgets_[i].at_most > 0;
  }
  trees_.on_backend = false;
  std::fill(trees_.count.begin(), trees_.count.end(), 0);
  if (asked) {
    inner_->draft(batch, std::span(budgets_).first(n), trees_);
  } else {
    for (size_t i = 0; i < n; ++i) trees_.reset(static_cast<int>(i), batch[i]->tokens.back());
  }
  return asked;
}

void Level::advance(Batch batch, std::span<const int> limit, std::span<const char> drafts,
                    std::span<RoundResult> out) {
  using Clock = std::chrono::steady_clock;
  const int n = static_cast<int>(batch.size());
  const Clock::time_point started = Clock::now();
  if (fill_trees(batch, limit, drafts)) share_drafting(batch, milliseconds_since(started));
  for (int i = 0; i < n; ++i) rows_[i] = verifier_->lacking(*batch[i]) + trees_.count[i];
  const Clock::time_point drafted = Clock::now();
  verifier_->verify(batch, trees_, out);
  const double took = milliseconds_since(drafted);
  row_cost_.add(std::accumulate(rows_.begin(), rows_.begin() + n, 0), took);
  if (inner_) inner_->weigh_rows(guess_cost_ = row_cost_.guesses(n));
  for (int i = 0; i < n; ++i) {
    stats_[batch[i]->slot].verify_ms += took / n;
    record(*batch[i], i, rows_[i], out[i]);
  }
}

/// Books the time of drafting with the sequences that asked for drafts.
void Level::share_drafting(Batch batch, double ms) {
  int asking = 0, guesses = 0;
  for (size_t i = 0; i < batch.size(); ++i)
    if (budgets_[i].at_most > 0) ++asking, guesses += trees_.count[i] - 1;
  if (guesses > 0) planner_.paid(guesses, ms);
  for (size_t i = 0; i < batch.size(); ++i)
    if (budgets_[i].at_most > 0) stats_[batch[i]->slot].draft_ms += ms / asking;
}

void Level::record(const Sequence& s, int i, int rows, const RoundResult& result) {
  LevelStats& stats = stats_[s.slot];
  const int drafted = trees_.count[i] - 1, accepted = result.emitted - 1;
  if (drafted > 0) planner_.learn(s.slot, drafted, accepted);
  ++stats.rounds;
  stats.rows += rows;
  stats.drafted += drafted;
  stats.accepted += accepted;
  stats.emitted += result.emitted;
  int depth = drafted;  // of a tree made in backend memory the host knows the size alone
  if (!trees_.on_backend) {
    depth = 0;
    for (int node = 1; node <= drafted; ++node) depth = std::max(depth, trees_.depth_at(i, node));
  }
  for (int d = 0; d < std::min<int>(depth, kPositions); ++d) ++stats.drafted_at[d];
  for (int d = 0; d < std::min<int>(accepted, kPositions); ++d) ++stats.accepted_at[d];
}

}  // namespace stepladder
