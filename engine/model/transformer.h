// The forward pass of a Llama-family model as a list of backend operators, five a layer.
#pragma once

#include <span>

#include "backends/backend.h"
#include "core/arena.h"
#include "model/weights.h"

namespace stepladder {

/// The layers that a pass runs through: a model's, or those of a head that drafts for one.
struct LayerStack {
  const ModelConfig& config;
  std::span<const Layer> layers;
  const float* final_norm;  // [width]; null: what the layers leave is taken as it is
  const float* rope;        // [positions, head_dim / 2, 2]
};

/// What a pass computes on its way, for blocks of at most `rows` rows.
struct PassMemory {
  Tensor q;         // [rows, heads * head_dim] 16-bit
  Tensor attended;  // [rows, heads * head_dim] 16-bit
  Tensor gated;     // [rows, ffn] 16-bit
  Tensor narrowed;  // [rows, width] 16-bit; of a stack with layers that have no attention norm
  void* workspace = nullptr;

  PassMemory() = default;
  /// Takes from the arena what `model` needs when its layers run in `act`; one that measures tells
  /// how much that is.
  PassMemory(const Backend&, const Model&, Act, int rows, Arena&);
  /// The same before any weight is read, for whichever format and activations want most.
  PassMemory(const Backend&, const ModelConfig&, int rows, Arena&);
};

/// A block of rows on its way through the layers.
struct Pass {
  Live live;
  Rows rows;
  KVView kv;
  Act act = Act::a16;
  Tensor residual;  // [rows of the round, width] f32
};

/// The rows' embeddings, into the residual.
void embed_rows(Backend&, const Model&, const Pass&);
/// Runs all layers over one block, from what the residual holds; it then holds the result, before
/// the final norm. Blocks of one round must come in order: later rows read what earlier ones wrote.
/// Where the cache's entries carry features, the rows' entries get theirs.
void run_layers(Backend&, const LayerStack&, const Pass&, const PassMemory&);
void run_layers(Backend&, const Model&, const Pass&, const PassMemory&);

/// Final norm and lm_head over a block of picked rows: logits [capacity, vocab rows] f32.
/// `nodes` counts them; pick[j] is the row of the residual of node *nodes.first + j.
void run_head(Backend&, const Model&, Live nodes, Tensor residual, const int32_t* pick, Act,
              Tensor logits, const PassMemory&);

}  // namespace stepladder
