// A Verifier over a model and its cache. Everything a round computes is queued as one recorded
// unit: expand the trees into rows, run the layers block by block, choose at every node, accept,
// keep. Around it stand one upload and one read.
#pragma once

#include <array>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "model/kv_cache.h"
#include "model/transformer.h"
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

/// Memory a verifier with these options takes: what lies in backend memory, to within the scratch
/// of int8 activations, and the larger tables of the host.
struct VerifierNeed {
  size_t backend = 0, host = 0;
};
VerifierNeed verifier_need(const ModelConfig&, int sequences, const VerifierOptions&);

/// A cache for `model` that verifiers with these options can share.
std::shared_ptr<KVCache> make_cache(Backend&, const Model&, int context, int tree_capacity,
                                    int sequences);

class ModelVerifier final : public Verifier {
 public:
  ModelVerifier(Backend&, std::shared_ptr<const Model>, std::shared_ptr<KVCache>,
                std::shared_ptr<RuleTable>, const VerifierOptions&);

  void sync(Batch) override;
  int lacking(const Sequence&) const override;
  int catch_up() const override { return options_.catch_up; }
  int room(const Sequence&) const override;
  void read(Batch, int rows) override;
  void verify(Batch, const DraftTrees&, std::span<RoundResult> out) override;
  std::optional<double> last_ms() const override { return ms_; }

  /// Rounds from now on also bring the log-probabilities of what they emit and of the `top`
  /// likeliest tokens; -1 = no more. At most VerifierOptions::logprobs.
  void ask_logprobs(int top);
  /// Of the k-th token that sequence i of the last batch emitted.
  TokenLogprobs logprobs(int i, int k) const;

  const Model& model() const { return *model_; }
  KVCache& cache() { return *cache_; }
  const VerifierOptions& options() const { return options_; }
  /// Backend memory of this verifier alone: activations, logits, round tables.
  size_t bytes() const { return memory_.bytes(); }

  /// The choices of the last round at every node, in node order, for tests: waits for the backend.
  void read_choices(std::span<int32_t> tokens, std::span<float> logits);

 private:
  friend VerifierNeed verifier_need(const ModelConfig&, int sequences, const VerifierOptions&);
  /// The largest round.
  struct Sizes {
    Sizes(int sequences, const VerifierOptions&);
    int sequences, tree, rows, nodes;
    int node_block;  // nodes that are chosen for together
    size_t tokens;   // of the plan
    int logprobs;
  };
  /// The round's tables in backend memory, and the host image of the part that goes up.
  struct Tables {
    int32_t* up = nullptr;  // first byte of the upload
    size_t up_bytes = 0;
    Plan plan;
    TreeView trees;
    Rows rows;
    ChoiceView choices;
    RoundResult* results = nullptr;
    int32_t* path = nullptr;
    int32_t* path_node = nullptr;
    Tensor residual, logits;
    float* chosen = nullptr;
    int32_t* top_token = nullptr;
    float* top_logprob = nullptr;
  };
  static void lay_out(Tables&, const Sizes&, const ModelConfig&, Arena&);
  /// Plans the batch into the host image; a null tree list reads only. Returns rows and nodes.
  std::pair<int, int> plan(Batch, const DraftTrees* trees, std::span<const int> missing);
  void run(int rows, int nodes, TreeView trees);
  Recording& recording(int row_bucket, int node_bucket, TreeView trees);
  void queue_round(int rows, int nodes, TreeView trees);
  void record_shapes();
  int row_bucket(int rows) const;
  int node_bucket(int nodes) const;
  void note_catch_up(const Sequence&, int from, int count);

  Backend& backend_;
  std::shared_ptr<const Model> model_;
  std::shared_ptr<KVCache> cache_;
  std::shared_ptr<RuleTable> rules_;
  VerifierOptions options_;
  const Sizes sizes_;
  Buffer memory_;
  Tables t_;
  Arena scratch_;
  std::vector<int32_t> image_;  // host image of the upload
  int32_t* image_count_ = nullptr;
  PlanEntry* image_entries_ = nullptr;
  int32_t *image_tokens_ = nullptr, *image_tree_count_ = nullptr, *image_tree_token_ = nullptr,
          *image_tree_parent_ = nullptr;
  std::optional<double> ms_;  // of the last verify()
  std::vector<int> usable_;   // [slot] entries this level may use, as of the last sync
  std::vector<int> missing_;  // [batch] of the round being planned
  std::vector<RoundResult> results_;
  int ask_ = -1,
      wanted_ = -1;  // likeliest tokens a round computes, and how many of them were asked for
  std::vector<int32_t> host_path_node_, host_top_token_;
  std::vector<float> host_chosen_, host_top_logprob_;
  using Shape = std::array<int64_t, 4>;  // rows, nodes, logprobs, where the trees are
  std::map<Shape, std::unique_ptr<Recording>> recordings_;
};

}  // namespace stepladder
