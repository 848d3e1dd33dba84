#include "spec/planner.h"

#include <algorithm>
#include <array>

#include "core/error.h"

namespace stepladder {
namespace {

constexpr int kShortPause = 8, kFirstPause = 32, kLongestPause = 512;  // rounds
constexpr int kTrialRounds = 3, kTrialDepth = 3;
// A trial that comes as close as this to what it is compared with goes on for so many rounds.
constexpr float kClose = 0.9f;
constexpr int kLongestTrial = 12;
// Rounds after which one that was asked for its worth has proven it.
constexpr int kProof = 16;
// What it takes to be asked in the place of another that has been asked for its worth: estimates
// waver, and a rest is long.
constexpr float kMargin = 1.1f;
// Guesses that the price before a trial counts for in it.
constexpr double kTrialPrice = 0.5;
constexpr float kFirstRight = 0.8f;  // the chance of a guess nobody knows anything of
constexpr float kPrior = 4;          // guesses that what was not tried counts for
// What is known keeps so much of itself with each guess, and with each round that does not tell.
constexpr float kMemory = 0.99f, kUnasked = 0.999f;
// How fast a text moves the odds of its guesses: at first, where a trial begins, and at last; and
// how far it moves them.
constexpr float kFirstStep = 0.3f, kTrialStep = 0.2f, kLastStep = 0.06f, kStepMemory = 0.95f;
constexpr float kMostOdds = 50;
constexpr double kPriceMemory = 0.95, kOdd = 3;  // a round; beyond that it was interrupted

int levels_of(const DrafterTraits& t, int most) { return std::min({t.tokens, t.nodes, most}); }

/// Trees are told apart by half doublings of their rows, the root included: steps in the cost of
/// rows are at such counts.
std::vector<int> tree_sizes(const DrafterTraits& t) {
  std::vector<int> out;
  if (t.branches)
    for (int rows = 2; rows <= t.nodes; rows *= 2)
      for (const int nodes : {rows - 1, rows + rows / 2 - 1})
        if (nodes < t.nodes) out.push_back(nodes);
  out.push_back(t.nodes);
  return out;
}

}  // namespace

Planner::Planner(int sequences, std::vector<DrafterTraits> traits)
    : records_(sequences * traits.size()) {
  check(traits.size() <= kMaxDrafters, Code::internal, "a level over ", traits.size(), " drafters");
  size_t most = 0;
  for (const DrafterTraits& t : traits) {
    Drafter d{.traits = t, .sizes = tree_sizes(t), .right = {}, .seen = {}};
    d.right.resize(d.sizes.size() * kMaxDepth), d.seen = d.right;
    most = std::max(most, d.right.size());
    drafters_.push_back(std::move(d));
  }
  chances_.resize(most);
  for (Record& r : records_) r.pause = kFirstPause, r.step = kFirstStep;
}

size_t Planner::bytes(int sequences, int nodes, int drafters) {
  const size_t sizes = tree_sizes({.nodes = nodes, .branches = true}).size();
  return drafters * (sequences * sizeof(Record) + sizeof(Drafter) +
                     sizes * (sizeof(int) + 3 * kMaxDepth * sizeof(float)));
}

int Planner::size_of(const Drafter& d, int nodes) {
  const auto found = std::lower_bound(d.sizes.begin(), d.sizes.end() - 1, nodes);
  return d.traits.branches ? static_cast<int>(found - d.sizes.begin()) : 0;
}

void Planner::look(int slot, int drafter) const {
  const Drafter& d = drafters_[drafter];
  const float odds = at(slot, drafter).odds;
  const int sizes = static_cast<int>(d.sizes.size());
  for (int z = sizes - 1; z >= 0; --z) {
    float* const row = chances_.data() + z * kMaxDepth;
    for (int i = 0; i < kMaxDepth; ++i) {
      const float near = z + 1 < sizes ? row[kMaxDepth + i] : i ? row[i - 1] : kFirstRight;
      const int k = z * kMaxDepth + i;
      row[i] = (d.right[k] + kPrior * near) / (d.seen[k] + kPrior);
    }
  }
  for (int i = 0; i < sizes * kMaxDepth; ++i) {
    const float p = chances_[i];
    chances_[i] = odds * p / (1 - p + odds * p);
  }
}

float Planner::chance(int slot, int drafter, int nodes, int d) const {
  look(slot, drafter);
  return chances_[size_of(drafters_[drafter], nodes) * kMaxDepth + d - 1];
}

float Planner::price(int drafter, const Round& round) const {
  const Drafter& d = drafters_[drafter];
  if (d.levels == 0 || !round.time.timed()) return d.traits.price;
  const double none = round.time.of(round.sequences);
  return static_cast<float>(d.ms / d.levels * round.sequences / none);
}

/// The draft of at most `depth` >= 1 levels with the highest rate.
Planner::Wish Planner::best(int slot, int drafter, const Round& round, int depth) const {
  const Drafter& d = drafters_[drafter];
  const float each = price(drafter, round);
  const bool fixed = d.traits.fixed;
  look(slot, drafter);
  Wish out;
  for (size_t z = fixed ? d.sizes.size() - 1 : 0; z < d.sizes.size(); ++z) {
    float reached = 1, brings = 1;
    for (int n = 1; n <= depth; ++n) {
      const int nodes = d.traits.branches ? d.sizes[z] : n;
      if (nodes < n) break;
      reached *= chances_[z * kMaxDepth + n - 1];
      brings += reached;
      const float rate = brings / (1 + round.rows[nodes] + each * static_cast<float>(n));
      if (rate > out.rate || (fixed && n == depth)) out = {n, nodes, rate};
    }
  }
  return out;
}

float Planner::hope(int drafter, const Round& round, int depth) const {
  // What it took last time counts where that is less: a price may have been learned in worse times.
  const Drafter& d = drafters_[drafter];
  float each = price(drafter, round);
  if (d.levels > 0) each *= static_cast<float>(std::min(1.0, d.last * d.levels / d.ms));
  float out = 1;
  for (int n = 1; n <= depth; ++n) {
    const auto guesses = static_cast<float>(n);
    out = std::max(out, (1 + guesses) / (1 + round.rows[n] + each * guesses));
  }
  return out;
}

Planner::Plan Planner::plan(int slot, const Round& round, std::span<const Offer> offers) {
  const int n = static_cast<int>(drafters_.size());
  if (round.depth < 1) return {};
  const auto depth_of = [&](int j) { return levels_of(drafters_[j].traits, round.depth); };
  const auto all_of = [&](int j) {
    const DrafterTraits& t = drafters_[j].traits;
    return Plan{j, depth_of(j), t.branches ? t.nodes : depth_of(j)};
  };
  // What can be had without asking any of those that may rest. One that forecasts is asked even
  // where it would say nothing: so it watches the text.
  Plan told, chosen;
  float told_rate = 0, rate = 1;
  for (int j = 0; j < n; ++j) {
    if (!offers[j].ready || depth_of(j) < 1) continue;
    const Forecast& f = offers[j].forecast;
    if (drafters_[j].traits.forecasts) {
      const float cost = round.rows[f.guesses] + price(j, round) * static_cast<float>(f.guesses);
      told = all_of(j);
      told_rate = std::max(1.f, (1 + f.brings) / (1 + cost));
    } else if (drafters_[j].traits.fixed) {
      const Wish w = best(slot, j, round, depth_of(j));
      chosen = {j, w.depth, w.nodes}, rate = w.rate;
    }
  }
  const auto may = [&](int j) {
    const DrafterTraits& t = drafters_[j].traits;
    return offers[j].ready && !t.forecasts && !t.fixed && !resting(slot, j) && depth_of(j) > 0;
  };
  const auto trial = [&](int j) {
    const Wish w = best(slot, j, round, std::min(kTrialDepth, depth_of(j)));
    return Plan{j, w.depth, w.nodes};
  };
  std::array<float, kMaxDrafters> rates{};
  // What the others bring that are not on trial. One that could not bring that if all it guessed
  // were right needs no trial, or no more of one than a round that says its price.
  float proven = std::max(rate, told_rate);
  for (int j = 0; j < n; ++j)
    if (may(j) && drafters_[j].asked && at(slot, j).trial == 0)
      proven = std::max(proven, best(slot, j, round, depth_of(j)).rate);
  for (int j = 0; j < n; ++j) {
    Record& r = at(slot, j);
    if (!may(j) || !r.asked || (r.trial == 0 ? r.tried > 0 : r.trial == kTrialRounds)) continue;
    if (hope(j, round, depth_of(j)) < proven) r.trial = 0, r.tried = kLongestTrial;
  }
  float to_beat = rate;
  for (int j = 0; j < n; ++j) {
    if (!may(j)) continue;
    if (!drafters_[j].asked) return all_of(j);  // nothing is known yet
    const Wish w = best(slot, j, round, depth_of(j));
    rates[j] = w.rate;
    if (at(slot, j).trial > 0) {
      // Where guesses are to be had for nothing, what these are worth does not matter.
      if (told_rate <= std::max(1.f, w.rate)) return trial(j);
    } else if (const float worth = w.rate * (at(slot, j).won ? kMargin : 1);
               w.rate > 1 && worth > to_beat) {
      chosen = {j, w.depth, w.nodes}, rate = w.rate, to_beat = worth;
    }
  }
  for (int j = 0; j < n; ++j) {
    if (!may(j) || j == chosen.drafter || at(slot, j).trial > 0) continue;
    if (lost(slot, j, rates[j] / rate) && told_rate <= 1) return trial(j);
  }
  if (chosen.drafter >= 0) {
    Record& winner = at(slot, chosen.drafter);
    if (++winner.won >= kProof) winner.pause = kFirstPause, winner.tried = 0;
  }
  return told.drafter >= 0 && told_rate >= rate ? told : chosen;
}

bool Planner::wanted(int slot, int drafter, const Round& round) {
  const Drafter& d = drafters_[drafter];
  const Record& r = at(slot, drafter);
  if (d.traits.fixed || d.traits.forecasts) return true;
  if (r.rest > 0) return false;
  if (r.trial > 0 || !d.asked) return true;
  const int depth = levels_of(d.traits, round.depth);
  if (depth < 1) return true;
  const float rate = best(slot, drafter, round, depth).rate;
  return rate > 1 || lost(slot, drafter, rate);
}

/// It does not pay, or another pays more and it brings `share` of that: a trial of it, else a rest.
/// Returns whether a trial goes on.
bool Planner::lost(int slot, int drafter, float share) {
  Record& r = at(slot, drafter);
  if (r.asked && r.tried == 0) {
    start_trial(slot, drafter);
    return true;
  }
  if (r.tried > 0 && r.tried < kLongestTrial && share > kClose) {
    r.trial = kTrialRounds, r.tried += kTrialRounds;
    return true;
  }
  if (r.won >= kProof) r.pause = kShortPause;  // it has been worth its price not long ago
  r.rest = r.pause;
  if (r.tried > 0) r.pause = std::min(2 * r.pause, kLongestPause);
  r.tried = r.won = 0;
  return false;
}

void Planner::start_trial(int slot, int drafter) {
  Record& r = at(slot, drafter);
  Drafter& d = drafters_[drafter];
  r.trial = r.tried = kTrialRounds;
  if (d.levels > kTrialPrice) d.ms *= kTrialPrice / d.levels, d.levels = kTrialPrice;
}

void Planner::tick(int slot) {
  for (int j = 0; j < static_cast<int>(drafters_.size()); ++j) {
    Record& r = at(slot, j);
    if (r.rest == 0 || --r.rest > 0) continue;
    start_trial(slot, j);
    r.step = std::max(r.step, kTrialStep);  // the text may have changed meanwhile
  }
}

void Planner::paid(int drafter, int depth, std::optional<double> ms) {
  Drafter& d = drafters_[drafter];
  d.asked = true;
  if (!ms) return;
  double took = std::max(*ms, 0.0);
  if (d.levels > 0) took = std::min(took, kOdd * depth * d.ms / d.levels);  // it was interrupted
  d.last = took / std::max(depth, 1);
  d.ms = d.ms * kPriceMemory + took, d.levels = d.levels * kPriceMemory + depth;
}

void Planner::learn(int slot, int drafter, int nodes, int depth, int accepted) {
  Drafter& d = drafters_[drafter];
  Record& r = at(slot, drafter);
  r.asked = true, r.trial = std::max(r.trial - 1, 0);
  look(slot, drafter);
  for (float& x : d.right) x *= kUnasked;
  for (float& x : d.seen) x *= kUnasked;
  const int row = size_of(d, nodes) * kMaxDepth;
  const auto move_odds = [&](int i, float right) {
    r.odds *= 1 + r.step * (right - chances_[row + i]);
    r.step = std::max(r.step * kStepMemory, kLastStep);
    r.odds = std::clamp(r.odds, 1 / kMostOdds, kMostOdds);
  };
  if (depth < 1) move_odds(0, 0);  // asked in vain: no worse than a wrong guess, and no better
  for (int i = 0; i < std::min({accepted + 1, depth, kMaxDepth}); ++i) {
    const float right = i < accepted ? 1.f : 0.f;
    d.right[row + i] = d.right[row + i] * kMemory + right;
    d.seen[row + i] = d.seen[row + i] * kMemory + 1;
    move_odds(i, right);
  }
}

void Planner::forget(int slot) {
  for (int j = 0; j < static_cast<int>(drafters_.size()); ++j)
    at(slot, j).odds = 1, at(slot, j).step = kFirstStep;
}

}  // namespace stepladder
