// Trees that are made where the backend's memory is: a drafter reads the feature row before the
// root and writes its guesses into the verifier's own arrays, and the host learns of them by the
// round's one read. And chains: a level without a drafter makes its guesses at one wait.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "backends/cpu/cpu_backend.h"
#include "support/far/far_backend.h"
#include "support/far/tree_drafter.h"
#include "support/hierarchy.h"

namespace stepladder {
namespace {

constexpr int kSequences = 4, kContext = 256, kCapacity = 201;

TinySpec spec_of(const char* format = "bf16") {
  TinySpec spec;
  spec.format = format, spec.seed = 21;
  return spec;
}

/// Of differing lengths, so that a batch is uneven.
std::vector<std::vector<Token>> prompts() {
  const int vocab = spec_of().vocab;
  return {random_text(33, vocab, 1), random_text(5, vocab, 2), random_text(100, vocab, 3),
          random_text(64, vocab, 4)};
}

/// What the target alone says to each prompt.
std::vector<Said> plain(const std::string& isa, const std::vector<std::vector<Token>>& texts,
                        int count, const Sampling& s, Token stop = -1) {
  CpuBackend cpu(isa, 2);
  Hierarchy alone(cpu, spec_of(), "", static_cast<int>(texts.size()), kContext);
  return alone.stream(texts, count, s, stop);
}

/// A hierarchy on the far backend over a drafter that makes its trees there.
struct World {
  World(const std::string& isa, const std::string& levels, int least, int not_ready, int depth = 6)
      : far(isa, 2) {
    const TinySpec spec = spec_of();
    HierarchyOptions options;
    options.capacity = kCapacity;
    options.features = {1, spec.width, {spec.layers}};
    options.leaf_tokens = depth;
    options.leaf = [&, least, not_ready](const LeafSite& site) {
      TreeDrafterOptions o;
      o.sequences = kSequences, o.vocab = spec_of().vocab, o.verifier = site.level;
      o.least = least, o.not_ready = not_ready;
      auto leaf = std::make_unique<TreeDrafter>(far, site.cache, o);
      drafter = leaf.get();
      return leaf;
    };
    levels_ = std::make_unique<Hierarchy>(far, spec, levels, kSequences, kContext, options);
    far.seal();
  }
  Hierarchy& operator*() { return *levels_; }
  Hierarchy* operator->() { return levels_.get(); }

  FarBackend far;
  TreeDrafter* drafter = nullptr;

 private:
  std::unique_ptr<Hierarchy> levels_;
};

class FarTreeTest : public ::testing::TestWithParam<std::string> {};

TEST_P(FarTreeTest, TextIsThatOfPlainDecoding) {
  for (const Sampling& s : {Sampling{}, sampled()}) {
    const auto want = plain(GetParam(), prompts(), 24, s);
    for (const char* levels : {"", "cast:int8", "cast:mxfp4:shared"})
      for (const int not_ready : {0, 3}) {
        SCOPED_TRACE(std::string("[") + levels + "], one of " + std::to_string(not_ready) +
                     " is not ready, temperature " + std::to_string(s.temperature));
        World world(GetParam(), levels, 2, not_ready);
        EXPECT_TRUE(world->stream(prompts(), 24, s) == want);
        EXPECT_GT(world.drafter->drafts(), 0);
        EXPECT_EQ(world.drafter->largest(), kCapacity);
        // Some of what it guessed was right.
        Level* over = &world->top();
        while (auto* below = dynamic_cast<Level*>(over->inner())) over = below;
        int64_t accepted = 0;
        for (int slot = 0; slot < kSequences; ++slot) accepted += over->stats(slot).accepted;
        EXPECT_GT(accepted, 0);
      }
  }
}

TEST_P(FarTreeTest, ATextThatEndsInsideAnAcceptedPathGoesOn) {
  const auto first = plain(GetParam(), prompts(), 40, {});
  // Tokens that come second in some round: any that the text holds will do, tried in turn.
  for (const size_t at : {3, 12}) {
    const Token stop = first[0].tokens[at];
    World world(GetParam(), "", 150, 0);
    const auto said = world->stream(prompts(), 40, {}, stop);
    ASSERT_TRUE(said == plain(GetParam(), prompts(), 40, {}, stop));
    auto texts = prompts();
    for (size_t i = 0; i < texts.size(); ++i) {
      texts[i].insert(texts[i].end(), said[i].tokens.begin(), said[i].tokens.end());
      texts[i].push_back(11);
    }
    EXPECT_TRUE(world->stream(texts, 24) == plain(GetParam(), texts, 24, {}));
  }
}

TEST_P(FarTreeTest, NothingIsReadBetweenADraftAndItsRound) {
  for (const char* levels : {"", "cast:mxfp4:shared"}) {
    SCOPED_TRACE(levels);
    World world(GetParam(), levels, 2, 3);
    const auto before = world->counts();
    world.far.reset_counters();
    world->stream(prompts(), 16);
    const int64_t rounds = world->counts().rounds - before.rounds;
    const int64_t blocks = world->counts().blocks - before.blocks;
    const FarCounters& c = world.far.counters();
    // A draft uploads what it was asked; a round has its upload, its wait and its read.
    EXPECT_EQ(c.uploads, rounds + blocks + world.drafter->drafts() + kSequences);
    EXPECT_EQ(c.waits, rounds + blocks);
    EXPECT_EQ(c.reads, rounds);
    EXPECT_LE(c.largest_read, 256 * kSequences);
    EXPECT_EQ(c.recordings, 0);
    EXPECT_EQ(c.allocations, 0);
    EXPECT_EQ(c.operators, kSequences);  // requests that begin
  }
}

// ---- chains ----------------------------------------------------------------------------------

TEST_P(FarTreeTest, SixGuessesOfALevelWithoutADrafterAreOneWait) {
  for (const char* levels : {"cast:int8:tokens=6", "cast:mxfp4:shared:tokens=6"}) {
    SCOPED_TRACE(levels);
    FarBackend far(GetParam(), 1);
    Hierarchy two(far, spec_of(), levels, 1, kContext);
    far.seal();
    auto* leaf = dynamic_cast<Level*>(two.top().inner());
    ASSERT_NE(leaf, nullptr);
    Sequence s{0, prompts()[0], prompts()[0].size()};
    Sequence* const batch[] = {&s};
    two.top().sync(batch);
    two.top().verifier().read(batch, 64);
    while (!leaf->ready(s)) leaf->read(batch, 64);
    two.top().sync(batch);
    far.reset_counters();
    DraftTrees out(1, 32);
    const Budget budget{.at_least = 6, .at_most = 6, .nodes = 6};
    leaf->draft(batch, {&budget, 1}, out);
    EXPECT_EQ(out.count[0], 7);
    EXPECT_EQ(far.counters().waits, 1);
    EXPECT_EQ(far.counters().uploads, 1);
    EXPECT_EQ(far.counters().reads, 1);
    EXPECT_LE(far.counters().largest_read, 256);
  }
}

TEST_P(FarTreeTest, AChainSaysWhatItsRoundsSayOneByOne) {
  for (const bool on_far : {false, true})
    for (const Cell& cell : replay_cells()) {
      SCOPED_TRACE(cell.name() + (on_far ? " on far" : ""));
      std::unique_ptr<Backend> backend = std::make_unique<CpuBackend>(GetParam(), 2);
      if (on_far) backend = std::make_unique<FarBackend>(GetParam(), 2);
      CpuBackend other(GetParam(), 1);
      RigOptions o;
      o.act = cell.act, o.context = 96, o.level = 1;
      Rig plain_rig(other, load_cell(other, cell, 96), o);
      o.sequences = 3;
      Rig chain(*backend, load_cell(*backend, cell, 96), o);
      Sampling rule = sampled();
      std::vector<Sequence> texts;
      for (int i = 0; i < 3; ++i) {
        // The last has room for four tokens more.
        const int length = i == 2 ? 93 : 20 + 15 * i;
        texts.push_back({i, random_text(length, cell.spec.vocab, 50 + i), 0});
        texts[i].committed = texts[i].tokens.size() - static_cast<size_t>(i);  // tentative ones too
        chain.begin(i, rule, texts[i].tokens);
      }
      std::vector<Sequence*> batch = {&texts[0], &texts[1], &texts[2]};
      chain.feed(batch, 3, 64);
      const int wanted[] = {7, 3, 9}, expected[] = {7, 3, 4};
      std::vector<RoundResult> said(3);
      chain.verifier->extend(batch, wanted, said);
      for (int i = 0; i < 3; ++i) {
        ASSERT_EQ(said[i].emitted, expected[i]);
        plain_rig.begin(0, rule, texts[i].tokens);
        Sequence s{0, texts[i].tokens, texts[i].committed};
        for (int k = 0; k < expected[i]; ++k) {
          const RoundResult one = plain_rig.plain_round(s);
          EXPECT_EQ(said[i].token[k], one.token[0]);
          EXPECT_EQ(said[i].logit[k], one.logit[0]);
          s.tokens.push_back(one.token[0]);
        }
        const int held = static_cast<int>(s.tokens.size()) - 1;
        EXPECT_TRUE(entries(chain, i, held) == entries(plain_rig, 0, held));
        // The tags say so too: the chain's own level lacks nothing of what it wrote.
        Sequence after{i, s.tokens, s.committed};
        Sequence* const one[] = {&after};
        if (expected[i] == wanted[i]) {
          chain.verifier->sync(one);
          EXPECT_EQ(chain.verifier->lacking(after), 0);
        }
      }
    }
}

INSTANTIATE_TEST_SUITE_P(All, FarTreeTest, ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace stepladder
