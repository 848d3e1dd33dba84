// The forward pass of a Llama-family model as a list of backend operators.
#pragma once

#include "backends/backend.h"
#include "core/arena.h"
#include "model/weights.h"

namespace stepladder {

/// A block of rows on its way through the layers.
struct Pass {
  Live live;  // of the rows
  Rows rows;  // offset to the block's first row
  KVView kv;
  Act act = Act::a16;
};

/// Runs all layers over one block; `residual` [capacity, width] f32 holds the result, before the
/// final norm. Blocks of one round must come in order: later rows read what earlier ones wrote.
void run_layers(Backend&, const Model&, const Pass&, Tensor residual, Arena&);

/// Final norm and lm_head over a block of picked rows: logits [capacity, vocab rows] f32.
/// `live` counts nodes; pick[j] is the row of `residual` of node live.first + j.
void run_head(Backend&, const Model&, Live live, Tensor residual, const int32_t* pick, Act,
              Tensor logits, Arena&);

/// The bytes of arena that either needs for blocks of `rows` rows.
size_t pass_scratch_bytes(const Model&, int rows);
/// The part of them that holds activations; the rest serves linear layers with int8 activations.
size_t activation_bytes(const ModelConfig&, int rows);

}  // namespace stepladder
