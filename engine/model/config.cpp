// Reads a model's numbers out of config.json and generation_config.json. A setting that would
// change what the model computes and that the graph does not have is refused by name.
#include "model/config.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/file.h"
#include "model/settings.h"
#include "model/unused.h"

namespace stepladder {
namespace {

using nlohmann::json;

// Several times the largest published models, and small enough that no product of two overflows.
constexpr int kMaxLayers = 1024, kMaxWidth = 1 << 17, kMaxHeads = 1024, kMaxHeadDim = 256,
              kMaxFfn = 1 << 20, kMaxVocab = 1 << 21, kMaxPositions = 1 << 30;

void refuse_other_math(const Settings& config, const Family& family) {
  for (const RefusedKey& r : family.refused) {
    const json* value = config.find(r.key);
    if (!value || (value->is_boolean() && !value->get<bool>()) ||
        (value->is_array() && value->empty()))
      continue;
    check(value->is_number() && value->get<double>() == r.neutral, Code::unsupported,
          config.where(), ": ", r.key, " is ", shown(*value),
          ", which changes what the model computes in a way Stepladder does not know");
  }
}

// What a row can say and no backend computes.
void refuse_unwritten(const Settings& config, const Family& family) {
  const auto refuse = [&](bool asked, const std::string& what) {
    check(!asked, Code::unsupported, config.where(), ": ", family.architecture, " ", what,
          ", which no kernel computes yet");
  };
  refuse(family.post_norms, "normalizes what its layers add to the residual");
  refuse(family.activation != Activation::silu,
         std::string("gates with ") + activation_names(family.activation)[0]);
  refuse(family.embedding_scale != EmbeddingScale::one,
         "scales its embeddings by the root of their width");
}

void check_activation(const Settings& config, const Family& family) {
  const auto names = activation_names(family.activation);
  const std::string act = config.text(family.activation_key).value_or(names[0]);
  check(std::find(names.begin(), names.end(), act) != names.end(), Code::unsupported,
        config.where(), ": ", family.activation_key, " ", quote(act), " is not ", names[0]);
}

const Family& family_of(const Settings& config, std::span<const Family> table) {
  const json* list = config.find("architectures");
  const auto type = config.text("model_type");
  if (!list || (list->is_array() && list->empty())) {
    check(type.has_value(), Code::model_format, config.where(),
          ": neither architectures nor model_type says what model this is");
    for (const Family& family : table)
      if (*type == family.model_type) return family;
    fail(Code::unsupported, config.where(), ": model_type ", quote(*type), " is of none of ",
         family_names(table));
  }
  check(list->is_array() && list->size() == 1 && list->front().is_string(), Code::model_format,
        config.where(), ": architectures must be a list of one name");
  const std::string& name = list->front().get_ref<const std::string&>();
  const Family* family = find_family(table, name);
  check(family != nullptr, Code::unsupported, config.where(), ": the architecture ", quote(name),
        " is not one of ", family_names(table));
  check(!type || *type == family->model_type, Code::unsupported, config.where(), ": model_type ",
        quote(type.value_or("")), " does not belong to ", name, ", whose model_type is ",
        family->model_type);
  return *family;
}

// What the family and its key say. A key that is true where the family has no such bias is refused.
bool has_bias(const Settings& config, Bias bias, const char* key) {
  const bool asked = config.boolean(key).value_or(false);
  switch (bias) {
    case Bias::always:
      return true;
    case Bias::never:
      break;
    case Bias::attention_bias:
    case Bias::mlp_bias:
      return asked;
  }
  return false;
}

void read_biases(const Settings& config, const Family& family, ModelConfig& out) {
  out.qkv_bias = has_bias(config, family.qkv, "attention_bias");
  out.o_bias = has_bias(config, family.o, "attention_bias");
  out.mlp_bias = has_bias(config, family.mlp, "mlp_bias");
  check(out.qkv_bias || !config.boolean("attention_bias").value_or(false), Code::unsupported,
        config.where(), ": attention_bias is true, but ", family.architecture, " has no such bias");
  check(out.mlp_bias || !config.boolean("mlp_bias").value_or(false), Code::unsupported,
        config.where(), ": mlp_bias is true, but ", family.architecture, " has no such bias");
  out.qk_norm = family.qk_norm;
  check(out.qk_norm || !config.boolean("use_qk_norm").value_or(false), Code::unsupported,
        config.where(), ": use_qk_norm is true, but ", family.architecture, " has no such norm");
}

void read_shape(const Settings& config, const Family& family, ModelConfig& out) {
  out.layers = config.need_whole("num_hidden_layers", 1, kMaxLayers);
  out.width = config.need_whole("hidden_size", 1, kMaxWidth);
  out.heads = config.need_whole("num_attention_heads", 1, kMaxHeads);
  out.ffn = config.need_whole("intermediate_size", 1, kMaxFfn);
  out.vocab = config.need_whole("vocab_size", 1, kMaxVocab);

  const bool says_kv = config.object().contains("num_key_value_heads");
  out.kv_heads =
      static_cast<int>(config.whole("num_key_value_heads", 1, kMaxHeads)
                           .value_or(says_kv || !family.kv_heads ? out.heads : family.kv_heads));
  check(out.heads % out.kv_heads == 0, Code::model_format, config.where(), ": num_attention_heads ",
        out.heads, " is not a multiple of num_key_value_heads ", out.kv_heads);
  if (const auto dim = config.whole("head_dim", 1, kMaxHeadDim)) {
    out.head_dim = static_cast<int>(*dim);
  } else if (family.head_dim) {
    out.head_dim = family.head_dim;
  } else {
    check(out.width % out.heads == 0, Code::model_format, config.where(), ": hidden_size ",
          out.width, " is not a multiple of num_attention_heads ", out.heads,
          ", and there is no head_dim");
    out.head_dim = out.width / out.heads;
    check(out.head_dim <= kMaxHeadDim, Code::unsupported, config.where(),
          ": heads of hidden_size / num_attention_heads = ", out.head_dim, " numbers; at most ",
          kMaxHeadDim, " are supported");
  }
  check(out.head_dim % 2 == 0, Code::unsupported, config.where(), ": head_dim ", out.head_dim,
        " is odd, and positions turn pairs");
}

// Whether some layers see only a window; `layers` from layer_types where it stands.
bool some_layer_slides(const Settings& config, const Family& family, int layers) {
  const json* types = config.find("layer_types");
  if (!types) {
    if (family.window == Window::all_layers) return true;
    return config.whole("max_window_layers", 0, kMaxPositions).value_or(28) < layers;
  }
  check(types->is_array() && types->size() == static_cast<size_t>(layers), Code::model_format,
        config.where(), ": layer_types must be a list of num_hidden_layers names");
  bool slides = family.window == Window::all_layers;
  for (const json& type : *types) {
    const std::string name = type.is_string() ? type.get<std::string>() : "";
    const bool sliding = name == "sliding_attention";
    check(sliding || name == "full_attention", Code::unsupported, config.where(),
          ": layer_types names ", shown(type), "; only full_attention and sliding_attention run");
    check(!sliding || family.window != Window::none, Code::unsupported, config.where(),
          ": layer_types names \"sliding_attention\", which ", family.architecture,
          " does not have");
    slides |= sliding;
  }
  return slides;
}

void read_window(const Settings& config, const Family& family, ModelConfig& out) {
  const bool slides = some_layer_slides(config, family, out.layers);
  // Qwen's configs carry a window that is switched off; transformers' default for both is 4096.
  const bool enabled =
      family.window == Window::all_layers ||
      (family.window == Window::by_layer && config.boolean("use_sliding_window").value_or(false));
  const bool says = config.object().contains("sliding_window");
  const auto window = config.whole("sliding_window", 1, kMaxPositions);
  if (!enabled || !slides || (says && !window)) return;
  out.sliding_window = static_cast<int>(window.value_or(4096));
  if (out.sliding_window < out.positions)
    out.notes.push_back("the context is capped at the sliding window of " +
                        std::to_string(out.sliding_window) + " tokens; the model has " +
                        std::to_string(out.positions) + " positions");
}

void read_positions(const Settings& config, const Family& family, ModelConfig& out) {
  out.positions = static_cast<int>(
      config.whole("max_position_embeddings", 1, kMaxPositions).value_or(family.positions));
  out.rope = read_rope(config, out.positions);
  if (out.rope.type != Rope::Type::yarn) return;
  // Many configs keep the original length there and leave the stretched one to the reader.
  const double stretched = std::floor(out.rope.original_positions * out.rope.factor);
  if (stretched <= out.positions) return;
  check(stretched <= kMaxPositions, Code::model_format, config.where(),
        ": yarn stretches the context to ", stretched, " positions");
  out.positions = static_cast<int>(stretched);
  out.notes.push_back("yarn stretches the context from " +
                      std::to_string(out.rope.original_positions) + " to " +
                      std::to_string(out.positions) + " positions");
}

void read_dtype(const Settings& config, const Checkpoint& checkpoint, ModelConfig& out) {
  auto name = config.text("dtype");
  if (!name) name = config.text("torch_dtype");
  if (!name) {
    const TensorInfo* embedding = checkpoint.find(std::string(out.embedding) + ".weight");
    name = embedding && embedding->dtype == "F16" ? "float16" : "bfloat16";
  }
  if (name->starts_with("torch.")) name->erase(0, 6);
  check(*name == "bfloat16" || *name == "float16" || *name == "float32", Code::unsupported,
        config.where(), ": the dtype ", quote(*name),
        " is not one of bfloat16, float16 and float32");
  out.dtype = *name == "float16" ? DType::f16 : DType::bf16;
  if (*name == "float32") out.notes.push_back("float32 weights are rounded to bfloat16");
}

// Adds the ids under `key`: a number, a list of them, or nothing.
void add_tokens(const Settings& settings, const char* key, int vocab, std::vector<int32_t>& out) {
  const json* value = settings.find(key);
  if (!value) return;
  const auto add = [&](const json& id) {
    check(id.is_number_integer(), Code::model_format, settings.where(), ": ", key,
          " must be a token id or a list of them, not ", shown(id));
    // Parsed numbers are unsigned, those that a program put there may be signed.
    const bool valid = id.is_number_unsigned()
                           ? id.get<uint64_t>() < static_cast<uint64_t>(vocab)
                           : id.get<int64_t>() >= 0 && id.get<int64_t>() < vocab;
    check(valid, Code::model_format, settings.where(), ": ", key, " ", shown(id),
          " is not a token of a vocabulary of ", vocab);
    const auto token = static_cast<int32_t>(id.get<int64_t>());
    if (std::find(out.begin(), out.end(), token) == out.end()) out.push_back(token);
  };
  if (!value->is_array()) return add(*value);
  check(value->size() <= 1024, Code::model_format, settings.where(), ": ", key, " lists ",
        value->size(), " tokens");
  for (const json& id : *value) add(id);
}

void read_tokens(const Settings& config, const Settings& generation, const Family& family,
                 ModelConfig& out) {
  const auto says = [&](const char* key) {
    return config.object().contains(key) || generation.object().contains(key);
  };
  for (const Settings* settings : {&config, &generation})
    add_tokens(*settings, "eos_token_id", out.vocab, out.end_tokens);
  if (!says("eos_token_id") && family.eos >= 0 && family.eos < out.vocab)
    out.end_tokens.push_back(family.eos);
  if (out.end_tokens.empty())
    out.notes.push_back("no eos_token_id: generation only stops at its limits");

  std::vector<int32_t> bos;
  for (const Settings* settings : {&config, &generation})
    add_tokens(*settings, "bos_token_id", out.vocab, bos);
  if (!bos.empty())
    out.bos = bos.front();
  else if (!says("bos_token_id") && family.bos < out.vocab)
    out.bos = family.bos;
}

// A head of its own may be stored in any format, under any name that starts with the head's.
void check_head(const Settings& config, const Checkpoint& checkpoint, const TensorNames& names) {
  const std::string head = names.head;
  if (!checkpoint.find(std::string(names.embedding) + ".weight")) return;
  for (const std::string& name : checkpoint.names())
    if (name.starts_with(head + ".")) return;
  fail(Code::model_format, checkpoint.where(), " has no ", head, ".weight, and ", config.where(),
       " does not set tie_word_embeddings to true; fetch the missing shard or correct the setting");
}

/// Whether two stored tensors are the same, byte for byte.
bool same_tensor(const Checkpoint& checkpoint, const std::string& a, const std::string& b) {
  const TensorInfo &first = checkpoint.need(a), &second = checkpoint.need(b);
  if (first.dtype != second.dtype || first.shape != second.shape) return false;
  std::vector<std::byte> x(size_t{1} << 20), y(x.size());
  for (size_t at = 0; at < first.bytes; at += x.size()) {
    const size_t n = std::min(x.size(), first.bytes - at);
    checkpoint.read_slice(a, {at, n}, std::span(x).first(n));
    checkpoint.read_slice(b, {at, n}, std::span(y).first(n));
    if (std::memcmp(x.data(), y.data(), n) != 0) return false;
  }
  return true;
}

/// Whether the embedding is the head, and under which name it is stored. As in transformers, a head
/// that is stored and differs counts even where config.json ties the two.
void read_tie(const Settings& config, const Checkpoint& checkpoint, const TensorNames& names,
              ModelConfig& out) {
  const std::string head = std::string(names.head) + ".weight",
                    embedding = std::string(names.embedding) + ".weight";
  out.embedding = names.embedding;
  if (!config.boolean("tie_word_embeddings").value_or(false))
    return check_head(config, checkpoint, names);
  const std::string says = config.where() + " says tie_word_embeddings=true, but ";
  for (const char* quantized : {".weight_packed", ".qweight", ".weight_scale"})
    if (checkpoint.find(names.head + std::string(quantized))) {
      out.notes.push_back(says + "a quantized " + names.head + " is stored; it is used");
      return;
    }
  out.tied_head = true;
  if (!checkpoint.find(head)) return;
  if (!checkpoint.find(embedding)) {
    out.embedding = names.head;
    return;
  }
  if (same_tensor(checkpoint, embedding, head)) return;
  out.tied_head = false;
  out.notes.push_back(says + head + " is stored and differs from " + embedding +
                      "; it is used, as transformers does");
}

}  // namespace

int ModelConfig::max_context() const {
  return sliding_window > 0 ? std::min(positions, sliding_window) : positions;
}

ModelConfig read_config(const Checkpoint& checkpoint) {
  return read_config(checkpoint, families());
}

ModelConfig read_layers_config(const Checkpoint& checkpoint, std::span<const Family> table) {
  const std::string where = checkpoint.where() + "/config.json";
  const Settings config(checkpoint.config(), where);
  const Family& family = family_of(config, table);
  refuse_unwritten(config, family);
  refuse_other_math(config, family);
  check_activation(config, family);

  ModelConfig out;
  out.family = &family, out.architecture = family.architecture;
  read_shape(config, family, out);
  read_biases(config, family, out);
  out.eps = config.real("rms_norm_eps", 0, 0.1).value_or(1e-6);
  read_positions(config, family, out);
  read_window(config, family, out);
  return out;
}

ModelConfig read_config(const Checkpoint& checkpoint, std::span<const Family> table) {
  const std::string where = checkpoint.where() + "/config.json";
  const std::string generation_where = checkpoint.where() + "/generation_config.json";
  const Settings config(checkpoint.config(), where);
  const Settings generation(checkpoint.generation(), generation_where);

  ModelConfig out = read_layers_config(checkpoint, table);
  read_tie(config, checkpoint, *out.family->names, out);
  read_dtype(config, checkpoint, out);
  read_tokens(config, generation, *out.family, out);
  if (std::string unused = unused_tensors(checkpoint, out); !unused.empty())
    out.notes.push_back(std::move(unused));
  return out;
}

}  // namespace stepladder
