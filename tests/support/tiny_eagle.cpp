#include "support/tiny_eagle.h"

#include <cmath>

#include "spec/drafters/eagle.h"

namespace stepladder {
namespace {

using Row = std::vector<double>;

int rounded_positions(int context) {
  return (context + kAttentionStep - 1) / kAttentionStep * kAttentionStep;
}

}  // namespace

MemoryCheckpoint tiny_head(const TinySpec& spec, const TinyHead& head) {
  TinySpec plain = spec;
  plain.format = "bf16", plain.layers = head.layers;
  nlohmann::json config = tiny_checkpoint(plain).config();
  config.erase("tie_word_embeddings"), config.erase("torch_dtype");
  MemoryCheckpoint out(config, "tiny head");
  TestRandom random(head.seed);
  const auto add = [&](const std::string& name, std::vector<int64_t> shape, double deviation,
                       double mean = 0) {
    int64_t n = 1;
    for (const int64_t s : shape) n *= s;
    std::vector<float> values(n);
    for (float& x : values) x = static_cast<float>(mean + deviation * random.normal());
    std::vector<uint16_t> codes(n);
    const bool half = head.stored == "f16";
    for (int64_t i = 0; i < n; ++i) codes[i] = half ? to_f16(values[i]) : to_bf16(values[i]);
    if (head.stored == "f32")
      out.add(name, "F32", std::move(shape), values);
    else
      out.add(name, half ? "F16" : "BF16", std::move(shape), codes);
  };
  const int w = spec.width, q = spec.heads * spec.head_dim, kv = spec.kv_heads * spec.head_dim;
  const auto linear = [&](const std::string& name, int n, int k, double gain) {
    add(name + ".weight", {n, k}, gain / std::sqrt(double(k)));
  };
  linear("fc", w, 2 * w, 1);
  if (head.bias) add("fc.bias", {w}, 0.2);
  if (head.own_embedding) add("embed_tokens.weight", {spec.vocab, w}, 0.3);
  for (int i = 0; i < head.layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".";
    if (i > 0 || head.first_norm) add(p + "input_layernorm.weight", {w}, 0.2, 1);
    add(p + "post_attention_layernorm.weight", {w}, 0.2, 1);
    linear(p + "self_attn.q_proj", q, w, 2), linear(p + "self_attn.k_proj", kv, w, 2);
    linear(p + "self_attn.v_proj", kv, w, 1), linear(p + "self_attn.o_proj", w, q, 1);
    linear(p + "mlp.gate_proj", spec.ffn, w, 1), linear(p + "mlp.up_proj", spec.ffn, w, 1);
    linear(p + "mlp.down_proj", w, spec.ffn, 1);
    if (spec.family == "qwen2") {
      add(p + "self_attn.q_proj.bias", {q}, 0.3), add(p + "self_attn.k_proj.bias", {kv}, 0.3);
      add(p + "self_attn.v_proj.bias", {kv}, 0.3);
    }
    if (spec.family == "qwen3") {
      add(p + "self_attn.q_norm.weight", {spec.head_dim}, 0.2, 1);
      add(p + "self_attn.k_norm.weight", {spec.head_dim}, 0.2, 1);
    }
  }
  return out;
}

std::function<std::unique_ptr<Drafter>(const LeafSite&)> eagle_leaf(
    Backend& backend, const TinySpec& spec, const TinyHead& tiny, int sequences, int context,
    int depth, int width, int nodes) {
  return [=, &backend](const LeafSite& site) {
    const MemoryCheckpoint checkpoint = tiny_head(spec, tiny);
    auto head = std::make_shared<EagleHead>(backend, checkpoint,
                                            read_eagle_config(checkpoint, site.model->config()),
                                            *site.model, rounded_positions(context));
    EagleOptions o;
    o.depth = depth, o.width = width, o.nodes = nodes, o.verifier = site.level;
    o.sequences = sequences, o.context = context, o.block = 64;
    return std::make_unique<Eagle>(backend, std::move(head), site.cache, site.rules, o);
  };
}

// ---- the reference -------------------------------------------------------------------------

HeadReference::HeadReference(const Checkpoint& checkpoint, const ModelConfig& above,
                             const CanonicalWeight& embedding, const CanonicalWeight& lm_head)
    : checkpoint_(checkpoint),
      config_(read_eagle_config(checkpoint, above)),
      embedding_(embedding),
      lm_head_(lm_head) {}

double HeadReference::round(double x) const {
  const DType t = config_.layers.dtype;
  return from_16(t, to_16(t, static_cast<float>(x)));
}

HeadReference::Weights HeadReference::weights(const std::string& name, int n, int k) const {
  const auto reader = open_dense(checkpoint_, name + ".weight", n, k, config_.layers.dtype);
  RowMemory memory;
  Weights out{canonical(reader->read(0, n, memory)), std::vector<float>(n)};
  const int64_t shape[] = {n};
  if (checkpoint_.find(name + ".bias")) out.bias = checkpoint_.load_floats(name + ".bias", shape);
  return out;
}

Row HeadReference::product(const Weights& m, std::span<const double> x) const {
  Row out(m.w.n);
  for (int i = 0; i < m.w.n; ++i) {
    out[i] = m.bias.empty() ? 0 : m.bias[i];
    for (int j = 0; j < m.w.k; ++j) out[i] += m.w.at(i, j) * x[j];
  }
  return out;
}

Row HeadReference::norm(std::span<const double> x, const std::vector<float>& gains) const {
  double squares = 0;
  for (const double v : x) squares += v * v;
  const double scale = 1 / std::sqrt(squares / double(x.size()) + config_.layers.eps);
  Row out(x.size());
  for (size_t i = 0; i < x.size(); ++i) out[i] = x[i] * scale * gains[i];
  return out;
}

std::vector<double> HeadReference::logits(std::span<const std::vector<float>> states,
                                          std::span<const Token> tokens) const {
  const ModelConfig& c = config_.layers;
  const RopeTable rope = rope_table(c);
  const int d = c.head_dim, q_width = c.heads * d, kv_width = c.kv_heads * d;
  const auto rounded = [&](Row x) {
    for (double& v : x) v = round(v);
    return x;
  };
  const auto gains = [&](const std::string& name, int n) {
    const int64_t shape[] = {n};
    return checkpoint_.load_floats(name + ".weight", shape);
  };
  const auto rotate = [&](std::span<double> head, size_t position) {
    for (int i = 0; i < d / 2; ++i) {
      const double angle = double(position) * rope.inv_freq[i], a = head[i], b = head[i + d / 2];
      head[i] = (a * std::cos(angle) - b * std::sin(angle)) * rope.scale;
      head[i + d / 2] = (b * std::cos(angle) + a * std::sin(angle)) * rope.scale;
    }
  };
  const Weights fc = weights("fc", c.width, 2 * c.width);
  struct LayerWeights {
    Weights q, k, v, o, gate, up, down;
    std::vector<float> attention, ffn, q_norm, k_norm;
  };
  std::vector<LayerWeights> layers;
  for (int i = 0; i < c.layers; ++i) {
    const std::string p = "layers." + std::to_string(i) + ".", a = p + "self_attn.", m = p + "mlp.";
    LayerWeights l{weights(a + "q_proj", q_width, c.width),
                   weights(a + "k_proj", kv_width, c.width),
                   weights(a + "v_proj", kv_width, c.width),
                   weights(a + "o_proj", c.width, q_width),
                   weights(m + "gate_proj", c.ffn, c.width),
                   weights(m + "up_proj", c.ffn, c.width),
                   weights(m + "down_proj", c.width, c.ffn),
                   {},
                   gains(p + "post_attention_layernorm", c.width),
                   {},
                   {}};
    if (i > 0 || config_.first_norm) l.attention = gains(p + "input_layernorm", c.width);
    if (c.qk_norm) l.q_norm = gains(a + "q_norm", d), l.k_norm = gains(a + "k_norm", d);
    layers.push_back(std::move(l));
  }
  std::vector<std::vector<Row>> keys(c.layers), values(c.layers);
  Row y;
  for (size_t p = 0; p < tokens.size(); ++p) {
    Row in(2 * size_t(c.width));
    for (int i = 0; i < c.width; ++i) {
      in[i] = embedding_.at(tokens[p], i);
      in[c.width + i] = p < states.size() ? states[p][i] : round(y[i]);
    }
    Row x = product(fc, in);
    for (int i = 0; i < c.layers; ++i) {
      const LayerWeights& l = layers[i];
      const Row a = rounded(l.attention.empty() ? x : norm(x, l.attention));
      Row q = product(l.q, a), k = product(l.k, a);
      const auto finish = [&](Row& heads, const std::vector<float>& head_norm) {
        for (size_t h = 0; h < heads.size(); h += d) {
          const std::span<double> head(heads.data() + h, d);
          if (!head_norm.empty()) std::ranges::copy(norm(head, head_norm), head.begin());
          rotate(head, p);
        }
        heads = rounded(heads);
      };
      finish(q, l.q_norm), finish(k, l.k_norm);
      keys[i].push_back(k), values[i].push_back(rounded(product(l.v, a)));
      Row attended(q_width);
      for (int h = 0; h < c.heads; ++h) {
        const int from = h / (c.heads / c.kv_heads) * d;
        Row weight(p + 1);
        double total = 0;
        for (size_t t = 0; t <= p; ++t) {
          double dot = 0;
          for (int j = 0; j < d; ++j) dot += q[h * d + j] * keys[i][t][from + j];
          total += weight[t] = std::exp(dot / std::sqrt(double(d)));
        }
        for (size_t t = 0; t <= p; ++t)
          for (int j = 0; j < d; ++j)
            attended[h * d + j] += weight[t] / total * values[i][t][from + j];
      }
      const Row o = product(l.o, rounded(attended));
      for (int j = 0; j < c.width; ++j) x[j] += o[j];
      const Row f = rounded(norm(x, l.ffn));
      Row gate = product(l.gate, f);
      const Row up = product(l.up, f);
      for (int j = 0; j < c.ffn; ++j) gate[j] = gate[j] / (1 + std::exp(-gate[j])) * up[j];
      const Row down = product(l.down, rounded(gate));
      for (int j = 0; j < c.width; ++j) x[j] += down[j];
    }
    y = x;
  }
  return product({lm_head_, {}}, rounded(y));
}

}  // namespace stepladder
