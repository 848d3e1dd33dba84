// Anything that can guess how sequences go on.
#pragma once

#include <optional>
#include <span>
#include <string>

#include "spec/draft_tree.h"
#include "spec/row_cost.h"
#include "spec/sequence.h"

namespace stepladder {

/// What a draft would bring.
struct Forecast {
  int guesses = 0;   // it would make
  float brings = 0;  // of them are right on average
};

class Drafter {
 public:
  virtual ~Drafter() = default;
  /// Brings what the drafter holds in line with the sequences by common prefix. The only way its
  /// state moves: there is no rollback.
  virtual void sync(Batch) = 0;
  /// Feeds at most one block of at most `rows` rows in all; true when every sequence of the batch
  /// has caught up so far that draft() may be called with a budget.
  virtual bool read(Batch, int rows) = 0;
  /// Whether the sequence has caught up; one that has not is asked for no drafts.
  virtual bool ready(const Sequence&) const = 0;
  /// Fills out's tree i for batch[i] within budget i: the root (its last token) and the guesses. A
  /// tree whose budget is 0 is another drafter's and left alone. Call sync() first, for those with
  /// a budget.
  virtual void draft(Batch, std::span<const Budget>, DraftTrees& out) = 0;
  /// Where the trees of a verifier that will be given drafts lie in backend memory, told before
  /// anything is drafted, once for each verifier that may ask. A drafter that works on the backend
  /// records what it needs to write there.
  virtual void attach(const TreeView&) {}
  /// Whether it writes its trees there; it then writes those of a whole batch, roots alone for
  /// those whose budget is 0.
  virtual bool drafts_on_backend() const { return false; }
  /// Milliseconds that the last draft() worked, as the part measured them itself: a caller's clock
  /// would time a call that only queues. None when nothing was measured.
  virtual std::optional<double> last_ms() const = 0;
  /// What checking guesses costs the level that asks: those that cost more than they are likely to
  /// bring are not worth making. Said before each draft(). A wish, like at_least.
  virtual void weigh_rows(const GuessCost&) {}

  // What a planner above wants to know.
  /// Whether drafts are trees that branch: Budget::nodes then matters beside the depth.
  virtual bool branches() const { return false; }
  /// Whether it decides itself how many guesses are worth making, and tells by forecast(). Such a
  /// drafter makes none where none pay, and is never at rest.
  virtual bool forecasts() const { return false; }
  /// What draft() would bring for a synced sequence within `most` guesses.
  virtual Forecast forecast(const Sequence&, int /*most*/) const { return {}; }
  /// Whether it reads rows that the level right above it has computed: that level cannot be left
  /// out between it and a level further up.
  virtual bool reads_rows_above() const { return false; }
  /// A sequence's slot goes to another request: its tentative state may be dropped.
  virtual void forget(int slot) = 0;
};

}  // namespace stepladder
