// The choice rule: every instruction set's kernel gives the reference's bits, the law of what is
// sampled is the softmax it should be, and the walk over a tree is the simple one.
#include "spec/choose.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <random>
#include <sstream>

#include "backends/cpu/isa.h"
#include "core/noise.h"
#include "core/philox.h"
#include "support/round_tables.h"

namespace stepladder {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

TEST(Noise, LogIsWithinTwoUlpOfTheTrueOne) {
  std::mt19937 rng(1);
  for (int i = 0; i < 200000; ++i) {
    const float x = std::bit_cast<float>(static_cast<uint32_t>(0x00800000 + rng() % 0x7e800000u));
    const double want = std::log(static_cast<double>(x));
    EXPECT_NEAR(fixed_log(x), want, 2.4e-7 * std::abs(want) + 1e-12) << x;
  }
  EXPECT_EQ(fixed_log(1.f), 0.f);
}

TEST(Noise, ExpIsWithinAFewUlpOfTheTrueOne) {
  for (float x = 0; x > -80; x -= 0.00037f)
    EXPECT_NEAR(fixed_exp(x), std::exp(double(x)), 3.6e-7 * std::exp(double(x))) << x;
  EXPECT_EQ(fixed_exp(0.f), 1.f);
  EXPECT_EQ(fixed_exp(-81.f), 0.f);
  EXPECT_EQ(fixed_exp(-kInf), 0.f);
  EXPECT_EQ(fixed_exp(kNaN), 0.f);
}

TEST(Noise, GumbelFollowsItsFormula) {
  std::mt19937 rng(2);
  const auto close = [](uint32_t x) {
    const double u = std::min((double(float(x)) + 0.5) * 0x1p-32, 1 - 0x1p-24);
    const double e = -std::log1p(-u), want = -std::log(e);
    // u itself is rounded to 24 bits: near 1 that moves log1p(-u) by 2^-25 / (1 - u).
    const double slack = 4e-7 * (1 + std::abs(want)) + 0x1p-24 / (1 - u) / e;
    EXPECT_NEAR(gumbel(x), want, slack) << x;
  };
  for (int i = 0; i < 200000; ++i) close(static_cast<uint32_t>(rng()));
  for (uint32_t x :
       {0u, 1u, 2u, 3u, 1u << 24, 0x7fffffffu, 0x80000000u, 0xffffff00u, 0xffffffffu}) {
    close(x);
    EXPECT_LT(gumbel(x), 22.9f);
    EXPECT_GT(gumbel(x), -2.9f);
  }
}

TEST(Noise, OrderKeysOrderAsFloats) {
  const float values[] = {-kInf, -3e38f, -1.f, -1e-40f, 0.f, 1e-40f, 1.f, 3e38f, kInf};
  for (float a : values)
    for (float b : values) EXPECT_EQ(a < b, order_key(a) < order_key(b)) << a << " " << b;
  EXPECT_EQ(order_key(-0.f), order_key(0.f));
  EXPECT_EQ(order_key(kNaN), order_key(-kInf));
  for (float a : values) EXPECT_EQ(from_order_key(order_key(a)), a);
}

// ---- rules ------------------------------------------------------------------------------------

struct Case {
  std::vector<float> logits, bias;
  std::vector<uint32_t> counts;
  RuleParams rule;
};

// A random row and rule; every option comes and goes, and rows hold ties, infinities and NaN.
Case random_case(std::mt19937& rng, int vocab) {
  const auto pick = [&](auto... options) {
    const std::common_type_t<decltype(options)...> all[] = {options...};
    return all[rng() % sizeof...(options)];
  };
  Case c;
  std::normal_distribution<float> normal;
  const float spread = pick(0.1f, 1.f, 4.f, 12.f, 60.f);
  const bool ties = rng() % 3 == 0;
  c.logits.resize(vocab), c.bias.resize(vocab), c.counts.resize(vocab);
  for (float& l : c.logits) l = ties ? std::round(spread * normal(rng)) : spread * normal(rng);
  if (rng() % 4 == 0) {
    const int marks = static_cast<int>(1 + rng() % 20);
    const float what = pick(-kInf, kNaN, -kInf, kNaN, kInf, 0.f, -0.f, 1e38f, -1e38f);
    for (int i = 0; i < marks; ++i) c.logits[rng() % vocab] = what;
  }
  if (rng() % 40 == 0) std::fill(c.logits.begin(), c.logits.end(), pick(kNaN, -kInf, 2.f, kInf));
  for (float& b : c.bias) b = rng() % 10 == 0 ? spread * normal(rng) : 0.f;
  if (rng() % 8 == 0) c.bias[rng() % vocab] = pick(kInf, -kInf, 100.f);
  for (uint32_t& n : c.counts)
    n = rng() % 6 == 0 ? static_cast<uint32_t>((rng() % 2 << 31) | (rng() % 3)) : 0;

  RuleParams& r = c.rule;
  r.seed = (uint64_t{rng()} << 32) | rng();
  r.temperature = pick(0.f, 0.2f, 0.8f, 1.f, 1.5f, 10.f, 1e-6f, 1e-4f, 1e6f);
  r.top_p = pick(1.f, 1.f, 0.95f, 0.5f, 0.01f, 0.f, 0.9999999f, 0.3f);
  r.min_p = pick(0.f, 0.f, 0.05f, 0.5f, 1.f, 1e-20f, 1e-38f);
  r.top_k = pick(0, 0, 1, 2, 40, vocab - 1, vocab, vocab + 5, vocab / 2);
  r.bias = rng() % 3 == 0;
  r.penalties = rng() % 2;
  if (r.penalties) {
    r.repetition = pick(1.f, 1.3f, 0.5f, 2.f);
    r.frequency = pick(0.f, 0.4f, -0.2f, 2.f);
    r.presence = pick(0.f, 0.7f, -1.f);
  }
  return c;
}

std::string describe(const RuleParams& r, std::span<const float> row) {
  std::ostringstream out;
  out << row.size() << " tokens up to " << *std::max_element(row.begin(), row.end())
      << ", temperature " << r.temperature << " top_k " << r.top_k << " top_p " << r.top_p
      << " min_p " << r.min_p << " bias " << r.bias << " repetition " << r.repetition
      << " frequency " << r.frequency << " presence " << r.presence;
  return out.str();
}

class ChooseTest : public ::testing::TestWithParam<std::string> {
 protected:
  const CpuKernels& kernels_ = kernels_for(GetParam());
};

TEST_P(ChooseTest, RunsTheInstructionSetItIsAskedFor) { EXPECT_EQ(kernels_.isa, GetParam()); }

// Batches of random trees, each node with its own row, through the kernel as the engine calls it:
// blocks of nodes, split over lanes, node tables in between.
TEST_P(ChooseTest, GivesTheReferencesBits) {
  int checked = 0, sampled = 0, overflowed = 0;
  for (uint32_t seed = 1; seed <= 700; ++seed) {
    std::mt19937 rng(seed);
    const int vocab = std::array{1, 2, 5, 63, 64, 65, 127, 300, 1000, 4097}[rng() % 10];
    const int padded = vocab + static_cast<int>(rng() % 3) * 31;
    const int sequences = static_cast<int>(1 + rng() % 3);
    RoundTables t = random_round(rng, sequences, 12, vocab);
    std::vector<Case> rules;
    for (int s = 0; s < sequences; ++s) rules.push_back(random_case(rng, vocab));
    t.set_rules(vocab);
    for (int s = 0; s < sequences; ++s)
      t.set_rule(s, rules[s].rule, rules[s].counts, rules[s].bias);
    const int nodes = t.nodes();
    std::vector<float> logits(size_t(nodes) * padded, 1e30f);  // padding would win if it could
    for (int j = 0; j < nodes; ++j) {
      const Case row = random_case(rng, vocab);
      std::copy(row.logits.begin(), row.logits.end(), logits.begin() + size_t(j) * padded);
    }
    const int block = static_cast<int>(1 + rng() % 9), lanes = static_cast<int>(1 + rng() % 3);
    for (int32_t first = 0; first < nodes; first += block) {
      const int32_t at = first;
      for (int part = 0; part < lanes; ++part)
        kernels_.choose({{t.rows().node_count, &at, block},
                         {logits.data() + size_t(first) * padded, DType::f32, block, padded},
                         t.plan(),
                         t.trees(),
                         t.rows(),
                         t.rules(),
                         t.choices()},
                        {part, lanes});
    }
    for (int j = 0; j < nodes; ++j) {
      const int s = t.rows().node_sequence[j], x = t.rows().node_index[j];
      const std::span<const float> row(logits.data() + size_t(j) * padded, size_t(vocab));
      std::vector<Token> extra = t.tentative(s);
      for (Token token : t.path_tokens(s, x)) extra.push_back(token);
      const int rule = t.plan().entries[s].rule;
      const Chosen want = choose_token({row, rules[rule].rule, rules[rule].counts.data(),
                                        rules[rule].bias.data(), extra, t.position(s, x) + 1});
      ASSERT_EQ(t.choices().token[j], want.token)
          << "seed " << seed << " node " << j << " of " << describe(rules[rule].rule, row);
      const bool finite =
          std::all_of(row.begin(), row.end(), [](float l) { return std::isfinite(l); });
      const float logit = t.choices().logit[j];
      if (finite)
        ASSERT_EQ(std::bit_cast<uint32_t>(logit), std::bit_cast<uint32_t>(want.logit));
      else
        ASSERT_TRUE(std::isnan(logit)) << logit;
      overflowed += !finite;
      ++checked;
      sampled += rules[rule].rule.temperature >= kLeastTemperature;
    }
  }
  EXPECT_GT(checked, 5000);
  EXPECT_GT(sampled, 2000);
  EXPECT_GT(overflowed, 500);
}

// Large vocabularies take the paths that skip blocks; rows like a language model's and flat ones.
TEST_P(ChooseTest, GivesTheReferencesBitsOnLargeVocabularies) {
  constexpr int kVocab = 49152 + 17;
  for (uint32_t seed = 1; seed <= 60; ++seed) {
    std::mt19937 rng(seed);
    Case c = random_case(rng, kVocab);
    if (seed % 3 == 0) {  // a few likely tokens over a broad floor
      std::normal_distribution<float> normal;
      for (float& l : c.logits) l = 3 * normal(rng);
      for (int i = 0; i < 30; ++i) c.logits[rng() % kVocab] = 12 + 3 * normal(rng);
      c.rule.temperature = 0.8f, c.rule.top_p = 0.95f;
    }
    RoundTables t = random_round(rng, 1, 6, kVocab);
    t.set_rules(kVocab);
    t.set_rule(0, c.rule, c.counts, c.bias);
    std::vector<float> logits;
    for (int j = 0; j < t.nodes(); ++j)
      logits.insert(logits.end(), c.logits.begin(), c.logits.end());
    kernels_.choose({{t.rows().node_count, 0, t.nodes()},
                     {logits.data(), DType::f32, t.nodes(), kVocab},
                     t.plan(),
                     t.trees(),
                     t.rows(),
                     t.rules(),
                     t.choices()},
                    {});
    for (int j = 0; j < t.nodes(); ++j) {
      std::vector<Token> extra = t.tentative(0);
      for (Token token : t.path_tokens(0, j)) extra.push_back(token);
      const Chosen want = choose_token(
          {c.logits, c.rule, c.counts.data(), c.bias.data(), extra, t.position(0, j) + 1});
      ASSERT_EQ(t.choices().token[j], want.token) << "seed " << seed << " node " << j;
    }
  }
}

// ---- the rule's meaning, by hand ---------------------------------------------------------------

Token choose_one(const CpuKernels& kernels, std::vector<float> logits, const RuleParams& rule,
                 std::vector<uint32_t> counts = {}, std::vector<float> bias = {},
                 int position = 7) {
  std::mt19937 rng(3);
  const int vocab = static_cast<int>(logits.size());
  RoundTables t = random_round(rng, 1, 1, vocab);
  t.set_rules(vocab);
  counts.resize(logits.size()), bias.resize(logits.size());
  t.set_rule(0, rule, counts, bias);
  t.set_tentative(0, {});
  t.set_root_position(0, position - 1);
  kernels.choose({{t.rows().node_count, 0, 1},
                  {logits.data(), DType::f32, 1, vocab},
                  t.plan(),
                  t.trees(),
                  t.rows(),
                  t.rules(),
                  t.choices()},
                 {});
  EXPECT_EQ(t.choices().token[0],
            choose_token({logits, rule, counts.data(), bias.data(), {}, position}).token);
  return t.choices().token[0];
}

TEST_P(ChooseTest, GreedyTakesTheLargestAndTheLowestIdAmongEquals) {
  EXPECT_EQ(choose_one(kernels_, {1, 5, 3, 5}, {}), 1);
  EXPECT_EQ(choose_one(kernels_, {kNaN, -kInf, -7, kNaN}, {}), 2);
  EXPECT_EQ(choose_one(kernels_, {kNaN, kNaN}, {}), 0);
  EXPECT_EQ(choose_one(kernels_, {-kInf, -kInf}, {}), 0);
  EXPECT_EQ(choose_one(kernels_, {1, kInf, kInf}, {}), 1);
  EXPECT_EQ(choose_one(kernels_, {-1, -0.f, 0.f}, {}), 1);
  EXPECT_EQ(choose_one(kernels_, {kNaN, -kInf}, {.temperature = 1}), 0);
}

TEST_P(ChooseTest, BiasAndPenaltiesMoveTheChoice) {
  EXPECT_EQ(choose_one(kernels_, {1, 2, 3}, {.bias = 1}, {}, {5, 0, 0}), 0);
  EXPECT_EQ(
      choose_one(kernels_, {2.9f, 0, 3}, {.repetition = 1.2f, .penalties = 1}, {0, 0, 0x80000000u}),
      0);  // in the prompt
  EXPECT_EQ(
      choose_one(kernels_, {2.9f, 0, 3}, {.frequency = 1, .penalties = 1}, {0, 0, 0x80000000u}),
      2);  // the prompt is no output
  EXPECT_EQ(choose_one(kernels_, {2.9f, 0, 3}, {.frequency = 0.2f, .penalties = 1}, {0, 0, 1}), 0);
  EXPECT_EQ(choose_one(kernels_, {2.9f, 0, 3}, {.presence = 0.2f, .penalties = 1}, {0, 0, 9}), 0);
  EXPECT_EQ(choose_one(kernels_, {-1.1f, -1}, {.repetition = 1.2f, .penalties = 1}, {0, 1}), 0);
}

TEST_P(ChooseTest, FiltersKeepWhatTheyPromise) {
  const std::vector<float> p = {0.1f, 0.4f, 0.2f, 0.3f};  // order 1 3 2 0
  std::vector<float> z;
  for (float x : p) z.push_back(std::log(x));
  using Tokens = std::vector<Token>;
  EXPECT_EQ(keep_tokens({.temperature = 1}, z), (Tokens{1, 3, 2, 0}));
  EXPECT_EQ(keep_tokens({.temperature = 1, .top_k = 2}, z), (Tokens{1, 3}));
  EXPECT_EQ(keep_tokens({.temperature = 1, .top_p = 0.69f}, z), (Tokens{1, 3}));
  EXPECT_EQ(keep_tokens({.temperature = 1, .top_p = 0.71f}, z), (Tokens{1, 3, 2}));
  EXPECT_EQ(keep_tokens({.temperature = 1, .top_p = 0}, z), (Tokens{1}));
  EXPECT_EQ(keep_tokens({.temperature = 1, .min_p = 0.45f}, z), (Tokens{1, 3, 2}));
  // top_p counts within what top_k kept: 0.4 / 0.7 = 0.57
  EXPECT_EQ(keep_tokens({.temperature = 1, .top_p = 0.56f, .top_k = 2}, z), (Tokens{1}));
  const std::vector<float> equal = {2, 2, 2, 2};
  EXPECT_EQ(keep_tokens({.temperature = 1, .top_k = 2}, equal), (Tokens{0, 1}));
  EXPECT_EQ(keep_tokens({.temperature = 1, .top_p = 0.75f}, equal), (Tokens{0, 1, 2}));
  for (int position = 1; position < 200; ++position) {
    EXPECT_LT(choose_one(kernels_, equal, {.temperature = 1, .top_k = 2}, {}, {}, position), 2);
    EXPECT_LT(choose_one(kernels_, equal, {.temperature = 1, .top_p = 0.75f}, {}, {}, position), 3);
  }
}

TEST_P(ChooseTest, TheNoiseIsKeyedBySeedAndPosition) {
  const std::vector<float> flat(64, 0.f);
  std::vector<int> by_seed, by_position;
  for (int i = 0; i < 50; ++i) {
    const RuleParams rule{.seed = static_cast<uint64_t>(i) << 32, .temperature = 1};
    by_seed.push_back(choose_one(kernels_, flat, rule));
    by_position.push_back(choose_one(kernels_, flat, {.temperature = 1}, {}, {}, i + 1));
    int want = 0;
    for (int t = 1; t < 64; ++t)
      if (gumbel(noise_word(rule.seed, 7, t)) > gumbel(noise_word(rule.seed, 7, want))) want = t;
    EXPECT_EQ(by_seed.back(), want);
  }
  const auto distinct = [](std::vector<int> v) {
    std::sort(v.begin(), v.end());
    return std::unique(v.begin(), v.end()) - v.begin();
  };
  EXPECT_GT(distinct(by_seed), 20);
  EXPECT_GT(distinct(by_position), 20);
}

// Chi-square of what is drawn against softmax over the kept tokens, over positions and over seeds.
TEST_P(ChooseTest, SamplesTheLawOfTheFilteredSoftmax) {
  const std::vector<float> logits = {0.3f, 1.2f, -0.7f, 2.f, 0.f, -2.f, 1.2f, 0.9f};
  const RuleParams rules[] = {
      {.seed = 5, .temperature = 1},
      {.seed = 6, .temperature = 0.7f},
      {.seed = 7, .temperature = 1.3f, .top_k = 5},
      {.seed = 8, .temperature = 1, .top_p = 0.8f},
      {.seed = 9, .temperature = 1, .min_p = 0.2f},
      {.seed = 10, .temperature = 2, .top_p = 0.9f, .min_p = 0.1f, .top_k = 7},
  };
  for (RuleParams rule : rules) {
    std::vector<float> z;
    for (float l : logits) z.push_back(l * (1.f / rule.temperature));
    const std::vector<Token> kept = keep_tokens(rule, z);
    double total = 0;
    for (Token t : kept) total += std::exp(double(z[t]));
    for (bool vary_seed : {false, true}) {
      constexpr int kDraws = 20000;
      std::vector<int> seen(logits.size());
      for (int i = 0; i < kDraws; ++i) {
        if (vary_seed) rule.seed = 1000 + static_cast<uint64_t>(i);
        ++seen[choose_one(kernels_, logits, rule, {}, {}, vary_seed ? 3 : i + 1)];
      }
      double chi = 0;
      int counted = 0;
      for (Token t : kept) {
        const double want = kDraws * std::exp(double(z[t])) / total;
        chi += (seen[t] - want) * (seen[t] - want) / want;
        counted += seen[t];
      }
      EXPECT_EQ(counted, kDraws) << "a dropped token was drawn";
      // The 99.99% point of chi-square with 7 degrees of freedom is 29.9.
      EXPECT_LT(chi, 30) << "seed " << rule.seed << " kept " << kept.size();
    }
  }
}

// ---- log-probabilities, accept, count ----------------------------------------------------------

TEST_P(ChooseTest, LogprobsAreTheLogSoftmaxOfTheRawLogits) {
  std::mt19937 rng(11);
  for (int vocab : {1, 3, 255, 256, 257, 5000}) {
    for (int top : {0, 1, 5, 20}) {
      Case c = random_case(rng, vocab);
      if (std::count_if(c.logits.begin(), c.logits.end(),
                        [](float l) { return std::isfinite(l); }) != vocab)
        for (float& l : c.logits) l = std::isfinite(l) ? l : -3.f;
      int32_t total = 1, token = static_cast<int32_t>(rng() % vocab), asked = top;
      float logit = c.logits[token], chosen = 0;
      std::vector<int32_t> top_token(top);
      std::vector<float> top_logprob(top);
      kernels_.logprobs({{&total, nullptr, 1},
                         {c.logits.data(), DType::f32, 1, vocab},
                         {&token, &logit},
                         vocab,
                         top,
                         &asked,
                         &chosen,
                         top_token.data(),
                         top_logprob.data()},
                        {});
      double most = *std::max_element(c.logits.begin(), c.logits.end()), sum = 0;
      for (float l : c.logits) sum += std::exp(l - most);
      const auto want = [&](Token t) { return c.logits[t] - most - std::log(sum); };
      const auto near = [&](float got, double w) {
        EXPECT_NEAR(got, w, 2e-6 + 2e-7 * std::abs(w));
      };
      near(chosen, want(token));
      std::vector<Token> order(vocab);
      for (int i = 0; i < vocab; ++i) order[i] = i;
      std::stable_sort(order.begin(), order.end(),
                       [&](Token a, Token b) { return c.logits[a] > c.logits[b]; });
      for (int i = 0; i < top; ++i) {
        ASSERT_EQ(top_token[i], i < vocab ? order[i] : -1);
        if (i < vocab) near(top_logprob[i], want(order[i]));
      }
    }
  }
}

TEST_P(ChooseTest, LogprobsOfInfiniteAndMissingLogitsAreDefined) {
  std::vector<float> logits = {kNaN, -kInf, 1.f, kInf};
  int32_t total = 1, token = 0, asked = 3;
  float logit = 0, chosen = 0;
  int32_t top_token[3];
  float top_logprob[3];
  kernels_.logprobs({{&total, nullptr, 1},
                     {logits.data(), DType::f32, 1, 4},
                     {&token, &logit},
                     4,
                     3,
                     &asked,
                     &chosen,
                     top_token,
                     top_logprob},
                    {});
  EXPECT_EQ(chosen, -kInf);
  EXPECT_EQ(top_token[0], 3);
  EXPECT_EQ(top_logprob[0], 0.f);
  EXPECT_EQ(top_token[1], 2);
  EXPECT_EQ(top_logprob[1], -kInf);
  EXPECT_EQ(top_token[2], -1);
}

TEST_P(ChooseTest, AcceptWalksWhileTheChoiceIsAChild) {
  int deep = 0;
  for (uint32_t seed = 1; seed <= 2000; ++seed) {
    std::mt19937 rng(seed);
    const int vocab = static_cast<int>(1 + rng() % 4), sequences = static_cast<int>(1 + rng() % 4);
    RoundTables t = random_round(rng, sequences, 64, vocab);
    if (seed % 5 == 0) t.make_chain(0, 60);
    t.set_rules(vocab);
    for (int j = 0; j < t.nodes(); ++j) {
      t.choices().token[j] = static_cast<int32_t>(rng() % vocab);
      t.choices().logit[j] = static_cast<float>(rng());
    }
    std::vector<uint32_t> want_counts(t.rules().counts,
                                      t.rules().counts + size_t(sequences) * vocab);
    std::vector<RoundResult> results(sequences);
    std::vector<int32_t> path(sequences * kMaxEmitted), path_node(sequences * kMaxEmitted);
    const bool count = seed % 2;
    for (int part = 0; part < 2; ++part)
      kernels_.accept({t.plan(), t.trees(), t.rows(), t.choices(), t.rules(), count, results.data(),
                       path.data(), path_node.data()},
                      {part, 2});
    int base = 0;
    for (int s = 0; s < sequences; ++s) {
      const int nodes = t.trees().count[s];
      std::vector<int> walk;
      for (int at = nodes ? 0 : -1; at >= 0 && walk.size() < size_t(kMaxEmitted);) {
        walk.push_back(at);
        const std::vector<int> children = t.children(s, at);
        const auto next = std::find_if(children.begin(), children.end(), [&](int child) {
          return t.token(s, child) == t.choices().token[base + at];
        });
        at = next == children.end() ? -1 : *next;
      }
      ASSERT_EQ(results[s].emitted, static_cast<int>(walk.size())) << "seed " << seed;
      deep += results[s].emitted == kMaxEmitted;
      for (size_t d = 0; d < walk.size(); ++d) {
        EXPECT_EQ(results[s].token[d], t.choices().token[base + walk[d]]);
        EXPECT_EQ(results[s].logit[d], t.choices().logit[base + walk[d]]);
        EXPECT_EQ(path[s * kMaxEmitted + d], walk[d]);
        EXPECT_EQ(path_node[s * kMaxEmitted + d], base + walk[d]);
        if (count) ++want_counts[size_t(t.plan().entries[s].rule) * vocab + results[s].token[d]];
      }
      base += nodes;
    }
    EXPECT_TRUE(std::equal(want_counts.begin(), want_counts.end(), t.rules().counts));
  }
  EXPECT_GT(deep, 0) << "no case reached kMaxEmitted";
}

TEST_P(ChooseTest, CountMarksPromptAndOutput) {
  std::mt19937 rng(1);
  RoundTables t = random_round(rng, 2, 1, 6);
  t.set_rules(6);
  const RuleView rules = t.rules();
  std::fill(rules.counts, rules.counts + 12, 5u);
  const std::vector<int32_t> prompt = {1, 1, 4, 99, -1}, output = {1, 2, 2};
  for (int part = 0; part < 2; ++part) {
    kernels_.count({rules, 1, prompt.data(), 5, true, true}, {part, 2});
    kernels_.count({rules, 1, output.data(), 3, false, false}, {part, 2});
  }
  const uint32_t mark = 0x80000000u, want[6] = {0, mark + 1, 2, 0, mark, 0};
  for (int i = 0; i < 6; ++i) {
    EXPECT_EQ(rules.counts[i], 5u);
    EXPECT_EQ(rules.counts[6 + i], want[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, ChooseTest, ::testing::ValuesIn(available_isas()),
                         [](const auto& p) { return p.param; });

}  // namespace
}  // namespace stepladder
