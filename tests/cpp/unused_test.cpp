// What a checkpoint holds and the model does not read is named, and nothing else is.
#include "model/unused.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "api/plan.h"
#include "support/safetensors_writer.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

const std::vector<uint16_t> kOnes(4, 0x3f80);

std::string note_of(const MemoryCheckpoint& checkpoint) {
  return unused_tensors(checkpoint, read_config(checkpoint));
}

TEST(Unused, NothingOfAWholeModel) {
  for (const auto& specs : {tiny_families(), tiny_formats()})
    for (const TinySpec& spec : specs) {
      MemoryCheckpoint checkpoint = tiny_checkpoint(spec);
      EXPECT_EQ(note_of(checkpoint), "") << spec.label();
      checkpoint.add("model.layers.0.self_attn.rotary_emb.inv_freq", "BF16", {4}, kOnes);
      checkpoint.add("model.layers.1.self_attn.q_proj.bias", "BF16", {4}, kOnes);
      EXPECT_EQ(note_of(checkpoint), "") << spec.label();
    }
}

TEST(Unused, LayersBeyondTheLastAreCountedAndExplained) {
  MemoryCheckpoint checkpoint = tiny_checkpoint({.layers = 3});
  checkpoint.config()["num_hidden_layers"] = 2;
  const std::string note = note_of(checkpoint);
  for (const char* word : {"9 tensors", "\"model.layers.2.", "num_hidden_layers=2"})
    EXPECT_NE(note.find(word), std::string::npos) << note;
  EXPECT_EQ(std::count(note.begin(), note.end(), '"'), 6) << note;
}

TEST(Unused, TensorsOfNoModelAreNamed) {
  for (const char* name :
       {"model.layers.0.self_attn.q_norm.weight", "model.layers.0.mlp.router.weight",
        "model.layers.1.self_attn.q_proj.lora_A", "score.weight",
        "model.layers.x.mlp.up_proj.weight", "transformer.h.0.weight", "model.layers.0", "weight",
        "model.norm.bias"}) {
    MemoryCheckpoint checkpoint = tiny_checkpoint({});
    checkpoint.add(name, "BF16", {4}, kOnes);
    const std::string note = note_of(checkpoint);
    EXPECT_NE(note.find("1 tensor is not used"), std::string::npos) << note;
    EXPECT_NE(note.find('"' + std::string(name) + '"'), std::string::npos) << note;
    EXPECT_EQ(note.find("num_hidden_layers"), std::string::npos) << note;
  }
}

TEST(Unused, IsToldByInspectAndByALoad) {
  testing::TempDir folder;
  MemoryCheckpoint checkpoint = tiny_checkpoint({.tied = true});
  checkpoint.add("score.weight", "BF16", {4}, kOnes);
  const TensorInfo table = checkpoint.need("model.embed_tokens.weight");
  std::vector<uint16_t> codes(table.bytes / 2);
  checkpoint.read("model.embed_tokens.weight", std::as_writable_bytes(std::span(codes)));
  std::reverse(codes.begin(), codes.end());
  checkpoint.add("lm_head.weight", table.dtype, table.shape, codes);
  write_checkpoint(checkpoint, folder / "model");
  const auto engine = Engine::load(folder / "model", {.threads = 1});
  for (const auto& notes : {engine->info().notes, inspect(folder / "model").notes}) {
    std::string all;
    for (const std::string& note : notes) all += note + "\n";
    EXPECT_NE(all.find("\"score.weight\""), std::string::npos) << all;
    EXPECT_NE(all.find("tie_word_embeddings=true"), std::string::npos) << all;
  }
}

}  // namespace
}  // namespace stepladder
