// A Verifier over a model and its cache. What a round computes: run the layers over its rows, block
// by block, choose at every node, accept, keep. Around it stand one upload and one read; spec/round
// has the tables and the recordings.
#pragma once

#include <memory>
#include <vector>

#include "model/kv_cache.h"
#include "model/transformer.h"
#include "spec/round.h"
#include "spec/rule_table.h"
#include "spec/verifier.h"

namespace stepladder {

struct VerifierOptions {
  LevelId level = 0;
  Act act = Act::a16;
  int vocab = 0;           // tokens that may be chosen
  int context = 0;         // tokens a sequence may hold in this verifier
  int tree_capacity = 64;  // nodes of the largest tree, root included
  int block = 128;         // rows of one pass through the layers
  int ahead = 64;          // tokens a sequence may hold beyond its committed ones
  int catch_up = 16;       // lacking rows a round feeds itself
  int logprobs = 0;        // most likeliest tokens a round may be asked for; 0 = none
};

/// Memory a verifier with these options takes: what lies in backend memory, at most, and the larger
/// tables of the host.
struct VerifierNeed {
  size_t backend = 0, host = 0;
};
VerifierNeed verifier_need(const Backend&, const ModelConfig&, int sequences,
                           const VerifierOptions&);

class ModelVerifier final : public Verifier, private RoundBody {
 public:
  ModelVerifier(Backend&, std::shared_ptr<const Model>, std::shared_ptr<KVCache>,
                std::shared_ptr<RuleTable>, const VerifierOptions&);
  ~ModelVerifier() override;

  void sync(Batch) override;
  int lacking(const Sequence&) const override;
  int catch_up() const override { return options_.catch_up; }
  int room(const Sequence&) const override;
  void read(Batch, int rows) override;
  TreeView trees() const override;
  void verify(Batch, const DraftTrees&, std::span<RoundResult> out) override;
  void extend(Batch, std::span<const int> wanted, std::span<RoundResult> out) override;
  std::optional<double> last_ms() const override { return ms_; }
  std::optional<double> last_idle_ms() const override { return idle_ms_; }

  /// Rounds from now on also bring the log-probabilities of what they emit and of the `top`
  /// likeliest tokens; -1 = no more. At most VerifierOptions::logprobs.
  void ask_logprobs(int top);
  /// Of the k-th token that sequence i of the last batch emitted.
  TokenLogprobs logprobs(int i, int k) const;

  const Model& model() const { return *model_; }
  KVCache& cache() { return *cache_; }
  std::shared_ptr<KVCache> shared_cache() const { return cache_; }
  const VerifierOptions& options() const { return options_; }
  /// Backend memory of this verifier alone: activations, logits, round tables.
  size_t bytes() const { return memory_.bytes(); }
  /// Recordings made at load; none is made later.
  int recordings() const;

  /// The choices of the last round at every node, in node order, for tests: waits for the backend.
  void read_choices(std::span<int32_t> tokens, std::span<float> logits);

 private:
  friend VerifierNeed verifier_need(const Backend&, const ModelConfig&, int sequences,
                                    const VerifierOptions&);
  struct Memory;
  // The round's body.
  void rows(const Live&) override;
  void nodes(const Live&) override;
  void finish() override;

  Round::Part part(const Sequence&, int missing) const;
  void note(const Sequence&, int missing, const RoundResult&);
  void check_ready(Batch);

  Backend& backend_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<KVCache> cache_;
  std::shared_ptr<RuleTable> rules_;
  VerifierOptions options_;
  Buffer memory_;
  std::unique_ptr<Memory> m_;
  std::unique_ptr<Recording> follow_first_, follow_;
  std::optional<double> ms_, idle_ms_;  // of the last verify() or extend(), and before it
  std::vector<int> usable_;             // [slot] entries this level may use, as of the last sync
  std::vector<int> missing_;            // [batch] of the round being planned
  int asked_ = -1;                      // likeliest tokens asked for
  std::vector<int32_t> host_path_node_, host_top_token_;
  std::vector<float> host_chosen_, host_top_logprob_;
};

}  // namespace stepladder
