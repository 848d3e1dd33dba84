// A model's weights on a backend: read from a checkpoint, or cast from one to a cheaper format.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/arena.h"
#include "formats/linear.h"
#include "model/config.h"

namespace stepladder {

struct Layer {
  const float* attention_norm = nullptr;  // [width]; null in the first layer of some heads
  const float* ffn_norm = nullptr;        // [width]
  const float* q_norm = nullptr;          // [head_dim] or null
  const float* k_norm = nullptr;
  Linear qkv, o, gate_up, down;
};

/// What a copy of a checkpoint's weights is cast to.
struct Cast {
  std::string cast;  // a format's name: cast the body to it; "" = as stored
  std::string head;  // the same for lm_head
};

struct ModelOptions : Cast {
  bool also_a8 = false;  // the body must run with int8 activations too
  bool generic = false;  // described path only; the oracle in tests
  int positions = 0;     // rows of the rope table
  int threads = 0;       // that read and pack; 0 = usable_cores()
  /// Bytes packed so far and in all, on the calling thread; false aborts with Error(cancelled).
  std::function<bool(size_t done, size_t total)> progress;
  std::vector<std::string>* notes = nullptr;  // gets what reading met and loading goes on with
};

/// Immutable after load; any number of levels may run one Model.
class Model {
 public:
  /// `shared`, if given, is a model of the same checkpoint and backend whose embedding, norms and
  /// rope table are used instead of loading them again.
  Model(Backend&, const Checkpoint&, const ModelConfig&, const ModelOptions&,
        std::shared_ptr<const Model> shared = nullptr);

  const ModelConfig& config() const { return config_; }
  const std::vector<Layer>& layers() const { return layers_; }
  const Linear& head() const { return head_; }
  Tensor embedding() const { return embedding_; }          // [vocab, width] 16-bit
  const float* final_norm() const { return final_norm_; }  // [width]
  const float* rope() const { return rope_; }              // [positions, head_dim / 2, 2]
  int rope_positions() const { return rope_positions_; }
  /// The mode the body runs in unless asked otherwise.
  Act default_act() const { return default_act_; }
  /// Bytes of backend memory held by this model alone.
  size_t bytes() const { return memory_.bytes() + shared_memory_.bytes(); }
  /// Weight bytes one forward pass with logits reads.
  size_t pass_bytes(Act) const;
  int64_t parameters() const;

 private:
  friend class ModelLoader;
  Model(const ModelConfig& config, std::shared_ptr<const Model> shared);

  ModelConfig config_;
  std::shared_ptr<const Model> shared_;
  Buffer memory_, shared_memory_;
  std::vector<Layer> layers_;
  Linear head_;
  Tensor embedding_{};
  const float* final_norm_ = nullptr;
  const float* rope_ = nullptr;
  int rope_positions_ = 0;
  Act default_act_ = Act::a16;
};

/// The model that `options` describe and, behind it, casts of the same weights, which share its
/// embedding, norms and rope table: the checkpoint is read once for all of them.
std::vector<std::shared_ptr<const Model>> load_models(Backend&, const Checkpoint&,
                                                      const ModelConfig&,
                                                      const ModelOptions& options,
                                                      std::span<const Cast> casts);

/// Host memory that loading takes for a while, beside the models: on a backend whose memory the
/// host can write, a few megabytes a thread.
size_t load_scratch_bytes(const ModelConfig&, int threads, bool on_host);

/// The mode `linear` runs in when `wanted` is asked of the model: itself, or its only one.
Act act_of(const Linear& linear, Act wanted);

}  // namespace stepladder
