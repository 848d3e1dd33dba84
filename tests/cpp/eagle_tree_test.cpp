// What a head computes against a plain one in fp64, and the trees it grows against a plain reading
// of the algorithm over the very logits that the operators saw: the same nodes in the same order.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <set>

#include "backends/cpu/cpu_backend.h"
#include "backends/growth.h"
#include "core/noise.h"
#include "core/philox.h"
#include "model/kv_cache.h"
#include "spec/choose.h"
#include "support/tiny_eagle.h"

namespace stepladder {
namespace {

using Path = std::vector<Token>;  // below the root

/// A sequence's draft as the operators saw it.
struct Draft {
  int slot = 0, root = 0;  // root: its index in the text
  DraftAsk ask;
  std::vector<Token> tentative;
  std::map<Path, std::vector<float>> logits;  // of the root and the beams
  std::vector<Path> nodes;                    // of the tree, the root first
};

/// Notes every draft on its way.
class Watching final : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;

  void top(const TopArgs& a) override {
    for (int j = 0; j < live_rows(a.live); ++j) {
      const int node = first_row(a.live) + j, s = a.rows.node_sequence[node];
      const auto* row = a.logits.as<const float>() + j * a.logits.cols;
      if (a.step == 0) drafts_in_hand[s] = {};
      drafts_in_hand[s].logits[path_of_beam(a, s, node - a.rows.sequence_node[s])] = {
          row, row + a.rules.vocab};
    }
    CpuBackend::top(a);
  }
  void prune(const PruneArgs& a) override {
    CpuBackend::prune(a);
    for (int s = 0; s < *a.plan.count; ++s) {
      const PlanEntry& e = a.plan.entries[s];
      const size_t tree = size_t(s) * a.trees.capacity;
      if (a.asks[s].nodes == 0) {
        EXPECT_EQ(a.trees.count[s], 1);
        EXPECT_EQ(a.trees.token[tree], a.asks[s].root);
        continue;
      }
      Draft d = std::move(drafts_in_hand[s]);
      d.slot = e.slot, d.root = e.root_position + 1, d.ask = a.asks[s];
      d.tentative.assign(a.plan.tokens + e.first_tentative,
                         a.plan.tokens + e.first_tentative + e.tentative);
      for (int x = 0; x < a.trees.count[s]; ++x) {
        const int parent = a.trees.parent[tree + x];
        ASSERT_TRUE(x == 0 ? parent == -1 : parent >= 0 && parent < x);
        Path path = x == 0 ? Path{} : d.nodes[parent];
        if (x > 0) path.push_back(a.trees.token[tree + x]);
        d.nodes.push_back(std::move(path));
      }
      EXPECT_EQ(a.trees.token[tree], a.asks[s].root);
      drafts.push_back(std::move(d));
    }
  }

  std::vector<Draft> drafts;

 private:
  static Path path_of_beam(const TopArgs& a, int s, int beam) {
    Path path;
    for (int d = a.step; d > 0; --d) {
      const int candidate = beam_of(a.growth, s, d, beam);
      path.insert(path.begin(), a.growth.token[first_candidate(a.growth, s) + candidate]);
      beam = parent_beam(a.growth, candidate);
    }
    return path;
  }
  std::map<int, Draft> drafts_in_hand;
};

constexpr int kContext = 128;
constexpr double kNear = 1e-4;  // scores that fp32 may put in either order

struct Case {
  Sampling sampling;
  std::string levels;
  int depth, width, nodes;
};

/// Says 16 tokens for each of three prompts over a watched backend.
struct Story {
  Story(const TinySpec& spec, const TinyHead& head, const Case& c)
      : spec(spec), sampling(c.sampling), backend("", 2) {
    HierarchyOptions options;
    options.capacity = 1 + std::max(c.nodes, 31);
    options.features = {1, spec.width, {spec.layers}};
    options.leaf_tokens = c.depth;
    const auto make = eagle_leaf(backend, spec, head, 3, kContext, c.depth, c.width, c.nodes);
    options.leaf = [&, make](const LeafSite& site) {
      model = site.model, cache = site.cache;
      return make(site);
    };
    levels = std::make_unique<Hierarchy>(backend, spec, c.levels, 3, kContext, options);
    texts = {random_text(40, spec.vocab, 1), random_text(2, spec.vocab, 2),
             random_text(63, spec.vocab, 3)};
    prompts = texts;
    const auto said = levels->stream(texts, 16, sampling);
    for (size_t i = 0; i < texts.size(); ++i)
      texts[i].insert(texts[i].end(), said[i].tokens.begin(), said[i].tokens.end());
  }

  TinySpec spec;
  Sampling sampling;
  Watching backend;
  std::shared_ptr<const Model> model;
  std::shared_ptr<KVCache> cache;
  std::unique_ptr<Hierarchy> levels;
  std::vector<std::vector<Token>> prompts, texts;
};

// ---- the head ------------------------------------------------------------------------------

void check_head(const TinySpec& spec, const TinyHead& head) {
  Story story(spec, head, {{}, "", 3, 4, 12});
  ASSERT_GT(story.backend.drafts.size(), 20u);
  const MemoryCheckpoint target = tiny_checkpoint(spec), tiny = tiny_head(spec, head);
  const CanonicalWeight own = read_weight(
      head.own_embedding ? static_cast<const Checkpoint&>(tiny) : target,
      head.own_embedding ? "embed_tokens" : "model.embed_tokens", spec.vocab, spec.width);
  const CanonicalWeight lm_head =
      read_weight(target, spec.tied ? "model.embed_tokens" : "lm_head", spec.vocab, spec.width);
  const HeadReference reference(tiny, story.model->config(), own, lm_head);
  double error = 0, size = 0;
  int rows = 0;
  for (size_t i = 0; i < story.backend.drafts.size(); i += 7) {
    const Draft& d = story.backend.drafts[i];
    std::vector<uint16_t> features(size_t(d.root) * spec.width);
    story.backend.read_features(features.data(), story.cache->view(), d.slot, 0, d.root);
    std::vector<std::vector<float>> states(d.root);
    for (int p = 0; p < d.root; ++p)
      for (int c = 0; c < spec.width; ++c)
        states[p].push_back(
            from_16(story.cache->spec().dtype, features[size_t(p) * spec.width + c]));
    for (const auto& [path, logits] : d.logits) {
      const auto& text = story.texts[d.slot];
      std::vector<Token> tokens(text.begin() + 1, text.begin() + d.root + 1);
      tokens.insert(tokens.end(), path.begin(), path.end());
      const auto want = reference.logits(states, tokens);
      for (int t = 0; t < spec.vocab; ++t) {
        error += (logits[t] - want[t]) * (logits[t] - want[t]);
        size += want[t] * want[t];
      }
      ++rows;
    }
  }
  EXPECT_GT(rows, 10);
  // Where 16 bits round otherwise than in fp64 a little is left: bf16 has steps of 2^-8.
  EXPECT_LT(std::sqrt(error / size), story.model->config().dtype == DType::f16 ? 0.001 : 0.008);
}

TEST(EagleHeadTest, ComputesWhatThePlainHeadComputes) {
  TinySpec spec;
  spec.vocab = 96, spec.seed = 31;
  for (const TinyHead& head :
       {TinyHead{}, TinyHead{.bias = false}, TinyHead{.own_embedding = true},
        TinyHead{.layers = 2, .stored = "f32"}, TinyHead{.first_norm = true}})
    check_head(spec, head);
}

TEST(EagleHeadTest, OfOtherFamiliesAndTypesToo) {
  for (const char* family : {"llama3", "qwen2", "qwen3"}) {
    SCOPED_TRACE(family);
    TinySpec spec;
    spec.family = family, spec.vocab = 96, spec.seed = 32;
    check_head(spec, {});
  }
  TinySpec spec;
  spec.format = "f16", spec.vocab = 96, spec.tied = true;
  check_head(spec, {.stored = "f16"});
}

// ---- the tree ------------------------------------------------------------------------------

/// A node's children by the rule, the likeliest first, and the log-softmax of each.
std::vector<std::pair<Token, double>> children(const Story& story, const Draft& d, const Path& path,
                                               const std::vector<float>& logits, int width) {
  const Sampling& s = story.sampling;
  ChoiceInput in{.logits = logits};
  in.rule.temperature = s.temperature, in.rule.seed = s.seed + d.slot;
  in.rule.repetition = s.repetition_penalty, in.rule.frequency = s.frequency_penalty;
  in.rule.presence = s.presence_penalty;
  in.rule.penalties =
      s.repetition_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0;
  std::vector<float> bias(logits.size());
  for (const auto& [token, value] : s.logit_bias) bias[token] = value, in.rule.bias = 1;
  in.bias = bias.data();
  // What the target has committed: the text up to the root without the level's own guesses.
  std::vector<uint32_t> counts(logits.size());
  const size_t committed = d.root + 1 - d.tentative.size();
  for (size_t p = 0; p < committed; ++p) {
    if (p < story.prompts[d.slot].size())
      counts[story.prompts[d.slot][p]] |= 0x80000000u;
    else
      ++counts[story.texts[d.slot][p]];
  }
  in.counts = counts.data();
  std::vector<Token> extra = d.tentative;
  extra.insert(extra.end(), path.begin(), path.end());
  in.extra = extra;
  std::vector<float> z = shape_logits(in);
  if (s.temperature >= kLeastTemperature)
    for (size_t t = 0; t < z.size(); ++t)
      z[t] = z[t] * (1.f / s.temperature) +
             gumbel(noise_word(in.rule.seed, d.root + 1 + static_cast<int>(path.size()),
                               static_cast<int>(t)));
  double total = 0;
  const double top = *std::max_element(z.begin(), z.end());
  for (const float x : z) total += std::exp(double(x) - top);
  std::vector<Token> order(z.size());
  for (size_t t = 0; t < z.size(); ++t) order[t] = static_cast<Token>(t);
  std::stable_sort(order.begin(), order.end(), [&](Token a, Token b) { return z[a] > z[b]; });
  std::vector<std::pair<Token, double>> out;
  for (int i = 0; i < width; ++i)
    if (z[order[i]] > -INFINITY) out.emplace_back(order[i], z[order[i]] - top - std::log(total));
  return out;
}

void check_trees(const Case& c) {
  TinySpec spec;
  spec.vocab = 96, spec.seed = 41;
  Story story(spec, {.seed = 9}, c);
  ASSERT_GT(story.backend.drafts.size(), 10u);
  size_t largest = 0, deepest = 0;
  for (const Draft& d : story.backend.drafts) {
    ASSERT_TRUE(d.logits.contains({}));
    std::map<Path, double> score;               // of all candidates
    std::vector<std::pair<double, Path>> last;  // those of the step before
    std::vector<Path> beams = {{}};
    for (int step = 0; step < d.ask.depth; ++step) {
      if (step > 0) {
        // The best of the step before got children, and nobody else.
        std::ranges::stable_sort(last, [](auto& a, auto& b) { return a.first > b.first; });
        const size_t want = std::min<size_t>(c.width, last.size());
        beams.clear();
        for (const auto& [path, logits] : d.logits)
          if (static_cast<int>(path.size()) == step) beams.push_back(path);
        ASSERT_EQ(beams.size(), want);
        for (const Path& path : beams) {
          ASSERT_TRUE(score.contains(path));
          EXPECT_GE(score[path], last[want - 1].first - kNear);
        }
      }
      last.clear();
      for (const Path& path : beams)
        for (const auto& [token, log_probability] :
             children(story, d, path, d.logits.at(path), c.width)) {
          Path child = path;
          child.push_back(token);
          const double own = (path.empty() ? 0 : score[path]) + log_probability;
          score[child] = own;
          last.emplace_back(own, child);
        }
    }
    for (const auto& [path, logits] : d.logits)
      EXPECT_LT(static_cast<int>(path.size()), d.ask.depth);
    std::vector<double> best;
    for (const auto& [path, own] : score) best.push_back(own);
    std::ranges::sort(best, std::greater<>());
    ASSERT_EQ(d.nodes.size(), 1 + std::min<size_t>(d.ask.nodes, best.size()));
    std::set<Path> seen;
    for (size_t x = 1; x < d.nodes.size(); ++x) {
      ASSERT_TRUE(score.contains(d.nodes[x])) << "node " << x;
      EXPECT_NEAR(score[d.nodes[x]], best[x - 1], kNear) << "node " << x;
      EXPECT_TRUE(seen.insert(d.nodes[x]).second);
      deepest = std::max(deepest, d.nodes[x].size());
    }
    largest = std::max(largest, d.nodes.size());
  }
  EXPECT_EQ(largest, size_t(1 + c.nodes));
  EXPECT_GT(deepest, 1u);
}

Sampling at(float temperature) {
  Sampling s;
  s.temperature = temperature, s.seed = 3;
  return s;
}

TEST(EagleTreeTest, GreedyTreesHaveTheBestNodesInOrder) {
  check_trees({{}, "", 5, 10, 30});
  check_trees({{}, "", 4, 3, 7});
  check_trees({{}, "", 3, 16, 200});
  check_trees({{}, "", 6, 1, 6});
}

TEST(EagleTreeTest, SampledOnesCountTheNoise) {
  check_trees({at(0.8f), "", 5, 10, 30});
  check_trees({at(2.f), "", 3, 6, 40});
}

TEST(EagleTreeTest, PenaltiesAndBiasReachEveryNode) {
  for (const float temperature : {0.f, 0.9f}) {
    Sampling s = at(temperature);
    s.repetition_penalty = 1.3f, s.frequency_penalty = 0.4f, s.presence_penalty = 0.3f;
    s.logit_bias = {{3, 4.f}, {17, -50.f}, {60, -3.f}};
    check_trees({s, "", 4, 8, 30});
    // Below a middle level its own guesses count too.
    check_trees({s, "cast:int8:shared", 4, 8, 30});
  }
}

}  // namespace
}  // namespace stepladder
