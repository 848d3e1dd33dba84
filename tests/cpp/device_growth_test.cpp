// What grows draft trees on a device: rows of hidden states and tables to the bit of the CPU's, and
// the likeliest children of nodes by the rule, read plainly.
#include "backends/growth.h"
#include "core/noise.h"
#include "core/philox.h"
#include "cpp/device_fixture.h"
#include "spec/choose.h"

namespace stepladder::test {
namespace {

constexpr int kSequences = 4, kWidth = 24, kPositions = 256;

GrowthView growth_in(AnyMachine& m, int width, int depth) {
  const size_t n = size_t(kSequences) * GrowthView::candidates(width, depth);
  return {kSequences,
          width,
          depth,
          m.zeros<int32_t>(n),
          m.zeros<float>(n),
          m.zeros<int32_t>(size_t(kSequences) * depth * width)};
}

KVView states_in(AnyMachine& m, int scratch) {
  KVSpec spec{.layers = 1, .kv_heads = 1, .head_dim = 8, .positions = kPositions};
  spec.scratch = scratch, spec.sequences = kSequences, spec.features = {1, kWidth, {1}};
  return {spec, m.bytes(m->kv_bytes(spec))};
}

/// Writes random states for the rows, where their entries are.
void put_states(AnyMachine& m, std::mt19937& g, const Rows& rows, const KVView& kv) {
  const Tensor x =
      m.tensor(DType::f32, rows.capacity, kWidth, normal(g, size_t(rows.capacity) * kWidth));
  m->feature({{rows.count, nullptr, rows.capacity}, rows, x, nullptr, 0, kv, 0});
}

/// What join makes of the rows, with the residual it clears.
std::vector<float> joined(AnyMachine& m, std::mt19937& g, const Rows& rows, const KVView& kv,
                          bool of_parents) {
  // Rounds name the token -1 as well.
  const Tensor table =
      m.tensor(DType::bf16, 71, kWidth, to_16s(DType::bf16, normal(g, 71 * kWidth))).slice(1, 70);
  const Tensor out = m.tensor(DType::bf16, rows.capacity, 2 * kWidth);
  const Tensor residual =
      m.tensor(DType::f32, rows.capacity, kWidth, normal(g, size_t(rows.capacity) * kWidth));
  m->join({{rows.count, nullptr, rows.capacity}, rows, table, kv, of_parents, out, residual});
  std::vector<float> all = m.get(residual.as<float>(), size_t(rows.capacity) * kWidth);
  for (const uint16_t code : m.get(out.as<uint16_t>(), size_t(rows.capacity) * 2 * kWidth))
    all.push_back(from_bf16(code));
  return all;
}

/// A round with a root for each sequence; no row is missing.
struct Roots {
  Plan plan;
  TreeView trees;
  Rows rows;
  std::vector<PlanEntry> entries;

  Roots(AnyMachine& m, std::mt19937& g, int sequences, int vocab) : entries(kSequences) {
    std::vector<int32_t> tokens(200), count(kSequences), token(kSequences), parent(kSequences, -1);
    for (int32_t& t : tokens) t = pick(g, -1, vocab);
    for (int i = 0; i < sequences; ++i) {
      entries[i] = {.slot = (i + 1) % kSequences,
                    .rule = (i + 2) % kSequences,
                    .root_position = pick(g, 0, 200),
                    .tentative = pick(g, 0, 30),
                    .first_tentative = i * 40};
      count[i] = 1, token[i] = pick(g, 0, 60);
    }
    plan = {kSequences, m.put<int32_t>(sequences), m.put(entries), m.put(tokens)};
    trees = {kSequences, 1, m.put(count), m.put(token), m.put(parent)};
    rows = m.rows(kSequences, 1, kSequences);
    m->expand({plan, trees, rows});
  }
};

TEST_P(DeviceTest, StatesAreJoinedAndNarrowedToTheBit) {
  for (unsigned seed = 0; seed < 10; ++seed) {
    const auto [a, b] = both([seed](AnyMachine& m) {
      std::mt19937 g(seed);
      const RoundOf round(m, g, 20, 220);
      const KVView kv = states_in(m, RoundOf::kTree);
      put_states(m, g, round.rows, kv);
      auto out = joined(m, g, round.rows, kv, false);
      const int n = round.rows.capacity;
      const Tensor x = m.tensor(DType::f32, n, kWidth, normal(g, size_t(n) * kWidth));
      for (const DType t : {DType::bf16, DType::f16})
        for (const int32_t* of : {round.rows.node_row, static_cast<int32_t*>(nullptr)}) {
          const Tensor y = m.tensor(t, n, kWidth);
          m->narrow({{round.rows.node_count, m.put<int32_t>(2), n}, x, of, y});
          for (const uint16_t code : m.get(y.as<uint16_t>(), size_t(n) * kWidth))
            out.push_back(from_16(t, code));
        }
      return out;
    });
    ASSERT_EQ(a, b) << seed;
  }
}

TEST_P(DeviceTest, BeamsAndTreesOfGivenScoresAreEqual) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const auto [a, b] = both([seed](AnyMachine& m) {
      std::mt19937 g(seed);
      const int sequences = pick(g, 1, kSequences), depth = pick(g, 1, 5);
      const int width = std::vector{1, 3, 10, kMaxWidth}[seed % 4];
      const Roots roots(m, g, sequences, 60);
      const KVView kv = states_in(m, GrowthView::slots(width, depth));
      put_states(m, g, roots.rows, kv);
      GrowthView view = growth_in(m, width, depth);
      std::vector<DraftAsk> asks(kSequences);
      for (DraftAsk& ask : asks)
        ask = {pick(g, 0, 60), pick(g, 0, depth), pick(g, 0, 3) ? pick(g, 1, 90) : 0};
      const DraftAsk* asked = m.put(asks);
      const Rows beams = m.rows(kSequences * width, depth, kSequences);

      const size_t all = size_t(kSequences) * GrowthView::candidates(width, depth);
      std::vector<int32_t> token(all, -1);
      std::vector<float> score(all, -INFINITY), out;
      // Children of a beam in falling order, many of them equal, and sometimes fewer than there is
      // room for.
      const auto give = [&](int s, int step, int beam, float above) {
        const size_t first =
            size_t(s) * GrowthView::candidates(width, depth) + candidate_of(view, step, beam, 0);
        const int there = pick(g, 0, 5) ? width : pick(g, 0, width);
        for (int i = 0; i < there; ++i) {
          above -= 0.25f * static_cast<float>(pick(g, 0, 2));
          token[first + i] = pick(g, 0, 60), score[first + i] = above;
        }
      };
      const auto send = [&] {
        m->upload(view.token, token.data(), all * 4), m->upload(view.score, score.data(), all * 4);
      };
      for (int s = 0; s < sequences; ++s) give(s, 0, 0, 0);
      send();
      for (int step = 1; step < depth; ++step) {
        m->grow({roots.plan, asked, view, step, beams});
        for (const int64_t x : said(m, beams)) out.push_back(static_cast<float>(x));
        const auto states = joined(m, g, beams, kv, true);
        const int live = m.get(beams.count, 1)[0];
        out.insert(out.end(), states.begin(), states.begin() + int64_t{live} * kWidth);
        const auto behind = states.begin() + int64_t{beams.capacity} * kWidth;
        out.insert(out.end(), behind, behind + int64_t{live} * 2 * kWidth);
        put_states(m, g, beams, kv);
        const auto beam = m.get(view.beam, size_t(kSequences) * depth * width);
        for (int s = 0; s < sequences; ++s)
          for (int i = 0; i < width; ++i) {
            const int candidate = beam[(size_t(s) * depth + step) * width + i];
            out.push_back(static_cast<float>(candidate));
            if (candidate >= 0)
              give(s, step, i, score[size_t(s) * GrowthView::candidates(width, depth) + candidate]);
          }
        send();
      }
      const int capacity = 96;
      const TreeView trees{kSequences, capacity, m.zeros<int32_t>(kSequences),
                           m.zeros<int32_t>(kSequences * capacity),
                           m.zeros<int32_t>(kSequences * capacity)};
      m->prune({roots.plan, asked, view, trees});
      const auto count = m.get(trees.count, kSequences);
      const auto tokens = m.get(trees.token, kSequences * capacity);
      const auto parents = m.get(trees.parent, kSequences * capacity);
      for (int s = 0; s < sequences; ++s) {
        EXPECT_LE(count[s], 1 + asks[s].nodes);
        for (int x = 0; x < count[s]; ++x) {
          EXPECT_LT(parents[s * capacity + x], x);
          out.push_back(static_cast<float>(tokens[s * capacity + x]));
          out.push_back(static_cast<float>(parents[s * capacity + x]));
        }
      }
      return out;
    });
    ASSERT_EQ(a, b) << seed;
  }
}

TEST_P(DeviceTest, ChildrenAreTheLikeliestByTheRule) {
  for (const int vocab : {61, 1000, 49152}) {
    AnyMachine m(subject());
    std::mt19937 g(vocab);
    const int padded = vocab + 3, width = 10;
    for (const float temperature : {0.f, 0.7f, 1.5f})
      for (const bool shaped : {false, true}) {
        const Roots roots(m, g, kSequences, vocab);
        const GrowthView view = growth_in(m, width, 2);
        const Rows beams = m.rows(kSequences * width, 2, kSequences);
        std::vector<RuleParams> rules(kSequences);
        for (RuleParams& rule : rules)
          rule = {.seed = g(),
                  .temperature = temperature,
                  .repetition = shaped ? 1.3f : 1.f,
                  .frequency = shaped ? 0.2f : 0.f,
                  .presence = shaped ? 0.4f : 0.f,
                  .penalties = shaped,
                  .bias = shaped};
        std::vector<uint32_t> counts(size_t(kSequences) * vocab);
        for (size_t i = 0; i < counts.size(); i += 3)
          counts[i] = static_cast<uint32_t>(i % 4) | (i % 2 ? 0x80000000u : 0u);
        const std::vector<float> bias = normal(g, counts.size());
        const RuleView rule_view{kSequences, vocab, m.put(rules), m.put(counts), m.put(bias)};
        const std::vector<DraftAsk> asks(kSequences, {5, 2, 50});
        const auto plan_tokens = m.get(roots.plan.tokens, 200);
        const int all = GrowthView::candidates(width, 2);
        for (const int step : {0, 1}) {
          const Rows& rows = step ? beams : roots.rows;
          if (step) m->grow({roots.plan, m.put(asks), view, 1, beams});
          const auto before = m.get(view.score, size_t(kSequences) * all);
          const auto named = m.get(view.token, size_t(kSequences) * all);
          const auto beam = m.get(view.beam, size_t(kSequences) * 2 * width);
          const int nodes = step ? kSequences * width : kSequences;
          const std::vector<float> logits = normal(g, size_t(nodes) * padded, 4.f);
          m->top({{rows.node_count, nullptr, nodes},
                  m.tensor(DType::f32, nodes, padded, logits),
                  roots.plan,
                  rows,
                  rule_view,
                  view,
                  step});
          const auto token = m.get(view.token, size_t(kSequences) * all);
          const auto score = m.get(view.score, size_t(kSequences) * all);
          for (int node = 0; node < nodes; ++node) {
            const int s = step ? node / width : node, r = step ? node % width : 0;
            const PlanEntry& e = roots.entries[s];
            std::vector<Token> extra(plan_tokens.begin() + e.first_tentative,
                                     plan_tokens.begin() + e.first_tentative + e.tentative);
            float above = 0;
            if (step) {
              const size_t candidate = size_t(s) * all + beam[(size_t(s) * 2 + 1) * width + r];
              extra.push_back(named[candidate]), above = before[candidate];
            }
            ChoiceInput in{.logits = std::span(logits).subspan(size_t(node) * padded, vocab),
                           .rule = rules[e.rule],
                           .counts = counts.data() + size_t(e.rule) * vocab,
                           .bias = bias.data() + size_t(e.rule) * vocab,
                           .extra = extra};
            std::vector<float> z = shape_logits(in);
            double total = 0;
            for (int t = 0; t < vocab && temperature > 0; ++t)
              z[t] = z[t] * (1.f / temperature) +
                     gumbel(noise_word(in.rule.seed, e.root_position + step + 2, t));
            std::vector<Token> order(vocab);
            for (int t = 0; t < vocab; ++t) order[t] = t, total += std::exp(double(z[t]));
            std::stable_sort(order.begin(), order.end(),
                             [&](Token x, Token y) { return z[x] > z[y]; });
            for (int i = 0; i < width; ++i) {
              const size_t at = size_t(s) * all + candidate_of(view, step, r, i);
              ASSERT_EQ(token[at], order[i]) << "vocab " << vocab << " T " << temperature;
              ASSERT_NEAR(score[at], above + z[order[i]] - std::log(total), 2e-5);
            }
          }
        }
      }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DeviceTest, ::testing::ValuesIn(devices()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace stepladder::test
