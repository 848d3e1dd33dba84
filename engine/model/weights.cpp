#include "model/weights.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

namespace stepladder {
namespace {

/// One linear layer of the model: the checkpoint's matrices it is fused from and where it goes.
struct Slot {
  Linear* linear;
  std::vector<std::string> prefixes;
  std::vector<int> n;
  int k;
  bool head = false;
};

std::string layer_prefix(int i) { return "model.layers." + std::to_string(i) + "."; }

/// A small floating-point tensor of `n` values, all of them finite.
std::vector<float> load_finite(const Checkpoint& checkpoint, const std::string& name, int n) {
  const int64_t shape[] = {n};
  auto values = checkpoint.load_floats(name, shape);
  for (float x : values)
    check(std::isfinite(x), Code::model_format, checkpoint.need(name).file, ": tensor ", name,
          " holds a value that is not finite; the file is damaged");
  return values;
}

size_t round_up(size_t x, size_t to) { return (x + to - 1) / to * to; }

}  // namespace

Act act_of(const Linear& linear, Act wanted) {
  if (linear.runs(wanted)) return wanted;
  return wanted == Act::a16 ? Act::a8 : Act::a16;
}

CanonicalWeight Model::read_linear(const Checkpoint& checkpoint,
                                   const std::vector<std::string>& prefixes,
                                   const std::vector<int>& n, int k,
                                   const std::string& cast) const {
  CanonicalWeight whole;
  for (size_t i = 0; i < prefixes.size(); ++i) {
    const WeightFormat& format = format_of(checkpoint, prefixes[i]);
    CanonicalWeight part = format.read(checkpoint, prefixes[i], n[i], k);
    const std::string bias = prefixes[i] + ".bias";
    const bool attention = prefixes[i].find("self_attn") != std::string::npos;
    const bool out = prefixes[i].ends_with("o_proj");
    const bool wanted = attention ? (out ? config_.o_bias : config_.qkv_bias)
                                  : prefixes[i] != "lm_head" && config_.mlp_bias;
    if (wanted) {
      part.bias = load_finite(checkpoint, bias, n[i]);
    } else {
      // A quantizer may write all-zero biases that the model does not have; anything else is a lie.
      if (checkpoint.find(bias)) {
        const auto values = load_finite(checkpoint, bias, n[i]);
        check(std::all_of(values.begin(), values.end(), [](float x) { return x == 0; }),
              Code::model_format, checkpoint.where(), ": tensor ", bias, " is not zero, but ",
              config_.architecture, " with this config.json has no bias there");
      }
    }
    if (i == 0) {
      whole = std::move(part);
    } else {
      check(whole.desc.code == part.desc.code && whole.desc.group == part.desc.group &&
                whole.desc.scale == part.desc.scale &&
                std::string_view(whole.desc.name) == part.desc.name,
            Code::unsupported, checkpoint.where(), ": ", prefixes[0], " and ", prefixes[i],
            " are stored in different formats; layers that run fused must share one");
      whole.append(part);
    }
  }
  if (!cast.empty() && cast != whole.desc.name) {
    const WeightFormat& to = format_named(cast);
    check(to.cast != nullptr, Code::unsupported, "cast: there is no cast to ", cast);
    auto bias = std::move(whole.bias);
    const auto values = whole.dequantize();
    whole = to.cast(values, whole.n, whole.k, 0);
    whole.bias = std::move(bias);
  }
  return whole;
}

Model::Model(Backend& backend, const Checkpoint& checkpoint, const ModelConfig& config,
             const ModelOptions& options, std::shared_ptr<const Model> shared)
    : config_(config), shared_(std::move(shared)), layers_(config.layers) {
  const auto& c = config_;
  if (shared_) {
    check(shared_->rope_positions_ >= options.positions, Code::internal,
          "shared rope table is too short");
    embedding_ = shared_->embedding_, final_norm_ = shared_->final_norm_, rope_ = shared_->rope_;
    rope_positions_ = shared_->rope_positions_;
    for (int i = 0; i < c.layers; ++i) {
      const Layer& from = shared_->layers_[i];
      layers_[i].attention_norm = from.attention_norm, layers_[i].ffn_norm = from.ffn_norm;
      layers_[i].q_norm = from.q_norm, layers_[i].k_norm = from.k_norm;
    }
  } else {
    load_shared(backend, checkpoint, options.positions);
  }

  std::vector<Slot> slots;
  const int q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  for (int i = 0; i < c.layers; ++i) {
    const std::string p = layer_prefix(i), a = p + "self_attn.", m = p + "mlp.";
    slots.push_back(
        {&layers_[i].qkv, {a + "q_proj", a + "k_proj", a + "v_proj"}, {q, kv, kv}, c.width});
    slots.push_back({&layers_[i].o, {a + "o_proj"}, {c.width}, q});
    slots.push_back(
        {&layers_[i].gate_up, {m + "gate_proj", m + "up_proj"}, {c.ffn, c.ffn}, c.width});
    slots.push_back({&layers_[i].down, {m + "down_proj"}, {c.width}, c.ffn});
  }
  slots.push_back(
      {&head_, {c.tied_head ? "model.embed_tokens" : "lm_head"}, {c.vocab}, c.width, true});

  const auto build = [&](const Slot& slot, CanonicalWeight& weight) {
    weight = read_linear(checkpoint, slot.prefixes, slot.n, slot.k,
                         slot.head ? options.head : options.cast);
    std::vector<Act> acts = {format_named(weight.desc.name).acts[0]};
    if (options.also_a8 && !slot.head && acts[0] != Act::a8) {
      const auto& can = format_named(weight.desc.name).acts;
      check(std::find(can.begin(), can.end(), Act::a8) != can.end(), Code::unsupported,
            "switch:a8: ", slot.prefixes[0], " is stored as ", weight.desc.name,
            ", which has no int8-activation mode; it needs w4a16 weights (stepladder quantize "
            "--format w4a16)");
      acts.push_back(Act::a8);
    }
    return Linear(backend, weight, acts, options.generic);
  };

  // The buffer's size: one matrix of each kind is read to learn how it is stored, the others of
  // its shape and format need as much.
  std::map<std::string, size_t> kinds;
  std::vector<size_t> sizes;
  size_t total = 0;
  for (const Slot& slot : slots) {
    std::string kind =
        std::to_string(slot.n[0]) + "x" + std::to_string(slot.k) + (slot.head ? "h" : "");
    for (const auto& prefix : slot.prefixes)
      kind += std::string("/") + format_of(checkpoint, prefix).name;
    auto [at, fresh] = kinds.try_emplace(kind + "/" + std::to_string(slot.prefixes.size()), 0);
    if (fresh) {
      CanonicalWeight weight;
      at->second = round_up(build(slot, weight).bytes(), 64);
    }
    sizes.push_back(at->second);
    total += at->second;
  }
  memory_ = Buffer();
  void* memory = backend.allocate(total);
  memory_ = Buffer(memory, total, [&backend](void* p, size_t n) { backend.release(p, n); });

  size_t at = 0;
  for (size_t i = 0; i < slots.size(); ++i) {
    CanonicalWeight weight;
    Linear linear = build(slots[i], weight);
    check(round_up(linear.bytes(), 64) == sizes[i], Code::model_format, checkpoint.where(), ": ",
          slots[i].prefixes[0],
          " is stored with other groups or scales than the same matrix of earlier layers");
    linear.upload(backend, weight, memory_.data() + at);
    *slots[i].linear = std::move(linear);
    at += sizes[i];
    if (options.progress)
      check(options.progress(at, total), Code::cancelled, "loading ", checkpoint.where(),
            " was cancelled");
  }
  backend.wait();
  default_act_ = format_named(layers_[0].qkv.desc().name).acts[0];
}

void Model::load_shared(Backend& backend, const Checkpoint& checkpoint, int positions) {
  const auto& c = config_;
  const int half = c.head_dim / 2;
  const size_t norms =
      static_cast<size_t>(c.layers) * (2 * c.width + (c.qk_norm ? 2 * c.head_dim : 0)) + c.width;
  const size_t table = size_t(c.vocab) * c.width * 2;
  const size_t total = round_up(table, 64) + norms * 4 + (4 * c.layers + 1) * 64 +
                       size_t(positions) * half * 8 + 128;
  shared_memory_ = Buffer(backend.allocate(total), total,
                          [&backend](void* p, size_t n) { backend.release(p, n); });
  Arena arena(shared_memory_.data(), total);

  embedding_ = arena.take_tensor(c.dtype, c.vocab, c.width);
  {
    const int64_t shape[] = {c.vocab, c.width};
    const TensorInfo& info = checkpoint.need("model.embed_tokens.weight");
    const std::string stored = c.dtype == DType::bf16 ? "BF16" : "F16",
                      name = "model.embed_tokens.weight";
    std::vector<uint16_t> codes;
    if (info.dtype == stored) {
      codes = checkpoint.load<uint16_t>(name, stored, shape);
    } else {
      const auto values = checkpoint.load_floats(name, shape);
      codes.resize(values.size());
      for (size_t i = 0; i < values.size(); ++i) codes[i] = to_16(c.dtype, values[i]);
    }
    for (size_t i = 0; i < codes.size(); ++i)
      check(std::isfinite(from_16(c.dtype, codes[i])), Code::model_format, info.file, ": tensor ",
            name, ": element ", i,
            " is not a finite number; the file is damaged or does not fit its 16-bit type");
    backend.upload(embedding_.data, codes.data(), codes.size() * 2);
  }
  const auto norm = [&](const std::string& name, int width) {
    const auto values = load_finite(checkpoint, name, width);
    float* out = arena.take_array<float>(width);
    backend.upload(out, values.data(), values.size() * 4);
    return out;
  };
  for (int i = 0; i < c.layers; ++i) {
    const std::string p = layer_prefix(i);
    layers_[i].attention_norm = norm(p + "input_layernorm.weight", c.width);
    layers_[i].ffn_norm = norm(p + "post_attention_layernorm.weight", c.width);
    if (c.qk_norm) {
      layers_[i].q_norm = norm(p + "self_attn.q_norm.weight", c.head_dim);
      layers_[i].k_norm = norm(p + "self_attn.k_norm.weight", c.head_dim);
    }
  }
  final_norm_ = norm("model.norm.weight", c.width);

  const RopeTable rope = rope_table(c);
  std::vector<float> values(size_t(positions) * half * 2);
  for (int p = 0; p < positions; ++p)
    for (int i = 0; i < half; ++i) {
      const double angle = p * rope.inv_freq[i];
      values[(size_t(p) * half + i) * 2] = static_cast<float>(std::cos(angle) * rope.scale);
      values[(size_t(p) * half + i) * 2 + 1] = static_cast<float>(std::sin(angle) * rope.scale);
    }
  float* out = arena.take_array<float>(values.size());
  backend.upload(out, values.data(), values.size() * 4);
  rope_ = out, rope_positions_ = positions;
}

size_t Model::pass_bytes(Act act) const {
  size_t bytes = head_.pass_bytes(act_of(head_, act));
  for (const Layer& layer : layers_)
    for (const Linear* l : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      bytes += l->pass_bytes(act_of(*l, act));
  return bytes;
}

int64_t Model::parameters() const {
  int64_t n = int64_t(config_.vocab) * config_.width * (config_.tied_head ? 1 : 2);
  for (const Layer& layer : layers_)
    for (const Linear* l : {&layer.qkv, &layer.o, &layer.gate_up, &layer.down})
      n += int64_t(l->n()) * l->k();
  return n;
}

}  // namespace stepladder
