// What the rows of a round cost a level, learned from how long its own rounds take. It decides how
// many guesses are worth checking, never what is chosen.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>

#include "backends/backend.h"

namespace stepladder {

/// [d]: what d guesses for each sequence add to a round, as a share of a round without guesses.
using GuessCost = std::array<float, kMaxEmitted>;

/// The time of a round by its number of rows: flat while reading weights hides the arithmetic and
/// then steep, with a step wherever a kernel takes another path, so it is a table and no formula.
/// Between two counts that were seen it is a line, beyond them it rises as assumed. What slows all
/// rounds alike (a longer context, a busy machine) moves one factor, so that a count which has not
/// been seen for long stays comparable.
class RowCost {
 public:
  /// `assumed`: of one more row, as a share of a round of one row.
  explicit RowCost(float assumed) : assumed_(assumed) {}

  void add(int rows, double ms) {
    ms = std::max(ms, kTick);
    const bool known = rows > kRows || shape_[rows] > 0;
    if (seen_) {
      const double expected = of(rows);
      ms = std::clamp(ms, expected / kOdd, expected * kOdd);  // beyond that it was interrupted
      if (known) pace_ *= std::pow(ms / expected, kPaceShare);
    }
    seen_ = true;
    if (rows > kRows) return;
    double& shape = shape_[rows];
    const double now = ms / pace_;
    timed_[rows] = std::min(timed_[rows] + 1, kSettled);
    shape += (now - shape) / timed_[rows];
  }

  /// Milliseconds of a round of `rows` rows; in rounds of one row until a round was timed.
  double of(int rows) const {
    const int from = std::min(rows, kRows);
    int below = from, above = from;
    while (below > 0 && shape_[below] == 0) --below;
    while (above <= kRows && shape_[above] == 0) ++above;
    if (below > 0 && above <= kRows && above > below) {
      const double part = double(from - below) / (above - below);
      return pace_ * (shape_[below] + (shape_[above] - shape_[below]) * part);
    }
    const int near = below > 0 ? below : above <= kRows ? above : 0;
    if (near == 0) return assumed(rows);
    return pace_ * shape_[near] * assumed(rows) / assumed(near);
  }

  /// Of guesses for each of `sequences`. Never falls with more guesses, whatever the clock says.
  GuessCost guesses(int sequences) const {
    GuessCost out{};
    const double none = of(sequences);
    for (int d = 1; d < kMaxEmitted; ++d) {
      const auto cost = static_cast<float>(of(sequences * (1 + d)) / none - 1);
      out[d] = std::max(cost, out[d - 1]);
    }
    return out;
  }

 private:
  static constexpr int kRows = 128;    // counts told apart
  static constexpr int kSettled = 20;  // times that one count averages over
  // Of a new time in the pace: that all rounds are slower is believed sooner.
  static constexpr double kPaceShare = 0.15;
  static constexpr double kOdd = 3, kTick = 1e-6;

  double assumed(int rows) const { return 1 + assumed_ * (rows - 1.0); }

  double assumed_;
  double pace_ = 1;
  bool seen_ = false;
  std::array<double, kRows + 1> shape_{};  // milliseconds at pace 1; 0 = not seen
  std::array<int, kRows + 1> timed_{};
};

}  // namespace stepladder
