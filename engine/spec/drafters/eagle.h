// A head of EAGLE-2 as a drafter. It reads the hidden states that the entries of its verifier's
// cache carry, keeps a cache of its own, and grows a tree on the backend, straight into the
// verifier's arrays: nothing is read between a draft and the round that checks it.
//
// Row p of the head stands for the hidden state of position p and the token of p + 1, so its
// sequence is the verifier's without the first token, a position earlier. A draft is one round:
//
//   rows     those that its cache lacks, then the root's, which is row length - 2
//   nodes    of each root: lm_head, and its likeliest children
//   finish   step by step the best candidates become rows, with the hidden state that the head
//            itself gave their parents, and get children of their own; the best of all candidates
//            are the tree
//
// Rows of tokens that were only guessed lie in scratch and are not kept: once the verifier has
// written their entries, they are fed again with its own hidden states.
#pragma once

#include <memory>
#include <vector>

#include "model/eagle_head.h"
#include "model/kv_cache.h"
#include "spec/drafter.h"
#include "spec/round.h"
#include "spec/rule_table.h"

namespace stepladder {

struct EagleOptions {
  int depth = 6;         // steps, and so levels of a tree
  int width = 10;        // children of a node, and nodes of a step that are given children
  int nodes = 30;        // guesses of a tree
  LevelId verifier = 0;  // the level whose cache it reads
  int sequences = 1, context = 0;
  int block = 128;    // rows of one pass
  int ahead = 64;     // as VerifierOptions::ahead
  int catch_up = 16;  // lacking rows a draft feeds itself
};

class Eagle final : public Drafter, private RoundBody {
 public:
  /// `above`: the cache of the verifier; its entries carry the hidden state after the final norm.
  /// Takes all the memory it will ever use. Throws Error(out_of_memory).
  Eagle(Backend&, std::shared_ptr<const EagleHead>, std::shared_ptr<KVCache> above,
        std::shared_ptr<RuleTable>, const EagleOptions&);
  ~Eagle() override;
  /// Backend memory that it takes beside the head's weights.
  static size_t bytes(const Backend&, const ModelConfig& head, const EagleOptions&);

  void sync(Batch) override;
  bool read(Batch, int rows) override;
  bool ready(const Sequence&) const override;
  /// Trees of at_least levels.
  void draft(Batch, std::span<const Budget>, DraftTrees& out) override;
  void attach(const TreeView&) override;
  bool branches() const override { return true; }
  bool drafts_on_backend() const override { return true; }
  bool reads_rows_above() const override { return true; }
  std::optional<double> last_ms() const override { return ms_; }
  void forget(int slot) override { fed_[slot].clear(); }

 private:
  struct Memory;
  // The round's body.
  void rows(const Live&) override;
  void nodes(const Live&) override;
  void finish() override;

  void pass(const Live&, const Rows&, const KVView& states, bool of_parents, Tensor residual);
  void give_children(const Live&, const Rows&, Tensor residual, int step);
  int held(const Sequence&) const;
  int lacking(const Sequence&) const;
  Round::Part part(const Sequence&, int count) const;

  Backend& backend_;
  std::shared_ptr<const EagleHead> head_;
  std::shared_ptr<KVCache> above_;
  std::shared_ptr<RuleTable> rules_;
  EagleOptions options_;
  KVSpec kv_;
  Buffer cache_, memory_;
  std::unique_ptr<Memory> m_;
  TreeView trees_;
  std::vector<std::vector<Token>> fed_;  // [slot] row p stands for tokens p and p + 1 of it
  std::vector<DraftAsk> asks_;
  DraftTrees root_{1, 1};
  std::optional<double> ms_;  // of the last draft()
};

}  // namespace stepladder
