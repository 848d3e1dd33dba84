// What the rows of a round cost a level, learned from how long its own rounds take. It decides how
// many guesses are worth checking, never what is chosen.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

namespace stepladder {

/// [n]: what n guesses for each sequence of a batch add to a round, as a share of a round without
/// guesses. Beyond its table it rises as it did on average within.
class GuessCost {
 public:
  /// Free of cost until it is filled. `most`: guesses of the largest tree, at least 1.
  explicit GuessCost(int most) : share_(std::max(most, 1) + 1) {}

  int most() const { return static_cast<int>(share_.size()) - 1; }
  float operator[](int guesses) const {
    const int last = most();
    if (guesses <= last) return share_[guesses];
    return share_[last] * static_cast<float>(guesses) / static_cast<float>(last);
  }
  float& operator[](int guesses) { return share_[guesses]; }

 private:
  std::vector<float> share_;
};

/// The time of a round by its number of rows: flat while reading weights hides the arithmetic and
/// then steep, with a step wherever a kernel takes another path, so it is a table and no formula.
/// Between two counts that were seen it is a line, beyond them it rises as assumed. What slows all
/// rounds alike (a longer context, a busy machine) moves one factor, so that a count which has not
/// been seen for long stays comparable.
class RowCost {
 public:
  /// `assumed`: of one more row, as a share of a round of one row.
  explicit RowCost(float assumed) : assumed_(assumed) {
    below_.fill(-1);
    above_.fill(kBins);
  }

  /// A round of `rows` >= 1 rows took `ms` milliseconds.
  void add(int rows, double ms) {
    ms = std::max(ms, kTick);
    const int i = bin(rows);
    Bin& bin = bins_[i];
    if (timed()) {
      const double expected = of(rows);
      ms = std::clamp(ms, expected / kOdd, expected * kOdd);  // beyond that it was interrupted
      if (bin.times > 0) pace_ *= std::pow(ms / expected, kPaceShare);
    }
    if (bin.times == 0) note(i);
    bin.times = std::min(bin.times + 1, kSettled);
    bin.rows += (rows - bin.rows) / bin.times;
    bin.ms += (ms / pace_ - bin.ms) / bin.times;
  }

  /// Whether of() speaks of milliseconds.
  bool timed() const { return below_[kBins - 1] >= 0; }

  /// Milliseconds of a round of `rows` rows; in rounds of one row until a round was timed.
  double of(int rows) const {
    const int i = bin(rows);
    if (below_[i] >= 0 && above_[i] < kBins && below_[i] != above_[i]) {
      const Bin &low = bins_[below_[i]], &high = bins_[above_[i]];
      return pace_ * (low.ms + (high.ms - low.ms) * (rows - low.rows) / (high.rows - low.rows));
    }
    const int near = below_[i] >= 0 ? below_[i] : above_[i];
    if (near == kBins) return assumed(rows);
    return pace_ * bins_[near].ms * assumed(rows) / assumed(bins_[near].rows);
  }

  /// Fills the table for guesses for each of `sequences`. It never falls with more guesses,
  /// whatever the clock says.
  void fill(int sequences, GuessCost& out) const {
    const double none = of(sequences);
    out[0] = 0;
    for (int n = 1; n <= out.most(); ++n) {
      const auto cost = static_cast<float>(of(sequences * (1 + n)) / none - 1);
      out[n] = std::max(cost, out[n - 1]);
    }
  }

 private:
  // Counts told apart: each up to kRows, from there on kParts of each doubling.
  static constexpr int kRows = 128, kParts = 8, kDoublings = 12;
  static constexpr int kBins = kRows + kParts * kDoublings;
  static constexpr int kSettled = 20;  // times that one count averages over
  // Of a new time in the pace: that all rounds are slower is believed sooner.
  static constexpr double kPaceShare = 0.15;
  static constexpr double kOdd = 3, kTick = 1e-6;

  struct Bin {
    double ms = 0;    // at pace 1
    double rows = 0;  // of the rounds it holds, on average
    int times = 0;    // 0 = not seen
  };

  static int bin(int rows) {
    if (rows < kRows) return rows;
    int doubling = 0;
    while (rows >> doubling >= 2 * kRows) ++doubling;
    const int part = ((rows >> doubling) - kRows) * kParts / kRows;
    return std::min(kRows + kParts * doubling + part, kBins - 1);
  }
  /// A count is seen for the first time.
  void note(int seen) {
    for (int i = seen; i < kBins && below_[i] < seen; ++i) below_[i] = seen;
    for (int i = seen; i >= 0 && above_[i] > seen; --i) above_[i] = seen;
  }
  double assumed(double rows) const { return 1 + assumed_ * (rows - 1.0); }

  double assumed_;
  double pace_ = 1;
  std::array<Bin, kBins> bins_{};
  std::array<int, kBins> below_, above_;  // the nearest bin seen that way, itself included
};

}  // namespace stepladder
