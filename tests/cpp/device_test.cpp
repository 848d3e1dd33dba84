// The operators of a backend that move data and choose, through backend.h alone, beside the CPU's
// portable kernels, which have tests of their own: memory, tables and choices must be equal.
#include <algorithm>
#include <cstring>

#include "cpp/device_fixture.h"
#include "spec/choose.h"

namespace stepladder::test {
namespace {

// ---- memory and the queue --------------------------------------------------------------------

TEST_P(DeviceTest, MemoryIsZeroedAndCopiesOfAnySizeArriveInOrder) {
  AnyMachine m(subject());
  for (const size_t n : {size_t{1}, size_t{63}, size_t{300000}, size_t{9} << 20}) {
    auto* memory = m.zeros<uint8_t>(n);
    EXPECT_EQ(m.get(memory, n), std::vector<uint8_t>(n, 0));
    std::vector<uint8_t> bytes(n);
    for (size_t i = 0; i < n; ++i) bytes[i] = static_cast<uint8_t>(i * 7 + i / 251);
    const std::vector<uint8_t> kept = bytes;
    m->upload(memory, bytes.data(), n);
    std::fill(bytes.begin(), bytes.end(), uint8_t{1});  // taken before the call returned
    EXPECT_EQ(m.get(memory, n), kept);
  }
  auto* words = m.zeros<int32_t>(1);
  std::vector<int32_t> seen(1000);
  for (int32_t i = 0; i < 1000; ++i) {
    m->upload(words, &i, sizeof i);
    m->read(&seen[i], words, sizeof i);
  }
  m->wait();
  for (int32_t i = 0; i < 1000; ++i) ASSERT_EQ(seen[i], i);
  EXPECT_GT(m->available_bytes(), size_t{1} << 20);
}

TEST_P(DeviceTest, TooMuchMemoryIsRefusedWithTheNumbersAndNothingIsBroken) {
  AnyMachine m(subject());
  try {
    m->allocate(size_t{1} << 50);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::out_of_memory);
    EXPECT_NE(std::string(e.what()).find(std::to_string(size_t{1} << 50)), std::string::npos);
  }
  EXPECT_EQ(m.get(m.put<int32_t>(5), 1)[0], 5);
}

TEST_P(DeviceTest, ARecordingReplaysAtOtherLengths) {
  AnyMachine m(subject());
  std::mt19937 g(1);
  const std::vector<uint16_t> table = to_16s(DType::bf16, normal(g, 10 * 8));
  const Tensor t = m.tensor(DType::bf16, 10, 8, table), out = m.tensor(DType::f32, 4, 8);
  auto* token = m.put(std::vector<int32_t>{3, 9, 0, 4});
  auto* total = m.put<int32_t>(1);
  const EmbedArgs args{{total, nullptr, 4}, token, t, out};
  const auto recording = m->record([&m, args] { m->embed(args); });
  EXPECT_EQ(m.get(out.as<float>(), 8), std::vector<float>(8, 0.f)) << "nothing runs yet";
  const std::vector<float> zeros(32);
  for (const int32_t live : {1, 4, 2}) {
    m->upload(out.data, zeros.data(), out.bytes());
    m->upload(total, &live, 4);
    recording->replay();
    const auto y = m.get(out.as<float>(), 32);
    const int32_t ids[] = {3, 9, 0, 4};
    for (int i = 0; i < 4; ++i)
      for (int c = 0; c < 8; ++c)
        ASSERT_EQ(y[i * 8 + c], i < live ? from_bf16(table[ids[i] * 8 + c]) : 0.f);
  }
}

// ---- the tables of a round -------------------------------------------------------------------

TEST_P(DeviceTest, TablesOfRandomRoundsAreEqual) {
  for (unsigned seed = 0; seed < 40; ++seed) {
    const auto [a, b] = both([seed](AnyMachine& m) {
      std::mt19937 g(seed);
      const RoundOf round(m, g);
      return said(m, round.rows);
    });
    ASSERT_EQ(a, b) << seed;
  }
}

TEST_P(DeviceTest, AcceptedPathsChainsAndCountsAreEqual) {
  constexpr int kVocab = 64;
  for (unsigned seed = 0; seed < 40; ++seed) {
    const auto [a, b] = both([seed](AnyMachine& m) {
      std::mt19937 g(seed);
      const RoundOf round(m, g);
      const int nodes = RoundOf::kSequences * RoundOf::kTree;
      std::vector<int32_t> choice(nodes);
      for (int32_t& t : choice) t = pick(g, 0, 60);
      // Half the time along the tree, so that something is accepted.
      const auto tokens = m.get(round.trees.token, size_t(nodes));
      const auto first = m.get(round.rows.sequence_node, RoundOf::kSequences + 1);
      for (int s = 0; s < RoundOf::kSequences; ++s)
        for (int x = first[s]; x + 1 < first[s + 1]; ++x)
          if (pick(g, 0, 4)) choice[x] = tokens[s * RoundOf::kTree + x - first[s] + 1];
      std::vector<float> logit = normal(g, nodes);
      const RuleView rules{RoundOf::kSequences, kVocab, m.zeros<RuleParams>(RoundOf::kSequences),
                           m.zeros<uint32_t>(RoundOf::kSequences * kVocab), nullptr};
      auto* listed = m.put(std::vector<int32_t>{3, 5, 5, -1, 63, 64, 9});
      m->count({rules, 1, listed, 7, true, true});
      m->count({rules, 1, listed, 7, false, false});
      auto* result = m.zeros<RoundResult>(RoundOf::kSequences);
      auto* chain = m.zeros<RoundResult>(RoundOf::kSequences);
      auto* path = m.zeros<int32_t>(RoundOf::kSequences * kMaxEmitted);
      auto* path_node = m.zeros<int32_t>(RoundOf::kSequences * kMaxEmitted);
      m->accept({round.plan,
                 round.trees,
                 round.rows,
                 {m.put(choice), m.put(logit)},
                 rules,
                 true,
                 result,
                 path,
                 path_node});
      for (const bool begins : {true, false})
        m->follow(
            {round.plan.count, RoundOf::kSequences, const_cast<PlanEntry*>(round.plan.entries),
             const_cast<int32_t*>(round.plan.tokens), round.trees, result, chain, 1010, begins});
      const int n = m.get(round.plan.count, 1)[0];
      std::vector<std::byte> out;
      const auto add = [&](const auto* from, size_t count) {
        const auto list = m.get(from, count);
        const auto* bytes = reinterpret_cast<const std::byte*>(list.data());
        out.insert(out.end(), bytes, bytes + sizeof list[0] * count);
      };
      add(result, n), add(path, size_t(n) * kMaxEmitted), add(path_node, size_t(n) * kMaxEmitted);
      add(chain, n), add(round.plan.entries, n), add(round.plan.tokens, RoundOf::kTokens);
      add(round.trees.count, n), add(round.trees.token, 1);
      add(rules.counts, size_t(RoundOf::kSequences) * kVocab);
      return out;
    });
    ASSERT_EQ(a, b) << seed;
  }
}

// ---- choices ---------------------------------------------------------------------------------

TEST_P(DeviceTest, ChoicesAreThoseOfTheRule) {
  struct Setting {
    float temperature, top_p, min_p;
    int top_k;
    bool penalties, bias;
  };
  std::vector<Setting> settings{
      {0, 1, 0, 0, false, false}, {0, 1, 0, 0, true, true}, {1e-6f, 0.5f, 0.1f, 3, false, false}};
  for (const float temperature : {0.3f, 0.8f, 1.7f})
    for (const int top_k : {0, 1, 5, 40, 100000})
      for (const float top_p : {1.f, 0.95f, 0.3f, 1e-6f})
        for (const float min_p : {0.f, 0.05f})
          settings.push_back({temperature, top_p, min_p, top_k, top_k % 2 == 1, top_p < 0.5f});
  for (const int vocab : {61, 1000, 49152, 128256}) {
    AnyMachine m(subject());
    std::mt19937 g(vocab);
    const int padded = vocab + 3;  // rows of the head that stand for no token
    for (const Setting& s : settings) {
      std::mt19937 round_seed(g());
      const RoundOf round(m, round_seed);
      const int nodes = m.get(round.rows.node_count, 1)[0];
      if (nodes == 0) continue;
      const int looked = std::min(nodes, vocab > 10000 ? 2 : 12),
                first = pick(g, 0, nodes - looked);
      std::vector<float> logits = normal(g, size_t(looked) * padded, 4.f);
      for (int j = 0; j < looked; ++j)  // equal values, NaN beside infinity, the padding above all
        for (int i = 0; i < padded; ++i) {
          float& l = logits[size_t(j) * padded + i];
          if (j % 3 == 1) l = std::round(l);
          if (j % 5 == 4 && i % 7 == 0) l = i % 2 ? std::nanf("") : -INFINITY;
          if (i >= vocab) l = 1e9f;
        }
      std::vector<RuleParams> rules(RoundOf::kSequences);
      for (int i = 0; i < RoundOf::kSequences; ++i)
        rules[i] = {.seed = g(),
                    .temperature = s.temperature,
                    .top_p = s.top_p,
                    .min_p = s.min_p,
                    .top_k = s.top_k,
                    .repetition = s.penalties ? 1.3f : 1.f,
                    .frequency = s.penalties ? 0.2f : 0.f,
                    .presence = s.penalties ? 0.4f : 0.f,
                    .penalties = s.penalties,
                    .bias = s.bias};
      std::vector<uint32_t> counts(size_t(RoundOf::kSequences) * vocab);
      for (size_t i = 0; i < counts.size(); i += 3)
        counts[i] = static_cast<uint32_t>(i % 4) | (i % 2 ? 0x80000000u : 0u);
      const std::vector<float> bias = normal(g, counts.size());
      const ChoiceView out{m.zeros<int32_t>(nodes), m.zeros<float>(nodes)};
      const RuleView view{RoundOf::kSequences, vocab, m.put(rules), m.put(counts), m.put(bias)};
      m->choose({{round.rows.node_count, m.put<int32_t>(first), looked},
                 m.tensor(DType::f32, looked, padded, logits),
                 round.plan,
                 round.trees,
                 round.rows,
                 view,
                 out});
      const auto token = m.get(out.token, nodes);
      const auto logit = m.get(out.logit, nodes);
      const auto tokens = m.get(round.plan.tokens, RoundOf::kTokens);
      for (int j = 0; j < looked; ++j) {
        const int node = first + j, sequence = m.get(round.rows.node_sequence + node, 1)[0];
        const PlanEntry& e = round.entries[sequence];
        const int tree = sequence * RoundOf::kTree;
        std::vector<Token> extra(tokens.begin() + e.first_tentative,
                                 tokens.begin() + e.first_tentative + e.tentative);
        const auto in_tree = m.get(round.trees.token + tree, RoundOf::kTree);
        const auto parents = m.get(round.trees.parent + tree, RoundOf::kTree);
        for (int at = m.get(round.rows.node_index + node, 1)[0]; at > 0; at = parents[at])
          extra.push_back(in_tree[at]);
        const ChoiceInput in{
            .logits = std::span(logits).subspan(size_t(j) * padded, vocab),
            .rule = rules[e.rule],
            .counts = counts.data() + size_t(e.rule) * vocab,
            .bias = bias.data() + size_t(e.rule) * vocab,
            .extra = extra,
            .position =
                m.get(round.rows.position + m.get(round.rows.node_row + node, 1)[0], 1)[0] + 1};
        const Chosen right = choose_token(in);
        ASSERT_EQ(token[node], right.token) << "vocab " << vocab << " T " << s.temperature << " k "
                                            << s.top_k << " p " << s.top_p << " min_p " << s.min_p;
        const bool finite = std::all_of(in.logits.begin(), in.logits.end(),
                                        [](float l) { return std::isfinite(l); });
        ASSERT_EQ(std::isnan(logit[node]), !finite);
        if (finite) {
          ASSERT_EQ(logit[node], right.logit);
        }
      }
    }
  }
}

TEST_P(DeviceTest, LogprobsAreNear) {
  for (const int vocab : {50, 49152}) {
    const auto [a, b] = both([vocab](AnyMachine& m) {
      std::mt19937 g(vocab);
      constexpr int kNodes = 5, kMost = 8, kAsked = 6;
      std::vector<float> logits = normal(g, size_t(kNodes) * vocab, 3.f);
      for (int i = 0; i < vocab; ++i) logits[vocab + i] = i < 3 ? 1.f : -INFINITY;
      auto* asked = m.put<int32_t>(kAsked);
      const LogprobArgs args{m.live(kNodes, kNodes),
                             m.tensor(DType::f32, kNodes, vocab, logits),
                             {m.put(std::vector<int32_t>{3, 1, 4, 1, 5}), nullptr},
                             vocab,
                             kMost,
                             asked,
                             m.zeros<float>(kNodes),
                             m.zeros<int32_t>(kNodes * kMost),
                             m.zeros<float>(kNodes * kMost)};
      m->logprobs(args);
      std::vector<float> out = m.get(args.chosen, kNodes);
      const auto tokens = m.get(args.top_token, kNodes * kMost);
      const auto values = m.get(args.top_logprob, kNodes * kMost);
      for (int j = 0; j < kNodes; ++j)
        for (int i = 0; i < kAsked; ++i)
          out.push_back(float(tokens[j * kMost + i])), out.push_back(values[j * kMost + i]);
      const int32_t none = -1;
      m->upload(asked, &none, 4);
      m->upload(args.chosen, out.data(), 4 * kNodes);
      m->logprobs(args);  // nothing is asked for, and nothing is written
      EXPECT_EQ(m.get(args.chosen, kNodes), std::vector<float>(out.begin(), out.begin() + kNodes));
      return out;
    });
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i) {
      if (a[i] == b[i]) continue;
      ASSERT_NEAR(a[i], b[i], 1e-5 * std::max(1.f, std::fabs(a[i]))) << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, DeviceTest, ::testing::ValuesIn(devices()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace stepladder::test
