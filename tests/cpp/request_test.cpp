// The two things a caller writes and can get wrong: the draft spec and the request.
#include "api/request.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "api/draft_spec.h"
#include "core/error.h"
#include "support/refusal.h"

namespace stepladder {
namespace {

constexpr int kVocab = 5;

// ---- draft specs ---------------------------------------------------------------------------

TEST(DraftSpec, ReadsEveryForm) {
  const auto levels = parse_draft(
      " cast:mxfp4:shared:tokens=4 , switch:a8, model:/a b/c:tokens=3:head=int8,"
      "org/name ,cast:int8:own:head=w8a8, lookup:max=5:min=2:tokens=9");
  ASSERT_EQ(levels.size(), 6u);
  EXPECT_EQ(levels[0].kind, LevelSpec::Kind::cast);
  EXPECT_EQ(levels[0].format, "mxfp4");
  EXPECT_TRUE(levels[0].shared_cache);
  EXPECT_EQ(levels[0].tokens, 4);
  EXPECT_EQ(levels[1].kind, LevelSpec::Kind::activations);
  EXPECT_EQ(levels[1].format, "a8");
  EXPECT_EQ(levels[2].kind, LevelSpec::Kind::model);
  EXPECT_EQ(levels[2].path, "/a b/c");
  EXPECT_EQ(levels[2].head, "int8");
  EXPECT_EQ(levels[3].path, "org/name");
  EXPECT_FALSE(levels[4].shared_cache);
  EXPECT_EQ(levels[4].head, "w8a8");
  EXPECT_EQ(levels[5].ngram_max, 5);
  EXPECT_EQ(levels[5].ngram_min, 2);
  EXPECT_EQ(levels[5].tokens, 9);
  EXPECT_TRUE(parse_draft("").empty());
  EXPECT_TRUE(parse_draft("  ").empty());
}

TEST(DraftSpec, WritesWhatItReads) {
  for (const char* text :
       {"lookup", "cast:mxfp4:shared:tokens=4,lookup", "switch:a8,lookup:max=3:min=1",
        "switch:a8:shared", "model:/x/y:tokens=2:head=int8", "plain/path",
        "cast:int8,eagle:/x/y:tokens=4:nodes=30", "C\\:/models\\,old,lookup", "back\\\\slash"}) {
    const std::string once = to_string(parse_draft(text));
    EXPECT_EQ(to_string(parse_draft(once)), once) << text;
    EXPECT_EQ(parse_draft(once).size(), parse_draft(text).size()) << text;
  }
  EXPECT_EQ(parse_draft("C\\:/models\\,old")[0].path, "C:/models,old");
  LevelSpec strange;
  strange.kind = LevelSpec::Kind::model, strange.path = "a\\,b:c=d";
  EXPECT_EQ(parse_draft(to_string({strange}))[0].path, strange.path);
}

class BadDraftSpec : public ::testing::TestWithParam<std::pair<const char*, const char*>> {};
TEST_P(BadDraftSpec, IsRefusedByName) {
  const auto& [text, named] = GetParam();
  try {
    parse_draft(text);
    FAIL() << "'" << text << "' was read";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::invalid_argument) << e.what();
    EXPECT_NE(std::string(e.what()).find(named), std::string::npos) << e.what();
  }
}
INSTANTIATE_TEST_SUITE_P(
    All, BadDraftSpec,
    ::testing::Values(
        std::pair{",", "empty level"}, std::pair{"lookup,", "empty level"},
        std::pair{"cast", "does not say"}, std::pair{"cast:", "does not say"},
        std::pair{"cast:fp3", "fp3"}, std::pair{"switch:a4", "a4"},
        std::pair{"model:", "does not say"}, std::pair{":tokens=4", "starts with nothing"},
        std::pair{"lookup:tokens=0", "tokens=0"}, std::pair{"lookup:tokens=31", "1 to 30"},
        std::pair{"lookup:tokens=-2", "tokens=-2"}, std::pair{"lookup:tokens=four", "tokens=four"},
        std::pair{"lookup:tokens=4x", "tokens=4x"},
        std::pair{"lookup:tokens=99999999999", "tokens="}, std::pair{"lookup:tokns=4", "tokns"},
        std::pair{"lookup:shared", "shared"}, std::pair{"lookup:head=int8", "head"},
        std::pair{"lookup:max=2:min=3", "above max"}, std::pair{"lookup:max=17", "16"},
        std::pair{"cast:int8:max=3", "belongs to lookup"},
        std::pair{"cast:int8:shared:own", "both"}, std::pair{"cast:int8:own:shared", "both"},
        std::pair{"cast:int8:head=", "head="}, std::pair{"cast:int8:head=fp3", "fp3"},
        std::pair{"switch:a8:own", "own"}, std::pair{"switch:a8:head=int8", "head"},
        std::pair{"lookup,cast:int8", "put it last"}, std::pair{"dir:with:colon", "with"},
        std::pair{"owl:dir", "dir"}, std::pair{"eagle", "DIR"}, std::pair{"dir:shared", "shared"},
        std::pair{"a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a,a", "at most"}));

TEST(DraftSpec, EveryKindHasADefault) {
  for (const LevelSpec& level :
       parse_draft("cast:int8,cast:w8a8,cast:mxfp4,cast:w4a16,switch:a8,some/model,lookup")) {
    EXPECT_EQ(level.tokens, 0);
    EXPECT_GE(with_defaults(level).tokens, 1) << level_name(level);
  }
  EXPECT_EQ(with_defaults(parse_draft("cast:mxfp4")[0]).head, "int8");
  EXPECT_EQ(with_defaults(parse_draft("lookup:tokens=3")[0]).tokens, 3);
}

TEST(DraftSpec, ADrafterIsAnEntryOfTheListByItsWord) {
  const auto all = drafters();
  const auto lookup =
      std::find_if(all.begin(), all.end(), [](const DrafterInfo& d) { return d.word == "lookup"; });
  ASSERT_NE(lookup, all.end());
  EXPECT_EQ(lookup->options.size(), 2u);
  EXPECT_NE(draft_forms().find("lookup, "), std::string::npos);

  LevelSpec level;
  level.kind = LevelSpec::Kind::drafter, level.word = "lookup";
  level.options = {{"max", 7}};
  EXPECT_NO_THROW(check_draft({level}));
  EXPECT_EQ(to_string({level}), "lookup:max=7");
  EXPECT_EQ(with_defaults(level).tokens, lookup->tokens);
  const DrafterSetup setup = drafter_setup(level);
  EXPECT_EQ(setup.option("max"), 7);
  EXPECT_EQ(setup.option("min"), 1);
  EXPECT_EQ(setup.tokens, lookup->tokens);
  // The fields of a lookup and the options of its word say the same.
  EXPECT_EQ(drafter_setup(parse_draft("lookup:max=7")[0]).options, setup.options);

  const auto refused = [&](const char* named, auto spoil) {
    LevelSpec bad = level;
    spoil(bad);
    try {
      check_draft({bad});
      ADD_FAILURE() << named;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::invalid_argument);
      EXPECT_NE(std::string(e.what()).find(named), std::string::npos) << e.what();
    }
  };
  refused("no drafter 'abacus'", [](LevelSpec& l) { l.word = "abacus"; });
  refused("no drafter ''", [](LevelSpec& l) { l.word.clear(); });
  refused("takes no 'dir'", [](LevelSpec& l) { l.path = "dir"; });
  refused("1 to 16", [](LevelSpec& l) { l.options[0].second = 0; });
  refused("given twice", [](LevelSpec& l) { l.options.emplace_back("max", 2); });
  refused("above max", [](LevelSpec& l) { l.options.emplace_back("min", 8); });
  refused("speed=", [](LevelSpec& l) { l.options = {{"speed", 1}}; });
  refused("head", [](LevelSpec& l) { l.head = "int8"; });
}

TEST(Draft, AnOptionIsGivenOnce) {
  for (const char* text :
       {"lookup:tokens=1:tokens=2", "cast:int8:head=int8:head=mxfp4", "lookup:max=3:max=3"})
    testing::expect_refused([&] { parse_draft(text); }, Code::invalid_argument, {"given twice"});
}

// ---- requests ------------------------------------------------------------------------------

struct BadRequest {
  const char* field;
  void (*spoil)(Request&);
};
class RequestCheck : public ::testing::TestWithParam<BadRequest> {};
TEST_P(RequestCheck, NamesTheField) {
  Request request;
  request.prompt = {0, 1};
  const RequestLimits limits{kVocab, 8, 16};
  EXPECT_NO_THROW(check_request(request, limits));
  GetParam().spoil(request);
  try {
    check_request(request, limits);
    FAIL() << GetParam().field;
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::invalid_argument);
    EXPECT_EQ(std::string(e.what()).rfind(GetParam().field, 0), 0u) << e.what();
  }
}
constexpr float kNan = std::numeric_limits<float>::quiet_NaN(),
                kInf = std::numeric_limits<float>::infinity();
INSTANTIATE_TEST_SUITE_P(
    All, RequestCheck,
    ::testing::Values(
        BadRequest{"prompt", [](Request& r) { r.prompt.clear(); }},
        BadRequest{"prompt", [](Request& r) { r.prompt.resize(9); }},
        BadRequest{"prompt", [](Request& r) { r.prompt[1] = kVocab; }},
        BadRequest{"prompt", [](Request& r) { r.prompt[0] = -1; }},
        BadRequest{"max_tokens", [](Request& r) { r.max_tokens = 0; }},
        BadRequest{"max_tokens", [](Request& r) { r.max_tokens = -1; }},
        BadRequest{"temperature", [](Request& r) { r.sampling.temperature = -1; }},
        BadRequest{"temperature", [](Request& r) { r.sampling.temperature = kNan; }},
        BadRequest{"temperature", [](Request& r) { r.sampling.temperature = 1e-9f; }},
        BadRequest{"temperature", [](Request& r) { r.sampling.temperature = kInf; }},
        BadRequest{"top_p", [](Request& r) { r.sampling.top_p = 0; }},
        BadRequest{"top_p", [](Request& r) { r.sampling.top_p = 1.1f; }},
        BadRequest{"top_p", [](Request& r) { r.sampling.top_p = kNan; }},
        BadRequest{"top_k", [](Request& r) { r.sampling.top_k = -1; }},
        BadRequest{"min_p", [](Request& r) { r.sampling.min_p = 2; }},
        BadRequest{"min_p", [](Request& r) { r.sampling.min_p = -0.1f; }},
        BadRequest{"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = 0; }},
        BadRequest{"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = kInf; }},
        BadRequest{"frequency_penalty", [](Request& r) { r.sampling.frequency_penalty = 2.5f; }},
        BadRequest{"presence_penalty", [](Request& r) { r.sampling.presence_penalty = kNan; }},
        BadRequest{"logit_bias", [](Request& r) { r.sampling.logit_bias = {{kVocab, 1.f}}; }},
        BadRequest{"logit_bias", [](Request& r) { r.sampling.logit_bias = {{1, -kInf}}; }},
        BadRequest{"logit_bias", [](Request& r) { r.sampling.logit_bias = {{1, 1.f}, {1, 2.f}}; }},
        BadRequest{"logit_bias",
                   [](Request& r) { r.sampling.logit_bias.assign(1000000, {1, 1.f}); }},
        BadRequest{"stop_token_ids", [](Request& r) { r.stop_token_ids = {99}; }},
        BadRequest{"logprobs", [](Request& r) { r.logprobs = 21; }},
        BadRequest{"logprobs", [](Request& r) { r.logprobs = -2; }}));

}  // namespace
}  // namespace stepladder
