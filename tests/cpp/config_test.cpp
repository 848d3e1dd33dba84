// Reading a model's numbers: every family's defaults, the settings that are honoured, and rotary
// frequencies against formulas written elsewhere.
#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>
#include <numeric>

#include "core/error.h"
#include "io/checkpoint.h"
#include "model/config.h"
#include "model/families.h"
#include "support/configs.h"
#include "support/memory_checkpoint.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"

namespace stepladder {
namespace {

using nlohmann::json;
using testing::ConfigOnly;
using testing::expect_refused;
using testing::llama;
using testing::read;
using testing::small;
using testing::without;

// The published config.json of these models, without the keys that no reader looks at.
TEST(Config, ReadsLlama31) {
  const ModelConfig c = read(
      {{"architectures", {"LlamaForCausalLM"}},
       {"attention_bias", false},
       {"bos_token_id", 128000},
       {"eos_token_id", {128001, 128008, 128009}},
       {"hidden_act", "silu"},
       {"hidden_size", 4096},
       {"intermediate_size", 14336},
       {"max_position_embeddings", 131072},
       {"mlp_bias", false},
       {"model_type", "llama"},
       {"num_attention_heads", 32},
       {"num_hidden_layers", 32},
       {"num_key_value_heads", 8},
       {"pretraining_tp", 1},
       {"rms_norm_eps", 1e-05},
       {"rope_scaling",
        {{"factor", 8.0},
         {"high_freq_factor", 4.0},
         {"low_freq_factor", 1.0},
         {"original_max_position_embeddings", 8192},
         {"rope_type", "llama3"}}},
       {"rope_theta", 500000.0},
       {"tie_word_embeddings", false},
       {"torch_dtype", "bfloat16"},
       {"use_cache", true},
       {"vocab_size", 128256}},
      {{"bos_token_id", 128000}, {"eos_token_id", {128001, 128008, 128009}}, {"temperature", 0.6}});
  EXPECT_EQ(c.architecture, "LlamaForCausalLM");
  EXPECT_EQ(c.layers, 32);
  EXPECT_EQ(c.width, 4096);
  EXPECT_EQ(c.heads, 32);
  EXPECT_EQ(c.kv_heads, 8);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.ffn, 14336);
  EXPECT_EQ(c.vocab, 128256);
  EXPECT_EQ(c.max_context(), 131072);
  EXPECT_EQ(c.eps, 1e-5);
  EXPECT_EQ(c.rope.type, Rope::Type::llama3);
  EXPECT_EQ(c.rope.theta, 500000);
  EXPECT_EQ(c.rope.factor, 8);
  EXPECT_EQ(c.rope.original_positions, 8192);
  EXPECT_FALSE(c.tied_head || c.qkv_bias || c.o_bias || c.mlp_bias || c.qk_norm);
  EXPECT_EQ(c.dtype, DType::bf16);
  EXPECT_EQ(c.end_tokens, (std::vector<int32_t>{128001, 128008, 128009}));
  EXPECT_EQ(c.bos, 128000);
  EXPECT_TRUE(c.notes.empty());
}

TEST(Config, ReadsQwen25AndLeavesItsWindowOff) {
  const ModelConfig c = read({{"architectures", {"Qwen2ForCausalLM"}},
                              {"bos_token_id", 151643},
                              {"eos_token_id", 151645},
                              {"hidden_act", "silu"},
                              {"hidden_size", 896},
                              {"intermediate_size", 4864},
                              {"max_position_embeddings", 32768},
                              {"max_window_layers", 21},
                              {"model_type", "qwen2"},
                              {"num_attention_heads", 14},
                              {"num_hidden_layers", 24},
                              {"num_key_value_heads", 2},
                              {"rms_norm_eps", 1e-06},
                              {"rope_theta", 1000000.0},
                              {"sliding_window", 32768},
                              {"tie_word_embeddings", true},
                              {"torch_dtype", "bfloat16"},
                              {"use_sliding_window", false},
                              {"vocab_size", 151936}},
                             {{"eos_token_id", {151645, 151643}}});
  EXPECT_TRUE(c.qkv_bias && c.tied_head);
  EXPECT_FALSE(c.o_bias || c.mlp_bias || c.qk_norm);
  EXPECT_EQ(c.head_dim, 64);
  EXPECT_EQ(c.sliding_window, 0);
  EXPECT_EQ(c.end_tokens, (std::vector<int32_t>{151645, 151643}));
  EXPECT_TRUE(c.notes.empty());
}

TEST(Config, ReadsQwen3WhoseHeadsAreWiderThanTheModel) {
  const json config = {{"architectures", {"Qwen3ForCausalLM"}},
                       {"attention_bias", false},
                       {"bos_token_id", 151643},
                       {"eos_token_id", 151645},
                       {"head_dim", 128},
                       {"hidden_act", "silu"},
                       {"hidden_size", 1024},
                       {"intermediate_size", 3072},
                       {"max_position_embeddings", 40960},
                       {"max_window_layers", 28},
                       {"model_type", "qwen3"},
                       {"num_attention_heads", 16},
                       {"num_hidden_layers", 28},
                       {"num_key_value_heads", 8},
                       {"rms_norm_eps", 1e-06},
                       {"rope_scaling", nullptr},
                       {"rope_theta", 1000000},
                       {"sliding_window", nullptr},
                       {"tie_word_embeddings", true},
                       {"torch_dtype", "bfloat16"},
                       {"use_sliding_window", false},
                       {"vocab_size", 151936}};
  const ModelConfig c = read(config);
  EXPECT_EQ(c.head_dim * c.heads, 2 * c.width);
  EXPECT_TRUE(c.qk_norm);
  EXPECT_FALSE(c.qkv_bias || c.o_bias);
  EXPECT_EQ(read(without(config, "head_dim")).head_dim, 128) << "its class's default, not derived";
}

TEST(Config, CapsMistralsContextAtItsWindowAndSaysSo) {
  json config = small("MistralForCausalLM", {{"max_position_embeddings", 32768}});
  ModelConfig c = read(config);
  EXPECT_EQ(c.max_context(), 4096) << "a missing key is the class's default of 4096";
  ASSERT_EQ(c.notes.size(), 1u);
  EXPECT_NE(c.notes[0].find("4096"), std::string::npos);
  EXPECT_NE(c.notes[0].find("32768"), std::string::npos);
  config["sliding_window"] = 1024;
  EXPECT_EQ(read(config).max_context(), 1024);
  config["sliding_window"] = nullptr;
  EXPECT_EQ(read(config).max_context(), 32768);
  config["sliding_window"] = 65536;
  EXPECT_EQ(read(config).max_context(), 32768);
}

TEST(Config, CapsQwensContextWhenSomeLayerSlides) {
  json config =
      small("Qwen2ForCausalLM",
            {{"use_sliding_window", true}, {"sliding_window", 128}, {"max_window_layers", 1}});
  EXPECT_EQ(read(config).max_context(), 128);
  config["max_window_layers"] = 2;
  EXPECT_EQ(read(config).max_context(), 2048) << "no layer is left to slide";
  config["layer_types"] = {"full_attention", "sliding_attention"};
  EXPECT_EQ(read(config).max_context(), 128);
  config["layer_types"] = {"full_attention", "full_attention"};
  EXPECT_EQ(read(config).max_context(), 2048);
  config["layer_types"] = {"full_attention", "sliding_attention"};
  config["use_sliding_window"] = false;
  EXPECT_EQ(read(config).max_context(), 2048);
}

TEST(Config, FillsInWhatAFamilyLeavesOut) {
  json config = without(without(without(llama(), "num_key_value_heads"), "rms_norm_eps"),
                        "max_position_embeddings");
  ModelConfig c = read(config);
  EXPECT_EQ(c.kv_heads, 4);
  EXPECT_EQ(c.eps, 1e-6);
  EXPECT_EQ(c.positions, 2048);
  EXPECT_EQ(c.rope.theta, 10000);
  EXPECT_EQ(c.end_tokens, std::vector<int32_t>{2});
  EXPECT_EQ(c.bos, 1);
  config = small("MistralForCausalLM", {{"num_attention_heads", 16}});
  EXPECT_EQ(read(without(config, "num_key_value_heads")).kv_heads, 8);
  config["num_key_value_heads"] = nullptr;
  EXPECT_EQ(read(config).kv_heads, 16);
  EXPECT_TRUE(read(small("Qwen2ForCausalLM")).end_tokens.empty());
  EXPECT_EQ(read(small("Qwen2ForCausalLM")).bos, -1);
}

TEST(Config, HonoursBiases) {
  ModelConfig c = read(llama({{"attention_bias", true}, {"mlp_bias", true}}));
  EXPECT_TRUE(c.qkv_bias && c.o_bias && c.mlp_bias);
  c = read(small("Qwen3ForCausalLM", {{"attention_bias", true}}));
  EXPECT_TRUE(c.qkv_bias && c.o_bias && !c.mlp_bias);
  c = read(small("Qwen2ForCausalLM", {{"attention_bias", true}}));
  EXPECT_TRUE(c.qkv_bias && !c.o_bias);
}

TEST(Config, ReadsDtypesInBothSpellings) {
  EXPECT_EQ(read(llama({{"torch_dtype", "float16"}})).dtype, DType::f16);
  EXPECT_EQ(read(llama({{"dtype", "float16"}})).dtype, DType::f16);
  EXPECT_EQ(read(llama({{"torch_dtype", "torch.bfloat16"}})).dtype, DType::bf16);
  const ModelConfig c = read(llama({{"dtype", "float32"}, {"eos_token_id", 2}}));
  EXPECT_EQ(c.dtype, DType::bf16);
  ASSERT_EQ(c.notes.size(), 1u);
  EXPECT_NE(c.notes[0].find("float32"), std::string::npos);
  // Without either, the stored embedding decides.
  const std::vector<std::string> names = {"model.embed_tokens.weight", "lm_head.weight"};
  EXPECT_EQ(read_config(ConfigOnly(llama(), json::object(), names, "F16")).dtype, DType::f16);
  EXPECT_EQ(read_config(ConfigOnly(llama(), json::object(), names, "BF16")).dtype, DType::bf16);
}

TEST(Config, UnitesEndTokens) {
  EXPECT_EQ(read(llama({{"eos_token_id", 7}}), {{"eos_token_id", {9, 7, 5}}}).end_tokens,
            (std::vector<int32_t>{7, 9, 5}));
  EXPECT_EQ(read(llama({{"eos_token_id", 999}})).end_tokens, std::vector<int32_t>{999});
  EXPECT_EQ(read(llama(), {{"eos_token_id", 3}, {"bos_token_id", 4}}).bos, 4);
  const ModelConfig c = read(llama({{"eos_token_id", nullptr}}));
  EXPECT_TRUE(c.end_tokens.empty());
  ASSERT_EQ(c.notes.size(), 1u);
  EXPECT_NE(c.notes[0].find("eos_token_id"), std::string::npos);
}

TEST(Config, IgnoresWhatDoesNotChangeTheResult) {
  EXPECT_NO_THROW(read(llama({{"pretraining_tp", 4},
                              {"use_cache", false},
                              {"some_new_key", {1, 2}},
                              {"attention_dropout", 0.1},
                              {"initializer_range", 0.02},
                              {"logit_scale", 1.0},
                              {"num_experts", 0},
                              {"alibi", false},
                              {"final_logit_softcapping", nullptr},
                              {"hidden_act", "silu"},
                              {"is_encoder_decoder", false},
                              {"partial_rotary_factor", 1.0},
                              {"transformers_version", "4.40.0"},
                              {"rope_interleaved", false}})));
}

TEST(Config, EveryFamilyCanBeNamed) {
  for (const char* name :
       {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    const Family* family = find_family(families(), name);
    ASSERT_NE(family, nullptr) << name;
    EXPECT_NE(family_names(families()).find(name), std::string::npos);
    const ModelConfig c = read(small(name, {{"model_type", family->model_type}}));
    EXPECT_EQ(c.architecture, name);
    EXPECT_EQ(c.family, family);
  }
}

TEST(Config, ReadsADirectory) {
  testing::TempDir dir;
  const float zeros[64] = {};
  const testing::NamedTensor tensors[] = {
      testing::float_tensor("model.embed_tokens.weight", "F16", {1, 64}, zeros)};
  testing::write_model(dir.str(), llama({{"tie_word_embeddings", true}}), tensors);
  testing::write_file(dir / "generation_config.json", "{\"eos_token_id\": [5, 6]}");
  const ModelConfig c = read_config(*open_checkpoint(dir.str()));
  EXPECT_EQ(c.end_tokens, (std::vector<int32_t>{5, 6}));
  EXPECT_TRUE(c.tied_head);
  EXPECT_EQ(c.dtype, DType::f16);
}

TEST(Config, MissesAHeadThatIsNotTied) {
  const std::string embedding = "model.embed_tokens.weight";
  expect_refused([&] { read_config(ConfigOnly(llama(), json::object(), {embedding})); },
                 Code::model_format, {"lm_head.weight", "tie_word_embeddings", "DIR"});
  EXPECT_NO_THROW(
      read_config(ConfigOnly(llama({{"tie_word_embeddings", true}}), json::object(), {embedding})));
  EXPECT_NO_THROW(read_config(ConfigOnly(llama(), json::object(), {embedding, "lm_head.qweight"})));
}

// As transformers does; a quantized head is what a quantizer made of a tied one.
TEST(Config, ATiedHeadGivesWayToOneThatIsStoredAndDiffers) {
  using Codes = std::vector<uint16_t>;
  const std::string embedding = "model.embed_tokens.weight", head = "lm_head.weight";
  const Codes table = {1, 2, 3, 4}, other = {1, 2, 3, 5};
  const struct {
    std::vector<std::string> stored;
    Codes head;
    std::vector<int64_t> shape;
    bool tied;
    const char *embedding, *note;
  } cases[] = {
      {{embedding}, {}, {}, true, "model.embed_tokens", nullptr},
      {{embedding, head}, table, {2, 2}, true, "model.embed_tokens", nullptr},
      {{embedding, head}, other, {2, 2}, false, "model.embed_tokens", "is used"},
      {{embedding, head}, table, {1, 4}, false, "model.embed_tokens", "is used"},
      {{head}, other, {2, 2}, true, "lm_head", nullptr},
      {{embedding, head, "lm_head.weight_scale"},
       table,
       {2, 2},
       false,
       "model.embed_tokens",
       "is used"},
      {{embedding, "lm_head.weight_packed"}, {}, {}, false, "model.embed_tokens", "is used"},
      {{embedding, "lm_head.qweight"}, {}, {}, false, "model.embed_tokens", "is used"}};
  for (const auto& c : cases) {
    MemoryCheckpoint checkpoint(llama({{"tie_word_embeddings", true}}));
    for (const std::string& name : c.stored)
      name == head ? checkpoint.add(name, "BF16", c.shape, c.head)
                   : checkpoint.add(name, "BF16", {2, 2}, table);
    const ModelConfig read = read_config(checkpoint);
    EXPECT_EQ(read.tied_head, c.tied);
    EXPECT_STREQ(read.embedding, c.embedding);
    ASSERT_EQ(read.notes.size(), c.note ? 1u : 0u);
    if (!c.note) continue;
    EXPECT_NE(read.notes[0].find("tie_word_embeddings=true"), std::string::npos) << read.notes[0];
    EXPECT_NE(read.notes[0].find(c.note), std::string::npos) << read.notes[0];
  }
}

TEST(Config, AModelTypeNamesAFamilyWhereArchitecturesIsMissing) {
  for (const json& list : {json(nullptr), json::array()}) {
    const json config = llama({{"architectures", list}, {"model_type", "qwen3"}});
    EXPECT_EQ(read(config).architecture, "Qwen3ForCausalLM");
  }
  expect_refused([] { read(without(llama(), "architectures")); }, Code::model_format,
                 {"architectures", "model_type"});
  expect_refused([] { read(llama({{"architectures", nullptr}, {"model_type", "gpt2"}})); },
                 Code::unsupported, {"gpt2", "LlamaForCausalLM"});
}

TEST(RopeTable, TakesOneMeaningInTwoSpellings) {
  const json now = {{"rope_type", "yarn"},
                    {"rope_theta", 5e5},
                    {"factor", 4.0},
                    {"original_max_position_embeddings", 512}};
  const json before = {
      {"type", "yarn"}, {"factor", 4}, {"finetuned", true}, {"beta_fast", nullptr}};
  const json both = llama({{"rope_parameters", now},
                           {"rope_scaling", before},
                           {"rope_theta", 500000},
                           {"original_max_position_embeddings", 512}});
  const ModelConfig alone = read(llama({{"rope_parameters", now}}));
  EXPECT_EQ(rope_table(read(both)).inv_freq, rope_table(alone).inv_freq);
  EXPECT_EQ(rope_table(read(without(both, "rope_theta"))).inv_freq, rope_table(alone).inv_freq);
  for (const auto& [key, value] :
       {std::pair<const char*, json>{"factor", 8}, {"type", "linear"}, {"beta_fast", 16}}) {
    json other = both;
    other["rope_scaling"][key] = value;
    expect_refused([&] { read(other); }, Code::model_format, {"rope_scaling", "differ", "remove"});
  }
  json theta = both;
  theta["rope_theta"] = 10000;
  expect_refused([&] { read(theta); }, Code::model_format, {"rope_scaling", "differ"});
}

TEST(RopeTable, TakesBothSpellings) {
  const json settings = {
      {"rope_type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 512}};
  json now = settings;
  now["rope_theta"] = 5e5;
  const ModelConfig before = read(llama({{"rope_scaling", settings}, {"rope_theta", 5e5}}));
  const ModelConfig after = read(llama({{"rope_parameters", now}}));
  EXPECT_EQ(rope_table(before).inv_freq, rope_table(after).inv_freq);
  EXPECT_EQ(rope_table(before).scale, rope_table(after).scale);
  json older = settings;
  older.erase("rope_type");
  older["type"] = "yarn";
  older["finetuned"] = true;
  EXPECT_EQ(rope_table(read(llama({{"rope_scaling", older}, {"rope_theta", 5e5}}))).inv_freq,
            rope_table(before).inv_freq);
  EXPECT_EQ(read(llama({{"rope_parameters", {{"rope_type", "default"}, {"rope_theta", 7e4}}}}))
                .rope.theta,
            7e4);
  EXPECT_EQ(read(llama({{"rope_scaling", json::object()}})).rope.type, Rope::Type::plain);
}

TEST(RopeTable, YarnStretchesThePositionsAndSaysSo) {
  const ModelConfig c = read(
      llama({{"max_position_embeddings", 32768},
             {"eos_token_id", 2},
             {"rope_scaling",
              {{"type", "yarn"}, {"factor", 4.0}, {"original_max_position_embeddings", 32768}}}}));
  EXPECT_EQ(c.max_context(), 131072);
  ASSERT_EQ(c.notes.size(), 1u);
  EXPECT_NE(c.notes[0].find("131072"), std::string::npos);
  // A config that holds the stretched length already is taken at its word.
  EXPECT_EQ(
      read(
          llama(
              {{"max_position_embeddings", 163840},
               {"rope_scaling",
                {{"type", "yarn"}, {"factor", 40.0}, {"original_max_position_embeddings", 4096}}}}))
          .max_context(),
      163840);
}

// The numbers come from formulas written independently in numpy; where transformers 5.23 has a
// function for the type, that function over float64 gave the same to 15 digits.
struct Frequencies {
  const char* name;
  int head_dim, positions;
  json settings;
  double scale, sum;
  std::vector<std::pair<size_t, double>> values;
};
void PrintTo(const Frequencies& f, std::ostream* out) { *out << f.name; }

class RopeFrequencies : public ::testing::TestWithParam<Frequencies> {};

TEST_P(RopeFrequencies, MatchTheFormulas) {
  const Frequencies& f = GetParam();
  const RopeTable table = rope_table(read(llama({{"head_dim", f.head_dim},
                                                 {"max_position_embeddings", f.positions},
                                                 {"rope_parameters", f.settings}})));
  ASSERT_EQ(table.inv_freq.size(), static_cast<size_t>(f.head_dim / 2));
  // A few roundings of a power, a product and a sum.
  constexpr double kBound = 32 * std::numeric_limits<double>::epsilon();
  EXPECT_NEAR(table.scale, f.scale, kBound);
  EXPECT_NEAR(std::accumulate(table.inv_freq.begin(), table.inv_freq.end(), 0.0), f.sum,
              kBound * f.sum);
  for (const auto& [i, value] : f.values)
    EXPECT_NEAR(table.inv_freq[i], value, kBound * value) << "pair " << i;
}

INSTANTIATE_TEST_SUITE_P(
    All, RopeFrequencies,
    ::testing::Values(Frequencies{"Plain",
                                  64,
                                  8192,
                                  {{"rope_type", "default"}, {"rope_theta", 1e5}},
                                  1.0,
                                  3.3093686849022954,
                                  {{0, 1},
                                   {1, 0.69783058485986638},
                                   {8, 0.056234132519034905},
                                   {16, 0.0031622776601683794},
                                   {31, 1.4330125702369627e-05}}},
                      Frequencies{"Linear",
                                  64,
                                  4096,
                                  {{"rope_type", "linear"}, {"rope_theta", 1e4}, {"factor", 2.5}},
                                  1.0,
                                  1.5991632937905509,
                                  {{0, 0.4},
                                   {1, 0.29995768373298232},
                                   {16, 0.004},
                                   {24, 0.0004},
                                   {31, 5.3340857286532955e-05}}},
                      Frequencies{"Llama31",
                                  128,
                                  131072,
                                  {{"rope_type", "llama3"},
                                   {"rope_theta", 5e5},
                                   {"factor", 8.0},
                                   {"low_freq_factor", 1.0},
                                   {"high_freq_factor", 4.0},
                                   {"original_max_position_embeddings", 8192}},
                                  1.0,
                                  5.386058200728573,
                                  {{0, 1},
                                   {1, 0.81461723385654472},
                                   {16, 0.037606030930863933},
                                   {32, 0.00052484616099295468},
                                   {48, 6.6478698711812354e-06},
                                   {63, 3.0689259889145111e-07}}},
                      Frequencies{"Llama32",
                                  64,
                                  131072,
                                  {{"rope_type", "llama3"},
                                   {"rope_theta", 5e5},
                                   {"factor", 32.0},
                                   {"low_freq_factor", 1.0},
                                   {"high_freq_factor", 4.0},
                                   {"original_max_position_embeddings", 8192}},
                                  1.0,
                                  2.9682022978421543,
                                  {{1, 0.66360123769608848},
                                   {16, 0.00042955679655936821},
                                   {24, 1.6619674677953088e-06},
                                   {31, 9.41830672543491e-08}}},
                      Frequencies{"YarnOfQwen",
                                  128,
                                  32768,
                                  {{"rope_type", "yarn"},
                                   {"rope_theta", 1e6},
                                   {"factor", 4.0},
                                   {"original_max_position_embeddings", 32768}},
                                  1.138629436111989,
                                  5.144034721740072,
                                  {{0, 1},
                                   {1, 0.80584218776148187},
                                   {16, 0.031622776601683791},
                                   {32, 0.00060294117647058821},
                                   {48, 7.9056941504209488e-06},
                                   {63, 3.1023444018792988e-07}}},
                      Frequencies{"YarnWithMscale",
                                  128,
                                  163840,
                                  {{"rope_type", "yarn"},
                                   {"rope_theta", 1e4},
                                   {"factor", 40.0},
                                   {"original_max_position_embeddings", 4096},
                                   {"mscale", 1.0},
                                   {"mscale_all_dim", 0.8},
                                   {"beta_fast", 24},
                                   {"beta_slow", 2}},
                                  1.0569662567531275,
                                  7.363148789467353,
                                  {{1, 0.86596432336006535},
                                   {16, 0.1},
                                   {32, 0.0048684210526315792},
                                   {48, 2.5e-05},
                                   {63, 2.8869549617236457e-06}}},
                      Frequencies{"YarnWithoutTruncation",
                                  64,
                                  131072,
                                  {{"rope_type", "yarn"},
                                   {"rope_theta", 150000.0},
                                   {"factor", 32.0},
                                   {"original_max_position_embeddings", 4096},
                                   {"truncate", false}},
                                  1.3465735902799727,
                                  3.1804382769298654,
                                  {{1, 0.68904430588816323},
                                   {8, 0.050813274815461475},
                                   {16, 0.00045648391922324086},
                                   {24, 4.0999784818029804e-06},
                                   {31, 3.0235114281192144e-07}}},
                      Frequencies{"YarnWithoutFactor",
                                  32,
                                  8192,
                                  {{"rope_type", "yarn"},
                                   {"rope_theta", 1e4},
                                   {"factor", nullptr},
                                   {"original_max_position_embeddings", 2048},
                                   {"attention_factor", 1.25}},
                                  1.25,
                                  2.2539326525715255,
                                  {{1, 0.56234132519034907},
                                   {4, 0.1},
                                   {8, 0.0057142857142857143},
                                   {12, 0.00025},
                                   {15, 4.4456985250973067e-05}}},
                      Frequencies{"YarnBelowOneTurn",
                                  4,
                                  64,
                                  {{"rope_type", "yarn"},
                                   {"rope_theta", 1e4},
                                   {"factor", 2.0},
                                   {"original_max_position_embeddings", 4}},
                                  1.0693147180559945,
                                  1.005,
                                  {{0, 1}, {1, 0.005}}}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace stepladder
