// Any hierarchy over a five-word model gives exactly plain decoding, greedy and sampled, whatever
// drafts below it, however it is batched; and every way to break the walk is noticed.
#include "spec/level.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <optional>

#include "spec/drafters/lookup.h"
#include "support/count_allocations.h"
#include "support/fake_model.h"

namespace stepladder {
namespace {

using fake::FakeDrafter;
using fake::FakeVerifier;
using fake::Flaw;
using fake::Model;

// A hierarchy as random as its seed makes it.
struct Hierarchy {
  Hierarchy(uint32_t seed, int slots, int context, Flaw flaw = Flaw::none)
      : rng(seed), rules(std::make_shared<fake::Rules>(slots)) {
    target_model = {.seed = rng(), .level = 0, .spread = 0.5 + rng() % 4};
    tree = rng() % 64 ? 40 : 201;
    const int levels = static_cast<int>(1 + rng() % 4);
    auto shared = std::make_shared<fake::Cache>(slots);
    target = level(0, levels, slots, context, flaw, shared);
  }

  std::unique_ptr<Level> level(int k, int levels, int slots, int context, Flaw flaw,
                               std::shared_ptr<fake::Cache> above) {
    const bool share = k > 0 && rng() % 3 == 0;
    const int own_context =
        k == 0 || share || rng() % 3 ? context : std::max(2, static_cast<int>(rng() % context));
    auto cache = k == 0 || share ? above : std::make_shared<fake::Cache>(slots);
    Model model = target_model;
    model.level = k;
    model.agree = 0.3 + static_cast<double>(rng() % 8) / 10;
    const int catch_up = static_cast<int>(rng() % 6);
    std::unique_ptr<Drafter> inner;
    if (k + 1 < levels) {
      inner = level(k + 1, levels, slots, context, flaw, cache);
    } else if (rng() % 8) {
      const auto kind = rng() % 3;
      model.level = k + 1;
      if (kind == 0)
        inner = std::make_unique<Lookup>(LookupOptions{.tokens = static_cast<int>(1 + rng() % 12),
                                                       .ngram_max = static_cast<int>(1 + rng() % 4),
                                                       .ngram_min = 1,
                                                       .row_cost = 0.001f,
                                                       .context = context,
                                                       .sequences = slots});
      else
        inner = std::make_unique<FakeDrafter>(
            model, slots, kind == 1, static_cast<uint32_t>(rng()),
            rng() % 2 ? std::nullopt : std::optional(static_cast<double>(rng() % 8)));
      model.level = k;
    }
    const int ahead = static_cast<int>(4 + rng() % 60);
    auto verifier = std::make_unique<FakeVerifier>(
        fake::VerifierOptions{.model = model,
                              .context = own_context,
                              .catch_up = catch_up,
                              .tree_capacity = tree,
                              .flaw = k == 0 || flaw == Flaw::trusts_all ? flaw : Flaw::none,
                              .ahead = ahead,
                              .ms = rng() % 3 ? static_cast<double>(1 + rng() % 20) : 0,
                              .row_ms = static_cast<double>(rng() % 3) / 2},
        cache, rules);
    return std::make_unique<Level>(
        std::move(verifier), std::move(inner),
        LevelOptions{.name = "level " + std::to_string(k),
                     .tokens = static_cast<int>(rng() % 12),
                     .plan = rng() % 2 == 0,
                     .most = rng() % 2 ? 0 : static_cast<int>(1 + rng() % 8),
                     .sequences = slots,
                     .context = own_context,
                     .tree_capacity = tree,
                     .ahead = ahead});
  }

  std::mt19937 rng;
  int tree = 0;  // nodes of the largest
  std::shared_ptr<fake::Rules> rules;
  Model target_model;
  std::unique_ptr<Level> target;
};

RuleParams random_rule(std::mt19937& rng) {
  RuleParams r;
  r.seed = rng();
  if (rng() % 2) {
    r.temperature = 0.3f + static_cast<float>(rng() % 10) / 5;
    if (rng() % 3 == 0) r.top_k = static_cast<int>(1 + rng() % 5);
    if (rng() % 3 == 0) r.top_p = 0.7f;
    if (rng() % 3 == 0) r.min_p = 0.1f;
  }
  r.penalties = rng() % 2;
  if (r.penalties) r.repetition = 1.2f, r.frequency = 0.3f, r.presence = 0.2f;
  return r;
}

std::vector<Token> random_tokens(std::mt19937& rng, int most) {
  std::vector<Token> out(1 + rng() % static_cast<uint32_t>(most));
  for (Token& t : out) t = static_cast<Token>(rng() % fake::kVocab);
  return out;
}

// Streams several requests over the hierarchy the way an engine would: reading blocks alternate
// with rounds, requests join and leave, and a slot's next request may begin like its last.
class Streams {
 public:
  explicit Streams(Hierarchy& h, int slots, int context)
      : h_(h), context_(context), requests_(slots) {}

  void begin(int slot, std::vector<Token> prompt, const RuleParams& rule, int tokens) {
    h_.target->forget(slot);
    h_.rules->begin(slot, rule, prompt);
    const int room = context_ - static_cast<int>(prompt.size()) + 1;
    requests_[slot].emplace(
        Request{{slot, prompt, prompt.size()}, prompt, rule, std::min(tokens, room)});
  }
  bool running(int slot) const {
    return requests_[slot] && produced(*requests_[slot]) < requests_[slot]->wanted;
  }
  /// One turn of the loop. False when all requests have ended.
  bool turn() {
    std::vector<Sequence*> all, going;
    std::vector<int> limits;
    std::vector<char> drafts;
    for (auto& r : requests_)
      if (r && produced(*r) < r->wanted) all.push_back(&r->sequence);
    if (all.empty()) return false;
    h_.target->sync(all);
    const bool done = h_.target->read(all, static_cast<int>(1 + h_.rng() % 9));
    for (const Sequence* s : all) EXPECT_TRUE(!done || h_.target->ready(*s));
    for (Sequence* s : all) {
      if (!h_.target->ready(*s) || h_.rng() % 10 == 0) continue;
      const Request& r = *requests_[s->slot];
      going.push_back(s);
      limits.push_back(r.wanted - produced(r));
      drafts.push_back(h_.rng() % 7 != 0);
    }
    if (going.empty()) return true;
    h_.target->sync(going);
    std::vector<RoundResult> results(going.size());
    h_.target->advance(going, limits, drafts, results);
    for (size_t i = 0; i < going.size(); ++i) {
      EXPECT_GE(results[i].emitted, 1);
      EXPECT_LE(results[i].emitted, limits[i]);
      for (int d = 0; d < results[i].emitted; ++d) going[i]->tokens.push_back(results[i].token[d]);
      going[i]->committed = going[i]->tokens.size();
    }
    return true;
  }
  /// A round that ends after its drafts, as a cancel may leave it: what the last guess's path says.
  std::vector<Token> abandon(int slot) {
    std::vector<Token> path;
    Drafter* inner = h_.target->inner();
    Sequence* s = &requests_[slot]->sequence;
    if (!inner || !running(slot) || h_.target->verifier().room(*s) < 9) return path;
    h_.target->sync({&s, 1});
    if (!h_.target->ready(*s) || !inner->ready(*s)) return path;
    DraftTrees trees(1, 9);
    const Budget budget{4, 8, 8};
    inner->draft({&s, 1}, {&budget, 1}, trees);
    for (int x = trees.count[0] - 1; x > 0; x = trees.parent_at(0, x))
      path.insert(path.begin(), trees.token_at(0, x));
    return path;
  }
  const std::vector<Token>& text(int slot) const { return requests_[slot]->sequence.tokens; }
  /// What plain decoding makes of the slot's request, as far as it has come.
  std::vector<Token> plain(int slot) const {
    const Request& r = *requests_[slot];
    return fake::plain_decoding(h_.target_model, r.rule, r.prompt, produced(r));
  }

 private:
  struct Request {
    Sequence sequence;
    std::vector<Token> prompt;
    RuleParams rule;
    int wanted;
  };
  static int produced(const Request& r) {
    return static_cast<int>(r.sequence.tokens.size() - r.prompt.size());
  }
  Hierarchy& h_;
  int context_;
  std::vector<std::optional<Request>> requests_;
};

// Runs one random case; true when every request equals plain decoding.
bool equals_plain(uint32_t seed, Flaw flaw, int64_t* drafted_below = nullptr) {
  std::mt19937 rng(seed);
  const int slots = static_cast<int>(1 + rng() % 4), context = static_cast<int>(20 + rng() % 80);
  Hierarchy h(seed, slots, context, flaw);
  Streams streams(h, slots, context);
  bool equal = true;
  for (int slot = 0; slot < slots; ++slot)
    streams.begin(slot, random_tokens(rng, context / 2), random_rule(rng),
                  static_cast<int>(1 + rng() % 60));
  int restarts = 3;
  for (int turns = 0; streams.turn(); ++turns) {
    EXPECT_LT(turns, 5000) << "seed " << seed << " does not end";
    if (turns >= 5000) return false;
    const int slot = static_cast<int>(rng() % slots);
    if (restarts > 0 && rng() % 8 == 0) {  // a cancelled or finished request makes room for another
      --restarts;
      equal = equal && streams.text(slot) == streams.plain(slot);
      // It begins like the text so far, and perhaps goes on as the levels below had guessed.
      const std::vector<Token> guessed = streams.abandon(slot);
      std::vector<Token> prompt = streams.text(slot);
      if (guessed.empty()) prompt.resize(1 + rng() % prompt.size());
      prompt.insert(prompt.end(), guessed.begin(), guessed.end());
      if (rng() % 2)
        for (Token t : random_tokens(rng, 5)) prompt.push_back(t);
      if (static_cast<int>(prompt.size()) > context) prompt.resize(context);
      streams.begin(slot, prompt, random_rule(rng), static_cast<int>(1 + rng() % 60));
    }
  }
  for (int slot = 0; slot < slots; ++slot)
    equal = equal && streams.text(slot) == streams.plain(slot);
  if (drafted_below)
    for (int slot = 0; slot < slots; ++slot) *drafted_below += h.target->stats(slot).accepted;
  return equal;
}

TEST(Level, AnyHierarchyGivesPlainDecoding) {
  int64_t accepted = 0;
  for (uint32_t seed = 1; seed <= 6000; ++seed)
    ASSERT_TRUE(equals_plain(seed, Flaw::none, &accepted)) << "seed " << seed;
  EXPECT_GT(accepted, 50000) << "the drafts must matter for the test to mean anything";
}

class FlawTest : public ::testing::TestWithParam<Flaw> {};

TEST_P(FlawTest, IsNoticed) {
  int broken = 0;
  for (uint32_t seed = 1; seed <= 200; ++seed) broken += !equals_plain(seed, GetParam());
  EXPECT_GT(broken, 10);
}
INSTANTIATE_TEST_SUITE_P(Flaws, FlawTest,
                         ::testing::Values(Flaw::accepts_unchecked, Flaw::walks_to_any_child,
                                           Flaw::forgets_path_counts, Flaw::trusts_all));

// ---- exact behaviour, piece by piece -----------------------------------------------------------

std::unique_ptr<FakeVerifier> verifier(const Model& model, std::shared_ptr<fake::Rules> rules,
                                       int context) {
  return std::make_unique<FakeVerifier>(fake::VerifierOptions{model, context, 4, 64},
                                        std::make_shared<fake::Cache>(1), std::move(rules));
}

// Drafts a fixed chain for every sequence and remembers what it was asked.
class Scripted final : public Drafter {
 public:
  explicit Scripted(std::vector<Token> chain) : chain_(std::move(chain)) {}
  void sync(Batch) override { ++syncs; }
  std::optional<double> last_ms() const override { return std::nullopt; }
  bool read(Batch, int) override { return true; }
  bool ready(const Sequence&) const override { return is_ready; }
  void draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) override {
    for (size_t i = 0; i < batch.size(); ++i) {
      if (budgets[i].at_most == 0) continue;
      asked.push_back(budgets[i]);
      out.reset(static_cast<int>(i), batch[i]->tokens.back());
      for (size_t d = 0; d < chain_.size() && static_cast<int>(d) < budgets[i].at_most; ++d)
        out.add(static_cast<int>(i), static_cast<int>(d), chain_[d]);
    }
  }
  void forget(int) override { ++forgets; }

  int syncs = 0, forgets = 0;
  bool is_ready = true;
  std::vector<Budget> asked;

 private:
  std::vector<Token> chain_;
};

struct One {
  explicit One(int context, LevelOptions options, std::vector<Token> chain = {1, 2, 3, 4, 0, 1})
      : rules(std::make_shared<fake::Rules>(1)) {
    auto drafter = std::make_unique<Scripted>(std::move(chain));
    below = drafter.get();
    options.context = context;
    level =
        std::make_unique<Level>(verifier({.seed = 3}, rules, context), std::move(drafter), options);
  }
  RoundResult advance(Sequence& s, int limit, bool drafts = true) {
    std::vector<Sequence*> batch = {&s};
    RoundResult out;
    const char wanted = drafts;
    level->sync(batch);
    EXPECT_TRUE(level->read(batch, 1000));
    level->sync(batch);
    level->advance(batch, {&limit, 1}, {&wanted, 1}, {&out, 1});
    return out;
  }
  std::shared_ptr<fake::Rules> rules;
  Scripted* below;
  std::unique_ptr<Level> level;
};

TEST(Level, AsksForWhatFitsTheRoundTheContextAndTheLimit) {
  const auto budget = [](int context, int length, int limit, LevelOptions options) {
    One one(context, options);
    Sequence s{0, std::vector<Token>(length, 1), static_cast<size_t>(length)};
    one.advance(s, limit);
    return one.below->asked.empty() ? Budget{-1, -1} : one.below->asked[0];
  };
  const auto expect = [&](Budget got, int at_least, int at_most) {
    EXPECT_EQ(got.at_least, at_least);
    EXPECT_EQ(got.at_most, at_most);
    EXPECT_EQ(got.nodes, at_most < 0 ? 0 : at_most);  // a chain
  };
  expect(budget(200, 5, 100, {.tokens = 4}), 4, kMaxEmitted - 1);
  expect(budget(200, 5, 100, {.tokens = 4, .most = 7}), 4, 7);
  expect(budget(200, 5, 100, {.tokens = 4, .tree_capacity = 3}), 2, 2);
  expect(budget(200, 5, 3, {.tokens = 4}), 2, 2);
  expect(budget(200, 5, 1, {.tokens = 4}), -1, -1);
  expect(budget(8, 5, 100, {.tokens = 4}), 3, 3);  // positions 4 to 7: the root and three drafts
  expect(budget(5, 5, 100, {.tokens = 4}), -1, -1);
  expect(budget(200, 5, 100, {.tokens = 0}), -1, -1);
}

TEST(Level, AsksNobodyWhoIsNotReadyOrWhenToldNotTo) {
  One one(100, {.tokens = 3});
  Sequence s{0, {1, 2, 3}, 3};
  one.advance(s, 10, false);
  one.below->is_ready = false;
  EXPECT_EQ(one.advance(s, 10).emitted, 1);
  EXPECT_TRUE(one.below->asked.empty());
}

TEST(Level, CountsWhatItDraftsAndAccepts) {
  const Model model{.seed = 3};
  const std::vector<Token> prompt = {1, 2, 3};
  std::vector<Token> plain = fake::plain_decoding(model, {}, prompt, 4);
  std::vector<Token> chain(plain.begin() + 3, plain.end());
  chain[2] = (chain[2] + 1) % fake::kVocab;  // two right, then wrong
  One one(100, {.name = "top", .tokens = 4}, chain);
  Sequence s{0, prompt, 3};
  EXPECT_EQ(one.advance(s, 10).emitted, 3);
  const LevelStats& stats = one.level->stats(0);
  EXPECT_EQ(stats.name, "top");
  EXPECT_EQ(stats.rounds, 1);
  EXPECT_EQ(stats.drafted, 4);
  EXPECT_EQ(stats.accepted, 2);
  EXPECT_EQ(stats.emitted, 3);
  EXPECT_EQ(stats.rows, 7);  // two of the prompt, the root, four drafts
  EXPECT_EQ(std::vector<int64_t>(stats.drafted_at.begin(), stats.drafted_at.begin() + 5),
            (std::vector<int64_t>{1, 1, 1, 1, 0}));
  EXPECT_EQ(std::vector<int64_t>(stats.accepted_at.begin(), stats.accepted_at.begin() + 5),
            (std::vector<int64_t>{1, 1, 0, 0, 0}));
  EXPECT_DOUBLE_EQ(stats.acceptance_length(), 3);
  one.level->forget(0);
  EXPECT_EQ(one.below->forgets, 1);
  EXPECT_EQ(stats.rounds + stats.drafted + stats.accepted + stats.emitted + stats.rows, 0);
  EXPECT_EQ(stats.name, "top");
}

// As a drafter: what it emits beyond at_most is kept and needs no further round, unless the
// sequence goes another way.
TEST(Level, KeepsWhatItGuessedBeyondTheBudget) {
  const Model model{.seed = 3};
  const std::vector<Token> prompt = {1, 2, 3};
  const std::vector<Token> plain = fake::plain_decoding(model, {}, prompt, 12);
  One one(100, {.tokens = 6}, std::vector<Token>(plain.begin() + 3, plain.begin() + 9));
  Sequence s{0, prompt, 3};
  std::vector<Sequence*> batch = {&s};
  DraftTrees trees(1, 64);
  const auto draft = [&](Budget budget) {
    budget.nodes = budget.at_most;
    trees.reset(0, s.tokens.back());
    one.level->sync(batch);
    one.level->read(batch, 1000);
    one.level->sync(batch);
    one.level->draft(batch, {&budget, 1}, trees);
    std::vector<Token> chain;
    for (int x = 1; x < trees.count[0]; ++x) {
      EXPECT_EQ(trees.parent_at(0, x), x - 1);
      chain.push_back(trees.token_at(0, x));
    }
    EXPECT_EQ(trees.token_at(0, 0), s.tokens.back());
    return chain;
  };
  const auto next = [&](int from, int count) {
    return std::vector<Token>(plain.begin() + from, plain.begin() + from + count);
  };
  EXPECT_EQ(draft({2, 3}), next(3, 3));  // seven were emitted, three are handed up
  EXPECT_EQ(one.level->stats(0).rounds, 1);
  s.tokens.push_back(plain[3]), s.tokens.push_back(plain[4]);
  s.committed = s.tokens.size();
  EXPECT_EQ(draft({3, 3}), next(5, 3));
  EXPECT_EQ(one.level->stats(0).rounds, 1) << "five were left over";
  EXPECT_EQ(draft({0, 0}), std::vector<Token>{});
  s.tokens.push_back((plain[5] + 1) % fake::kVocab);
  s.committed = s.tokens.size();
  const std::vector<Token> other = draft({1, 1});
  EXPECT_EQ(one.level->stats(0).rounds, 2) << "the text went another way";
  EXPECT_EQ(other, std::vector<Token>(1, fake::plain_decoding(model, {}, s.tokens, 1).back()));
}

TEST(Level, ASequenceBeyondItsContextGetsTheRootAlone) {
  One one(6, {.tokens = 3});
  DraftTrees trees(1, 64);
  for (int length : {3, 5, 6, 7, 8, 30, 4}) {
    Sequence s{0, std::vector<Token>(length, 2), static_cast<size_t>(length)};
    std::vector<Sequence*> batch = {&s};
    const Budget budget{3, 3, 3};
    trees.reset(0, s.tokens.back());
    one.level->sync(batch);
    EXPECT_TRUE(one.level->read(batch, 100));
    EXPECT_TRUE(one.level->ready(s));
    one.level->sync(batch);
    one.level->draft(batch, {&budget, 1}, trees);
    // From `length` tokens it can choose the ones at positions length to 6.
    EXPECT_EQ(trees.count[0] - 1, std::clamp(6 - length + 1, 0, 3)) << length;
  }
}

// Agrees with the first half of every guess and never allocates.
class Agreeable final : public Verifier {
 public:
  void sync(Batch) override {}
  int lacking(const Sequence&) const override { return 0; }
  int catch_up() const override { return 1; }
  int room(const Sequence& s) const override { return 400 - static_cast<int>(s.tokens.size()) + 1; }
  void read(Batch, int) override {}
  void extend(Batch, std::span<const int>, std::span<RoundResult>) override {
    throw std::logic_error("no leaf");
  }
  std::optional<double> last_ms() const override { return 1; }
  void verify(Batch batch, const DraftTrees& trees, std::span<RoundResult> out) override {
    for (size_t i = 0; i < batch.size(); ++i) {
      const int tree = static_cast<int>(i), accepted = trees.count[tree] / 2;
      out[i] = {};
      for (int d = 0; d < accepted; ++d)
        out[i].token[out[i].emitted++] = trees.token_at(tree, d + 1);
      out[i].token[out[i].emitted++] = static_cast<Token>(batch[i]->tokens.size() % 7);
    }
  }
};

TEST(Level, AllocatesNothingOnceItStands) {
  const LevelOptions options{.tokens = 5, .sequences = 2, .context = 400};
  auto lookup = std::make_unique<Lookup>(LookupOptions{.context = 400, .sequences = 2});
  auto middle = std::make_unique<Level>(std::make_unique<Agreeable>(), std::move(lookup), options);
  Level level(std::make_unique<Agreeable>(), std::move(middle), options);
  Sequence sequences[2] = {{0, {1, 2, 3}, 3}, {1, {4, 5}, 2}};
  for (Sequence& s : sequences) s.tokens.reserve(500);
  Sequence* const batch[] = {&sequences[0], &sequences[1]};
  const int limits[] = {20, 7};
  const char drafts[] = {1, 1};
  RoundResult results[2];
  const int64_t before = allocations;
  for (int round = 0; round < 2000; ++round) {
    level.sync(batch);
    level.read(batch, 8);
    level.advance(batch, limits, drafts, results);
    for (int i = 0; i < 2; ++i) {
      auto& tokens = sequences[i].tokens;
      tokens.insert(tokens.end(), results[i].token, results[i].token + results[i].emitted);
      if (tokens.size() > 350) tokens.resize(10), level.forget(i);
      sequences[i].committed = tokens.size();
    }
  }
  EXPECT_EQ(allocations, before);
  EXPECT_GT(level.stats(0).accepted, 0);
}

TEST(Level, RefusesToBeMadeWithoutAVerifier) {
  EXPECT_THROW(Level(nullptr, nullptr, {.context = 8}), Error);
}

// Far ahead of the target a level stops for its own reason, whatever trees it verifies.
TEST(Level, IsAheadOfTheTargetByItsOwnLimit) {
  One one(200, {.tokens = 1, .most = 1, .tree_capacity = 3, .ahead = 20}, {0});
  Sequence s{0, {1, 2, 3}, 3};
  Sequence* const batch[] = {&s};
  DraftTrees trees(1, 64);
  const Budget budget{30, 30, 30};
  one.level->sync(batch);
  trees.reset(0, 3);
  one.level->draft(batch, {&budget, 1}, trees);
  EXPECT_TRUE(trees.count[0] - 1 == 20 || trees.count[0] - 1 == 21) << trees.count[0];
}

// The law of a sampled text under a hierarchy is the target's: chi-square over the pairs of the
// first two tokens, over many seeds.
TEST(Level, SampledTextFollowsTheTargetsLaw) {
  const std::vector<Token> prompt = {2, 0, 1};
  for (uint32_t hierarchy = 1; hierarchy <= 6; ++hierarchy) {
    Hierarchy real(hierarchy, 1, 50);
    const Model& model = real.target_model;
    const auto law = [&](const std::vector<Token>& text) {
      fake::Entry at;
      for (size_t p = 0; p < text.size(); ++p) at = model.step(p ? &at : nullptr, text[p]);
      const std::vector<float> logits = model.logits(at);
      std::vector<double> p;
      double total = 0;
      for (float l : logits) p.push_back(std::exp(double(l) / 2)), total += p.back();
      for (double& x : p) x /= total;
      return p;
    };
    constexpr int kDraws = 4000;
    std::map<std::pair<Token, Token>, int> seen;
    Streams streams(real, 1, 50);
    for (int i = 0; i < kDraws; ++i) {
      streams.begin(0, prompt, {.seed = static_cast<uint64_t>(i) * 7919, .temperature = 2}, 2);
      while (streams.turn()) {
      }
      ++seen[{streams.text(0)[3], streams.text(0)[4]}];
    }
    double chi = 0;
    int cells = 0;
    const std::vector<double> first = law(prompt);
    for (Token a = 0; a < fake::kVocab; ++a) {
      std::vector<Token> longer = prompt;
      longer.push_back(a);
      const std::vector<double> second = law(longer);
      for (Token b = 0; b < fake::kVocab; ++b) {
        const double want = kDraws * first[a] * second[b];
        if (want < 5) continue;
        chi += (seen[{a, b}] - want) * (seen[{a, b}] - want) / want;
        ++cells;
      }
    }
    // Six standard deviations above the mean of chi-square.
    EXPECT_LT(chi, cells + 6 * std::sqrt(2. * cells)) << "hierarchy " << hierarchy;
    EXPECT_GT(cells, 4);
  }
}

}  // namespace
}  // namespace stepladder
