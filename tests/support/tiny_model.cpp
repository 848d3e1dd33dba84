// Random weights, and the checkpoint layouts they are stored in.
#include "support/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <numbers>
#include <ostream>

#include "core/dtype.h"
#include "core/error.h"
#include "formats/linear.h"
#include "support/safetensors_writer.h"

namespace stepladder {

uint64_t TestRandom::next() {
  uint64_t z = state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

double TestRandom::normal() {
  const double u = 1 - uniform(), v = uniform();
  return std::sqrt(-2 * std::log(u)) * std::cos(2 * std::numbers::pi * v);
}

void PrintTo(const TinySpec& spec, std::ostream* out) { *out << spec.label(); }

std::string TinySpec::label() const {
  return family + "/" + format + (tied ? "/tied" : "") + (mlp_bias ? "/mlp_bias" : "") +
         (rope.empty() ? "" : "/" + rope);
}

namespace {

using nlohmann::json;

/// Adds tensors of one model to a checkpoint, each from its own stream of random numbers.
class Maker {
 public:
  Maker(const TinySpec& spec, MemoryCheckpoint& out)
      : spec_(spec), out_(out), half_(spec.format == "f16") {}

  void make() {
    const int q = spec_.heads * spec_.head_dim, kv = spec_.kv_heads * spec_.head_dim;
    const bool qwen2 = spec_.family == "qwen2", qwen3 = spec_.family == "qwen3";
    // Logits of a unit-norm state spread with deviation 3, tied or not.
    const double head = 3.0 / std::sqrt(double(spec_.width));
    dense("model.embed_tokens.weight", random(size_t(spec_.vocab) * spec_.width, head),
          {spec_.vocab, spec_.width});
    if (!spec_.tied)
      dense("lm_head.weight", random(size_t(spec_.vocab) * spec_.width, head),
            {spec_.vocab, spec_.width});
    norm("model.norm.weight", spec_.width);
    for (int i = 0; i < spec_.layers; ++i) {
      const std::string p = "model.layers." + std::to_string(i) + ".";
      norm(p + "input_layernorm.weight", spec_.width);
      norm(p + "post_attention_layernorm.weight", spec_.width);
      // Queries and keys are large enough for attention to look at few tokens, and the layers'
      // outputs for the text to depend on them more than on its last token.
      linear(p + "self_attn.q_proj", q, spec_.width, 1.4);
      linear(p + "self_attn.k_proj", kv, spec_.width, 1.4);
      linear(p + "self_attn.v_proj", kv, spec_.width, 1.2);
      linear(p + "self_attn.o_proj", spec_.width, q, 1.2);
      linear(p + "mlp.gate_proj", spec_.ffn, spec_.width, 1.2);
      linear(p + "mlp.up_proj", spec_.ffn, spec_.width, 1.2);
      linear(p + "mlp.down_proj", spec_.width, spec_.ffn, 1.2);
      if (qwen2) {
        dense(p + "self_attn.q_proj.bias", random(q, 0.3), {q});
        dense(p + "self_attn.k_proj.bias", random(kv, 0.3), {kv});
        dense(p + "self_attn.v_proj.bias", random(kv, 0.3), {kv});
      }
      if (spec_.mlp_bias) {
        dense(p + "mlp.gate_proj.bias", random(spec_.ffn, 0.3), {spec_.ffn});
        dense(p + "mlp.up_proj.bias", random(spec_.ffn, 0.3), {spec_.ffn});
        dense(p + "mlp.down_proj.bias", random(spec_.width, 0.3), {spec_.width});
      }
      if (qwen3) {
        norm(p + "self_attn.q_norm.weight", spec_.head_dim, 1.3);
        norm(p + "self_attn.k_norm.weight", spec_.head_dim, 1.3);
      }
    }
  }

 private:
  std::vector<float> random(size_t n, double deviation) {
    TestRandom random(spec_.seed * 0x10001 + ++tensors_);
    std::vector<float> out(n);
    for (float& x : out) {
      const float value = static_cast<float>(random.normal() * deviation);
      x = half_ ? from_f16(to_f16(value)) : from_bf16(to_bf16(value));
    }
    return out;
  }
  void dense(const std::string& name, const std::vector<float>& values,
             std::vector<int64_t> shape) {
    std::vector<uint16_t> codes(values.size());
    for (size_t i = 0; i < codes.size(); ++i)
      codes[i] = half_ ? to_f16(values[i]) : to_bf16(values[i]);
    out_.add(name, half_ ? "F16" : "BF16", std::move(shape), codes);
  }
  void norm(const std::string& name, int width, double mean = 1.0) {
    std::vector<float> values = random(width, 0.2);
    for (float& x : values) x = from_bf16(to_bf16(x + static_cast<float>(mean)));
    dense(name, values, {width});
  }
  void linear(const std::string& prefix, int n, int k, double gain);
  void gptq(const std::string& prefix, const CanonicalWeight&, int zero);
  /// Codes a byte each, and beside them in f32 whatever else the descriptor asks for.
  void plain(const std::string& prefix, const CanonicalWeight&);
  /// int32 words along k, code + bias in `width` bits each, the first in the lowest.
  void packed(const std::string& prefix, const CanonicalWeight&, int width, int bias);
  std::vector<uint16_t> bf16_scales(const CanonicalWeight& w) {
    std::vector<uint16_t> out(w.scales.size());
    for (size_t i = 0; i < out.size(); ++i) out[i] = to_bf16(w.scales[i]);
    return out;
  }

  const TinySpec& spec_;
  MemoryCheckpoint& out_;
  bool half_;
  uint64_t tensors_ = 0;
};

void Maker::linear(const std::string& prefix, int n, int k, double gain) {
  const std::vector<float> values = random(size_t(n) * k, gain / std::sqrt(double(k)));
  const std::string& f = spec_.format;
  if (f == "bf16" || f == "f16") return dense(prefix + ".weight", values, {n, k});
  const std::string name = f.substr(0, f.find(':'));
  const CanonicalWeight w =
      format_named(name).cast(values, n, k, name == "w4a16" ? spec_.group : 0);
  const int64_t groups = w.desc.groups(k);
  if (f == "w4a16" || f == "w4a16:act-order") return gptq(prefix, w, 7);
  if (f == "w4a16:v2") return gptq(prefix, w, 8);
  if (f == "w4a16:packed") {
    packed(prefix, w, 4, 8);
    return out_.add(prefix + ".weight_scale", "BF16", {n, groups}, bf16_scales(w));
  }
  if (f == "w8a16" || f == "w8a8") {
    out_.add(prefix + ".weight", "I8", {n, k}, w.codes);
    return out_.add(prefix + ".weight_scale", "BF16", {n, 1}, bf16_scales(w));
  }
  if (f != "mxfp4") return plain(prefix, w);
  std::vector<uint8_t> bytes(w.codes.size() / 2), scales(w.scales.size());
  for (size_t i = 0; i < bytes.size(); ++i)
    bytes[i] = static_cast<uint8_t>((w.codes[2 * i] & 15) | (w.codes[2 * i + 1] & 15) << 4);
  for (size_t i = 0; i < scales.size(); ++i)
    scales[i] = static_cast<uint8_t>(std::ilogb(w.scales[i]) + 127);
  out_.add(prefix + ".weight_packed", "U8", {n, k / 2}, bytes);
  out_.add(prefix + ".weight_scale", "U8", {n, groups}, scales);
}

void Maker::plain(const std::string& prefix, const CanonicalWeight& w) {
  const int64_t groups = w.desc.groups(w.k);
  out_.add(prefix + ".weight", "I8", {w.n, w.k}, w.codes);
  out_.add(prefix + ".weight_scale", "F32", {w.n, groups}, w.scales);
  if (w.desc.offset) out_.add(prefix + ".weight_offset", "F32", {w.n, groups}, w.offsets);
  if (w.desc.two_level) out_.add(prefix + ".weight_channel", "F32", {w.n}, w.channels);
}

void Maker::packed(const std::string& prefix, const CanonicalWeight& w, int width, int bias) {
  const int per_word = 32 / width;
  std::vector<int32_t> words(size_t(w.n) * w.k / per_word);
  for (size_t i = 0; i < words.size(); ++i) {
    uint32_t word = 0;
    for (int j = 0; j < per_word; ++j)
      word |= static_cast<uint32_t>(w.codes[i * per_word + j] + bias) << (width * j);
    words[i] = static_cast<int32_t>(word);
  }
  out_.add(prefix + ".weight_packed", "I32", {w.n, w.k / per_word}, words);
  out_.add(prefix + ".weight_shape", "I64", {2}, std::vector<int64_t>{w.n, w.k});
}

void Maker::gptq(const std::string& prefix, const CanonicalWeight& w, int zero) {
  const int group = w.desc.group, groups = w.desc.groups(w.k);
  // With static groups the order of activation decided only how the codes were found: every row
  // of k still belongs to group k / group_size.
  std::vector<int32_t> g_idx(w.k);
  for (int k = 0; k < w.k; ++k) g_idx[k] = k / group;
  std::vector<int32_t> qweight(size_t(w.k) / 8 * w.n);
  for (int row = 0; row < w.k / 8; ++row)
    for (int n = 0; n < w.n; ++n) {
      uint32_t word = 0;
      for (int j = 0; j < 8; ++j)
        word |= static_cast<uint32_t>(w.codes[size_t(n) * w.k + row * 8 + j] + 8) << (4 * j);
      qweight[size_t(row) * w.n + n] = static_cast<int32_t>(word);
    }
  std::vector<uint16_t> scales(size_t(groups) * w.n);
  for (int g = 0; g < groups; ++g)
    for (int n = 0; n < w.n; ++n)
      scales[size_t(g) * w.n + n] = to_f16(w.scales[size_t(n) * groups + g]);
  const uint32_t zeros = 0x11111111u * static_cast<uint32_t>(zero);
  out_.add(prefix + ".qweight", "I32", {w.k / 8, w.n}, qweight);
  out_.add(prefix + ".qzeros", "I32", {groups, w.n / 8},
           std::vector<int32_t>(size_t(groups) * w.n / 8, static_cast<int32_t>(zeros)));
  out_.add(prefix + ".scales", "F16", {groups, w.n}, scales);
  out_.add(prefix + ".g_idx", "I32", {w.k}, g_idx);
}

// Formats that hold their weights in files of a known layout.
constexpr const char* kStored[] = {"bf16",         "f16",  "w4a16", "w4a16:v2", "w4a16:act-order",
                                   "w4a16:packed", "w8a8", "w8a16", "mxfp4"};

json quantization_config(const TinySpec& spec) {
  const std::string& f = spec.format;
  if (std::find(std::begin(kStored), std::end(kStored), f) == std::end(kStored))
    return {{"quant_method", f}};
  if (f == "w4a16" || f == "w4a16:v2" || f == "w4a16:act-order") {
    return {{"quant_method", "gptq"},
            {"bits", 4},
            {"group_size", spec.group},
            {"sym", true},
            {"desc_act", f == "w4a16:act-order"},
            {"static_groups", f == "w4a16:act-order"},
            {"lm_head", false},
            {"checkpoint_format", f == "w4a16:v2" ? "gptq_v2" : "gptq"}};
  }
  json weights = {{"num_bits", 8},         {"type", "int"},    {"symmetric", true},
                  {"strategy", "channel"}, {"dynamic", false}, {"group_size", nullptr}};
  json group = {{"targets", {"Linear"}}, {"input_activations", nullptr}};
  std::string layout = "int-quantized";
  if (f == "w4a16:packed") {
    weights["num_bits"] = 4, weights["strategy"] = "group", weights["group_size"] = spec.group;
    layout = "pack-quantized";
  } else if (f == "mxfp4") {
    weights["num_bits"] = 4, weights["type"] = "float", weights["strategy"] = "group";
    weights["group_size"] = 32, weights["scale_dtype"] = "torch.uint8";
    layout = "mxfp4-pack-quantized";
  } else if (f == "w8a8") {
    group["input_activations"] = {{"num_bits", 8},
                                  {"type", "int"},
                                  {"symmetric", true},
                                  {"strategy", "token"},
                                  {"dynamic", true}};
  }
  group["weights"] = weights;
  group["format"] = layout;
  return {{"quant_method", "compressed-tensors"},
          {"format", layout},
          {"quantization_status", "compressed"},
          {"ignore", {"lm_head"}},
          {"config_groups", {{"group_0", group}}}};
}

json tiny_config(const TinySpec& s) {
  static const std::map<std::string, std::pair<const char*, const char*>> kFamilies = {
      {"llama", {"LlamaForCausalLM", "llama"}},
      {"llama3", {"LlamaForCausalLM", "llama"}},
      {"mistral", {"MistralForCausalLM", "mistral"}},
      {"qwen2", {"Qwen2ForCausalLM", "qwen2"}},
      {"qwen3", {"Qwen3ForCausalLM", "qwen3"}}};
  const auto family = kFamilies.find(s.family);
  check(family != kFamilies.end(), Code::internal, "tiny model: no family ", s.family);
  json c = {{"architectures", {family->second.first}},
            {"model_type", family->second.second},
            {"hidden_act", "silu"},
            {"hidden_size", s.width},
            {"intermediate_size", s.ffn},
            {"num_hidden_layers", s.layers},
            {"num_attention_heads", s.heads},
            {"num_key_value_heads", s.kv_heads},
            {"vocab_size", s.vocab},
            {"max_position_embeddings", s.positions},
            {"rms_norm_eps", 1e-5},
            {"rope_theta", s.family == "llama3" ? 500000.0 : 10000.0},
            {"tie_word_embeddings", s.tied},
            {"bos_token_id", 1},
            {"eos_token_id", 2},
            {"torch_dtype", s.format == "f16" ? "float16" : "bfloat16"}};
  if (s.head_dim * s.heads != s.width || s.family == "qwen3") c["head_dim"] = s.head_dim;
  if (s.mlp_bias) c["mlp_bias"] = true;
  if (s.family == "qwen2") c["use_sliding_window"] = false;
  if (s.family == "qwen3") c["attention_bias"] = false;
  if (s.family == "mistral") c["sliding_window"] = nullptr;
  if (s.family == "llama3")
    c["rope_scaling"] = {{"rope_type", "llama3"},
                         {"factor", 8.0},
                         {"low_freq_factor", 1.0},
                         {"high_freq_factor", 4.0},
                         {"original_max_position_embeddings", 64}};
  if (s.rope == "linear") c["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 4.0}};
  if (s.rope == "yarn")
    c["rope_scaling"] = {{"rope_type", "yarn"},
                         {"factor", 4.0},
                         {"original_max_position_embeddings", std::max(32, s.positions / 4)}};
  if (s.format != "bf16" && s.format != "f16") c["quantization_config"] = quantization_config(s);
  return c;
}

}  // namespace

MemoryCheckpoint tiny_checkpoint(const TinySpec& spec) {
  // Through text, as a file would be: numbers then have the types a parser gives them.
  MemoryCheckpoint out(json::parse(tiny_config(spec).dump()), "tiny " + spec.label());
  out.generation() = json::parse(R"({"bos_token_id": 1, "eos_token_id": [2]})");
  Maker(spec, out).make();
  return out;
}

void write_checkpoint(const MemoryCheckpoint& checkpoint, const std::string& directory) {
  std::vector<testing::NamedTensor> tensors;
  for (const std::string& name : checkpoint.names()) {
    const TensorInfo& info = checkpoint.need(name);
    std::string bytes(info.bytes, '\0');
    checkpoint.read(name, std::as_writable_bytes(std::span(bytes)));
    tensors.push_back({name, info.dtype, info.shape, std::move(bytes)});
  }
  testing::write_model(directory, checkpoint.config(), tensors);
  testing::write_file(directory + "/generation_config.json", checkpoint.generation().dump(2));
}

void write_tiny_checkpoint(const TinySpec& spec, const std::string& directory) {
  write_checkpoint(tiny_checkpoint(spec), directory);
  testing::write_tokenizer(directory, spec.vocab);
}

std::vector<TinySpec> tiny_families() {
  const auto spec = [](const char* family, uint64_t seed) {
    TinySpec s;
    s.family = family, s.seed = seed;
    return s;
  };
  std::vector<TinySpec> out = {spec("llama", 11), spec("llama3", 12), spec("mistral", 13),
                               spec("qwen2", 14), spec("qwen3", 15),  spec("llama", 16),
                               spec("qwen2", 17), spec("llama", 18),  spec("llama", 19)};
  TinySpec& smol = out[0];  // SmolLM2's proportions: an odd number of heads, a tied head
  smol.heads = 3, smol.kv_heads = 1, smol.width = 96, smol.ffn = 160, smol.tied = true;
  smol.layers = 3;
  TinySpec& mistral = out[2];
  mistral.heads = 2, mistral.kv_heads = 1, mistral.head_dim = 128, mistral.width = 192;
  mistral.vocab = 512, mistral.ffn = 384;
  TinySpec& qwen2 = out[3];
  qwen2.heads = 4, qwen2.kv_heads = 1, qwen2.head_dim = 32, qwen2.tied = true;
  TinySpec& qwen3 = out[4];  // heads * head_dim is not the width
  qwen3.heads = 4, qwen3.kv_heads = 2, qwen3.head_dim = 64, qwen3.width = 160, qwen3.vocab = 301;
  TinySpec& linear = out[5];
  linear.rope = "linear", linear.head_dim = 16, linear.width = 64;
  linear.heads = 7, linear.kv_heads = 1;  // Qwen2-0.5B's share of queries a key
  TinySpec& yarn = out[6];
  yarn.rope = "yarn", yarn.layers = 3;
  TinySpec& half = out[7];
  half.format = "f16", half.vocab = 333;
  TinySpec& biased = out[8];  // biases in the feed-forward layers, none of the head, which is tied
  biased.mlp_bias = biased.tied = true;
  return out;
}

std::vector<TinySpec> tiny_formats() {
  std::vector<TinySpec> out;
  const auto spec = [](const char* format) {
    TinySpec s;
    s.format = format, s.seed = 21;
    return s;
  };
  for (const char* format : kStored) out.push_back(spec(format));
  for (const WeightFormat* f : formats()) {  // that read what plain() writes
    if (!f->cast || std::string(f->name) == "dense") continue;
    if (std::find(std::begin(kStored), std::end(kStored), std::string(f->name)) !=
        std::end(kStored))
      continue;
    if (f->recognises(tiny_checkpoint(spec(f->name)), "model.layers.0.mlp.down_proj"))
      out.push_back(spec(f->name));
  }
  return out;
}

bool also_a8(const TinySpec& spec) {
  if (spec.format == "bf16" || spec.format == "f16") return false;
  const auto modes = format_named(spec.format.substr(0, spec.format.find(':'))).acts;
  return modes[0].act == Act::a16 &&
         std::any_of(modes.begin(), modes.end(), [](ActMode m) { return m.act == Act::a8; });
}

}  // namespace stepladder
