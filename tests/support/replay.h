// The exactness check: what a verifier says of a draft tree against the same tokens fed one by
// one. Shared by every backend's proof.
#pragma once

#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "model/weights.h"
#include "spec/model_verifier.h"
#include "support/tiny_model.h"

namespace stepladder {

/// A stored model and the way one level runs it.
struct Cell {
  TinySpec spec;
  Act act = Act::a16;
  std::string cast;  // body and head cast to this format

  std::string name() const;  // of letters, digits and underscores
};
void PrintTo(const Cell&, std::ostream*);
/// Every weight format and activation mode, and the families that change what a round computes.
std::vector<Cell> replay_cells();

/// Loads the cell's model; `positions` is the longest context it will serve.
std::shared_ptr<const Model> load_cell(Backend&, const Cell&, int positions);

struct RigOptions {
  int sequences = 1, context = 512, tree_capacity = 64, block = 64, catch_up = 16;
  LevelId level = 0;
  Act act = Act::a16;
  FeatureSpec features;  // that the cache's entries carry
};
/// Of the rig that replays: one sequence, an odd block, and a level that leaves the counts alone.
RigOptions plain_options(RigOptions);

/// A verifier with its cache and rules, ready to be asked.
class Rig {
 public:
  /// `cache`, if given, is shared with another rig.
  Rig(Backend&, std::shared_ptr<const Model>, const RigOptions&,
      std::shared_ptr<KVCache> cache = nullptr);

  /// Starts `slot` anew with these sampling settings; the cache keeps what it holds.
  void begin(int slot, const Sampling&, const std::vector<Token>& prompt);
  /// Syncs and reads until at most `leave` entries are lacking.
  void feed(Batch, int leave, int rows_a_read);
  RoundResult plain_round(Sequence&);  // the root alone; the sequence must lack nothing

  Backend& backend;
  std::shared_ptr<const Model> model;
  std::shared_ptr<KVCache> cache;
  std::shared_ptr<RuleTable> rules;
  std::unique_ptr<ModelVerifier> verifier;
};

/// What a check found; all zero but `nodes` when the promise holds.
struct Differences {
  int nodes = 0;     // choices compared
  int choices = 0;   // tokens or logit bits that differ
  int emitted = 0;   // sequences whose accepted path is not the walk along their choices
  int entries = 0;   // sequences whose cache entries differ
  int accepted = 0;  // drafts accepted, so that a check that accepts nothing is seen
  bool none() const { return choices == 0 && emitted == 0 && entries == 0; }
  Differences& operator+=(const Differences&);
};

/// One tree round of `subject` over the whole batch, then each tree of it token by token through
/// `plain`, a rig with one sequence. Both must have begun with the same rule.
Differences check_trees(Rig& subject, Batch, const DraftTrees&, Rig& plain,
                        const std::vector<Sampling>& rules);

/// Adds a random tree for sequence i: what `plain` would go on to say, mostly, and random tokens
/// beside it. `nodes` in all, the root included.
void grow_tree(DraftTrees&, int i, const Sequence&, int nodes, Rig& plain, const Sampling&,
               TestRandom&);

std::vector<Token> random_text(int n, int vocab, uint64_t seed);
/// Entries [0, count) of a slot, with the features they carry.
std::vector<uint16_t> entries(Rig&, int slot, int count);
/// Those alone.
std::vector<uint16_t> features(Rig&, int slot, int count);

/// One whole check: `lengths[i]` tokens of random text for sequence i, a random tree each.
Differences check_lengths(Rig& subject, Rig& plain, const std::vector<int>& lengths, int most_nodes,
                          uint64_t seed, const Sampling& = {});

/// Checks of random trees of one bf16 model, at lengths around the steps of keys: `subject` runs
/// the trees and `plain` replays them. No tree uses the last scratch slot. A control, which breaks
/// a rule, must fail it, in its choices and in its entries.
Differences check_backends(Backend& subject, Backend& plain);

}  // namespace stepladder
