// A head that drafts in the way of EAGLE-2: a layer or a few over a model's last hidden states,
// whose output is read by the model's own lm_head and stands for the hidden state that follows.
//
//   x = fc [embedding of token p + 1, hidden state of position p]
//   y = layers(x) at position p           the first layer has no norm before its attention
//   logits of token p + 2 = lm_head y     no final norm
#pragma once

#include <memory>
#include <vector>

#include "model/transformer.h"

namespace stepladder {

struct EagleConfig {
  ModelConfig layers;    // of its layers; vocab, width and dtype are the model's it drafts for
  bool fc_bias = false;  // fc.bias is stored
  bool own_embedding = false;  // embed_tokens.weight is stored; else the model's is used
  bool first_norm = false;     // the first layer has a norm before its attention after all
};

/// Reads config.json and the names and shapes of the tensors, no weight. Throws
/// Error(vocab_mismatch) and Error(model_format) on a head that was made for another model than
/// `above`, Error(unsupported) on one of another kind, naming the tensor or setting.
EagleConfig read_eagle_config(const Checkpoint&, const ModelConfig& above);

/// Immutable after load.
class EagleHead {
 public:
  /// `above`, whose embedding and lm_head it uses, must outlive it. `positions`: rows of the rope
  /// table.
  EagleHead(Backend&, const Checkpoint&, const EagleConfig&, const Model& above, int positions);

  /// Backend memory that such a head takes.
  static size_t bytes(const Backend&, const EagleConfig&, int positions);
  /// Bytes that a pass of its layers reads, lm_head aside.
  size_t pass_bytes() const;

  const ModelConfig& config() const { return config_.layers; }
  LayerStack stack() const { return {config_.layers, layers_, nullptr, rope_}; }
  const Linear& fc() const { return fc_; }         // [width, 2 width]
  Tensor embedding() const { return embedding_; }  // [vocab, width] 16-bit
  const Linear& lm_head() const { return above_.head(); }

 private:
  EagleConfig config_;
  const Model& above_;
  Buffer memory_;
  Linear fc_;
  std::vector<Layer> layers_;
  Tensor embedding_{};
  const float* rope_ = nullptr;
};

}  // namespace stepladder
