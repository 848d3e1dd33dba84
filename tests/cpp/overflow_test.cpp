// Weights that are finite and yet too large: the text ends with an error where the arithmetic
// overflows, at the same place under any levels, and nobody else notices.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>

#include "api/load.h"
#include "support/backends.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"
#include "support/said.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

using testing::TempDir;

constexpr float kHuge = 3e38f;

/// Writes the tiny model of seed 7 with the rows [first, first + rows) of a tensor huge.
std::string write_huge(const std::string& directory, const std::string& tensor, int64_t first,
                       int64_t rows, const char* format = "bf16") {
  MemoryCheckpoint checkpoint = tiny_checkpoint({.format = format, .seed = 7});
  const TensorInfo info = checkpoint.need(tensor);
  std::vector<uint16_t> codes(info.bytes / 2);
  checkpoint.read(tensor, std::as_writable_bytes(std::span(codes)));
  const int64_t width = info.shape[1];
  std::fill(codes.begin() + first * width, codes.begin() + (first + rows) * width, to_bf16(kHuge));
  checkpoint.add(tensor, info.dtype, info.shape, codes);
  write_checkpoint(checkpoint, directory);
  testing::write_tokenizer(directory, kVocab);
  return directory;
}

/// The tokens a stream gave before its error, and the error.
struct Broken {
  Said said;
  std::string message;
};
Broken take_broken(Stream& stream) {
  Broken out;
  try {
    for (Chunk chunk; stream.next(chunk);) {
      out.said.tokens.insert(out.said.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
      for (float l : chunk.logits) out.said.logits.push_back(std::bit_cast<uint32_t>(l));
    }
    ADD_FAILURE() << "it ended without an error";
  } catch (const Error& e) {
    EXPECT_STREQ(testing::code_name(e.code()), "model_format");
    out.message = e.what();
  }
  return out;
}

Request request_of(unsigned seed, bool sampled) {
  Request r;
  r.prompt = some_prompt(20, seed);
  r.max_tokens = 60, r.ignore_eos = true;
  if (sampled) {
    r.sampling.temperature = 0.8f, r.sampling.seed = seed;
    r.sampling.repetition_penalty = 1.2f, r.sampling.logit_bias = {{5, -1e9f}};
  }
  return r;
}

const char* const kDrafts[] = {"", "lookup", "cast:int8:shared,lookup",
                               "cast:w8a8,cast:mxfp4:shared,lookup", "cast:int8,lookup:tokens=3"};

TEST(Overflow, EndsItsOwnStreamWhereItHappensUnderAnyLevels) {
  TempDir folder;
  const std::string sound = folder / "sound";
  write_tiny_checkpoint({.seed = 7}, sound);
  const auto bare = load(sound, "");
  for (bool sampled : {false, true}) {
    const Request request = request_of(3, sampled), other = request_of(sampled ? 11 : 12, sampled);
    const Said whole = say(*bare, request), quiet = say(*bare, other);
    // A token that the one text reaches in its middle and the other never sees is made huge.
    size_t at = 5;
    const auto meets = [&](Token t) {
      const auto in = [t](const std::vector<Token>& v, size_t n) {
        return std::find(v.begin(), v.begin() + long(n), t) != v.begin() + long(n);
      };
      return in(whole.tokens, at) || in(request.prompt, request.prompt.size()) ||
             in(other.prompt, other.prompt.size()) || in(quiet.tokens, quiet.tokens.size());
    };
    while (at < whole.tokens.size() && meets(whole.tokens[at])) ++at;
    ASSERT_LT(at, whole.tokens.size() - 1);
    const std::string huge = write_huge(folder / ("huge" + std::to_string(sampled)),
                                        "model.embed_tokens.weight", whole.tokens[at], 1);
    const std::string position = "position " + std::to_string(request.prompt.size() + at + 1) + " ";
    for (const char* draft : kDrafts) {
      Options options;
      options.max_sequences = 2;
      const auto engine = load(huge, draft, options);
      for (int again = 0; again < 2; ++again) {
        auto broken = engine->submit(request), sane = engine->submit(other);
        const Broken got = take_broken(*broken);
        EXPECT_EQ(got.said.tokens,
                  std::vector<Token>(whole.tokens.begin(), whole.tokens.begin() + long(at) + 1))
            << draft;
        EXPECT_TRUE(
            std::equal(got.said.logits.begin(), got.said.logits.end(), whole.logits.begin()));
        EXPECT_NE(got.message.find(position), std::string::npos) << got.message;
        for (const char* word : {"overflowed", "bfloat16"})
          EXPECT_NE(got.message.find(word), std::string::npos) << got.message;
        EXPECT_EQ(take(*sane), quiet) << draft;
      }
      // Both slots have held what overflowed or might have; neither remembers.
      auto a = engine->submit(other), b = engine->submit(other);
      EXPECT_EQ(take(*a), quiet) << draft;
      EXPECT_EQ(take(*b), quiet) << draft;
    }
  }
}

TEST(Overflow, AnywhereInTheModelIsFoundOnEveryBackend) {
  TempDir folder;
  const struct {
    const char* tensor;
    int64_t rows;
    const char* format = "bf16";
  } cases[] = {{"lm_head.weight", kVocab},
               {"model.layers.0.mlp.down_proj.weight", 128},
               {"model.layers.1.mlp.gate_proj.weight", 256},
               {"model.layers.1.mlp.up_proj.weight", 1},
               {"model.layers.0.self_attn.v_proj.weight", 64},
               {"model.layers.0.self_attn.o_proj.weight", 128},
               {"model.layers.1.self_attn.k_proj.weight", 64},
               {"model.layers.1.self_attn.q_proj.weight", 128},
               {"model.embed_tokens.weight", kVocab},
               {"model.embed_tokens.weight", kVocab, "w8a8"},
               {"model.embed_tokens.weight", kVocab, "w4a16"},
               {"lm_head.weight", kVocab, "mxfp4"}};
  for (const auto& c : cases) {
    const std::string directory = write_huge(folder / "huge", c.tensor, 0, c.rows, c.format);
    for (const BackendCase& on : backend_cases())
      for (bool sampled : {false, true}) {
        Options options;
        options.device = on.device, options.isa = on.isa;
        const auto engine = load(directory, "cast:int8:shared,lookup", options);
        auto stream = engine->submit(request_of(4, sampled));
        SCOPED_TRACE(std::string(c.tensor) + " of " + c.format + " on " + on.kernels());
        take_broken(*stream);
      }
  }
}

TEST(Overflow, OfOneTokensLogitIsFoundWhateverItsSign) {
  TempDir folder;
  const std::string sound = folder / "sound";
  write_tiny_checkpoint({.seed = 7}, sound);
  const Said whole = say(*load(sound, ""), request_of(4, false));
  for (const BackendCase& on : backend_cases())
    for (const Token row : {0, 77, kVocab - 1}) {
      // Which of NaN and the two infinities it becomes is a matter of the order of the sum.
      const std::string directory = write_huge(folder / "huge", "lm_head.weight", row, 1);
      Options options;
      options.device = on.device, options.isa = on.isa;
      for (const char* draft : {"", "cast:int8:shared,lookup"}) {
        SCOPED_TRACE("row " + std::to_string(row) + " on " + on.kernels() + " under " + draft);
        const auto engine = load(directory, draft, options);
        for (bool sampled : {false, true}) {
          Request request = request_of(4, sampled);
          request.sampling.logit_bias = {{row, -1e9f}};
          EXPECT_LT(take_broken(*engine->submit(request)).said.tokens.size(), whole.tokens.size());
        }
      }
    }
}

TEST(Overflow, OfADraftChangesNothing) {
  TempDir folder;
  const std::string target = folder / "target";
  write_tiny_checkpoint({.seed = 7}, target);
  const auto bare = load(target, "");
  for (const char* tensor : {"lm_head.weight", "model.layers.0.mlp.down_proj.weight"}) {
    const std::string draft = write_huge(folder / "draft", tensor, 0, 128);
    for (const std::string& levels :
         {draft, draft + ",lookup", "cast:w8a8," + draft + ",cast:w8a8", draft + ",cast:mxfp4"}) {
      const auto engine = load(target, levels);
      for (const Request& request : requests())
        EXPECT_EQ(say(*engine, request), say(*bare, request)) << levels;
    }
  }
}

}  // namespace
}  // namespace stepladder
