// Levels over any backend, composed from tiny models, with the loop that streams from them: what
// the engine does, without its thread.
#pragma once

#include <algorithm>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "spec/level.h"
#include "support/replay.h"

namespace stepladder {

/// A rule of noise, a filter and penalties.
inline Sampling sampled() {
  Sampling s;
  s.temperature = 0.8f, s.top_p = 0.95f, s.seed = 3;
  s.repetition_penalty = 1.1f, s.presence_penalty = 0.2f;
  return s;
}

/// A verifier that counts what is asked of it and passes it on.
class CountedVerifier final : public Verifier {
 public:
  struct Counts {
    int64_t rounds = 0, blocks = 0;  // a chain of rounds counts once
    int64_t chained = 0;             // rounds in chains
  };
  CountedVerifier(std::unique_ptr<ModelVerifier> inner, Counts& counts)
      : inner_(std::move(inner)), counts_(counts) {}

  void sync(Batch batch) override { inner_->sync(batch); }
  int lacking(const Sequence& s) const override { return inner_->lacking(s); }
  int catch_up() const override { return inner_->catch_up(); }
  int room(const Sequence& s) const override { return inner_->room(s); }
  void read(Batch batch, int rows) override {
    for (const Sequence* s : batch)
      if (inner_->lacking(*s) > 0) {
        ++counts_.blocks;
        break;
      }
    inner_->read(batch, rows);
  }
  void verify(Batch batch, const DraftTrees& trees, std::span<RoundResult> out) override {
    ++counts_.rounds;
    inner_->verify(batch, trees, out);
  }
  TreeView trees() const override { return inner_->trees(); }
  void extend(Batch batch, std::span<const int> wanted, std::span<RoundResult> out) override {
    ++counts_.rounds;
    inner_->extend(batch, wanted, out);
    int longest = 0;
    for (const RoundResult& r : out.first(batch.size())) longest = std::max(longest, r.emitted);
    counts_.chained += longest;
  }
  std::optional<double> last_ms() const override { return inner_->last_ms(); }

 private:
  std::unique_ptr<ModelVerifier> inner_;
  Counts& counts_;
};

/// What one sequence was given.
struct Said {
  std::vector<Token> tokens;
  std::vector<float> logits;
  bool operator==(const Said&) const = default;
};

/// What the innermost level gives a drafter to work with.
struct LeafSite {
  std::shared_ptr<const Model> model;
  std::shared_ptr<KVCache> cache;
  std::shared_ptr<RuleTable> rules;
  LevelId level = 0;
};

/// What a hierarchy may have beside its levels.
struct HierarchyOptions {
  int capacity = 32;     // nodes of the largest tree
  FeatureSpec features;  // that the entries of every cache carry
  std::function<std::unique_ptr<Drafter>(const LeafSite&)> leaf;  // for the innermost level
  int leaf_tokens = 6;                                            // depth asked of it
};

class Hierarchy {
 public:
  /// `levels` as parse_draft() reads them, "" = plain decoding; casts may be shared.
  Hierarchy(Backend&, const TinySpec& target, const std::string& levels, int sequences, int context,
            HierarchyOptions = {});

  /// Streams `count` tokens for every prompt, or up to and with the token `stop`, all side by side;
  /// prompt i goes to slot i.
  std::vector<Said> stream(const std::vector<std::vector<Token>>& prompts, int count,
                           const Sampling& = {}, Token stop = -1);
  const CountedVerifier::Counts& counts() const { return counts_; }
  Level& top() { return *top_; }
  RuleTable& rules() { return *rules_; }
  /// Entry counts of the target's cache, slot by slot.
  KVCache& cache() { return *cache_; }

 private:
  int tokens_of(std::span<const LevelSpec> below) const;
  std::unique_ptr<Drafter> below(std::span<const LevelSpec>,
                                 const std::shared_ptr<const Model>& model_above,
                                 const std::shared_ptr<KVCache>& above);
  std::unique_ptr<Verifier> verifier(std::shared_ptr<const Model>, std::shared_ptr<KVCache>, Act);

  Backend& backend_;
  TinySpec spec_;
  int sequences_, context_, depth_ = 0;
  HierarchyOptions options_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<KVCache> cache_;
  std::shared_ptr<RuleTable> rules_;
  CountedVerifier::Counts counts_;
  std::unique_ptr<Level> top_;
};

}  // namespace stepladder
