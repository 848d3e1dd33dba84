// The whole engine over tiny checkpoints on disk: any hierarchy writes what plain decoding writes,
// to the bit, whoever else is served and whatever happened before; and what cannot be is refused.
#include "stepladder/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "api/load.h"
#include "core/error.h"
#include "support/far/far_backend.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"
#include "support/said.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

using testing::TempDir;

/// Model directories, made once.
struct Models {
  TempDir folder;
  std::string target = make("target", {.seed = 7});
  std::string quantized = make("quantized", {.format = "w4a16", .seed = 7});
  std::string draft = make("draft", {.layers = 1, .seed = 7});
  std::string short_draft = make("short", {.layers = 1, .positions = 64, .seed = 7});
  std::string other_words = make("other", {.layers = 1, .seed = 7}, "u");

  std::string make(const std::string& name, const TinySpec& spec, const std::string& word = "t") {
    const std::string directory = folder / name;
    write_tiny_checkpoint(spec, directory);
    testing::write_tokenizer(directory, kVocab);
    if (word != "t") {  // two words change places: the same size, another vocabulary
      const std::string file = directory + "/tokenizer.json";
      std::ifstream in(file);
      std::string text((std::istreambuf_iterator<char>(in)), {});
      const size_t at = text.find("\"t17\":17"), to = text.find("\"t18\":18");
      text.replace(at, 8, "\"t17\":18"), text.replace(to, 8, "\"t18\":17");
      testing::write_file(file, text);
    }
    return directory;
  }
};
Models& models() {
  static Models made;
  return made;
}

/// What plain decoding on an engine of its own says to requests(), by directory.
const std::vector<Said>& plain(const std::string& directory) {
  static std::map<std::string, std::vector<Said>> known;
  auto& said = known[directory];
  if (said.empty())
    for (const Request& request : requests()) said.push_back(say(*load(directory, ""), request));
  return said;
}

// ---- the text never changes ----------------------------------------------------------------

struct HierarchyCase {
  const char* target;  // "target" or "quantized"
  const char* draft;   // $ stands for the draft model's directory
};
void PrintTo(const HierarchyCase& c, std::ostream* out) { *out << c.target << " " << c.draft; }

std::string directory_of(const std::string& name) {
  return name == "target" ? models().target : models().quantized;
}
std::string spelled(std::string draft) {
  for (size_t at; (at = draft.find('$')) != std::string::npos;)
    draft.replace(at, 1, models().draft);
  return draft;
}

class Hierarchies : public ::testing::TestWithParam<HierarchyCase> {};
TEST_P(Hierarchies, WriteWhatPlainDecodingWrites) {
  const std::string directory = directory_of(GetParam().target);
  const auto engine = load(directory, spelled(GetParam().draft));
  const auto all = requests();
  const auto& expected = plain(directory);
  int64_t accepted = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    auto stream = engine->submit(all[i]);
    EXPECT_EQ(take(*stream), expected[i]) << "request " << i;
    const Stats stats = stream->stats();
    EXPECT_EQ(stats.tokens, int64_t(expected[i].tokens.size()));
    accepted += stats.levels[0].accepted;
    Request without = all[i];
    without.draft = false;
    auto plain_stream = engine->submit(without);
    EXPECT_EQ(take(*plain_stream), expected[i]) << "request " << i << " without drafts";
    EXPECT_EQ(plain_stream->stats().levels[0].drafted, 0);
  }
  // A copy agrees with its original now and then; a random model's text need not repeat itself.
  if (std::string(GetParam().draft) != "lookup") {
    EXPECT_GT(accepted, 0);
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, Hierarchies,
    ::testing::Values(HierarchyCase{"target", "lookup"}, HierarchyCase{"target", "cast:int8"},
                      HierarchyCase{"target", "cast:int8,lookup"},
                      HierarchyCase{"target", "cast:int8:shared,lookup"},
                      HierarchyCase{"target", "cast:mxfp4"},
                      HierarchyCase{"target", "cast:mxfp4:shared:tokens=7"},
                      HierarchyCase{"target", "cast:w4a16:shared:tokens=1"},
                      HierarchyCase{"target", "cast:w8a8,cast:mxfp4,lookup"},
                      HierarchyCase{"target",
                                    "cast:int8:shared,cast:w8a8:shared,cast:mxfp4:shared,lookup"},
                      HierarchyCase{"target", "$"}, HierarchyCase{"target", "$:tokens=9,lookup"},
                      HierarchyCase{"target", "cast:int8,$,cast:mxfp4:shared,lookup:tokens=3"},
                      HierarchyCase{"quantized", "lookup"}, HierarchyCase{"quantized", "switch:a8"},
                      HierarchyCase{"quantized", "switch:a8:tokens=30"},
                      HierarchyCase{"quantized", "switch:a8,lookup"},
                      HierarchyCase{"quantized", "switch:a8,cast:mxfp4:shared,lookup"}));

TEST(Engine, PlannedDraftLengthsChangeNoText) {
  for (const char* draft : {"cast:int8", "cast:w8a8,cast:mxfp4,lookup", "cast:mxfp4:shared,$"}) {
    Options options;
    options.threads = 1, options.draft = parse_draft(spelled(draft));
    const auto engine = Engine::load(models().target, options);
    for (int again = 0; again < 3; ++again)  // the later, the more the levels rest
      for (size_t i = 0; i < requests().size(); ++i)
        EXPECT_EQ(say(*engine, requests()[i]), plain(models().target)[i]) << draft << " " << i;
  }
}

TEST(Engine, ManyStreamsAtOnceSayWhatEachSaysAlone) {
  Options options;
  options.max_sequences = 4;
  options.threads = 2;
  const auto engine = load(models().target, "cast:int8,lookup", options);
  const auto all = requests();
  for (int again = 0; again < 2; ++again) {
    std::vector<std::shared_ptr<Stream>> streams;
    for (const Request& request : all) streams.push_back(engine->submit(request));
    for (size_t i = 0; i < all.size(); ++i)
      EXPECT_EQ(take(*streams[i]), plain(models().target)[i]) << i;
  }
}

TEST(EngineConcurrency, ManyCallersWithCancelsSayWhatEachSaysAlone) {
  Options options;
  options.max_sequences = 3;
  options.threads = 2;
  const auto engine = load(models().target, "cast:mxfp4:shared,lookup", options);
  const auto all = requests();
  const auto& expected = plain(models().target);
  std::vector<std::thread> callers;
  for (unsigned c = 0; c < 4; ++c)
    callers.emplace_back([&, c] {
      std::mt19937 random(c);
      for (int n = 0; n < 10; ++n) {
        const size_t i = random() % all.size();
        auto stream = engine->submit(all[i]);
        if (random() % 2) {
          EXPECT_EQ(take(*stream), expected[i]);
          continue;
        }
        Chunk chunk;
        std::vector<Token> got;
        for (unsigned chunks = random() % 6; chunks-- && stream->next(chunk);)
          got.insert(got.end(), chunk.tokens.begin(), chunk.tokens.end());
        std::thread other([&] { stream->cancel(); });
        while (stream->next(chunk)) got.insert(got.end(), chunk.tokens.begin(), chunk.tokens.end());
        other.join();
        ASSERT_LE(got.size(), expected[i].tokens.size());
        EXPECT_TRUE(std::equal(got.begin(), got.end(), expected[i].tokens.begin()));
      }
    });
  for (auto& caller : callers) caller.join();
}

TEST(Engine, WhatFollowsACancelEqualsAFreshEngine) {
  for (const char* draft : {"", "cast:mxfp4:shared,lookup", "cast:int8,lookup"}) {
    const auto engine = load(models().target, draft);
    const auto all = requests();
    std::mt19937 random(3);
    for (int n = 0; n < 24; ++n) {
      const size_t i = random() % all.size(), next = random() % all.size();
      auto stream = engine->submit(all[i]);
      Chunk chunk;
      for (unsigned chunks = random() % 8; chunks-- && stream->next(chunk);) {
      }
      stream->cancel();
      EXPECT_EQ(say(*engine, all[next]), plain(models().target)[next]) << draft << " after " << i;
    }
  }
}

TEST(Engine, ASecondTurnEqualsAFreshEngine) {
  for (const char* draft : {"", "lookup", "cast:mxfp4:shared", "cast:int8,lookup"}) {
    Options options;
    options.max_sequences = 2;
    const auto engine = load(models().target, draft, options);
    for (unsigned i = 0; i < 4; ++i) {
      Request turn;
      turn.prompt = some_prompt(50 + int(i) * 31, 40 + i);
      turn.max_tokens = 30, turn.ignore_eos = true;
      if (i % 2) turn.sampling.temperature = 0.7f, turn.sampling.repetition_penalty = 1.2f;
      const Said answer = say(*engine, turn);
      const size_t known = turn.prompt.size() + answer.tokens.size() - 1;
      turn.prompt.insert(turn.prompt.end(), answer.tokens.begin(), answer.tokens.end());
      for (Token t : some_prompt(20, 90 + i)) turn.prompt.push_back(t);
      auto second = engine->submit(turn);
      EXPECT_EQ(take(*second), say(*load(models().target, ""), turn)) << draft;
      EXPECT_EQ(second->stats().cached_tokens, int64_t(known)) << draft;
    }
  }
}

TEST(Engine, AFullContextEndsTheTextAtTheSamePlace) {
  Options options;
  options.context = 96;
  const auto bare = load(models().target, "", options);
  for (const char* draft :
       {"lookup", "cast:int8:shared", "cast:int8,lookup", "cast:w8a8,cast:mxfp4,lookup"}) {
    const auto engine = load(models().target, draft, options);
    for (int left = 0; left <= 10; ++left) {
      Request request;
      request.prompt = some_prompt(96 - left, 5);
      request.max_tokens = 50, request.ignore_eos = true;
      const Said expected = say(*bare, request);
      EXPECT_EQ(expected.finish, Finish::length);
      EXPECT_EQ(expected.tokens.size(), size_t(left) + 1);  // the last token needs no entry
      EXPECT_EQ(say(*engine, request), expected) << draft << " with " << left << " left";
    }
  }
}

TEST(Engine, ADraftWithAShorterContextStopsDraftingAndTheTextGoesOn) {
  for (const std::string& draft : {models().short_draft, models().short_draft + ",lookup"}) {
    const auto engine = load(models().target, draft);
    for (int length : {1, 40, 60, 63, 64, 65, 100}) {
      Request request;
      request.prompt = some_prompt(length, 11);
      request.max_tokens = 60, request.ignore_eos = true;
      EXPECT_EQ(say(*engine, request), say(*load(models().target, ""), request)) << length;
    }
    bool told = false;
    for (const std::string& note : engine->info().notes)
      told = told || note.find("holds 64 tokens") != std::string::npos;
    EXPECT_TRUE(told);
  }
}

TEST(Engine, EndTokensInsideADraftEndTheTextExactlyThere) {
  const auto engine = load(models().target, "cast:int8,lookup");
  const auto bare = load(models().target, "");
  for (unsigned i = 0; i < 12; ++i) {
    Request request;
    request.prompt = some_prompt(20, 60 + i);
    request.max_tokens = 60, request.ignore_eos = true;
    if (i % 2) request.sampling.temperature = 0.9f;
    const Said whole = say(*bare, request);
    // Every token of the text in turn ends it at its first occurrence.
    for (size_t at : {size_t(0), size_t(1), size_t(7), size_t(23), whole.tokens.size() - 1}) {
      request.stop_token_ids = {whole.tokens[at]};
      const Said cut = say(*engine, request);
      const size_t first =
          size_t(std::find(whole.tokens.begin(), whole.tokens.end(), whole.tokens[at]) -
                 whole.tokens.begin());
      EXPECT_EQ(cut.finish, Finish::stop);
      EXPECT_EQ(cut.stop_token, whole.tokens[at]);
      EXPECT_EQ(cut.tokens,
                std::vector<Token>(whole.tokens.begin(), whole.tokens.begin() + long(first)));
    }
  }
}

TEST(Engine, LogprobsAreOfTheRawLogitsWithAndWithoutDrafts) {
  const auto engine = load(models().target, "cast:int8,lookup");
  Request request = requests()[7];
  request.logprobs = 5, request.ignore_eos = true;
  std::vector<TokenLogprobs> seen[2];
  for (bool draft : {false, true}) {
    request.draft = draft;
    auto stream = engine->submit(request);
    for (Chunk chunk; stream->next(chunk);) {
      ASSERT_EQ(chunk.logprobs.size(), chunk.tokens.size());
      for (size_t k = 0; k < chunk.tokens.size(); ++k) {
        const TokenLogprobs& l = chunk.logprobs[k];
        ASSERT_EQ(l.top.size(), 5u);
        for (size_t j = 1; j < 5; ++j) EXPECT_GE(l.top[j - 1].second, l.top[j].second);
        EXPECT_LE(l.chosen, l.top[0].second);
        for (const auto& [token, value] : l.top) {
          if (token == chunk.tokens[k]) {
            EXPECT_EQ(value, l.chosen);
          }
        }
        seen[draft].push_back(l);
      }
    }
  }
  ASSERT_EQ(seen[0].size(), seen[1].size());
  for (size_t k = 0; k < seen[0].size(); ++k) {
    EXPECT_EQ(seen[0][k].chosen, seen[1][k].chosen);
    EXPECT_EQ(seen[0][k].top, seen[1][k].top);
  }
}

TEST(Engine, RunsOnMemoryTheHostCannotRead) {
  for (const char* draft : {"", "cast:mxfp4:shared,lookup", "cast:int8,lookup"}) {
    Options options;
    options.draft = fixed_draft(draft);
    options.max_sequences = 2;
    auto far = std::make_unique<FarBackend>("", 1);
    FarBackend& backend = *far;
    const auto engine = load_engine(models().target, options, std::move(far));
    const auto all = requests();
    backend.seal();
    Options here;  // on what does the far backend's work
    here.device = "cpu";
    const auto near = load(models().target, "", here);
    for (size_t i = 0; i < all.size(); ++i)
      EXPECT_EQ(say(*engine, all[i]), say(*near, all[i])) << draft << " " << i;
  }
}

// ---- what a load says ----------------------------------------------------------------------

TEST(Engine, InfoTellsWhatWasLoaded) {
  Options options;
  options.context = 100;
  const auto engine = load(models().target, "cast:int8,cast:mxfp4:shared:tokens=4,lookup", options);
  const Info& info = engine->info();
  EXPECT_EQ(info.architecture, "LlamaForCausalLM");
  EXPECT_EQ(info.vocab, kVocab);
  EXPECT_EQ(info.context, 100);
  EXPECT_EQ(info.model_context, 512);
  EXPECT_EQ(info.threads, 1);
  EXPECT_EQ(info.backend, open_backend({.device = "auto", .threads = 1})->name());
  ASSERT_EQ(info.levels.size(), 4u);
  EXPECT_EQ(info.levels[0].name, "target");
  EXPECT_EQ(info.levels[0].format, "bf16");
  EXPECT_EQ(info.levels[1].format, "w8a16");
  EXPECT_EQ(info.levels[1].head, "w8a16");
  EXPECT_EQ(info.levels[2].name, "cast:mxfp4:shared");
  EXPECT_EQ(info.levels[2].tokens, 4);
  EXPECT_EQ(info.levels[2].cache_bytes, 0u);
  EXPECT_GT(info.levels[1].cache_bytes, 0u);
  EXPECT_LT(info.levels[1].pass_bytes, info.levels[0].pass_bytes * 6 / 10);
  EXPECT_EQ(info.levels[3].name, "lookup");
  size_t least = 0;
  for (const LevelInfo& level : info.levels) least += level.weight_bytes + level.cache_bytes;
  EXPECT_GE(info.total_bytes, least);

  const Info seen = inspect(models().target);
  EXPECT_EQ(seen.parameters, info.parameters);
  EXPECT_EQ(seen.architecture, info.architecture);
  EXPECT_EQ(seen.levels[0].format, "bf16");
  EXPECT_EQ(seen.end_tokens, info.end_tokens);
  EXPECT_EQ(inspect(models().quantized).levels[0].format, "w4a16");
}

TEST(Engine, VerifyingCostsAreMeasuredBetweenRequests) {
  const auto engine = load(models().target, "cast:int8,lookup");
  const auto before = say(*engine, requests()[3]);
  const auto ms = engine->verify_ms({1, 8, 31}, 64, 3);
  ASSERT_EQ(ms.size(), 3u);
  for (double t : ms) EXPECT_GT(t, 0);
  EXPECT_EQ(say(*engine, requests()[3]), before);
  EXPECT_THROW(engine->verify_ms({0}, 64, 3), Error);
  EXPECT_THROW(engine->verify_ms({1}, 5000, 3), Error);
  EXPECT_THROW(engine->verify_ms({kMaxEmitted + 1}, 64, 3), Error);
}

TEST(Engine, TreesWiderThanARoundEmitsAreTimedWhereTheyWereAskedFor) {
  Options options;
  options.tree = 200;
  const auto engine = load(models().target, "cast:int8:tokens=4", options);
  const auto before = say(*engine, requests()[3]);
  const auto ms = engine->verify_ms({1, 31, 32, 129, 200}, 64, 3);
  ASSERT_EQ(ms.size(), 5u);
  for (double t : ms) EXPECT_GT(t, 0);
  EXPECT_GT(ms[4], ms[0]) << "200 rows cost no more than one";
  EXPECT_EQ(say(*engine, requests()[3]), before);
  EXPECT_THROW(engine->verify_ms({201}, 64, 3), Error);
  // Only the depth of a tree takes positions.
  EXPECT_NO_THROW(engine->verify_ms({200}, engine->info().context - kMaxEmitted, 1));
  EXPECT_THROW(engine->verify_ms({200}, engine->info().context - kMaxEmitted + 1, 1), Error);
  for (int tree : {-1, 1 << 20}) {
    options.tree = tree;
    EXPECT_THROW(load(models().target, "", options), Error);
  }
}

TEST(Engine, TheWeightsOfAPassCanBeFound) {
  const auto engine = load(models().quantized, "cast:int8");
  const auto& weights = engine->weights();
  EXPECT_EQ(weights.size(), 4u * engine->info().layers + 1);
  size_t bytes = 0;
  for (const WeightMemory& w : weights) {
    EXPECT_NE(w.data, nullptr);
    bytes += w.bytes;
  }
  EXPECT_EQ(bytes, engine->info().levels[0].pass_bytes);
}

TEST(Engine, ProgressIsToldAndCanStopTheLoad) {
  size_t last = 0, whole = 0;
  Options options;
  options.progress = [&](size_t done, size_t total) {
    EXPECT_GE(done, last);
    EXPECT_LE(done, total);
    last = done, whole = total;
    return true;
  };
  load(models().target, "cast:int8,lookup", options);
  EXPECT_EQ(last, whole);
  EXPECT_GT(whole, 0u);
  int calls = 0;
  options.progress = [&](size_t, size_t) { return ++calls < 4; };
  EXPECT_THROW(load(models().target, "cast:int8,lookup", options), Error);
  EXPECT_EQ(calls, 4);
}

struct BadLoad {
  const char* what;
  std::function<void(Options&, std::string&)> spoil;
  Code code;
  std::vector<std::string> mentions;
};
void PrintTo(const BadLoad& b, std::ostream* out) { *out << b.what; }
class LoadRefusal : public ::testing::TestWithParam<BadLoad> {};
TEST_P(LoadRefusal, IsClearAndQuick) {
  models();
  Options options;
  options.threads = 1;
  std::string directory = models().target;
  GetParam().spoil(options, directory);
  testing::expect_refused([&] { Engine::load(directory, options); }, GetParam().code,
                          GetParam().mentions);
}
INSTANTIATE_TEST_SUITE_P(
    All, LoadRefusal,
    ::testing::Values(
        BadLoad{"no such directory",
                [](Options&, std::string& d) { d += "-not"; },
                Code::io,
                {"target-not"}},
        BadLoad{"context",
                [](Options& o, std::string&) { o.context = 513; },
                Code::invalid_argument,
                {"context", "513", "512"}},
        BadLoad{"negative context",
                [](Options& o, std::string&) { o.context = -1; },
                Code::invalid_argument,
                {"context"}},
        BadLoad{"sequences",
                [](Options& o, std::string&) { o.max_sequences = 0; },
                Code::invalid_argument,
                {"max_sequences"}},
        BadLoad{"threads",
                [](Options& o, std::string&) { o.threads = -1; },
                Code::invalid_argument,
                {"threads"}},
        BadLoad{"device",
                [](Options& o, std::string&) { o.device = "abacus"; },
                Code::unsupported,
                {"abacus"}},
        BadLoad{"isa", [](Options& o, std::string&) { o.isa = "mmx"; }, Code::unsupported, {"mmx"}},
        BadLoad{"head",
                [](Options& o, std::string&) { o.head = "int3"; },
                Code::invalid_argument,
                {"head", "int3"}},
        BadLoad{"lookup above",
                [](Options& o, std::string&) { o.draft.resize(2); },
                Code::invalid_argument,
                {"lookup"}},
        BadLoad{"switch without w4a16",
                [](Options& o, std::string&) { o.draft = parse_draft("switch:a8"); },
                Code::unsupported,
                {"switch:a8", "w4a16"}},
        BadLoad{"no such draft",
                [](Options& o, std::string&) { o.draft = parse_draft("/not/there"); },
                Code::io,
                {"/not/there"}},
        BadLoad{"another vocabulary",
                [](Options& o, std::string&) { o.draft = parse_draft(models().other_words); },
                Code::vocab_mismatch,
                {"17"}},
        BadLoad{"format of a cast",
                [](Options& o, std::string&) {
                  o.draft.resize(1);
                  o.draft[0].kind = LevelSpec::Kind::cast;
                  o.draft[0].format = "fp1";
                },
                Code::invalid_argument,
                {"fp1"}}));

TEST(Engine, TooLittleMemoryIsRefusedWithTheNumbersAndNothingIsKept) {
  TempDir folder;
  const std::string directory = folder / "long";
  TinySpec spec{.seed = 3};
  spec.layers = 2, spec.positions = 1 << 20;
  write_tiny_checkpoint(spec, directory);
  Options options;
  options.context = 1 << 20, options.max_sequences = 1024, options.threads = 1;
  testing::expect_refused([&] { Engine::load(directory, options); }, Code::out_of_memory,
                          {"MB needed", "MB available", "context="});
  options.context = 64, options.max_sequences = 1;
  EXPECT_EQ(Engine::load(directory, options)->info().context, 64);
}

TEST(Engine, TenThousandGenerationsLeaveNothingBehind) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "a sanitizer keeps what was freed";
#endif
  const auto engine = load(models().target, "cast:int8,lookup");
  const auto all = requests();
  const auto generate = [&](int n) {
    for (int i = 0; i < n; ++i) {
      Request request = all[size_t(i) % all.size()];
      request.prompt.resize(std::min<size_t>(request.prompt.size(), 8));
      request.max_tokens = 3;
      EXPECT_FALSE(say(*engine, request).finish == Finish::none);
    }
  };
  generate(1000);
  const size_t before = testing::memory_status("VmRSS");
  generate(10000);
  const size_t after = testing::memory_status("VmRSS");
  EXPECT_LT(after, before + (size_t{1} << 20)) << "grew by " << after - before << " bytes";
}

}  // namespace
}  // namespace stepladder
