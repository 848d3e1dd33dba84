// Whom a level asks, how deep and for how many guesses, where prices and chances are known.
#include "spec/planner.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <random>
#include <tuple>
#include <utility>

namespace stepladder {
namespace {

constexpr int kDepth = Planner::kMaxDepth;

GuessCost line(float row, int most = kDepth) {
  GuessCost out(most);
  for (int n = 0; n <= most; ++n) out[n] = row * static_cast<float>(n);
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
  GuessCost rows(kDepth);
  for (int d = 3; d <= kDepth; ++d) rows[d] = 0.5f;
  EXPECT_EQ(worth_guessing(3, rows, 0, [](int) { return 0.9f; }), 2);
  EXPECT_EQ(worth_guessing(12, rows, 0, [](int) { return 0.9f; }), 12);
}

constexpr double kRoundMs = 10;

/// A round's time where a round without guesses takes kRoundMs.
RowCost timed() {
  RowCost out(0.02f);
  out.add(1, kRoundMs);
  return out;
}

/// Spreads `right` of chances evenly, so that what a run learns does not depend on luck.
class Evenly {
 public:
  bool operator()(double right) {
    if ((debt_ += 1 - right) < 1) return true;
    debt_ -= 1;
    return false;
  }

 private:
  double debt_ = 0;
};

DrafterTraits chain(int tokens = 8) { return {.tokens = tokens, .nodes = kDepth, .price = 0.3f}; }

/// Rounds of one sequence over one drafter whose guesses cost `each` of a round and are right with
/// chance `right`, evenly. Returns the guesses of each round.
std::vector<int> play(Planner& planner, int rounds, double right, double each, float row = 0.02f,
                      int slot = 0, int sequences = 1) {
  std::vector<int> out;
  Evenly evenly;
  const GuessCost rows = line(row);
  const RowCost time = timed();
  const Planner::Offer ready[] = {{.ready = true}};
  for (int i = 0; i < rounds; ++i) {
    planner.tick(slot);
    const Planner::Plan p = planner.plan(slot, {kDepth, rows, time, sequences}, ready);
    out.push_back(p.drafter < 0 ? 0 : p.depth);
    if (p.drafter < 0) continue;
    int accepted = 0;
    while (accepted < p.depth && evenly(right)) ++accepted;
    planner.paid(0, p.depth, kRoundMs * each * p.depth / sequences);
    planner.learn(slot, 0, p.depth, p.depth, accepted);
  }
  return out;
}

int asked(const std::vector<int>& rounds) {
  return static_cast<int>(rounds.size() - std::count(rounds.begin(), rounds.end(), 0));
}

TEST(Planner, AsksForAllUntilItKnowsThePrice) {
  Planner planner(1, {chain()});
  EXPECT_EQ(play(planner, 1, 0.5, 5)[0], 8);
}

TEST(Planner, SettlesOnTheBestCount) {
  for (const float row : {0.02f, 0.2f}) {
    Planner planner(1, {chain()});
    const int n = play(planner, 200, 0.97, 0.4, row).back();
    for (int other = 0; other <= 8; ++other)
      EXPECT_GE(rate(n, 0.97, line(row), 0.4), 0.98 * rate(other, 0.97, line(row), 0.4))
          << row << ": " << n << " against " << other;
  }
}

TEST(Planner, LetsADrafterRestThatDoesNotPayAndAsksAgainLaterAndLater) {
  Planner planner(1, {chain()});
  const std::vector<int> n = play(planner, 1000, 0.05, 0.5);
  EXPECT_EQ(n[0], 8);
  EXPECT_LE(asked(n), 24);  // a few to find out, then a few a trial
  int rest = 0;
  std::vector<int> rests;
  for (const int guesses : n) {
    if (guesses == 0) ++rest;
    if (guesses > 0 && rest > 0) rests.push_back(std::exchange(rest, 0));
  }
  ASSERT_GE(rests.size(), 4u);
  for (size_t i = 1; i < rests.size(); ++i) EXPECT_NEAR(rests[i], 2 * rests[i - 1], 2) << i;
}

TEST(Planner, LooksAgainWhenTheClockMisled) {
  Planner planner(1, {chain()});
  play(planner, 12, 0.97, 4);  // something else ran meanwhile
  EXPECT_GT(asked(play(planner, 150, 0.97, 0.4)), 100);
}

TEST(Planner, WakesWhenTheTextCanBeGuessedAgain) {
  Planner planner(1, {chain()});
  play(planner, 60, 0.05, 0.3);
  EXPECT_GE(play(planner, 1000, 1, 0.3).back(), 6);
}

TEST(Planner, StartsATextFromWhatTheOthersHaveShown) {
  Planner planner(2, {chain()});
  play(planner, 300, 0.05, 0.3);
  planner.forget(1);
  EXPECT_EQ(play(planner, 1, 0.05, 0.3, 0.02f, 1)[0], 0);
}

// Many short texts cost no more trials than one long one.
TEST(Planner, LetsALevelRestAcrossTexts) {
  Planner planner(1, {chain()});
  int rounds = 0;
  for (int text = 0; text < 40; ++text) {
    planner.forget(0);
    rounds += asked(play(planner, 50, 0.05, 0.5));
  }
  EXPECT_LE(rounds, 30);
}

// However short the texts are, a level that came to rest is tried again and found to pay.
TEST(Planner, FindsOutInShortTextsThatALevelPaysAgain) {
  Planner planner(1, {chain()});
  play(planner, 2000, 0.05, 0.3);
  int rounds = 0;
  for (int text = 0; text < 100; ++text) {
    planner.forget(0);
    rounds += asked(play(planner, 20, 1, 0.3));
  }
  EXPECT_GT(rounds, 800);
}

TEST(Planner, TriesEachSequenceAsOftenAsOneAlone) {
  Planner planner(8, {chain()});
  std::vector<int> rounds(8);
  for (int round = 0; round < 4000; ++round)
    for (int slot = 0; slot < 8; ++slot)
      rounds[slot] += asked(play(planner, 1, 0, 3.2, 0.02f, slot, 8));
  for (const int n : rounds) EXPECT_TRUE(n >= 15 && n <= 60) << n;
}

TEST(Planner, ForgivesAnInterruptedDraft) {
  Planner planner(1, {chain()});
  const int before = play(planner, 100, 0.97, 0.3).back();
  planner.paid(0, 8, 1e6);
  EXPECT_GT(play(planner, 1, 0.97, 0.3)[0], 0);
  EXPECT_GE(before, 6);
}

// ---- trees -------------------------------------------------------------------------------------

TEST(Planner, TakesATreeForATree) {  // of 60 nodes, three levels are right each round
  DrafterTraits tree{.tokens = 12, .nodes = 60, .branches = true, .price = 0.1f};
  Planner planner(1, {tree});
  const GuessCost rows = line(0.002f, 60);
  const RowCost time = timed();
  const Planner::Offer ready[] = {{.ready = true}};
  Planner::Plan p;
  for (int i = 0; i < 200; ++i) {
    planner.tick(0);
    p = planner.plan(0, {kDepth, rows, time}, ready);
    ASSERT_EQ(p.drafter, 0) << i;
    EXPECT_TRUE(i > 0 || p.depth == 12);
    planner.paid(0, p.depth, kRoundMs * 0.1 * p.depth);
    planner.learn(0, 0, p.nodes, p.depth, p.nodes > 40 ? std::min(p.depth, 3) : 0);
  }
  EXPECT_EQ(p.depth, 3);
  EXPECT_EQ(p.nodes, 47);  // the smallest of its sizes that still brings them
}

TEST(Planner, BooksNoMissWhereATreeEnds) {
  DrafterTraits tree{.tokens = 12, .nodes = 200, .branches = true};
  Planner planner(1, {tree});
  for (int i = 0; i < 100; ++i) planner.learn(0, 0, 200, 4, 4);  // right as deep as it goes
  for (int d = 1; d <= 12; ++d) EXPECT_GT(planner.chance(0, 0, 200, d), 0.95f) << d;
  for (int i = 0; i < 100; ++i) planner.learn(0, 0, 200, 6, 4);
  EXPECT_GT(planner.chance(0, 0, 200, 4), 0.9f);
  EXPECT_LT(planner.chance(0, 0, 200, 5), 0.2f);
}

// ---- against brute force -----------------------------------------------------------------------

/// What a drafter costs and brings, for good.
struct Truth {
  DrafterTraits traits;
  float each = 0;                           // a level of depth
  std::vector<std::vector<float>> chances;  // [nodes][depth - 1]; of chains nodes does not matter
  Forecast forecast{};

  float at(int nodes, int d) const { return chances[traits.branches ? nodes : 0][d - 1]; }
  double rate(int depth, int nodes, const GuessCost& rows) const {
    double brings = 1, reached = 1;
    for (int d = 1; d <= depth; ++d) brings += reached *= at(nodes, d);
    return brings / (1 + rows[nodes] + each * depth);
  }
};

struct World {
  std::vector<Truth> drafters;
  GuessCost rows{1};
  int nodes = 0;

  explicit World(uint32_t seed) {
    std::mt19937 rng(seed);
    const auto real = [&](double a, double b) {
      return a + (b - a) * std::uniform_real_distribution<>()(rng);
    };
    nodes = static_cast<int>(31 + rng() % 220);
    rows = GuessCost(nodes);
    // Flat, then a slope with steps where a kernel takes another path.
    const double knee = real(2, 40), slope = real(0, 0.1), step = rng() % 2 ? real(0, 0.4) : 0;
    for (int n = 1; n <= nodes; ++n)
      rows[n] = static_cast<float>(0.01 * n + slope * std::max(0., n + 1 - knee) +
                                   step * std::floor(std::log2((n + 1.) / 8 + 1)));
    for (size_t k = 1 + rng() % 3; k > 0; --k) {
      Truth t;
      t.traits = {.tokens = static_cast<int>(1 + rng() % 12),
                  .nodes = nodes,
                  .branches = rng() % 2 == 0,
                  .price = static_cast<float>(real(0, 1))};
      t.each = static_cast<float>(std::pow(real(0, 1), 2));
      const double first = real(0.05, 0.99), fall = real(0.8, 1), width = real(0.5, 1);
      for (int n = 0; n <= (t.traits.branches ? nodes : 0); ++n) {
        t.chances.emplace_back();
        double p = first;
        for (int d = 0; d < kDepth; ++d, p *= fall) {
          const double part = std::pow(n / double(nodes), 1 - width);  // what a smaller tree has
          t.chances.back().push_back(static_cast<float>(t.traits.branches ? p * part : p));
        }
      }
      drafters.push_back(std::move(t));
    }
  }
  /// The best there is, over all depths, all numbers of nodes, all drafters, and nobody.
  double best() const {
    double out = 1;
    for (const Truth& t : drafters)
      for (int d = 1; d <= t.traits.tokens; ++d)
        for (int n = d; n <= (t.traits.branches ? nodes : d); ++n)
          out = std::max(out, t.rate(d, n, rows));
    return out;
  }
  std::vector<DrafterTraits> traits() const {
    std::vector<DrafterTraits> out;
    for (const Truth& t : drafters) out.push_back(t.traits);
    return out;
  }
};

/// The accepted levels of a draft, spread evenly.
class Luck {
 public:
  int operator()(const Truth& t, int drafter, int depth, int nodes) {
    int accepted = 0;
    while (accepted < depth && luck_[{drafter, nodes, accepted}](t.at(nodes, accepted + 1)))
      ++accepted;
    return accepted;
  }

 private:
  std::map<std::tuple<int, int, int>, Evenly> luck_;
};

// Brute force looks at all drafters, all depths, all numbers of nodes, and nobody.
TEST(Planner, AsksForTheBestOfATableItKnows) {
  for (uint32_t seed = 1; seed <= 1000; ++seed) {
    const World world(seed);
    Planner planner(2, world.traits());
    const RowCost time = timed();
    Luck luck;
    for (int j = 0; j < static_cast<int>(world.drafters.size()); ++j) {
      const Truth& t = world.drafters[j];
      const int depth = t.traits.tokens;
      std::vector<int> sizes = {t.traits.branches ? world.nodes : depth};
      if (t.traits.branches)
        for (int rows = 2; rows < world.nodes; rows *= 2)
          sizes.push_back(rows - 1), sizes.push_back(std::min(rows + rows / 2 - 1, world.nodes));
      for (int i = 0; i < 150; ++i)
        for (const int nodes : sizes) planner.learn(0, j, nodes, depth, luck(t, j, depth, nodes));
      planner.paid(j, depth, kRoundMs * t.each * depth);
    }
    // Another text, for which it has to go by what the first has shown.
    const std::vector<Planner::Offer> offers(world.drafters.size(), {.ready = true});
    const Planner::Plan p = planner.plan(1, {kDepth, world.rows, time}, offers);
    const double got =
        p.drafter < 0 ? 1 : world.drafters[p.drafter].rate(p.depth, p.nodes, world.rows);
    EXPECT_GE(got, 0.95 * world.best()) << "seed " << seed;
  }
}

// It knows nothing but what its own rounds show; trials, and what it tries for its ignorance,
// count.
TEST(Planner, FindsTheBestOfATableByItself) {
  int close = 0;
  for (uint32_t seed = 1; seed <= 1000; ++seed) {
    const World world(seed);
    Planner planner(1, world.traits());
    const RowCost time = timed();
    const std::vector<Planner::Offer> offers(world.drafters.size(), {.ready = true});
    Luck luck;
    double tokens = 0, units = 0;
    for (int i = 0; i < 2000; ++i) {
      planner.tick(0);
      const Planner::Plan p = planner.plan(0, {kDepth, world.rows, time}, offers);
      const Truth* t = p.drafter < 0 ? nullptr : &world.drafters[p.drafter];
      const double cost = t ? 1 + world.rows[p.nodes] + t->each * p.depth : 1;
      if (i >= 1500) units += cost, tokens += t ? t->rate(p.depth, p.nodes, world.rows) * cost : 1;
      if (!t) continue;
      planner.paid(p.drafter, p.depth, kRoundMs * t->each * p.depth);
      planner.learn(0, p.drafter, p.nodes, p.depth, luck(*t, p.drafter, p.depth, p.nodes));
    }
    close += tokens / units >= 0.95 * world.best();
    EXPECT_GE(tokens / units, 0.9 * world.best()) << "seed " << seed;
  }
  EXPECT_GE(close, 985);
}

// ---- several drafters --------------------------------------------------------------------------

/// A draft of chance `right` each guess, which costs `each` of a round.
struct Kind {
  double right = 0, each = 0;
};

/// Rounds over several drafters; how many went to each, the last to nobody.
std::vector<int> compete(Planner& planner, const std::vector<Kind>& kinds, int rounds,
                         std::optional<double> measured = 1) {
  std::vector<int> out(kinds.size() + 1);
  std::vector<Evenly> evenly(kinds.size());
  const GuessCost rows = line(0.02f);
  const RowCost time = measured ? timed() : RowCost(0.02f);
  const std::vector<Planner::Offer> offers(kinds.size(), {.ready = true});
  for (int i = 0; i < rounds; ++i) {
    planner.tick(0);
    const Planner::Plan p = planner.plan(0, {kDepth, rows, time}, offers);
    ++out[p.drafter < 0 ? kinds.size() : static_cast<size_t>(p.drafter)];
    if (p.drafter < 0) continue;
    const Kind& kind = kinds[p.drafter];
    int accepted = 0;
    while (accepted < p.depth && evenly[p.drafter](kind.right)) ++accepted;
    planner.paid(p.drafter, p.depth,
                 measured ? std::optional(kRoundMs * kind.each * p.depth) : std::nullopt);
    planner.learn(0, p.drafter, p.depth, p.depth, accepted);
  }
  return out;
}

TEST(Planner, AsksWhoeverBringsMostAndTriesTheOthers) {
  for (int best = 0; best < 3; ++best) {
    Planner planner(1, {chain(), chain(), chain()});
    std::vector<Kind> kinds(3, {0.7, 0.4});
    kinds[best] = {0.9, 0.2};
    compete(planner, kinds, 100);
    std::vector<int> n = compete(planner, kinds, 1000);
    EXPECT_GE(n[best], 900) << best;
    for (int other = 0; other < 3; ++other) EXPECT_GT(n[other], 0) << best << " " << other;
    std::swap(kinds[best], kinds[(best + 1) % 3]);  // another is the best from now on
    compete(planner, kinds, 600);
    n = compete(planner, kinds, 1000);
    EXPECT_GE(n[(best + 1) % 3], 850) << best;
  }
}

TEST(Planner, AsksNobodyWhereNobodyPays) {
  Planner planner(1, {chain(), chain()});
  EXPECT_GE(compete(planner, {{0.1, 0.5}, {0.5, 0.9}}, 1000)[2], 930);
}

TEST(Planner, NeverLeavesOutAFixedLength) {
  DrafterTraits fixed = chain(5);
  fixed.fixed = true;
  Planner alone(1, {fixed});
  EXPECT_EQ(compete(alone, {{0, 3}}, 300)[0], 300);
  const GuessCost rows = line(0.02f);
  const RowCost time = timed();
  const Planner::Offer ready[] = {{.ready = true}};
  EXPECT_EQ(alone.plan(0, {kDepth, rows, time}, ready).depth, 5);
  EXPECT_EQ(alone.plan(0, {3, rows, time}, ready).depth, 3);
  Planner below(1, {chain(), fixed});  // the first may be left out, and so asks the second
  EXPECT_EQ(compete(below, {{0.1, 0.5}, {0.6, 0.3}}, 1000)[2], 0);
}

TEST(Planner, AsksOneThatForecastsWhenItSaysMore) {
  DrafterTraits lookup{.tokens = 10, .nodes = kDepth, .forecasts = true};
  Planner planner(1, {chain(), lookup});
  const GuessCost rows = line(0.02f);
  const RowCost time = timed();
  std::vector<Planner::Offer> offers = {{.ready = true}, {.ready = true}};
  const auto drafter = [&] {
    planner.tick(0);
    const Planner::Plan p = planner.plan(0, {kDepth, rows, time}, offers);
    if (p.drafter == 0)
      planner.paid(0, p.depth, 4.0 * p.depth), planner.learn(0, 0, p.depth, p.depth, p.depth);
    return p.drafter;
  };
  for (int i = 0; i < 20; ++i) EXPECT_EQ(drafter(), 0) << i;
  offers[1].forecast = {10, 9.5f};
  for (int i = 0; i < 20; ++i) EXPECT_EQ(drafter(), 1) << i;
  offers[1].forecast = {1, 0.5f};
  for (int i = 0; i < 20; ++i) EXPECT_EQ(drafter(), 0) << i;
  offers[0].ready = false;  // and instead of nobody, so that it watches the text
  offers[1].forecast = {};
  EXPECT_EQ(drafter(), 1);
}

// ---- nothing measured --------------------------------------------------------------------------

TEST(Planner, TakesTheAssumedPriceWhereNothingIsMeasured) {
  for (const float price : {0.1f, 0.9f}) {
    DrafterTraits lazy = chain();
    lazy.price = price;
    Planner planner(1, {lazy});
    compete(planner, {{0.6, 0}}, 50, std::nullopt);
    EXPECT_EQ(planner.price(0, {kDepth, line(0.02f), timed()}), price);
    const std::vector<int> n = compete(planner, {{0.6, 0}}, 200, std::nullopt);
    EXPECT_TRUE(price < 0.5f ? n[0] == 200 : n[1] > 150) << price << " " << n[0];
  }
}

// ---- any history -------------------------------------------------------------------------------

TEST(Planner, StaysInBoundsWhateverItsHistory) {
  for (uint32_t seed = 1; seed <= 10000; ++seed) {
    std::mt19937 rng(seed);
    const auto below = [&](int n) { return static_cast<int>(rng() % static_cast<uint32_t>(n)); };
    std::vector<DrafterTraits> traits;
    for (int k = 1 + below(3); k > 0; --k)
      traits.push_back({.tokens = 1 + below(kDepth),
                        .nodes = 1 + below(300),
                        .branches = rng() % 2 == 0,
                        .forecasts = rng() % 4 == 0,
                        .fixed = rng() % 5 == 0,
                        .price = static_cast<float>(below(100)) / 50});
    const int drafters = static_cast<int>(traits.size());
    Planner planner(2, traits);
    RowCost time(0.04f);
    GuessCost rows(300);
    for (int i = 0; i < 30; ++i) {
      const int slot = below(2), j = below(drafters);
      const double odd[] = {0, 1e9, 1e-9, 3, -1};
      if (rng() % 4 == 0) time.add(1 + below(3000), odd[below(5)]);
      if (rng() % 4 == 0) planner.paid(j, 1 + below(40), odd[below(5)]);
      if (rng() % 20 == 0) planner.paid(j, 1 + below(40), std::nullopt);
      if (rng() % 20 == 0) planner.forget(slot);
      time.fill(1 + below(8), rows);
      planner.tick(slot);
      std::vector<Planner::Offer> offers;
      for (int k = 0; k < drafters; ++k)
        offers.push_back({rng() % 4 != 0, {below(11), static_cast<float>(below(10))}});
      const int depth = below(kDepth + 1);
      const Planner::Round round{depth, rows, time, 1 + below(8)};
      const Planner::Plan p = planner.plan(slot, round, offers);
      if (p.drafter >= 0) {
        const DrafterTraits& t = traits[p.drafter];
        ASSERT_TRUE(offers[p.drafter].ready) << seed;
        ASSERT_TRUE(p.depth >= 1 && p.depth <= std::min(t.tokens, depth)) << seed;
        ASSERT_GE(p.nodes, std::min(p.depth, t.nodes)) << seed;
        ASSERT_TRUE(!t.branches || p.nodes <= t.nodes) << seed;
        ASSERT_FALSE(planner.resting(slot, p.drafter)) << seed;
      }
      planner.wanted(slot, j, round);
      planner.learn(slot, j, below(301), below(33), below(33));
      const float chance = planner.chance(slot, j, 1 + below(300), 1 + below(kDepth));
      ASSERT_TRUE(chance >= 0 && chance <= 1) << seed << " " << chance;
      const float price = planner.price(j, round);
      ASSERT_TRUE(std::isfinite(price) && price >= 0) << seed << " " << price;
    }
  }
}

}  // namespace
}  // namespace stepladder
