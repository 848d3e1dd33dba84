// Tiny random EAGLE-2 heads for tiny models, and what such a head computes, plainly and in fp64.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "model/eagle_head.h"
#include "support/hierarchy.h"
#include "support/tiny_model.h"

namespace stepladder {

struct TinyHead {
  int layers = 1;
  bool bias = true, own_embedding = false, first_norm = false;
  std::string stored = "bf16";  // or "f16", "f32"
  uint64_t seed = 5;
};

/// A head for the spec's model, of its family and shape.
MemoryCheckpoint tiny_head(const TinySpec&, const TinyHead&);

/// The same as a drafter below the innermost level of a hierarchy.
std::function<std::unique_ptr<Drafter>(const LeafSite&)> eagle_leaf(Backend&, const TinySpec&,
                                                                    const TinyHead&, int sequences,
                                                                    int context, int depth,
                                                                    int width, int nodes);

/// One sequence's rows through a head, each product and norm in fp64; where the engine keeps 16
/// bits, so does this.
class HeadReference {
 public:
  /// `embedding` and `lm_head`, [vocab, width], are those that the head uses.
  HeadReference(const Checkpoint&, const ModelConfig& above, const CanonicalWeight& embedding,
                const CanonicalWeight& lm_head);

  /// The logits of the last of the given rows. Row i, at position i, has token i and, for i below
  /// states.size(), that hidden state; behind, the head's own output for the row before.
  std::vector<double> logits(std::span<const std::vector<float>> states,
                             std::span<const Token> tokens) const;

 private:
  struct Weights {
    CanonicalWeight w;
    std::vector<float> bias;
  };
  std::vector<double> product(const Weights&, std::span<const double> x) const;
  std::vector<double> norm(std::span<const double> x, const std::vector<float>& gains) const;
  double round(double x) const;
  Weights weights(const std::string& name, int n, int k) const;

  const Checkpoint& checkpoint_;
  EagleConfig config_;
  const CanonicalWeight &embedding_, &lm_head_;
};

}  // namespace stepladder
