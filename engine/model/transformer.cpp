#include "model/transformer.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace stepladder {
namespace {

/// The projections of a layer and the head over blocks of `rows` rows, as far as their shapes tell.
struct Projections {
  ProjectArgs qkv, o, gate_up, down, head;
  Tensor q, attended, gated;

  Projections(const ModelConfig& c, int rows) {
    const int heads = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
    q = attended = {nullptr, c.dtype, rows, heads};
    gated = {nullptr, c.dtype, rows, c.ffn};
    static const float some_norm = 0;
    const auto shape = [&](int n, int k, bool normed, auto result) {
      ProjectArgs a{.live = {.capacity = rows}, .result = result};
      a.input.type = c.dtype, a.input.norm = normed ? &some_norm : nullptr;
      a.weight.packed.n = n, a.weight.packed.k = k;
      return a;
    };
    qkv = shape(heads + 2 * kv, c.width, true, RopeAppend{.heads = c.heads, .q = q});
    o = shape(c.width, heads, false, AddTo{});
    gate_up = shape(2 * c.ffn, c.width, true, Gate{.out = gated});
    down = shape(c.width, c.ffn, false, AddTo{});
    head = shape(c.vocab, c.width, true, Store{});
  }
};

void take(PassMemory& m, const Projections& p, size_t workspace, Arena& arena) {
  const auto tensor = [&](const Tensor& t) { return arena.take_tensor(t.dtype, t.rows, t.cols); };
  m.q = tensor(p.q), m.attended = tensor(p.attended), m.gated = tensor(p.gated);
  m.workspace = arena.take(workspace);
}

size_t attention_bytes(const Backend& backend, const ModelConfig& c, const Projections& p) {
  AttentionArgs a{.live = p.o.live, .q = p.q, .heads = c.heads, .out = p.attended};
  a.kv.spec.kv_heads = c.kv_heads, a.kv.spec.head_dim = c.head_dim, a.kv.spec.dtype = c.dtype;
  return backend.workspace_bytes(a);
}

/// Keeps what enters layer `layer`, where the entries of the cache carry it; behind the last layer,
/// what the final norm makes of it.
void keep_features(Backend& backend, const LayerStack& stack, const Pass& pass, int layer) {
  const FeatureSpec& features = pass.kv.spec.features;
  for (int i = 0; i < features.count; ++i)
    if (features.layer[i] == layer)
      backend.feature({.live = pass.live,
                       .rows = pass.rows,
                       .x = pass.residual,
                       .norm = layer == stack.config.layers ? stack.final_norm : nullptr,
                       .eps = static_cast<float>(stack.config.eps),
                       .kv = pass.kv,
                       .index = i});
}

}  // namespace

PassMemory::PassMemory(const Backend& backend, const Model& model, Act act, int rows,
                       Arena& arena) {
  Projections p(model.config(), rows);
  size_t most = attention_bytes(backend, model.config(), p);
  const auto with = [&](ProjectArgs& a, const Linear& linear) {
    a.weight = linear.in(act_of(linear, act));
    most = std::max(most, backend.workspace_bytes(a));
  };
  for (const Layer& layer : model.layers())
    with(p.qkv, layer.qkv), with(p.o, layer.o), with(p.gate_up, layer.gate_up),
        with(p.down, layer.down);
  with(p.head, model.head());
  take(*this, p, most, arena);
}

PassMemory::PassMemory(const Backend& backend, const ModelConfig& config, int rows, Arena& arena) {
  Projections p(config, rows);
  size_t most = attention_bytes(backend, config, p);
  for (ProjectArgs* a : {&p.qkv, &p.o, &p.gate_up, &p.down, &p.head}) {
    // Of the activations there are, int8 ones with many scales take most beside the input.
    a->weight.mode = kA8PerGroup, a->weight.packed.desc.group = 32;
    most = std::max(most, backend.workspace_bytes(*a));
  }
  take(*this, p, most, arena);
}

void embed_rows(Backend& backend, const Model& model, const Pass& pass) {
  backend.embed({.live = pass.live,
                 .token = pass.rows.token,
                 .table = model.embedding(),
                 .out = pass.residual});
}

void run_layers(Backend& backend, const Model& model, const Pass& pass, const PassMemory& memory) {
  run_layers(backend, {model.config(), model.layers(), model.final_norm(), model.rope()}, pass,
             memory);
}

void run_layers(Backend& backend, const LayerStack& stack, const Pass& pass,
                const PassMemory& memory) {
  const ModelConfig& c = stack.config;
  const Live live = pass.live;
  const float eps = static_cast<float>(c.eps);
  const auto rows_of = [&](Tensor t) { return t.slice(0, live.capacity); };
  const Tensor q = rows_of(memory.q), attended = rows_of(memory.attended),
               gated = rows_of(memory.gated);
  const auto normed = [&](const float* norm) {
    return ProjectInput{.x = pass.residual, .type = c.dtype, .norm = norm, .eps = eps};
  };
  const auto as_it_is = [&] {
    const Tensor x = rows_of(memory.narrowed);
    backend.narrow({.live = live, .x = pass.residual, .pick = nullptr, .out = x});
    return ProjectInput{.x = x, .type = c.dtype};
  };
  const auto project = [&](const ProjectInput& input, const Linear& weight, auto result) {
    backend.project(
        {live, input, weight.in(act_of(weight, pass.act)), std::move(result), memory.workspace});
  };

  for (int i = 0; i < c.layers; ++i) {
    const Layer& layer = stack.layers[i];
    keep_features(backend, stack, pass, i);
    project(layer.attention_norm ? normed(layer.attention_norm) : as_it_is(), layer.qkv,
            RopeAppend{.rows = pass.rows,
                       .q_norm = layer.q_norm,
                       .k_norm = layer.k_norm,
                       .eps = eps,
                       .rope = stack.rope,
                       .heads = c.heads,
                       .kv = pass.kv,
                       .layer = i,
                       .q = q});
    backend.attention({.live = live,
                       .rows = pass.rows,
                       .q = q,
                       .kv = pass.kv,
                       .layer = i,
                       .heads = c.heads,
                       .scale = static_cast<float>(1.0 / std::sqrt(double(c.head_dim))),
                       .out = attended,
                       .workspace = memory.workspace});
    project({.x = attended, .type = c.dtype}, layer.o, AddTo{pass.residual});
    project(normed(layer.ffn_norm), layer.gate_up, Gate{gated});
    project({.x = gated, .type = c.dtype}, layer.down, AddTo{pass.residual});
  }
  keep_features(backend, stack, pass, c.layers);
}

void run_head(Backend& backend, const Model& model, Live nodes, Tensor residual,
              const int32_t* pick, Act act, Tensor logits, const PassMemory& memory) {
  const ModelConfig& c = model.config();
  backend.project({.live = nodes,
                   .input = {.x = residual,
                             .type = c.dtype,
                             .norm = model.final_norm(),
                             .eps = static_cast<float>(c.eps),
                             .pick = pick},
                   .weight = model.head().in(act_of(model.head(), act)),
                   .result = Store{logits},
                   .workspace = memory.workspace});
}

}  // namespace stepladder
