// How many guesses a round is worth asking for: those that bring the most tokens a millisecond,
// by what the level's own rounds have shown of their price and of their chance to be right. It
// moves time, never text.
#pragma once

#include <algorithm>
#include <vector>

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

/// Plans for the sequences of one level whose drafter costs time of its own. A drafter that does
/// not pay rests and then gets a trial, the next one after twice as long, whichever text it is in;
/// a drafter at rest need not read along.
class Planner {
 public:
  explicit Planner(int sequences) : slots_(sequences) {}

  /// Guesses to ask for, `most` >= 1 at most; 0 sends the sequence's drafter to rest. `round`:
  /// milliseconds of a round without guesses over `sequences` sequences.
  int ask(int slot, int most, const GuessCost& rows, double round, int sequences) {
    Slot& s = slots_[slot];
    if (guesses_ == 0) return most;  // nothing is known yet
    if (s.trial) return std::min(most, kTrial);
    const auto each = static_cast<float>(ms_ / guesses_ * sequences / round);
    const float right = s.right / s.seen;
    float reached = 1;
    const int n = worth_guessing(most, rows, each, [&](int) { return reached *= right; });
    if (n > 0) {
      pause_ = kFirstPause;
    } else {
      s.rest = pause_;
      if (s.tried) pause_ = std::min(2 * pause_, kLongestPause);
      s.tried = false;
    }
    return n;
  }

  /// One round has passed for the sequence.
  void tick(int slot) {
    Slot& s = slots_[slot];
    if (s.rest > 0 && --s.rest == 0) s.trial = true;
  }
  bool resting(int slot) const { return slots_[slot].rest > 0; }

  /// `guesses` >= 1 were made in `ms` milliseconds, for all sequences together.
  void paid(int guesses, double ms) {
    if (guesses_ > 0) ms = std::min(ms, kOdd * guesses * ms_ / guesses_);  // it was interrupted
    ms_ = ms_ * kPriceMemory + ms, guesses_ = guesses_ * kPriceMemory + guesses;
  }
  /// Of a chain of `drafted` >= 1 guesses the first `accepted` were right.
  void learn(int slot, int drafted, int accepted) {
    Slot& s = slots_[slot];
    s.trial = false, s.tried = true;
    for (int d = 0; d < std::min(accepted + 1, drafted); ++d) {
      const float right = d < accepted ? 1.f : 0.f;
      s.right = s.right * kMemory + right, s.seen = s.seen * kMemory + 1;
      right_ = right_ * kLongMemory + right, seen_ = seen_ * kLongMemory + 1;
    }
  }
  /// Another text: it starts from what all texts so far have shown.
  void forget(int slot) {
    slots_[slot] = {};
    slots_[slot].right = kPrior * right_ / seen_;
  }

 private:
  static constexpr int kFirstPause = 32, kLongestPause = 4096, kTrial = 3;  // rounds; guesses
  static constexpr float kPrior = 6, kFirstRight = 0.8f;
  static constexpr float kMemory = 0.95f, kLongMemory = 0.995f;  // a guess
  static constexpr double kPriceMemory = 0.9, kOdd = 3;          // a round

  struct Slot {
    float right = kPrior * kFirstRight, seen = kPrior;
    int rest = 0;
    bool trial = false, tried = false;  // due; had since it last rested
  };
  std::vector<Slot> slots_;
  int pause_ = kFirstPause;
  float right_ = kPrior * kFirstRight, seen_ = kPrior;
  double ms_ = 0, guesses_ = 0;
};

}  // namespace stepladder
