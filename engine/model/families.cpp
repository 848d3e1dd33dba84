// The families that run. They share one graph: grouped-query attention with rotary positions, a
// gated feed-forward layer, and RMS norms before both.
#include "model/families.h"

namespace stepladder {
namespace {

// Settings of relatives of these families that change the result.
constexpr RefusedKey kRelatives[] = {
    {"attention_chunk_size", 0},
    {"attention_multiplier", 0},
    {"attn_logit_softcapping", 0},
    {"final_logit_softcapping", 0},
    {"logit_softcapping", 0},
    {"query_pre_attn_scalar", 0},
    {"clip_qkv", 0},
    {"alibi", 0},
    {"num_local_experts", 0},
    {"num_experts", 0},
    {"n_routed_experts", 0},
    {"is_encoder_decoder", 0},
    {"add_cross_attention", 0},
    {"use_parallel_residual", 0},
    {"parallel_attn", 0},
    {"embedding_multiplier", 1},
    {"residual_multiplier", 1},
    {"logits_scaling", 1},
    {"logit_scale", 1},
    {"scale_emb", 1},
    {"partial_rotary_factor", 1},
    {"rotary_pct", 1},
    {"no_rope_layers", 0},
    {"no_rope_layer_interval", 0},
    {"qk_layernorm", 0},
    {"use_mrope", 0},
};

// Defaults are those of the configuration classes in Hugging Face transformers 5. All four untie
// the head unless told otherwise, and all have an epsilon of 1e-6.
constexpr Family kFamilies[] = {
    {.architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .qkv = Bias::attention_bias,
     .o = Bias::attention_bias,
     .mlp = Bias::mlp_bias,
     .positions = 2048,
     .bos = 1,
     .eos = 2,
     .refused = kRelatives,
     .names = &kHuggingFace},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .qkv = Bias::never,
     .o = Bias::never,
     .mlp = Bias::never,
     .window = Window::all_layers,
     .kv_heads = 8,
     .positions = 131072,
     .bos = 1,
     .eos = 2,
     .refused = kRelatives,
     .names = &kHuggingFace},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .qkv = Bias::always,
     .o = Bias::never,
     .mlp = Bias::never,
     .window = Window::by_layer,
     .kv_heads = 32,
     .positions = 32768,
     .refused = kRelatives,
     .names = &kHuggingFace},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .qkv = Bias::attention_bias,
     .o = Bias::attention_bias,
     .mlp = Bias::never,
     .qk_norm = true,
     .window = Window::by_layer,
     .head_dim = 128,
     .kv_heads = 32,
     .positions = 32768,
     .refused = kRelatives,
     .names = &kHuggingFace},
};

}  // namespace

std::string TensorNames::of_layer(int layer, const char* name) const {
  return layers + std::to_string(layer) + "." + name;
}

std::span<const Family> families() { return kFamilies; }

std::span<const char* const> activation_names(Activation activation) {
  static constexpr const char* kSilu[] = {"silu", "swish"};
  static constexpr const char* kGelu[] = {"gelu_pytorch_tanh", "gelu_new"};
  if (activation == Activation::gelu_tanh) return kGelu;
  return kSilu;
}

const Family* find_family(std::span<const Family> table, std::string_view architecture) {
  for (const Family& family : table)
    if (architecture == family.architecture) return &family;
  return nullptr;
}

std::string family_names(std::span<const Family> table) {
  std::string out;
  for (const Family& family : table) {
    if (!out.empty()) out += ", ";
    out += family.architecture;
  }
  return out;
}

}  // namespace stepladder
