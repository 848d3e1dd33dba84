// Levels that step aside where that is faster, by what the parts say of their own time, and trees
// of any width: over a model of five words, and always with the text of plain decoding.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <vector>

#include "spec/level.h"
#include "support/fake_model.h"

namespace stepladder {
namespace {

using fake::FakeDrafter;
using fake::FakeVerifier;
using fake::Model;

// ---- trees -------------------------------------------------------------------------------------

// A tree's size is its own limit: near a text's end, or the context's, it is as wide as ever.
TEST(Level, AsksForTreesAsWideAsTheyFitHoweverFewTokensAreLeft) {
  for (const bool branches : {true, false})
    for (const int limit : {1, 2, 3, 100}) {
      auto rules = std::make_shared<fake::Rules>(1);
      auto drafter = std::make_unique<FakeDrafter>(Model{.seed = 3, .level = 1}, 1, !branches, 5);
      const FakeDrafter& below = *drafter;
      auto verifier = std::make_unique<FakeVerifier>(
          fake::VerifierOptions{.model = {.seed = 3}, .context = 60, .tree_capacity = 201},
          std::make_shared<fake::Cache>(1), rules);
      const FakeVerifier& above = *verifier;
      Level level(std::move(verifier), std::move(drafter),
                  {.tokens = 6, .context = 60, .tree_capacity = 201});
      for (int i = 0; i < 40; ++i) {
        Sequence s{0, {1, 2, 3}, 3};
        Sequence* const batch[] = {&s};
        const char drafts = 1;
        RoundResult out;
        level.sync(batch);
        level.advance(batch, {&limit, 1}, {&drafts, 1}, {&out, 1});
        EXPECT_LE(out.emitted, limit);
      }
      EXPECT_EQ(above.largest_tree, std::max(below.largest_tree, 1));
      if (limit == 1)
        EXPECT_EQ(above.largest_tree, 1);
      else if (branches)
        EXPECT_GT(above.largest_tree, 150) << limit;
      else
        EXPECT_LE(above.largest_tree, std::min(limit, kMaxEmitted)) << limit;
    }
}

// ---- stepping aside ----------------------------------------------------------------------------

// Guesses along a model's own greedy continuation, as many as are wished for, for so many
// milliseconds each; or without a word about its time, like one that only queues.
class Greedy final : public Drafter {
 public:
  Greedy(Model model, std::optional<double> each) : model_(model), each_(each) {}
  void sync(Batch batch) override { synced_ = batch[0]->tokens; }
  bool read(Batch, int) override { return true; }
  bool ready(const Sequence&) const override { return true; }
  bool reads_rows_above() const override { return bound; }
  void draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) override {
    const Sequence& s = *batch[0];
    EXPECT_EQ(synced_, s.tokens);
    out.reset(0, s.tokens.back());
    fake::Entry at;
    for (size_t p = 0; p < s.tokens.size(); ++p) at = model_.step(p ? &at : nullptr, s.tokens[p]);
    for (int d = 0; d < budgets[0].at_least; ++d) {
      const std::vector<float> logits = model_.logits(at);
      const auto guess =
          static_cast<Token>(std::max_element(logits.begin(), logits.end()) - logits.begin());
      out.add(0, d, guess);
      at = model_.step(&at, guess);
    }
    ++drafts, guesses += out.depth[0];
    spent += true_ms * out.depth[0];
    if (each_) ms_ = *each_ * out.depth[0];
  }
  std::optional<double> last_ms() const override { return each_ ? ms_ : std::nullopt; }
  void forget(int) override {}

  bool bound = false;
  double true_ms = 0.2, spent = 0;
  int drafts = 0, guesses = 0;

 private:
  Model model_;
  std::optional<double> each_, ms_;
  std::vector<Token> synced_;
};

// A target of 10 ms over an optional middle over an optional leaf, which all plan.
struct Ladder {
  struct Middle {
    double ms = 0, agree = 0;
  };
  Ladder(std::optional<Middle> middle, bool with_leaf, bool bound = false) {
    const auto part = [&](int level, double ms, double agree) {
      auto out = std::make_unique<FakeVerifier>(
          fake::VerifierOptions{.model = {.seed = 11, .level = level, .agree = agree},
                                .context = 5000,
                                .ms = ms,
                                .row_ms = 0.1},
          std::make_shared<fake::Cache>(1), rules);
      parts.push_back(out.get());
      return out;
    };
    const auto options = [](float cost) {
      return LevelOptions{.tokens = 6, .plan = true, .guess_cost = cost, .context = 5000};
    };
    std::unique_ptr<Drafter> inner;
    if (with_leaf) {
      auto drafter = std::make_unique<Greedy>(Model{.seed = 11, .level = 2, .agree = 0.75}, 0.2);
      leaf = drafter.get();
      leaf->bound = bound;
      inner = std::move(drafter);
    }
    if (middle)
      inner = std::make_unique<Level>(part(1, middle->ms, middle->agree), std::move(inner),
                                      options(0.1f));
    target = std::make_unique<Level>(part(0, 10, 1), std::move(inner), options(0.5f));
    sequence.tokens = {1, 2, 3}, sequence.committed = 3;
    rules->begin(0, {}, sequence.tokens);
  }
  /// Milliseconds a token, by the parts' own clocks, over the next `tokens`.
  double run(int tokens) {
    const double before = spent();
    const size_t from = sequence.tokens.size(), until = from + static_cast<size_t>(tokens);
    Sequence* const batch[] = {&sequence};
    const int limit = kMaxEmitted;
    const char drafts = 1;
    RoundResult out;
    while (sequence.tokens.size() < until) {
      target->sync(batch);
      target->read_below(batch, 100);
      target->advance(batch, {&limit, 1}, {&drafts, 1}, {&out, 1});
      sequence.tokens.insert(sequence.tokens.end(), out.token, out.token + out.emitted);
      sequence.committed = sequence.tokens.size();
    }
    return (spent() - before) / static_cast<double>(sequence.tokens.size() - from);
  }
  double spent() const {
    double out = leaf ? leaf->spent : 0;
    for (const FakeVerifier* p : parts) out += p->spent;
    return out;
  }
  bool is_plain() const {
    const auto n = static_cast<int>(sequence.tokens.size());
    return sequence.tokens == fake::plain_decoding({.seed = 11}, {}, {1, 2, 3}, n - 3);
  }
  /// Rounds of the middle so far.
  int middle_rounds() const { return parts[0]->rounds; }

  std::shared_ptr<fake::Rules> rules = std::make_shared<fake::Rules>(1);
  std::vector<FakeVerifier*> parts;  // innermost first
  Greedy* leaf = nullptr;
  std::unique_ptr<Level> target;
  Sequence sequence;
};

// Whatever the middle costs and is worth, the list of all three is about as fast as the fastest
// that can be had by leaving levels out.
TEST(Level, AHierarchyIsAsFastAsTheBestOfItsParts) {
  int aside = 0, used = 0;
  for (const double ms : {0.5, 2.0, 4.0, 8.0, 20.0})
    for (const double agree : {0.2, 0.6, 0.9, 0.99}) {
      const Ladder::Middle middle{ms, agree};
      Ladder all(middle, true), without(std::nullopt, true), over(middle, false);
      for (Ladder* l : {&all, &without, &over}) l->run(600);  // what learning costs
      const int before = all.middle_rounds();
      const double mine = all.run(1500);
      const double best = std::min({10.1, without.run(1500), over.run(1500)});
      EXPECT_LE(mine, best / 0.94) << "middle of " << ms << " ms, agreeing " << agree;
      for (const Ladder* l : {&all, &without, &over}) EXPECT_TRUE(l->is_plain());
      const int rounds = all.middle_rounds() - before;
      aside += rounds < 100, used += rounds > 300;
    }
  EXPECT_GE(aside, 5) << "some of them must not pay";
  EXPECT_GE(used, 3) << "some of them must pay";
}

TEST(Level, StepsAsideWhenItNoLongerPaysAndComesBack) {
  Ladder l(Ladder::Middle{0.5, 0.97}, true);
  l.run(600);
  int before = l.middle_rounds();
  l.run(600);
  EXPECT_GT(l.middle_rounds() - before, 100);
  l.parts[0]->slow_down(40);  // from now on it takes longer than the target
  l.run(600);
  before = l.middle_rounds();
  const int drafts = l.leaf->drafts;
  l.run(1000);
  EXPECT_LT(l.middle_rounds() - before, 60);
  EXPECT_GT(l.leaf->drafts - drafts, 200) << "the leaf below it drafts for the target";
  l.parts[0]->slow_down(1 / 40.);
  l.run(1500);
  before = l.middle_rounds();
  l.run(600);
  EXPECT_GT(l.middle_rounds() - before, 100);
  EXPECT_TRUE(l.is_plain());
}

// A head that reads what the middle computes has nothing to say without it.
TEST(Level, IsNotLeftOutBetweenItsRowsAndTheirReader) {
  for (const bool bound : {false, true}) {
    Ladder l(Ladder::Middle{20, 0.5}, true, bound);
    l.run(1000);
    if (bound)
      EXPECT_LE(l.leaf->drafts, l.middle_rounds());
    else
      EXPECT_GT(l.leaf->drafts, l.middle_rounds());
    EXPECT_TRUE(l.is_plain());
  }
}

// ---- time --------------------------------------------------------------------------------------

// A drafter that only queues says nothing of its time: it is taken at its assumed cost, and so not
// asked where that is too much.
TEST(Level, DoesNotTakeADrafterForFreeThatOnlyQueues) {
  const auto guesses = [](std::optional<double> each, float assumed) {
    auto drafter = std::make_unique<Greedy>(Model{.seed = 11, .level = 2, .agree = 0.6}, each);
    const Greedy& below = *drafter;
    auto rules = std::make_shared<fake::Rules>(1);
    Level level(
        std::make_unique<FakeVerifier>(
            fake::VerifierOptions{.model = {.seed = 11}, .context = 2000, .ms = 10, .row_ms = 0.1},
            std::make_shared<fake::Cache>(1), rules),
        std::move(drafter), {.tokens = 6, .plan = true, .guess_cost = assumed, .context = 2000});
    Sequence s{0, {1, 2, 3}, 3};
    Sequence* const batch[] = {&s};
    const int limit = kMaxEmitted;
    const char drafts = 1;
    RoundResult out;
    for (int i = 0; i < 400; ++i) {
      level.sync(batch);
      level.advance(batch, {&limit, 1}, {&drafts, 1}, {&out, 1});
      s.tokens.insert(s.tokens.end(), out.token, out.token + out.emitted);
      s.committed = s.tokens.size();
    }
    EXPECT_EQ(level.stats(0).draft_ms > 0, each.has_value());
    EXPECT_GT(level.stats(0).verify_ms, 0);
    return below.guesses;
  };
  EXPECT_LT(guesses(std::nullopt, 2), 100);
  EXPECT_GT(guesses(std::nullopt, 0.05f), 400);
  EXPECT_GT(guesses(0.5, 2), 400) << "what was measured is believed";
  EXPECT_LT(guesses(20, 0.05f), 100);
}

TEST(Level, ReportsItsOwnTimeOnlyWhenEveryPartDoes) {
  for (const bool verifier_says : {true, false})
    for (const bool drafter_says : {true, false}) {
      auto rules = std::make_shared<fake::Rules>(1);
      Level level(
          std::make_unique<FakeVerifier>(fake::VerifierOptions{.model = {.seed = 11},
                                                               .context = 100,
                                                               .ms = verifier_says ? 10. : 0.,
                                                               .row_ms = 1},
                                         std::make_shared<fake::Cache>(1), rules),
          std::make_unique<Greedy>(Model{.seed = 11, .level = 2},
                                   drafter_says ? std::optional(0.5) : std::nullopt),
          {.tokens = 3, .context = 100});
      Sequence s{0, {1}, 1};
      Sequence* const batch[] = {&s};
      DraftTrees trees(1, 64);
      trees.reset(0, 1);
      const Budget one{1, 1, 1};
      level.sync(batch);
      level.draft(batch, {&one, 1}, trees);
      const bool all_say = verifier_says && drafter_says;
      EXPECT_EQ(level.last_ms(), all_say ? std::optional(10 + 4 * 1 + 3 * 0.5) : std::nullopt);
    }
}

TEST(Level, SharesWhatTheBackendWaitedButNotForTheRequest) {
  for (const std::optional<double> idle : {std::optional(0.5), std::optional<double>()}) {
    auto rules = std::make_shared<fake::Rules>(2);
    const fake::VerifierOptions options{.model = {.seed = 11}, .context = 100, .idle_ms = idle};
    Level level(std::make_unique<FakeVerifier>(options, std::make_shared<fake::Cache>(2), rules),
                nullptr, {.sequences = 2, .context = 100});
    Sequence a{0, {1}, 1}, b{1, {2}, 1};
    Sequence* const batch[] = {&a, &b};
    const int limits[] = {1, 1};
    const char drafts[] = {0, 0};
    RoundResult out[2];
    for (int round = 1; round <= 5; ++round) {
      level.sync(batch);
      level.advance(batch, limits, drafts, out);
      for (int i : {0, 1}) {
        batch[i]->tokens.push_back(out[i].token[0]);
        ++batch[i]->committed;
        EXPECT_EQ(level.stats(i).idle_ms, (round - 1) * idle.value_or(0) / 2);
      }
    }
  }
}

}  // namespace
}  // namespace stepladder
