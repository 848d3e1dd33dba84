// Scores draft trees with a model. A level-round is the unit a backend records, so scoring,
// accepting and keeping are one call.
#pragma once

#include <optional>
#include <span>

#include "backends/backend.h"
#include "spec/draft_tree.h"
#include "spec/sequence.h"

namespace stepladder {

class Verifier {
 public:
  virtual ~Verifier() = default;
  /// Cuts what the cache holds of each sequence to the common prefix this level may trust.
  virtual void sync(Batch) = 0;
  /// Entries below the root that the cache lacks. verify() feeds up to catch_up() of them itself.
  virtual int lacking(const Sequence&) const = 0;
  virtual int catch_up() const = 0;
  /// Tokens the sequence may still grow by: positions left in this verifier's context. The root
  /// needs one; a tree of depth d needs d more.
  virtual int room(const Sequence&) const = 0;
  /// Feeds up to `rows` lacking rows in all, the earliest sequences first.
  virtual void read(Batch, int rows) = 0;
  /// The trees of the next round in backend memory, the same for good: a drafter that works there
  /// writes them itself. Empty where there are none.
  virtual TreeView trees() const { return {}; }
  /// One round: feeds what is lacking and the trees, chooses at every node, accepts, keeps.
  /// out[i] is what batch[i] emits: at least one token. Sequences must have room() >= 1 and
  /// lacking() <= catch_up().
  virtual void verify(Batch, const DraftTrees&, std::span<RoundResult> out) = 0;
  /// A chain of rounds without drafts: each emits a token that is the root of the next. out[i] is
  /// what batch[i] emits in all: wanted[i] tokens, 1 to kMaxEmitted, or as many as there is room
  /// for. Conditions as for verify().
  virtual void extend(Batch, std::span<const int> wanted, std::span<RoundResult> out) = 0;
  /// Milliseconds that the last verify() or extend() worked, as the part measured them itself: a
  /// caller's clock would time a call that only queues. None when nothing was measured.
  virtual std::optional<double> last_ms() const = 0;
  /// Milliseconds that the backend had nothing to do before that, where it tells.
  virtual std::optional<double> last_idle_ms() const { return std::nullopt; }
};

}  // namespace stepladder
