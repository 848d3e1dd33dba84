// Prompt lookup: the longest and latest match, whatever was taken back before, and drafts as long
// as the sequence's own record is worth.
#include "spec/drafters/lookup.h"

#include <gtest/gtest.h>

#include <chrono>
#include <numeric>
#include <random>

#include "core/error.h"
#include "support/count_allocations.h"

namespace stepladder {
namespace {

using Tokens = std::vector<Token>;

class LookupTest : public ::testing::Test {
 protected:
  static Tokens draft(Lookup& lookup, const Tokens& text, int most = 30, int slot = 0) {
    Sequence s{slot, text, text.size()};
    std::vector<Sequence*> batch = {&s};
    DraftTrees trees(1, 64);
    const Budget budget{1, most, most};
    trees.reset(0, text.back());
    lookup.sync(batch);
    EXPECT_TRUE(lookup.read(batch, 1));
    EXPECT_TRUE(lookup.ready(s));
    lookup.draft(batch, {&budget, 1}, trees);
    EXPECT_EQ(trees.token_at(0, 0), text.back());
    Tokens out;
    for (int x = 1; x < trees.count[0]; ++x) {
      EXPECT_EQ(trees.parent_at(0, x), x - 1);
      out.push_back(trees.token_at(0, x));
    }
    return out;
  }
  // row_cost 0: as many guesses as allowed, however little they are trusted.
  static LookupOptions all(int tokens, int max = 4, int min = 1) {
    return {.tokens = tokens,
            .ngram_max = max,
            .ngram_min = min,
            .row_cost = 0,
            .context = 4096,
            .sequences = 2};
  }
};

TEST_F(LookupTest, CopiesWhatFollowedTheLongestMatch) {
  Lookup lookup(all(4));
  EXPECT_EQ(draft(lookup, {1, 2, 3, 50, 51, 9, 3, 60, 61, 1, 2, 3}), (Tokens{50, 51, 9, 3}));
}

TEST_F(LookupTest, PrefersTheLatestOfEquallyLongMatches) {
  Lookup lookup(all(2));
  EXPECT_EQ(draft(lookup, {7, 8, 50, 7, 8, 60, 7, 8}), (Tokens{60, 7}));
}

TEST_F(LookupTest, BacksOffToShorterMatchesAndNoShorter) {
  const Tokens text = {5, 6, 7, 1, 2, 3, 4, 7};
  Lookup one(all(2, 4, 1)), two(all(2, 4, 2));
  EXPECT_EQ(draft(one, text), (Tokens{1, 2}));
  EXPECT_EQ(draft(two, text), (Tokens{}));
}

TEST_F(LookupTest, GoesOnIntoItsOwnGuessesWhenTheTextHasAPeriod) {
  Lookup lookup(all(7));
  EXPECT_EQ(draft(lookup, {9, 1, 2, 3, 1, 2, 3}), (Tokens{1, 2, 3, 1, 2, 3, 1}));
}

TEST_F(LookupTest, KeepsToTheBudgetTheTreeAndItsOwnLimit) {
  Lookup lookup(all(5));
  const Tokens text = {1, 2, 3, 4, 5, 6, 7, 8, 9, 1};
  EXPECT_EQ(draft(lookup, text).size(), 5u);
  EXPECT_EQ(draft(lookup, text, 3).size(), 3u);
  EXPECT_EQ(draft(lookup, text, 0).size(), 0u);
  Sequence s{0, text, text.size()};
  std::vector<Sequence*> batch = {&s};
  DraftTrees trees(1, 3);
  const Budget budget{5, 5, 5};
  lookup.draft(batch, {&budget, 1}, trees);
  EXPECT_EQ(trees.count[0], 3);
}

TEST_F(LookupTest, SaysNothingOfNewTextOrBeyondItsContext) {
  LookupOptions o = all(4);
  o.context = 6;
  Lookup lookup(o);
  EXPECT_EQ(draft(lookup, {1}), (Tokens{}));
  EXPECT_EQ(draft(lookup, {1, 2, 3, 4}), (Tokens{}));
  EXPECT_EQ(draft(lookup, {1, 2, 1, 2, 1, 2}), (Tokens{1, 2, 1, 2}));
  EXPECT_EQ(draft(lookup, {1, 2, 1, 2, 1, 2, 1}), (Tokens{}));
  EXPECT_EQ(draft(lookup, {1, 2, 1}), (Tokens{2, 1, 2, 1}));
}

// The oracle looks at the whole text for every draft; the index has been through appends,
// rollbacks and other texts in between.
TEST_F(LookupTest, AgreesWithASearchOfTheWholeTextAfterAnyHistory) {
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 rng(seed);
    const int min = static_cast<int>(1 + rng() % 3), max = min + static_cast<int>(rng() % 4);
    const int tokens = static_cast<int>(1 + rng() % 12), words = static_cast<int>(2 + rng() % 30);
    Lookup lookup(all(tokens, max, min));
    Tokens texts[2];
    for (int step = 0; step < 200; ++step) {
      const int slot = static_cast<int>(rng() % 2);
      Tokens& text = texts[slot];
      if (rng() % 3 == 0 && !text.empty()) text.resize(text.size() - rng() % text.size());
      if (rng() % 40 == 0) text.clear();
      for (uint32_t n = 1 + rng() % 8; n > 0; --n)
        text.push_back(static_cast<Token>(rng() % words));
      Tokens want;
      for (int n = std::min<int>(max, static_cast<int>(text.size())); n >= min && want.empty(); --n)
        for (int end = static_cast<int>(text.size()) - 2; end >= n - 1 && want.empty(); --end)
          if (std::equal(text.end() - n, text.end(), text.begin() + end + 1 - n)) {
            Tokens longer = text;
            for (int i = 0; i < tokens; ++i) longer.push_back(longer[end + 1 + i]);
            want.assign(longer.begin() + static_cast<int64_t>(text.size()), longer.end());
          }
      ASSERT_EQ(draft(lookup, text, 30, slot), want) << "seed " << seed << " step " << step;
    }
  }
}

// Rows cost time, so a text that misleads it must end up with few of them, and a text that repeats
// itself with as many as allowed.
TEST_F(LookupTest, LearnsFromTheTextHowMuchToPropose) {
  std::mt19937 rng(5);
  Lookup lookup({.context = 4096});
  Tokens text(64, 0);
  for (Token& t : text) t = static_cast<Token>(rng() % 40);
  size_t early = 0, late = 0;
  for (int i = 0; i < 400; ++i) {  // forty words in random order: every word has occurred before
    text.push_back(static_cast<Token>(rng() % 40));
    (i < 50 ? early : late) += draft(lookup, text).size();
  }
  EXPECT_LT(late, 350u) << "more than a row a round for text nobody can guess";
  EXPECT_GT(early + late, 0u);
  const Tokens period(text.end() - 50, text.end());
  size_t copied = 0;
  for (int i = 0; i < 400; ++i) {
    text.push_back(period[i % 50]);
    copied = draft(lookup, text).size();
  }
  EXPECT_EQ(copied, static_cast<size_t>(LookupOptions{}.tokens)) << "it trusts what repeats";
  lookup.forget(0);
  EXPECT_GT(draft(lookup, {1, 2, 3, 4, 1, 2, 3}).size(), 0u);
}

TEST_F(LookupTest, NeedsNoMoreTimeForALongText) {
  std::mt19937 rng(6);
  const auto seconds_a_token = [&](int length) {
    Lookup lookup({.context = 8192});
    Sequence s;
    std::vector<Sequence*> batch = {&s};
    s.tokens.reserve(8192);
    for (int i = 0; i < length; ++i) s.tokens.push_back(static_cast<Token>(rng() % 4));
    DraftTrees trees(1, 64);
    const Budget budget{4, 10};
    lookup.sync(batch);
    double best = 1;
    for (int i = 0; i < 200; ++i) {
      s.tokens.push_back(static_cast<Token>(rng() % 4));
      const auto start = std::chrono::steady_clock::now();
      lookup.sync(batch);
      lookup.draft(batch, {&budget, 1}, trees);
      best = std::min(
          best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
  };
  EXPECT_LT(seconds_a_token(7900), 50e-6);  // a round takes milliseconds
}

TEST_F(LookupTest, AllocatesNothingOnceItStands) {
  std::mt19937 rng(7);
  Lookup lookup({.context = 500});
  Sequence s;
  std::vector<Sequence*> batch = {&s};
  s.tokens.reserve(600);
  DraftTrees trees(1, 64);
  const Budget budget{4, 10};
  const int64_t before = allocations;
  for (int i = 0; i < 3000; ++i) {
    if (s.tokens.size() == 510) s.tokens.resize(rng() % 500);
    if (i % 700 == 0) lookup.forget(0);
    s.tokens.push_back(static_cast<Token>(rng() % 6));
    lookup.sync(batch);
    lookup.draft(batch, {&budget, 1}, trees);
  }
  EXPECT_EQ(allocations, before);
}

TEST_F(LookupTest, RefusesImpossibleOptionsByName) {
  const auto message = [](LookupOptions o) -> std::string {
    try {
      Lookup lookup(o);
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  EXPECT_NE(message({.tokens = 0, .context = 10}).find("tokens=0"), std::string::npos);
  EXPECT_NE(message({.tokens = 31, .context = 10}).find("tokens=31"), std::string::npos);
  EXPECT_NE(message({.ngram_max = 2, .ngram_min = 3, .context = 10}).find("min=3"),
            std::string::npos);
  EXPECT_NE(message({.ngram_max = 17, .context = 10}).find("max=17"), std::string::npos);
  EXPECT_EQ(message({.context = 10}), "");
}

}  // namespace
}  // namespace stepladder
