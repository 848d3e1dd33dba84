// What sets one model family apart from another, as data: each is a row of one table.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace stepladder {

/// Whether a linear layer has a bias: by the family, or by a key of config.json.
enum class Bias : uint8_t { never, always, attention_bias, mlp_bias };

/// Which layers attend only to a window: none, every one when sliding_window is set, or those that
/// layer_types or max_window_layers name when use_sliding_window is true.
enum class Window : uint8_t { none, all_layers, by_layer };

struct Family {
  const char* architecture;  // as config.json's architectures names it
  const char* model_type;
  Bias qkv, o, mlp;
  bool qk_norm;
  Window window;
  // What a key that config.json leaves out stands for.
  int head_dim;  // 0 = width / heads
  int kv_heads;  // 0 = heads
  int positions;
  int bos, eos;  // -1 = none
};

/// Null when there is no such family.
const Family* find_family(std::string_view architecture);
/// The architectures of the table, separated by commas.
std::string family_names();

}  // namespace stepladder
