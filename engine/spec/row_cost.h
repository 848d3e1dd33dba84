// What one more row costs a level, learned from how long its own rounds take. It decides how many
// guesses are worth checking, never what is chosen.
#pragma once

#include <algorithm>

namespace stepladder {

/// A line through (rows, milliseconds) of the latest rounds, the older the lighter. It starts from
/// an assumed cost, which counts as two rounds for good, so that rounds of one size do not tilt it.
class RowCost {
 public:
  /// `assumed`: of one more row, as a share of a round of one row.
  explicit RowCost(float assumed) : assumed_(assumed) {}

  void add(int rows, double ms) {
    ms = std::max(ms, kTick);
    const double one = ms / (1 + assumed_ * (rows - 1));
    if (n_ > 0) ms = std::min(ms, kMost * (base() + slope() * rows));  // it was interrupted
    one_ = n_ > 0 ? one_ + (std::min(one, kMost * one_) - one_) * (1 - kMemory) : one;
    n_ = n_ * kMemory + 1;
    x_ = x_ * kMemory + rows, y_ = y_ * kMemory + ms;
    xx_ = xx_ * kMemory + double(rows) * rows, xy_ = xy_ * kMemory + rows * ms;
  }

  /// Of one more row, as a share of a round of one row for each of `sequences`: what a guess must
  /// be likelier than, since such a round brings each sequence a token.
  float of(int sequences) const {
    if (n_ == 0) return assumed_;
    const double round = base() + slope() * sequences;
    return static_cast<float>(std::clamp(slope() * sequences / round, kLeast, kDearest));
  }

 private:
  static constexpr double kMemory = 0.97, kMost = 3, kLeast = 0.005, kDearest = 0.6, kTick = 1e-6;
  static constexpr double kFew = 1, kMany = 9;  // rows of the two assumed rounds

  double n() const { return n_ + 2; }
  double x() const { return x_ + kFew + kMany; }
  double y() const { return y_ + one_ * (2 + assumed_ * (kMany - 1)); }
  double slope() const {
    const double xx = xx_ + kFew * kFew + kMany * kMany;
    const double xy = xy_ + one_ * (kFew + kMany * (1 + assumed_ * (kMany - 1)));
    return std::max((n() * xy - x() * y()) / (n() * xx - x() * x()), one_ * kLeast);
  }
  double base() const { return std::max((y() - slope() * x()) / n(), one_ * kLeast); }

  float assumed_;
  double one_ = 0;  // milliseconds a round of one row would have taken
  double n_ = 0, x_ = 0, y_ = 0, xx_ = 0, xy_ = 0;
};

}  // namespace stepladder
