// A model's numbers, and the families that say how to read them.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "core/dtype.h"
#include "io/checkpoint.h"
#include "model/families.h"

namespace stepladder {

/// Rotary position embedding; scaling types as Hugging Face config.json spells them.
struct Rope {
  double theta = 10000;
  enum class Type { plain, linear, llama3, yarn } type = Type::plain;
  double factor = 1, low_freq_factor = 1, high_freq_factor = 4;  // llama3
  double beta_fast = 32, beta_slow = 1, attention_factor = 0, mscale = 0,
         mscale_all_dim = 0;  // yarn
  bool truncate = true;       // yarn
  int original_positions = 0;
};

struct ModelConfig {
  const Family* family = nullptr;  // its row of the table
  std::string architecture;        // "LlamaForCausalLM", ...
  int layers = 0, width = 0, heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  int vocab = 0;           // rows of the embedding; padded rows may follow the tokenizer's own
  int positions = 0;       // max_position_embeddings
  int sliding_window = 0;  // 0 = none; caps the context
  double eps = 1e-5;
  Rope rope;
  const char* embedding = "";  // under which name the embedding is stored, without ".weight"
  bool tied_head = false;      // the embedding is the head, and no other is stored
  bool qkv_bias = false, o_bias = false, mlp_bias = false, qk_norm = false;
  DType dtype = DType::bf16;        // of activations and cache: the checkpoint's 16-bit type
  std::vector<int32_t> end_tokens;  // union of config.json and generation_config.json
  int bos = -1;
  std::vector<std::string> notes;

  /// The longest context the model can serve: positions, capped by a sliding window.
  int max_context() const;
};

/// Reads config.json and generation_config.json. Throws Error(unsupported) naming the architecture
/// or setting it does not know, Error(model_format) naming what is missing or impossible.
ModelConfig read_config(const Checkpoint&);
/// The same over another table, which must outlive what is read. What a row says and no kernel
/// computes is refused by name.
ModelConfig read_config(const Checkpoint&, std::span<const Family>);

/// What of it says how the layers are made: shapes, biases, eps, positions. For a checkpoint that
/// has layers and neither head nor tokens of its own.
ModelConfig read_layers_config(const Checkpoint&, std::span<const Family>);

/// inv_freq of each rotated pair and the factor on cos and sin. HF modeling_rope_utils semantics.
struct RopeTable {
  std::vector<double> inv_freq;  // [head_dim / 2]
  double scale = 1;
};
RopeTable rope_table(const ModelConfig&);
/// cos and sin of every position and pair: [positions, head_dim / 2, 2].
std::vector<float> rope_values(const ModelConfig&, int positions);

}  // namespace stepladder
