// A drafter that works where the far backend's memory is: it reads the feature row before the root
// and writes its trees into the verifier's own arrays, by one operator of its own. What it guesses
// is a pure function of that row, broad enough that some of it is right.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "model/kv_cache.h"
#include "spec/drafter.h"
#include "support/far/far_backend.h"

namespace stepladder {

struct TreeDrafterOptions {
  int sequences = 1, vocab = 0;
  LevelId verifier = 0;  // the level whose entries and features it reads
  int least = 2;         // nodes of a tree, at least; at most what the budget allows
  int not_ready = 0;     // one of so many sequences is not ready; 0 = all are
};

class TreeDrafter final : public Drafter {
 public:
  TreeDrafter(FarBackend&, std::shared_ptr<KVCache>, const TreeDrafterOptions&);

  void sync(Batch) override {}
  bool read(Batch, int) override { return true; }
  bool ready(const Sequence&) const override;
  void attach(const TreeView&) override;
  bool branches() const override { return true; }
  bool drafts_on_backend() const override { return true; }
  bool reads_rows_above() const override { return true; }
  void draft(Batch, std::span<const Budget>, DraftTrees& out) override;
  /// Its work is queued and nobody has timed it.
  std::optional<double> last_ms() const override { return std::nullopt; }
  void forget(int) override {}

  int64_t drafts() const { return drafts_; }
  /// Nodes asked for in the largest tree so far.
  int largest() const { return largest_; }

 private:
  /// What goes up for a sequence.
  struct Ask {
    int32_t slot = 0, root = 0, position = 0, nodes = 0, depth = 0;
  };
  static void grow(const Ask&, int i, const KVView&, const TreeView&, int vocab, int least);

  FarBackend& backend_;
  std::shared_ptr<KVCache> cache_;
  TreeDrafterOptions options_;
  Buffer memory_;
  std::vector<Ask> asks_;
  int32_t count_ = 0;
  TreeView trees_;
  std::unique_ptr<Recording> recording_;
  int64_t drafts_ = 0;
  int largest_ = 0;
  mutable uint32_t turn_ = 0;
};

}  // namespace stepladder
