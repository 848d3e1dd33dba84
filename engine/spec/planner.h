// Whom a round asks for guesses, how deep and how many: what brings the most tokens a millisecond,
// by what the level's own rounds have shown of prices and of the chance to be right. It moves time,
// never text.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "backends/backend.h"
#include "spec/drafter.h"
#include "spec/row_cost.h"

namespace stepladder {

/// The count in [0, most] with the highest rate (1 + what it brings) / (1 + what it costs).
/// `reached(d)` is called for d = 1, 2, ... in order: the chance that guess d is reached and right.
/// `each`: of making one guess, as a share of a round without guesses.
template <class Reached>
int worth_guessing(int most, const GuessCost& rows, float each, Reached reached) {
  float brings = 1, best_rate = 1;
  int best = 0;
  for (int d = 1; d <= most; ++d) {
    brings += reached(d);
    const float rate = brings / (1 + rows[d] + each * static_cast<float>(d));
    if (rate > best_rate) best_rate = rate, best = d;
  }
  return best;
}

/// One drafter that a level may ask, as its planner sees it.
struct DrafterTraits {
  int tokens = 0;          // depth asked for at most
  int nodes = 0;           // guesses of its largest tree
  bool branches = false;   // its drafts are trees: the number of guesses is chosen beside the depth
  bool forecasts = false;  // says each round what it would bring; never rests
  bool fixed = false;      // asked for `tokens` whether it pays or not; never rests
  float price =
      0;  // of one level of depth, as a share of a round of one row, where none is measured
};

/// Plans for the sequences of one level, over the drafters it may ask: the one right below it, and
/// those below that in its place.
///
/// What is known of a drafter is its price, a level of depth; the chance of each depth to be right,
/// by the size of the tree, over all texts; and how far the sequence's own text is from that. What
/// was not tried is taken for as good as the nearest that was, a size up or a depth less: so it is
/// tried, and unlearned in time when it is not.
///
/// A drafter that seems not to pay, or to pay less than another, gets a trial of a few rounds, in
/// which its price is learned anew since the clock of a busy machine misleads. If it does not pay
/// either it rests until the next trial, after twice as long each time, whatever text the slot then
/// holds; a drafter at rest need not read along. One whose price alone rules it out has no trial.
class Planner {
 public:
  static constexpr int kMaxDepth = kMaxEmitted - 1, kMaxDrafters = 32;

  Planner(int sequences, std::vector<DrafterTraits>);
  /// Host memory it takes beside the object.
  static size_t bytes(int sequences, int nodes, int drafters);

  /// What is known before a round of one of `sequences` sequences.
  struct Round {
    int depth = 0;          // guesses on a path at most
    const GuessCost& rows;  // of checking
    const RowCost& time;    // of rounds
    int sequences = 1;
  };
  /// What a drafter has to say before a round.
  struct Offer {
    bool ready = false;
    Forecast forecast{};  // of one that forecasts
  };
  struct Plan {
    int drafter = -1;  // -1 = nobody
    int depth = 0, nodes = 0;
  };
  Plan plan(int slot, const Round&, std::span<const Offer>);
  /// Whether a drafter that has still to catch up should: false sends one to rest that would not be
  /// asked anyway.
  bool wanted(int slot, int drafter, const Round&);

  /// One round has passed for the sequence.
  void tick(int slot);
  bool resting(int slot, int drafter) const { return at(slot, drafter).rest > 0; }

  /// The drafter made trees of `depth` >= 1 levels in all, for all sequences together, in `ms`
  /// milliseconds; without a value nothing was measured.
  void paid(int drafter, int depth, std::optional<double> ms);
  /// The drafter was asked, and of a tree of `nodes` guesses, or that many at most, and `depth`
  /// levels the first `accepted` levels were right.
  void learn(int slot, int drafter, int nodes, int depth, int accepted);
  /// Another text: it starts from what all texts so far have shown. A rest goes on.
  void forget(int slot);

  /// The chance that level `d` of a tree of `nodes` guesses is right once it is reached.
  float chance(int slot, int drafter, int nodes, int d) const;
  /// Of one level of depth, as a share of a round without guesses.
  float price(int drafter, const Round&) const;

 private:
  /// What a drafter has shown over all texts.
  struct Drafter {
    DrafterTraits traits;
    std::vector<int> sizes;          // of trees that are told apart, rising; chains are one size
    std::vector<float> right, seen;  // [sizes, kMaxDepth]
    double ms = 0, levels = 0;
    double last = 0;     // milliseconds of a level of depth, when it was last asked
    bool asked = false;  // and so its price is known as well as it can be
  };
  /// What it has shown in a slot's text, and its rests there.
  struct Record {
    float odds = 1;            // of its guesses, over what all texts make of them
    float step = 0;            // how fast these move
    int rest = 0, pause = 0;   // rounds left of one; of the next one
    int trial = 0, tried = 0;  // rounds left of one; rounds of them since it last paid or rested
    int won = 0;               // rounds it was asked for its worth since it last rested
    bool asked = false;        // in any text
  };
  struct Wish {
    int depth = 0, nodes = 0;
    float rate = 0;
  };
  Record& at(int slot, int drafter) { return records_[slot * drafters_.size() + drafter]; }
  const Record& at(int slot, int drafter) const {
    return records_[slot * drafters_.size() + drafter];
  }
  static int size_of(const Drafter&, int nodes);
  /// Fills chances_ for a slot's text.
  void look(int slot, int drafter) const;
  Wish best(int slot, int drafter, const Round&, int depth) const;
  /// The highest rate it could have if all its guesses were right, `depth` of them at most.
  float hope(int drafter, const Round&, int depth) const;
  void start_trial(int slot, int drafter);
  bool lost(int slot, int drafter, float share);

  std::vector<Drafter> drafters_;
  std::vector<Record> records_;         // [slot, drafter]
  mutable std::vector<float> chances_;  // [sizes, kMaxDepth] of one look
};

}  // namespace stepladder
