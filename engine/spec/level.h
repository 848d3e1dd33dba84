// Level: a verifier over a drafter, and itself a drafter. The whole recursion.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "spec/drafter.h"
#include "spec/planner.h"
#include "spec/row_cost.h"
#include "spec/verifier.h"

namespace stepladder {

struct LevelOptions {
  std::string name;
  // Of the drafter right below. Levels further up that ask it in this level's place do it so too.
  int tokens = 0;           // depth of a draft that a round asks for
  bool plan = false;        // whether less is asked for, or another drafter, where that is faster
  int most = 0;             // depth a round takes when there is more; 0 = all that fits
  float guess_cost = 0.5f;  // of a draft, each level of depth, as a share of a round of one row

  int sequences = 1;       // slots
  int context = 0;         // positions of the verifier's cache: what Verifier::room counts down
  int tree_capacity = 64;  // nodes of the largest tree this level verifies, root included
  int ahead = 64;          // tokens beyond the target's that it may have guessed and still go on
  float row_cost = 0.04f;  // of checking one more row, as a share; both until times are measured
};

class Level final : public Drafter {
 public:
  /// `inner` may be null: plain decoding. Nothing is allocated after construction.
  Level(std::unique_ptr<Verifier>, std::unique_ptr<Drafter> inner, LevelOptions);
  ~Level() override;
  /// Host memory such a level takes over `choices` drafters, those and its verifier aside.
  static size_t bytes(const LevelOptions&, int choices);

  /// Brings this level's own copy of each sequence in line and syncs the verifier and the drafter
  /// below to that copy. Guesses left over from the last round stay when the sequence agrees.
  void sync(Batch) override;
  /// The verifier reads first, then what is below it.
  bool read(Batch, int rows) override;
  /// The same for what is below it alone, as far as anyone's guesses are wanted.
  bool read_below(Batch, int rows);
  /// Whether this level's own verifier has caught up, or never will since its context is full.
  bool ready(const Sequence&) const override;
  /// Advances its own copy of each sequence until the budget is met and hands up a chain. What it
  /// emits beyond at_most stays for the next round, if the sequence then agrees with it. A
  /// sequence whose context here is full gets its root alone.
  void draft(Batch, std::span<const Budget>, DraftTrees& out) override;
  /// Of its rounds: of all the parts that worked in them.
  std::optional<double> last_ms() const override { return drafting_ms_; }
  void forget(int slot) override;

  /// One round over sequences that are synced and ready: somebody below drafts, or nobody, and the
  /// verifier checks. out[i] is what batch[i] emits; the sequences themselves are not changed.
  /// `limit[i]` >= 1 caps the tokens sequence i may emit; `drafts[i]` false asks for no drafts.
  void advance(Batch, std::span<const int> limit, std::span<const char> drafts,
               std::span<RoundResult> out);

  Verifier& verifier() { return *verifier_; }
  Drafter* inner() { return inner_.get(); }
  /// Counters of one slot since forget(). A round's time is shared equally: drafting among the
  /// sequences that asked the same drafter, verifying among all of the batch. What no part has
  /// measured is not in it.
  const LevelStats& stats(int slot) const;
  const std::string& name() const { return options_.name; }

 private:
  struct Own;
  /// A drafter this level may ask: the one right below, or one further down in its place.
  struct Choice {
    Drafter* drafter = nullptr;
    int most = 0;
  };
  struct Below {
    std::vector<Choice> choices;
    std::vector<DrafterTraits> traits;
  };
  Below below() const;
  /// This level's copies of the sequences that still have room here, in batch order.
  Batch own_batch(Batch);
  bool wants_round(const Own&, size_t above, const Budget&) const;
  int chain_length(const Own&, const Sequence& above, const Budget&) const;
  void extend(Batch, std::span<const int> tokens, std::span<RoundResult> out);
  /// Levels of depth that a round of a sequence can take.
  int depth_left(const Sequence&, int limit) const;
  /// Syncs choice k to this level's copies, unless it is so already.
  void sync_choice(int k, Batch);
  void keep_to_one_side(int sequences);
  void choose(Batch, int i, int limit);
  std::optional<double> fill_trees(Batch, std::span<const int> limit, std::span<const char> drafts);
  std::optional<double> ask(int k, Batch);
  void note_idle(LevelStats&, int sequences) const;
  void record(const Sequence&, int i, int rows, const RoundResult&);

  std::unique_ptr<Verifier> verifier_;
  std::unique_ptr<Drafter> inner_;
  LevelOptions options_;
  std::vector<Own> own_;           // [slot]
  std::vector<LevelStats> stats_;  // [slot]
  std::vector<Choice> choices_;    // the nearest first
  RowCost row_cost_;
  GuessCost guess_cost_;  // in a batch like the last
  Planner planner_;
  DraftTrees trees_;
  // A choice further down was synced to this level's copies, and so is no longer in line with the
  // copies of the levels between.
  bool out_of_line_ = false;
  std::optional<double> round_ms_, drafting_ms_;  // of the last advance(), of the last draft()
  // Room for one call's lists, [sequences] each.
  std::vector<Sequence*> own_batch_, active_, asking_;
  std::vector<Budget> budgets_, asked_budgets_;
  std::vector<int> limits_, rows_, asked_;  // asked_: the choice, -1 = nobody
  std::vector<char> drafts_;
  std::vector<RoundResult> results_;
  std::vector<Planner::Offer> offers_;  // [choices]
};

}  // namespace stepladder
