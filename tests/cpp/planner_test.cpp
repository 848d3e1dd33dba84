// How many guesses are asked for where prices and chances are known.
#include "spec/planner.h"

#include <gtest/gtest.h>

#include <utility>

namespace stepladder {
namespace {

GuessCost line(float row) {
  GuessCost out{};
  for (int d = 0; d < kMaxEmitted; ++d) out[d] = row * static_cast<float>(d);
  return out;
}

/// Tokens a round of `n` guesses brings, a unit of its time.
double rate(int n, double right, const GuessCost& rows, double each) {
  double brings = 1, reached = 1;
  for (int d = 1; d <= n; ++d) brings += reached *= right;
  return brings / (1 + rows[n] + each * n);
}

TEST(WorthGuessing, TakesTheCountOfTheBestRate) {
  for (const float right : {0.1f, 0.5f, 0.7f, 0.9f, 0.97f})
    for (const float row : {0.f, 0.01f, 0.1f, 0.3f})
      for (const float each : {0.f, 0.2f, 0.5f, 0.9f}) {
        float reached = 1;
        const int got = worth_guessing(20, line(row), each, [&](int) { return reached *= right; });
        for (int n = 0; n <= 20; ++n)
          EXPECT_GE(rate(got, right, line(row), each), rate(n, right, line(row), each) - 1e-5)
              << right << " " << row << " " << each << ": " << got << " against " << n;
      }
}

TEST(WorthGuessing, SeesBeyondAStep) {  // the third row is dear, those behind it are not
  GuessCost rows{};
  for (int d = 3; d < kMaxEmitted; ++d) rows[d] = 0.5f;
  EXPECT_EQ(worth_guessing(3, rows, 0, [](int) { return 0.9f; }), 2);
  EXPECT_EQ(worth_guessing(12, rows, 0, [](int) { return 0.9f; }), 12);
}

/// Rounds of one sequence whose guesses cost `each` of a round and are right with chance `right`,
/// evenly. Returns the guesses of each round.
std::vector<int> play(Planner& planner, int rounds, float right, float each, float row = 0.02f) {
  std::vector<int> out;
  double debt = 0;
  for (int i = 0; i < rounds; ++i) {
    planner.tick(0);
    const int n = planner.resting(0) ? 0 : planner.ask(0, 8, line(row), 10, 1);
    out.push_back(n);
    if (n == 0) continue;
    int accepted = 0;
    for (; accepted < n; ++accepted)
      if ((debt += 1 - right) >= 1) {
        debt -= 1;
        break;
      }
    planner.paid(n, 10.0 * each * n);
    planner.learn(0, n, accepted);
  }
  return out;
}

TEST(Planner, AsksForAllUntilItKnowsThePrice) {
  Planner planner(1);
  EXPECT_EQ(planner.ask(0, 8, line(0.5f), 10, 1), 8);
}

TEST(Planner, SettlesOnTheBestCount) {
  for (const float row : {0.02f, 0.2f}) {
    Planner planner(1);
    const int n = play(planner, 200, 0.97f, 0.4f, row).back();
    for (int other = 0; other <= 8; ++other)
      EXPECT_GE(rate(n, 0.97, line(row), 0.4), 0.98 * rate(other, 0.97, line(row), 0.4))
          << row << ": " << n << " against " << other;
  }
}

TEST(Planner, LetsADrafterRestThatDoesNotPayAndAsksAgainLaterAndLater) {
  Planner planner(1);
  const std::vector<int> n = play(planner, 1000, 0.05f, 0.5f);
  EXPECT_EQ(n[0], 8);
  int asked = 0, rest = 0;
  std::vector<int> rests;
  for (int i = 0; i < 1000; ++i) {
    asked += n[i] > 0;
    if (n[i] == 0) ++rest;
    if (n[i] > 0 && rest > 0) rests.push_back(std::exchange(rest, 0));
  }
  EXPECT_LE(asked, 24);  // a few to find out, then a few a trial
  ASSERT_GE(rests.size(), 4u);
  for (size_t i = 1; i < rests.size(); ++i) EXPECT_NEAR(rests[i], 2 * rests[i - 1], 2) << i;
}

TEST(Planner, LooksAgainWhenTheClockMisled) {
  Planner planner(1);
  play(planner, 12, 0.97f, 4);  // something else ran meanwhile
  int asked = 0;
  for (const int n : play(planner, 150, 0.97f, 0.4f)) asked += n > 0;
  EXPECT_GT(asked, 100);
}

TEST(Planner, WakesWhenTheTextCanBeGuessedAgain) {
  Planner planner(1);
  play(planner, 60, 0.05f, 0.3f);
  const std::vector<int> n = play(planner, 1000, 1, 0.3f);
  EXPECT_GE(n.back(), 6);
}

TEST(Planner, StartsATextFromWhatTheOthersHaveShown) {
  Planner planner(2);
  play(planner, 300, 0.05f, 0.3f);
  planner.forget(1);
  EXPECT_EQ(planner.ask(1, 8, line(0.02f), 10, 1), 0);
}

// Many short texts cost no more trials than one long one.
TEST(Planner, LetsALevelRestAcrossTexts) {
  Planner planner(1);
  int asked = 0;
  for (int text = 0; text < 40; ++text) {
    planner.forget(0);
    for (int n : play(planner, 50, 0.05f, 0.5f)) asked += n > 0;
  }
  EXPECT_LE(asked, 30);
}

// However short the texts are, a level that came to rest is tried again and found to pay.
TEST(Planner, FindsOutInShortTextsThatALevelPaysAgain) {
  Planner planner(1);
  play(planner, 2000, 0.05f, 0.3f);
  int asked = 0;
  for (int text = 0; text < 100; ++text) {
    planner.forget(0);
    for (const int n : play(planner, 20, 1, 0.3f)) asked += n > 0;
  }
  EXPECT_GT(asked, 800);
}

TEST(Planner, TriesEachSequenceAsOftenAsOneAlone) {
  Planner planner(8);
  std::vector<int> asked(8);
  for (int round = 0; round < 4000; ++round)
    for (int slot = 0; slot < 8; ++slot) {
      planner.tick(slot);
      const int n = planner.resting(slot) ? 0 : planner.ask(slot, 8, line(0.02f), 10, 8);
      if (n == 0) continue;
      ++asked[slot];
      planner.paid(n, 4.0 * n);
      planner.learn(slot, n, 0);
    }
  for (const int n : asked) EXPECT_TRUE(n >= 15 && n <= 60) << n;
}

TEST(Planner, ForgivesAnInterruptedDraft) {
  Planner planner(1);
  play(planner, 100, 0.97f, 0.3f);
  const int before = planner.ask(0, 8, line(0.02f), 10, 1);
  planner.paid(8, 1e6);
  EXPECT_GT(planner.ask(0, 8, line(0.02f), 10, 1), 0);
  EXPECT_GE(before, 6);
}

}  // namespace
}  // namespace stepladder
