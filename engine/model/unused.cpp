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

constexpr size_t kNamed = 3;  // in the sentence

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
int layer_of(Text name, Text layers, Text& rest) {
  if (!name.starts_with(layers)) return -1;
  name.remove_prefix(layers.size());
  int layer = -1;
  const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), layer);
  if (error != std::errc{} || end == name.data() + name.size() || *end != '.') return -1;
  rest = name.substr(static_cast<size_t>(end - name.data()) + 1);
  return layer;
}

bool is_used(Text name, const ModelConfig& c) {
  const TensorNames& n = *c.family->names;
  if (name.ends_with("rotary_emb.inv_freq")) return true;
  Text rest;
  const int layer = layer_of(name, n.layers, rest);
  if (layer >= c.layers) return false;
  const Text full = layer >= 0 ? rest : name;
  const size_t dot = full.rfind('.');
  if (dot == Text::npos) return false;
  const Text of = full.substr(0, dot), kind = full.substr(dot + 1);
  const auto is = [&](std::initializer_list<Text> names) {
    return std::find(names.begin(), names.end(), of) != names.end();
  };
  if (kind == "weight" && layer < 0 && is({n.final_norm})) return true;
  if (kind == "weight" && layer >= 0) {
    if (is({n.attention_norm, n.ffn_norm})) return true;
    if (is({n.q_norm, n.k_norm})) return c.qk_norm;
  }
  if (!is_linear(kind)) return false;
  return layer >= 0 ? is({n.q, n.k, n.v, n.o, n.gate, n.up, n.down}) : is({n.embedding, n.head});
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
  if (std::any_of(unused.begin(), unused.end(), [&](const std::string& name) {
        return layer_of(name, config.family->names->layers, rest) >= config.layers;
      }))
    out += "; config.json says num_hidden_layers=" + std::to_string(config.layers);
  return out;
}

}  // namespace stepladder
