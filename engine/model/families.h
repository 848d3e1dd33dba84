// What sets one model family apart from another, as data: each is a row of one table.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

namespace stepladder {

/// Whether a linear layer has a bias: by the family, or by a key of config.json.
enum class Bias : uint8_t { never, always, attention_bias, mlp_bias };

/// Which layers attend only to a window: none, every one when sliding_window is set, or those that
/// layer_types or max_window_layers name when use_sliding_window is true.
enum class Window : uint8_t { none, all_layers, by_layer };

/// What the gate of a feed-forward layer goes through.
enum class Activation : uint8_t { silu, gelu_tanh };

/// What the rows of the embedding are multiplied with.
enum class EmbeddingScale : uint8_t { one, root_of_width };

/// A key of config.json that would change the result, and the value that does not; false, null and
/// an empty list never do.
struct RefusedKey {
  const char* key;
  double neutral;
};

/// How the tensors are called, without ".weight" and ".bias".
struct TensorNames {
  const char *embedding, *final_norm, *head;
  const char* layers;  // then a layer's number, a dot, and one of these:
  const char *attention_norm, *ffn_norm, *q_norm, *k_norm;
  const char *q, *k, *v, *o, *gate, *up, *down;

  std::string of_layer(int layer, const char* name) const;
};
/// As transformers writes them.
inline constexpr TensorNames kHuggingFace = {.embedding = "model.embed_tokens",
                                             .final_norm = "model.norm",
                                             .head = "lm_head",
                                             .layers = "model.layers.",
                                             .attention_norm = "input_layernorm",
                                             .ffn_norm = "post_attention_layernorm",
                                             .q_norm = "self_attn.q_norm",
                                             .k_norm = "self_attn.k_norm",
                                             .q = "self_attn.q_proj",
                                             .k = "self_attn.k_proj",
                                             .v = "self_attn.v_proj",
                                             .o = "self_attn.o_proj",
                                             .gate = "mlp.gate_proj",
                                             .up = "mlp.up_proj",
                                             .down = "mlp.down_proj"};

struct Family {
  const char* architecture;  // as config.json's architectures names it
  const char* model_type;
  Bias qkv, o, mlp;
  bool qk_norm = false;
  bool post_norms = false;  // what a layer adds to the residual is normalized first
  Activation activation = Activation::silu;
  const char* activation_key = "hidden_act";
  EmbeddingScale embedding_scale = EmbeddingScale::one;
  Window window = Window::none;
  // What a key that config.json leaves out stands for.
  int head_dim = 0;  // 0 = width / heads
  int kv_heads = 0;  // 0 = heads
  int positions;
  int bos = -1, eos = -1;  // -1 = none
  std::span<const RefusedKey> refused;
  const TensorNames* names;
};

/// The table.
std::span<const Family> families();
/// How config.json may call the activation, the usual name first.
std::span<const char* const> activation_names(Activation);
/// Null when there is no such family.
const Family* find_family(std::span<const Family>, std::string_view architecture);
/// The architectures, separated by commas.
std::string family_names(std::span<const Family>);

}  // namespace stepladder
