// Anything that can guess how sequences go on.
#pragma once

#include <span>
#include <string>

#include "spec/draft_tree.h"
#include "spec/row_cost.h"
#include "spec/sequence.h"

namespace stepladder {

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
  /// Fills out's tree i for batch[i]: the root (its last token) and at most at_most guesses;
  /// at_least is a wish. Call sync() first.
  virtual void draft(Batch, std::span<const Budget>, DraftTrees& out) = 0;
  /// Where the trees of a verifier that will be given drafts lie in backend memory, told once
  /// before anything is drafted. A drafter that works on the backend records what it needs to write
  /// there.
  virtual void attach(const TreeView&) {}
  /// What checking guesses costs the level above: those that cost more than they are likely to
  /// bring are not worth making. A wish, like at_least.
  virtual void weigh_rows(const GuessCost&) {}
  /// A sequence's slot goes to another request: its tentative state may be dropped.
  virtual void forget(int slot) = 0;
};

}  // namespace stepladder
