#include "model/unused.h"

#include <algorithm>
#include <charconv>
#include <iterator>
#include <string_view>
#include <vector>

#include "formats/linear.h"
#include "io/file.h"

namespace stepladder {
namespace {

using Text = std::string_view;

constexpr Text kLayers = "model.layers.";
constexpr size_t kNamed = 3;  // in the sentence

constexpr Text kMatrices[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
                              "self_attn.o_proj", "mlp.gate_proj",    "mlp.up_proj",
                              "mlp.down_proj"};

template <size_t n>
bool is_one_of(Text name, const Text (&known)[n]) {
  return std::find(std::begin(known), std::end(known), name) != std::end(known);
}

/// Whether a linear layer may be stored in a tensor of this name, by any format; what it may not is
/// refused when it is read.
bool is_linear(Text name) {
  if (name == "bias") return true;
  const auto all = formats();
  return std::any_of(all.begin(), all.end(), [&](const WeightFormat* f) {
    return std::find(f->tensors.begin(), f->tensors.end(), name) != f->tensors.end();
  });
}

/// The layer's number, and its name for the tensor; -1 for what is in no layer.
int layer_of(Text name, Text& rest) {
  if (!name.starts_with(kLayers)) return -1;
  name.remove_prefix(kLayers.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc{} || end == name.data() + name.size() || *end != '.') return -1;
  rest = name.substr(static_cast<size_t>(end - name.data()) + 1);
  return layer;
}

bool is_used(Text name, const ModelConfig& c) {
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  if (name == "model.norm.weight") return true;
  Text rest;
  const int layer = layer_of(name, rest);
  if (layer >= c.layers) return false;
  if (layer >= 0) {
    if (rest == "input_layernorm.weight" || rest == "post_attention_layernorm.weight") return true;
    if (rest == "self_attn.q_norm.weight" || rest == "self_attn.k_norm.weight") return c.qk_norm;
  }
  const Text full = layer >= 0 ? rest : name;
  const size_t dot = full.rfind('.');
  if (dot == Text::npos || !is_linear(full.substr(dot + 1))) return false;
  const Text matrix = full.substr(0, dot);
  return layer >= 0 ? is_one_of(matrix, kMatrices)
                    : matrix == "model.embed_tokens" || matrix == "lm_head";
}

}  // namespace

std::string unused_tensors(const Checkpoint& checkpoint, const ModelConfig& config) {
  std::vector<std::string> unused = checkpoint.names();
  std::erase_if(unused, [&](const std::string& name) { return is_used(name, config); });
  if (unused.empty()) return "";
  const bool one = unused.size() == 1;
  std::string out = checkpoint.where() + ": " + std::to_string(unused.size()) +
                    (one ? " tensor is" : " tensors are") + " not used by this model" +
                    (unused.size() > kNamed ? ", among them " : ": ");
  for (size_t i = 0; i < std::min(unused.size(), kNamed); ++i)
    out += (i ? ", " : "") + quote(unused[i]);
  Text rest;
  if (std::any_of(unused.begin(), unused.end(),
                  [&](const std::string& name) { return layer_of(name, rest) >= config.layers; }))
    out += "; config.json says num_hidden_layers=" + std::to_string(config.layers);
  return out;
}

}  // namespace stepladder
