// Prompt lookup: guesses that the text goes on as it did the last time its latest tokens occurred.
// Costs no forward pass, only the rows that check its guesses.
//
// The index holds, for each length n from ngram_min to ngram_max, the latest position of every
// n-gram and a link to the one before; adding and taking back a token is O(1) per length, so the
// index follows the sequence through any rollback. A draft takes the longest match, the most
// recent one of that length, and copies what followed it.
//
// How many tokens it proposes follows from how often matches of that length have been right in
// this very sequence: tokens are worth proposing while they bring more than their rows cost. Text
// that cannot be guessed so drives the drafts to none (the index goes on watching what it would
// have said), and a text that repeats itself gets `tokens` of them.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "spec/drafter.h"

namespace stepladder {

struct LookupOptions {
  int tokens = 10;         // most guesses a round
  int ngram_max = 4;       // longest match looked for; longer ones were not better trusted
  int ngram_min = 1;       // shortest; single tokens are soon distrusted where they mislead
  float row_cost = 0.04f;  // of checking one more row, until weigh_rows() says better
  int context = 0;         // tokens a sequence may hold
  int sequences = 1;       // slots
};

class Lookup final : public Drafter {
 public:
  /// Takes all the memory it will ever use. Throws Error(invalid_argument) naming the option.
  explicit Lookup(const LookupOptions&);
  ~Lookup() override;
  /// The memory it takes, which is the host's.
  static size_t bytes(const LookupOptions&);

  void sync(Batch) override;
  bool read(Batch, int) override { return true; }
  bool ready(const Sequence&) const override { return true; }
  /// Chains of at most at_most tokens; at_least is not heeded.
  void draft(Batch, std::span<const Budget>, DraftTrees& out) override;
  std::optional<double> last_ms() const override { return ms_; }
  void weigh_rows(const GuessCost& cost) override;
  bool forecasts() const override { return true; }
  Forecast forecast(const Sequence&, int most) const override;
  void forget(int slot) override;

 private:
  class Index;
  LookupOptions options_;
  GuessCost cost_{kMaxEmitted - 1};
  double ms_ = 0;             // of the last draft
  std::vector<Index> index_;  // [slot]
};

}  // namespace stepladder
