// Level: a verifier over a drafter, and itself a drafter. The whole recursion.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "spec/drafter.h"
#include "spec/planner.h"
#include "spec/row_cost.h"
#include "spec/verifier.h"

namespace stepladder {

struct LevelOptions {
  std::string name;
  int tokens = 0;          // drafts a round asks of the drafter below
  bool plan = false;       // whether fewer are asked for where fewer, or none, are faster
  int most = 0;            // drafts a round takes when the drafter below has more; 0 = all that fit
  int sequences = 1;       // slots
  int context = 0;         // positions of the verifier's cache: what Verifier::room counts down
  int tree_capacity = 64;  // nodes of the largest tree in the hierarchy
  float row_cost = 0.04f;  // of checking one more row, until rounds have been timed
};

class Level final : public Drafter {
 public:
  /// `inner` may be null: plain decoding. Nothing is allocated after construction.
  Level(std::unique_ptr<Verifier>, std::unique_ptr<Drafter> inner, LevelOptions);
  ~Level() override;
  /// Host memory such a level takes, its verifier and drafter aside.
  static size_t bytes(const LevelOptions&);

  /// Brings this level's own copy of each sequence in line and syncs the verifier and the drafter
  /// below to that copy. Guesses left over from the last round stay when the sequence agrees.
  void sync(Batch) override;
  /// The verifier reads first, then what is below it.
  bool read(Batch, int rows) override;
  /// The same for what is below it alone, as far as its guesses are wanted.
  bool read_below(Batch, int rows);
  /// Whether this level's own verifier has caught up, or never will since its context is full.
  bool ready(const Sequence&) const override;
  /// Advances its own copy of each sequence until the budget is met and hands up a chain. What it
  /// emits beyond at_most stays for the next round, if the sequence then agrees with it. A
  /// sequence whose context here is full gets its root alone.
  void draft(Batch, std::span<const Budget>, DraftTrees& out) override;
  void forget(int slot) override;

  /// One round over sequences that are synced and ready: inner drafts, verify. out[i] is what
  /// batch[i] emits; the sequences themselves are not changed. `limit[i]` >= 1 caps the tokens
  /// sequence i may emit; `drafts[i]` false asks the drafter below for nothing.
  void advance(Batch, std::span<const int> limit, std::span<const char> drafts,
               std::span<RoundResult> out);

  Verifier& verifier() { return *verifier_; }
  Drafter* inner() { return inner_.get(); }
  /// Counters of one slot since forget(). A round's time is shared equally: drafting among the
  /// sequences that asked for drafts, verifying among all of the batch.
  const LevelStats& stats(int slot) const;
  const std::string& name() const { return options_.name; }

 private:
  struct Own;
  /// This level's copies of the sequences that still have room here, in batch order.
  Batch own_batch(Batch);
  bool wants_round(const Own&, size_t above, const Budget&) const;
  /// Guesses to ask for, `most` at most; 0 lets the drafter rest.
  int plan(const Sequence&, int most, int sequences);
  Budget budget(const Sequence&, int limit, int sequences);
  bool fill_trees(Batch, std::span<const int> limit, std::span<const char> drafts);
  void share_drafting(Batch, double ms);
  void record(const Sequence&, int i, int rows, const RoundResult&);

  std::unique_ptr<Verifier> verifier_;
  std::unique_ptr<Drafter> inner_;
  LevelOptions options_;
  std::vector<Own> own_;           // [slot]
  std::vector<LevelStats> stats_;  // [slot]
  RowCost row_cost_;
  GuessCost guess_cost_;  // in a batch like the last
  Planner planner_;
  DraftTrees trees_;
  // Room for one call's lists, [sequences] each.
  std::vector<Sequence*> own_batch_, active_, awake_;
  std::vector<Budget> budgets_;
  std::vector<int> limits_, rows_;
  std::vector<char> drafts_;
  std::vector<RoundResult> results_;
};

}  // namespace stepladder
