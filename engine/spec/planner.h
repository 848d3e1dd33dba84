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

/// Plans for the sequences of one level whose drafter costs time of its own. A drafter that seems
/// not to pay gets a trial of a few rounds, in which its price is learned anew since the clock of a
/// busy machine misleads. If it does not pay either it rests until the next trial, after twice as
/// long each time, whatever text the slot then holds; a drafter at rest need not read along.
class Planner {
 public:
  explicit Planner(int sequences) : slots_(sequences) {}

  /// Guesses to ask for, `most` >= 1 at most; 0 sends the sequence's drafter to rest. `round`:
  /// milliseconds of a round without guesses over `sequences` sequences.
  int ask(int slot, int most, const GuessCost& rows, double round, int sequences) {
    Slot& s = slots_[slot];
    if (guesses_ == 0) return most;  // nothing is known yet
    if (s.trial > 0) return std::min(most, kTrialGuesses);
    const auto each = static_cast<float>(ms_ / guesses_ * sequences / round);
    const float right = s.right / s.seen;
    float reached = 1;
    const int n = worth_guessing(most, rows, each, [&](int) { return reached *= right; });
    if (n > 0) {
      s.pause = kFirstPause, s.tried = false;
      return n;
    }
    if (s.asked && !s.tried) return start_trial(s), std::min(most, kTrialGuesses);
    s.rest = s.pause;
    if (s.tried) s.pause = std::min(2 * s.pause, kLongestPause);
    s.tried = false;
    return 0;
  }

  /// One round has passed for the sequence.
  void tick(int slot) {
    Slot& s = slots_[slot];
    if (s.rest > 0 && --s.rest == 0) start_trial(s);
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
    s.asked = true, s.trial = std::max(s.trial - 1, 0);
    for (int d = 0; d < std::min(accepted + 1, drafted); ++d) {
      const float right = d < accepted ? 1.f : 0.f;
      s.right = s.right * kMemory + right, s.seen = s.seen * kMemory + 1;
      right_ = right_ * kLongMemory + right, seen_ = seen_ * kLongMemory + 1;
    }
  }
  /// Another text: it starts from what all texts so far have shown. A rest goes on.
  void forget(int slot) {
    slots_[slot].right = kPrior * right_ / seen_;
    slots_[slot].seen = kPrior;
  }

 private:
  static constexpr int kFirstPause = 32, kLongestPause = 512, kTrialRounds = 3;  // rounds
  static constexpr int kTrialGuesses = 3;
  static constexpr float kPrior = 6, kFirstRight = 0.8f;
  static constexpr float kMemory = 0.95f, kLongMemory = 0.995f;  // a guess
  static constexpr double kPriceMemory = 0.9, kOdd = 3;          // a round

  struct Slot {
    float right = kPrior * kFirstRight, seen = kPrior;
    int rest = 0, pause = kFirstPause;  // rounds left of one; of the next one
    int trial = 0;                      // rounds left of one
    bool tried = false, asked = false;  // a trial began since it last paid; any guess was made
  };
  void start_trial(Slot& s) {
    s.trial = kTrialRounds, s.tried = true;
    if (guesses_ > 1) ms_ /= guesses_, guesses_ = 1;
  }

  std::vector<Slot> slots_;
  float right_ = kPrior * kFirstRight, seen_ = kPrior;
  double ms_ = 0, guesses_ = 0;
};

}  // namespace stepladder
