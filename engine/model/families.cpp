// The families that run. They share one graph: grouped-query attention with rotary positions, a
// gated SiLU feed-forward layer, and RMS norms before both.
#include "model/families.h"

namespace stepladder {
namespace {

// Defaults are those of the configuration classes in Hugging Face transformers 5. All four untie
// the head unless told otherwise, and all have an epsilon of 1e-6.
constexpr Family kFamilies[] = {
    {"LlamaForCausalLM", "llama", Bias::attention_bias, Bias::attention_bias, Bias::mlp_bias, false,
     Window::none, 0, 0, 2048, 1, 2},
    {"MistralForCausalLM", "mistral", Bias::never, Bias::never, Bias::never, false,
     Window::all_layers, 0, 8, 131072, 1, 2},
    {"Qwen2ForCausalLM", "qwen2", Bias::always, Bias::never, Bias::never, false, Window::by_layer,
     0, 32, 32768, -1, -1},
    {"Qwen3ForCausalLM", "qwen3", Bias::attention_bias, Bias::attention_bias, Bias::never, true,
     Window::by_layer, 128, 32, 32768, -1, -1},
};

}  // namespace

const Family* find_family(std::string_view architecture) {
  for (const Family& family : kFamilies)
    if (architecture == family.architecture) return &family;
  return nullptr;
}

std::string family_names() {
  std::string out;
  for (const Family& family : kFamilies) {
    if (!out.empty()) out += ", ";
    out += family.architecture;
  }
  return out;
}

}  // namespace stepladder
