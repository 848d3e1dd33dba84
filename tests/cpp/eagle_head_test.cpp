// Heads as files: what is refused and how it is said, and the whole way from a directory to a text.
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "api/draft_spec.h"
#include "model/eagle_head.h"
#include "stepladder/engine.h"
#include "support/refusal.h"
#include "support/tiny_eagle.h"

namespace stepladder {
namespace {

TinySpec spec_of() {
  TinySpec spec;
  spec.vocab = 64, spec.seed = 21;
  return spec;
}

ModelConfig above() { return read_config(tiny_checkpoint(spec_of())); }

template <class Change>
MemoryCheckpoint changed(const Change& change) {
  MemoryCheckpoint head = tiny_head(spec_of(), {});
  change(head);
  return head;
}

struct Refused {
  Code code;
  std::vector<std::string> words;
  std::function<void(MemoryCheckpoint&)> change;
};

TEST(EagleHeadFile, WhatDoesNotFitIsRefusedByName) {
  const std::vector<float> some(64 * 128);
  const auto set = [](const char* key, auto value) {
    return [=](MemoryCheckpoint& c) { c.config()[key] = value; };
  };
  const Refused cases[] = {
      {Code::model_format,
       {"hidden_size 96", "128", "trained for this model"},
       set("hidden_size", 96)},
      {Code::vocab_mismatch, {"vocab_size 65", "64"}, set("vocab_size", 65)},
      {Code::model_format, {"layers.0.self_attn.k_proj.weight"}, set("num_attention_heads", 8)},
      {Code::model_format, {"layers.1."}, set("num_hidden_layers", 2)},
      {Code::unsupported, {"PhiForCausalLM"}, set("architectures", std::vector{"PhiForCausalLM"})},
      {Code::unsupported, {"hidden_act"}, set("hidden_act", "gelu")},
      {Code::model_format,
       {"fc.weight", "no EAGLE-2 head"},
       [](auto& c) { c.remove("fc.weight"); }},
      {Code::model_format,
       {"fc.weight", "[128, 256]"},
       [&](auto& c) { c.add("fc.weight", "F32", {64, 128}, some); }},
      {Code::model_format,
       {"fc.bias"},
       [&](auto& c) { c.add("fc.bias", "F32", {64}, std::vector<float>(64)); }},
      {Code::model_format,
       {"layers.0.mlp.down_proj.weight"},
       [](auto& c) { c.remove("layers.0.mlp.down_proj.weight"); }},
      {Code::model_format,
       {"layers.0.post_attention_layernorm.weight"},
       [](auto& c) { c.remove("layers.0.post_attention_layernorm.weight"); }},
      {Code::model_format,
       {"embed_tokens.weight"},
       [&](auto& c) {
         c.add("embed_tokens.weight", "F32", {63, 128}, std::vector<float>(63 * 128));
       }},
      {Code::unsupported,
       {"layers.0.extra.weight", "no place"},
       [&](auto& c) { c.add("layers.0.extra.weight", "F32", {64, 128}, some); }},
      {Code::unsupported,
       {"d2t", "EAGLE-3"},
       [](auto& c) { c.add("d2t", "I64", {4}, std::vector<int64_t>(4)); }},
      {Code::unsupported,
       {"midlayer.hidden_norm.weight", "EAGLE-3"},
       [](auto& c) { c.add("midlayer.hidden_norm.weight", "F32", {4}, std::vector<float>(4)); }},
  };
  for (const Refused& r : cases) {
    const MemoryCheckpoint head = changed(r.change);
    stepladder::testing::expect_refused([&] { read_eagle_config(head, above()); }, r.code, r.words);
  }
}

TEST(EagleHeadFile, WhatMakesNoDifferenceIsNotRefused) {
  const MemoryCheckpoint head = changed([](MemoryCheckpoint& c) {
    c.add("layers.0.self_attn.rotary_emb.inv_freq", "F32", {16}, std::vector<float>(16));
    c.config()["num_hidden_layers"] = 1;
    c.config()["bias"] = true;
  });
  EXPECT_NO_THROW(read_eagle_config(head, above()));
}

TEST(EagleHeadFile, TheRopeIsTheHeadsOwnOrElseTheModels) {
  TinySpec spec = spec_of();
  spec.family = "llama3";
  const ModelConfig model = read_config(tiny_checkpoint(spec));
  MemoryCheckpoint head = tiny_head(spec_of(), {});
  EXPECT_EQ(read_eagle_config(head, model).layers.rope.theta, 10000);
  head.config().erase("rope_theta");
  const Rope rope = read_eagle_config(head, model).layers.rope;
  EXPECT_EQ(rope.theta, 500000);
  EXPECT_EQ(rope.type, Rope::Type::llama3);
}

class EagleDirectory : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = std::filesystem::temp_directory_path() / ("eagle_" + std::to_string(::getpid()));
    std::filesystem::create_directories(root_ / "model");
    std::filesystem::create_directories(root_ / "head");
    write_tiny_checkpoint(spec_of(), model());
    write_checkpoint(tiny_head(spec_of(), {}), head());
  }
  void TearDown() override { std::filesystem::remove_all(root_); }
  std::string model() const { return (root_ / "model").string(); }
  std::string head() const { return (root_ / "head").string(); }

  std::vector<Token> say(const std::string& draft, Stats* stats = nullptr) const {
    Options options;
    options.draft = parse_draft(draft), options.threads = 2, options.device = "cpu";
    const auto engine = Engine::load(model(), options);
    Request request;
    request.prompt = random_text(40, 64, 3), request.max_tokens = 60, request.ignore_eos = true;
    const auto stream = engine->submit(request);
    std::vector<Token> out;
    for (Chunk chunk; stream->next(chunk);)
      out.insert(out.end(), chunk.tokens.begin(), chunk.tokens.end());
    if (stats) *stats = stream->stats();
    return out;
  }

  std::filesystem::path root_;
};

TEST_F(EagleDirectory, DraftsFromItForWhateverStandsAbove) {
  const auto plain = say("");
  ASSERT_EQ(plain.size(), 60u);
  for (const std::string& draft :
       {"eagle:" + head(), "eagle:" + head() + ":tokens=3:nodes=60:top=16",
        "cast:int8:shared:tokens=5,eagle:" + head() + ":tokens=4:nodes=40",
        "cast:int8,eagle:" + head() + ":tokens=2:nodes=20"}) {
    SCOPED_TRACE(draft);
    Stats stats;
    EXPECT_EQ(say(draft, &stats), plain);
    EXPECT_GT(stats.levels.back().drafted, 0);
  }
}

TEST_F(EagleDirectory, DraftsForASmallerModelThatDraftsForTheTarget) {
  TinySpec small = spec_of();
  small.width = 64, small.heads = 2, small.kv_heads = 1, small.ffn = 96, small.seed = 33;
  const std::string model = (root_ / "small").string(), head = (root_ / "small_head").string();
  std::filesystem::create_directories(model), std::filesystem::create_directories(head);
  write_tiny_checkpoint(small, model);
  write_checkpoint(tiny_head(small, {}), head);
  Stats stats;
  EXPECT_EQ(say("model:" + model + ":tokens=4,eagle:" + head + ":tokens=3:nodes=60", &stats),
            say(""));
  EXPECT_GT(stats.levels.back().accepted, 0);
  // A head of the target does not fit the smaller model.
  stepladder::testing::expect_refused([&] { say("model:" + model + ",eagle:" + this->head()); },
                                      Code::model_format, {"hidden_size 128", "64"});
}

TEST_F(EagleDirectory, OptionsOutOfRangeAndDirectoriesThatAreNoneAreRefused) {
  const auto refused = [&](const std::string& draft, Code code, std::vector<std::string> words) {
    stepladder::testing::expect_refused([&] { say(draft); }, code, words);
  };
  refused("eagle:" + head() + ":top=17", Code::invalid_argument, {"top=17", "1 to 16"});
  refused("eagle:" + head() + ":nodes=0", Code::invalid_argument, {"nodes=0", "1 to 1000"});
  refused("eagle:" + head() + ":tokens=31", Code::invalid_argument, {"tokens=31"});
  refused("eagle", Code::invalid_argument, {"DIR"});
  refused("eagle:" + head() + ",lookup", Code::invalid_argument, {"put it last"});
  refused("eagle:/nowhere", Code::io, {"/nowhere"});
  refused("eagle:" + model(), Code::model_format, {"fc.weight", "no EAGLE-2 head"});
}

}  // namespace
}  // namespace stepladder
