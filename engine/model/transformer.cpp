#include "model/transformer.h"

#include <algorithm>
#include <cmath>

namespace stepladder {
namespace {

/// Activations of one block, in the order a layer uses them.
struct Activations {
  Tensor normed;    // [rows, width] 16-bit
  Tensor qkv;       // [rows, (heads + 2 kv_heads) * head_dim] f32
  Tensor q;         // [rows, heads * head_dim] 16-bit
  Tensor attended;  // [rows, heads * head_dim] 16-bit
  Tensor gate_up;   // [rows, 2 * ffn] f32
  Tensor gated;     // [rows, ffn] 16-bit

  Activations(const ModelConfig& c, int rows, Arena& arena) {
    normed = arena.take_tensor(c.dtype, rows, c.width);
    qkv = arena.take_tensor(DType::f32, rows, (c.heads + 2 * c.kv_heads) * c.head_dim);
    q = arena.take_tensor(c.dtype, rows, c.heads * c.head_dim);
    attended = arena.take_tensor(c.dtype, rows, c.heads * c.head_dim);
    gate_up = arena.take_tensor(DType::f32, rows, 2 * c.ffn);
    gated = arena.take_tensor(c.dtype, rows, c.ffn);
  }
};

}  // namespace

void run_layers(Backend& backend, const Model& model, const Pass& pass, Tensor residual,
                Arena& arena) {
  const ModelConfig& c = model.config();
  const Live live = pass.live;
  const float eps = static_cast<float>(c.eps);
  const float scale = static_cast<float>(1.0 / std::sqrt(double(c.head_dim)));
  Arena::Scope scope(arena);
  Activations a(c, live.capacity, arena);
  const auto apply = [&](const Linear& linear, Tensor y, Tensor x, bool accumulate) {
    linear(backend, live, y, x, act_of(linear, pass.act), arena, accumulate);
  };

  backend.embed({live, pass.rows.token, model.embedding(), residual});
  for (int i = 0; i < c.layers; ++i) {
    const Layer& layer = model.layers()[i];
    backend.rms_norm({live, residual, nullptr, layer.attention_norm, eps, a.normed});
    apply(layer.qkv, a.qkv, a.normed, false);
    backend.rope_append({live, pass.rows, a.qkv, layer.q_norm, layer.k_norm, eps, model.rope(),
                         c.heads, pass.kv, i, a.q});
    backend.attention({live, pass.rows, a.q, pass.kv, i, c.heads, scale, a.attended});
    apply(layer.o, residual, a.attended, true);
    backend.rms_norm({live, residual, nullptr, layer.ffn_norm, eps, a.normed});
    apply(layer.gate_up, a.gate_up, a.normed, false);
    backend.gated_act({live, a.gate_up, a.gated});
    apply(layer.down, residual, a.gated, true);
  }
}

void run_head(Backend& backend, const Model& model, Live live, Tensor residual, const int32_t* pick,
              Act act, Tensor logits, Arena& arena) {
  const ModelConfig& c = model.config();
  Arena::Scope scope(arena);
  Tensor normed = arena.take_tensor(c.dtype, live.capacity, c.width);
  backend.rms_norm({live, residual, pick, model.final_norm(), static_cast<float>(c.eps), normed});
  model.head()(backend, live, logits, normed, act_of(model.head(), act), arena, false);
}

size_t activation_bytes(const ModelConfig& config, int rows) {
  Arena measure;
  Activations sized(config, rows, measure);
  return measure.peak();
}

size_t pass_scratch_bytes(const Model& model, int rows) {
  return activation_bytes(model.config(), rows) + model.scratch_bytes(rows);
}

}  // namespace stepladder
