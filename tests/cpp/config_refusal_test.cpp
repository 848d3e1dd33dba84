// Malformed and unknown settings, one row a case: each is refused with the kind of error it is and
// a message that names file and setting.
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "model/config.h"
#include "support/configs.h"
#include "support/refusal.h"

namespace stepladder {
namespace {

using nlohmann::json;
using testing::expect_refused;
using testing::llama;
using testing::read;
using testing::small;
using testing::without;

struct Bad {
  const char* name;
  Code code;
  std::vector<std::string> mentions;
  json config;
  json generation = json::object();
};
void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.name; }

class BadConfig : public ::testing::TestWithParam<Bad> {};

TEST_P(BadConfig, IsRefused) {
  const Bad& bad = GetParam();
  expect_refused([&] { read(bad.config, bad.generation); }, bad.code, bad.mentions);
}

Bad wrong(const char* name, std::vector<std::string> mentions, const json& changes,
          const char* architecture = "LlamaForCausalLM") {
  mentions.push_back("DIR/config.json");
  return {name, Code::model_format, std::move(mentions), small(architecture, changes)};
}
Bad unknown(const char* name, std::vector<std::string> mentions, const json& changes,
            const char* architecture = "LlamaForCausalLM") {
  mentions.push_back("DIR/config.json");
  return {name, Code::unsupported, std::move(mentions), small(architecture, changes)};
}
Bad missing(const char* name, const char* key) {
  return {name, Code::model_format, {key, "missing", "DIR/config.json"}, without(llama(), key)};
}
json rope(const json& settings) { return {{"rope_scaling", settings}}; }

const double kNan = std::numeric_limits<double>::quiet_NaN();
const double kInfinity = std::numeric_limits<double>::infinity();

INSTANTIATE_TEST_SUITE_P(
    Shapes, BadConfig,
    ::testing::Values(
        missing("NoLayers", "num_hidden_layers"), missing("NoWidth", "hidden_size"),
        missing("NoHeads", "num_attention_heads"), missing("NoFfn", "intermediate_size"),
        missing("NoVocab", "vocab_size"),
        wrong("NullWidth", {"hidden_size"}, {{"hidden_size", nullptr}}),
        wrong("ZeroLayers", {"num_hidden_layers", "0"}, {{"num_hidden_layers", 0}}),
        wrong("NegativeLayers", {"num_hidden_layers", "-1"}, {{"num_hidden_layers", -1}}),
        wrong("HugeLayers", {"num_hidden_layers"}, {{"num_hidden_layers", 1'000'000}}),
        wrong("LayersOf2To64", {"num_hidden_layers", "18446744073709551615"},
              {{"num_hidden_layers", ~uint64_t{0}}}),
        wrong("HugeVocab", {"vocab_size", "2147483648"}, {{"vocab_size", int64_t{1} << 31}}),
        wrong("HugeWidth", {"hidden_size"}, {{"hidden_size", 1 << 30}}),
        wrong("TextWidth", {"hidden_size", "\"64\""}, {{"hidden_size", "64"}}),
        wrong("FractionalWidth", {"hidden_size", "64.5"}, {{"hidden_size", 64.5}}),
        wrong("TrueWidth", {"hidden_size", "true"}, {{"hidden_size", true}}),
        wrong("ListWidth", {"hidden_size", "list"}, {{"hidden_size", {64}}}),
        wrong("ZeroKvHeads", {"num_key_value_heads"}, {{"num_key_value_heads", 0}}),
        wrong("KvHeadsDoNotDivide", {"num_attention_heads", "num_key_value_heads", "3"},
              {{"num_key_value_heads", 3}}),
        wrong("MoreKvHeadsThanHeads", {"num_key_value_heads", "8"}, {{"num_key_value_heads", 8}}),
        wrong("HeadsDoNotDivideTheWidth", {"hidden_size", "66", "head_dim"}, {{"hidden_size", 66}}),
        unknown("OddHeadDim", {"head_dim", "15"}, {{"head_dim", 15}}),
        wrong("WideHeadDim", {"head_dim", "512"}, {{"head_dim", 512}}),
        unknown("WideDerivedHeadDim", {"hidden_size", "512"}, {{"hidden_size", 2048}}),
        wrong("ZeroEps", {"rms_norm_eps", "0"}, {{"rms_norm_eps", 0}}),
        wrong("NegativeEps", {"rms_norm_eps"}, {{"rms_norm_eps", -1e-5}}),
        wrong("NanEps", {"rms_norm_eps", "NaN"}, {{"rms_norm_eps", kNan}}),
        wrong("HugeEps", {"rms_norm_eps"}, {{"rms_norm_eps", 2.0}}),
        wrong("ZeroPositions", {"max_position_embeddings"}, {{"max_position_embeddings", 0}}),
        wrong("HugePositions", {"max_position_embeddings"},
              {{"max_position_embeddings", int64_t{1} << 40}}),
        wrong("TextTie", {"tie_word_embeddings", "\"yes\""}, {{"tie_word_embeddings", "yes"}}),
        wrong("ZeroWindow", {"sliding_window", "0"}, {{"sliding_window", 0}},
              "MistralForCausalLM")),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Unknown, BadConfig,
    ::testing::Values(
        Bad{"ConfigIsAList", Code::model_format, {"DIR/config.json"}, json::array()},
        Bad{"NoArchitecture",
            Code::model_format,
            {"architectures"},
            without(llama(), "architectures")},
        wrong("TwoArchitectures", {"architectures"},
              {{"architectures", {"LlamaForCausalLM", "MistralForCausalLM"}}}),
        wrong("ArchitectureIsANumber", {"architectures"}, {{"architectures", {5}}}),
        unknown("UnknownArchitecture", {"\"GemmaForCausalLM\"", "LlamaForCausalLM"},
                {{"architectures", {"GemmaForCausalLM"}}}),
        unknown("OtherModelType", {"model_type", "\"granite\"", "llama"},
                {{"model_type", "granite"}}),
        unknown("OtherActivation", {"hidden_act", "\"gelu\""}, {{"hidden_act", "gelu"}}),
        unknown("SoftCapping", {"final_logit_softcapping", "30"},
                {{"final_logit_softcapping", 30.0}}),
        unknown("Multiplier", {"embedding_multiplier", "12"}, {{"embedding_multiplier", 12}}),
        unknown("Experts", {"num_local_experts", "8"}, {{"num_local_experts", 8}}),
        unknown("PartialRotary", {"partial_rotary_factor", "0.5"},
                {{"partial_rotary_factor", 0.5}}),
        unknown("LayersWithoutRope", {"no_rope_layers"}, {{"no_rope_layers", {1, 0}}}),
        unknown("BiasMistralLacks", {"attention_bias", "MistralForCausalLM"},
                {{"attention_bias", true}}, "MistralForCausalLM"),
        unknown("MlpBiasQwenLacks", {"mlp_bias", "Qwen2ForCausalLM"}, {{"mlp_bias", true}},
                "Qwen2ForCausalLM"),
        unknown("NormLlamaLacks", {"use_qk_norm"}, {{"use_qk_norm", true}}),
        unknown("ChunkedLayers", {"\"chunked_attention\""},
                {{"layer_types", {"full_attention", "chunked_attention"}}}),
        unknown("SlidingLayersLlamaLacks", {"\"sliding_attention\""},
                {{"layer_types", {"full_attention", "sliding_attention"}}}),
        wrong("LayerTypesOfAnotherLength", {"layer_types"}, {{"layer_types", {"full_attention"}}}),
        unknown("LayerTypeIsANumber", {"layer_types", "5"}, {{"layer_types", {5, 5}}}),
        unknown("OtherDtype", {"\"float8_e4m3fn\""}, {{"torch_dtype", "float8_e4m3fn"}})),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    RopeSettings, BadConfig,
    ::testing::Values(
        unknown("Dynamic", {"\"dynamic\""}, rope({{"type", "dynamic"}, {"factor", 2.0}})),
        unknown("LongRope", {"\"longrope\""}, rope({{"rope_type", "longrope"}})),
        unknown("UnknownType", {"\"spiral\""}, rope({{"rope_type", "spiral"}, {"factor", 2.0}})),
        unknown("UnknownKey", {"\"mrope_section\""},
                rope({{"rope_type", "default"}, {"mrope_section", {1, 2}}})),
        unknown("PerLayerType", {"\"full_attention\""},
                {{"rope_parameters", {{"full_attention", {{"rope_type", "default"}}}}}}),
        unknown("PartialRotaryInside", {"partial_rotary_factor"},
                rope({{"rope_type", "default"}, {"partial_rotary_factor", 0.25}})),
        wrong("TypeIsANumber", {"rope_type"}, rope({{"rope_type", 3}})),
        wrong("NotAnObject", {"rope_scaling"}, rope("linear")),
        wrong("NoFactor", {"factor", "missing"}, rope({{"type", "linear"}})),
        wrong("ZeroFactor", {"factor", "0"}, rope({{"type", "linear"}, {"factor", 0}})),
        wrong("NegativeFactor", {"factor"}, rope({{"type", "linear"}, {"factor", -2.0}})),
        wrong("NanFactor", {"factor", "NaN"}, rope({{"type", "yarn"}, {"factor", kNan}})),
        wrong("InfiniteFactor", {"factor"}, rope({{"type", "linear"}, {"factor", kInfinity}})),
        wrong("TextFactor", {"factor", "\"2\""}, rope({{"type", "linear"}, {"factor", "2"}})),
        wrong("Llama3WithoutItsFrequencies", {"low_freq_factor"},
              rope({{"type", "llama3"}, {"factor", 8.0}})),
        wrong("Llama3FrequenciesEqual", {"high_freq_factor", "low_freq_factor"},
              rope({{"type", "llama3"},
                    {"factor", 8.0},
                    {"low_freq_factor", 4},
                    {"high_freq_factor", 4}})),
        wrong("OriginalIsZero", {"original_max_position_embeddings"},
              rope({{"type", "yarn"}, {"factor", 2.0}, {"original_max_position_embeddings", 0}})),
        wrong("BetasReversed", {"beta_fast", "beta_slow"},
              rope({{"type", "yarn"}, {"factor", 2.0}, {"beta_fast", 1}, {"beta_slow", 32}})),
        wrong("NegativeAttentionFactor", {"attention_factor"},
              rope({{"type", "yarn"}, {"factor", 2.0}, {"attention_factor", -1.0}})),
        wrong("StretchedBeyondReason", {"yarn"}, rope({{"type", "yarn"}, {"factor", 1e6}})),
        wrong("ZeroTheta", {"rope_theta"}, {{"rope_theta", 0}}),
        wrong("NegativeTheta", {"rope_theta"}, {{"rope_theta", -1e4}}),
        wrong("ThetaOne", {"rope_theta"}, {{"rope_theta", 1.0}}),
        wrong("TwoSpellingsDiffer", {"rope_parameters", "rope_scaling"},
              {{"rope_scaling", {{"type", "linear"}, {"factor", 2.0}}},
               {"rope_parameters", {{"rope_type", "linear"}, {"factor", 4.0}}}})),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Tokens, BadConfig,
    ::testing::Values(
        wrong("EndBeyondTheVocabulary", {"eos_token_id", "1000"}, {{"eos_token_id", 1000}}),
        wrong("EndBelowZero", {"eos_token_id", "-1"}, {{"eos_token_id", -1}}),
        wrong("EndIsText", {"eos_token_id", "\"</s>\""}, {{"eos_token_id", "</s>"}}),
        wrong("EndIsTrue", {"eos_token_id", "true"}, {{"eos_token_id", true}}),
        wrong("EndInAList", {"eos_token_id", "5000"}, {{"eos_token_id", {2, 5000}}}),
        wrong("EndInAListInAList", {"eos_token_id", "list"}, {{"eos_token_id", {{2}}}}),
        wrong("ManyEnds", {"eos_token_id", "2000"}, {{"eos_token_id", std::vector<int>(2000, 1)}}),
        wrong("EndOf2To64", {"eos_token_id"}, {{"eos_token_id", ~uint64_t{0}}}),
        wrong("BosBeyondTheVocabulary", {"bos_token_id", "1000"}, {{"bos_token_id", 1000}}),
        Bad{"EndOfGenerationConfig",
            Code::model_format,
            {"DIR/generation_config.json", "eos_token_id", "70000"},
            llama(),
            {{"eos_token_id", {2, 70000}}}},
        Bad{"GenerationConfigIsAList",
            Code::model_format,
            {"DIR/generation_config.json"},
            llama(),
            json::array()}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace stepladder
