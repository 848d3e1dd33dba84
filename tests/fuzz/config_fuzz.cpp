// Any text as config.json (up to a line of "---") and generation_config.json (after it): refused
// with a typed Error, or a model whose numbers are within the limits the engine counts on.
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "fuzz.h"
#include "io/checkpoint.h"
#include "model/config.h"

using namespace stepladder;

namespace {

// A checkpoint that is nothing but its two config files.
class TextCheckpoint final : public Checkpoint {
 public:
  explicit TextCheckpoint(std::string_view text) {
    constexpr std::string_view kBorder = "\n---\n";
    const size_t border = text.find(kBorder);
    config_ = parse_json(text.substr(0, border), "config.json");
    generation_ = border == text.npos
                      ? nlohmann::json::object()
                      : parse_json(text.substr(border + kBorder.size()), "generation_config.json");
  }
  const std::string& where() const override { return where_; }
  const nlohmann::json& config() const override { return config_; }
  const nlohmann::json& generation() const override { return generation_; }
  std::vector<std::string> names() const override { return {}; }
  const TensorInfo* find(std::string_view) const override { return nullptr; }
  void read_slice(std::string_view, const Slice&, std::span<std::byte>) const override {}

 private:
  std::string where_ = "fuzz";
  nlohmann::json config_, generation_;
};

void check_numbers(const ModelConfig& c) {
  using fuzz::require;
  require(c.layers > 0 && c.width > 0 && c.heads > 0 && c.kv_heads > 0 && c.ffn > 0 && c.vocab > 0,
          "sizes are positive");
  require(c.heads % c.kv_heads == 0, "heads share their keys evenly");
  require(c.head_dim > 0 && c.head_dim % 2 == 0 && c.head_dim <= 256, "heads turn in pairs");
  require(c.max_context() > 0 && c.max_context() <= c.positions, "the context is positive");
  require(std::isfinite(c.eps) && c.eps > 0, "eps is positive");
  for (int32_t token : c.end_tokens)
    require(token >= 0 && token < c.vocab, "end tokens are tokens");
  require(c.bos >= -1 && c.bos < c.vocab, "bos is a token");
  const RopeTable rope = rope_table(c);
  require(rope.inv_freq.size() == static_cast<size_t>(c.head_dim / 2), "a frequency a pair");
  for (double f : rope.inv_freq) require(std::isfinite(f) && f >= 0, "frequencies are finite");
  require(std::isfinite(rope.scale) && rope.scale > 0, "the attention factor is positive");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    check_numbers(read_config(TextCheckpoint({reinterpret_cast<const char*>(data), size})));
  } catch (const Error& e) {
    fuzz::require(e.code() == Code::model_format || e.code() == Code::unsupported,
                  "a bad config is a model_format or unsupported error");
    fuzz::require(std::string(e.what()).size() < 10000, "messages are short");
  }
  return 0;
}

std::vector<std::string> fuzz::seeds() {
  const std::string shape =
      R"("num_hidden_layers":2,"hidden_size":64,"num_attention_heads":4,"intermediate_size":128,)"
      R"("vocab_size":256,"rms_norm_eps":1e-05,"hidden_act":"silu",)";
  return {
      R"({"architectures":["LlamaForCausalLM"],"model_type":"llama",)" + shape +
          R"("num_key_value_heads":2,"rope_theta":500000.0,"max_position_embeddings":131072,)"
          R"("rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,)"
          R"("high_freq_factor":4.0,"original_max_position_embeddings":8192},"eos_token_id":[2,3],)"
          R"("attention_bias":false,"mlp_bias":true,"torch_dtype":"bfloat16"})"
          "\n---\n"
          R"({"eos_token_id":[2,9],"bos_token_id":1})",
      R"({"architectures":["MistralForCausalLM"],)" + shape +
          R"("num_key_value_heads":4,"head_dim":32,"sliding_window":4096,"torch_dtype":"float16",)"
          R"("rope_scaling":{"type":"linear","factor":2},"bos_token_id":1,"eos_token_id":2})",
      R"({"architectures":["Qwen2ForCausalLM"],)" + shape +
          R"("num_key_value_heads":1,"use_sliding_window":true,"max_window_layers":1,)"
          R"("sliding_window":128,"tie_word_embeddings":true,"rope_parameters":{"rope_theta":1e6,)"
          R"("rope_type":"yarn","factor":4.0,"original_max_position_embeddings":32768,)"
          R"("mscale":1,"mscale_all_dim":0.8,"beta_fast":32,"beta_slow":1,"truncate":false}})",
      R"({"architectures":["Qwen3ForCausalLM"],)" + shape +
          R"("num_key_value_heads":2,"head_dim":128,"attention_bias":true,"dtype":"float32",)"
          R"("layer_types":["full_attention","sliding_attention"],"use_sliding_window":true,)"
          R"("sliding_window":64,"rope_scaling":null})",
  };
}
