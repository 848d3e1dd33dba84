// EAGLE heads in hierarchies: whatever a head guesses, the text is that of plain decoding, and
// nothing is read between a draft and the round that checks it.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>

#include "backends/cpu/cpu_backend.h"
#include "support/backends.h"
#include "support/far/far_backend.h"
#include "support/tiny_eagle.h"

namespace stepladder {
namespace {

constexpr int kSequences = 4, kContext = 160;

/// Few tokens, so that a random head is right now and then.
TinySpec spec_of(const char* format = "bf16", const char* family = "llama") {
  TinySpec spec;
  spec.format = format, spec.family = family, spec.vocab = 64, spec.seed = 21;
  return spec;
}

std::vector<std::vector<Token>> prompts(int vocab = 64) {
  return {random_text(33, vocab, 1), random_text(1, vocab, 2), random_text(100, vocab, 3),
          random_text(64, vocab, 4)};
}

struct Shape {
  int depth, width, nodes;
};

struct World {
  World(Backend& backend, const TinySpec& spec, const std::string& levels, const Shape& shape,
        const TinyHead& head = {}, int sequences = kSequences) {
    HierarchyOptions options;
    options.capacity = 1 + std::max(shape.nodes, 31);
    options.features = {1, spec.width, {spec.layers}};
    options.leaf_tokens = shape.depth;
    options.leaf =
        eagle_leaf(backend, spec, head, sequences, kContext, shape.depth, shape.width, shape.nodes);
    levels_ = std::make_unique<Hierarchy>(backend, spec, levels, sequences, kContext, options);
  }
  Hierarchy* operator->() { return levels_.get(); }

  /// Guesses of the head that were right.
  int64_t accepted() {
    Level* over = &levels_->top();
    while (auto* below = dynamic_cast<Level*>(over->inner())) over = below;
    int64_t sum = 0;
    for (int slot = 0; slot < kSequences; ++slot) sum += over->stats(slot).accepted;
    return sum;
  }

 private:
  std::unique_ptr<Hierarchy> levels_;
};

class EagleTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  static std::vector<Said> plain(const TinySpec& spec, const std::vector<std::vector<Token>>& texts,
                                 int count, const Sampling& s, Token stop = -1) {
    const auto backend = GetParam().open_plain(2);
    Hierarchy alone(*backend, spec, "", static_cast<int>(texts.size()), kContext);
    return alone.stream(texts, count, s, stop);
  }
};

TEST_P(EagleTest, TextIsThatOfPlainDecodingBelowEveryKindOfLevel) {
  for (const Sampling& s : {Sampling{}, sampled()}) {
    const auto want = plain(spec_of(), prompts(), 24, s);
    for (const char* levels : {"", "cast:int8", "cast:int8:shared", "cast:mxfp4:shared:tokens=6"}) {
      SCOPED_TRACE(std::string("[") + levels + "], temperature " + std::to_string(s.temperature));
      const auto backend = GetParam().open(2);
      World world(*backend, spec_of(), levels, {3, 10, 40});
      EXPECT_TRUE(world->stream(prompts(), 24, s) == want);
      EXPECT_GT(world.accepted(), 0);
    }
  }
}

TEST_P(EagleTest, SoItIsWithTreesOfAnyShape) {
  const auto want = plain(spec_of(), prompts(), 24, {});
  for (const Shape& shape :
       {Shape{1, 1, 1}, Shape{4, 1, 4}, Shape{1, 16, 16}, Shape{5, 3, 7}, Shape{3, 16, 200}}) {
    SCOPED_TRACE(shape.nodes);
    const auto backend = GetParam().open(2);
    World world(*backend, spec_of(), "", shape);
    EXPECT_TRUE(world->stream(prompts(), 24) == want);
  }
}

TEST_P(EagleTest, AndForTargetsOfOtherFormatsAndFamilies) {
  const TinyHead plain_head,
      other{.layers = 2, .bias = false, .own_embedding = true, .stored = "f16"};
  const std::pair<TinySpec, TinyHead> cases[] = {{spec_of("w4a16"), plain_head},
                                                 {spec_of("w8a8"), other},
                                                 {spec_of("f16"), other},
                                                 {spec_of("bf16", "qwen2"), plain_head},
                                                 {spec_of("bf16", "qwen3"), plain_head},
                                                 {spec_of("bf16", "llama3"), other}};
  for (const auto& [spec, head] : cases) {
    SCOPED_TRACE(spec.label());
    const auto backend = GetParam().open(2);
    World world(*backend, spec, "", {3, 8, 40}, head);
    EXPECT_TRUE(world->stream(prompts(), 12, sampled()) == plain(spec, prompts(), 12, sampled()));
    EXPECT_GT(world.accepted(), 0);
  }
}

TEST_P(EagleTest, ATextThatEndsInsideAnAcceptedPathGoesOn) {
  const auto first = plain(spec_of(), prompts(), 40, {});
  int64_t accepted = 0;
  for (const size_t at : {3, 8}) {
    const Token stop = first[0].tokens[at];
    const auto backend = GetParam().open(2);
    World world(*backend, spec_of(), "", {3, 16, 100});
    const auto said = world->stream(prompts(), 40, {}, stop);
    ASSERT_TRUE(said == plain(spec_of(), prompts(), 40, {}, stop));
    auto texts = prompts();
    for (size_t i = 0; i < texts.size(); ++i) {
      texts[i].insert(texts[i].end(), said[i].tokens.begin(), said[i].tokens.end());
      texts[i].push_back(11);
    }
    EXPECT_TRUE(world->stream(texts, 16) == plain(spec_of(), texts, 16, {}));
    accepted += world.accepted();
  }
  EXPECT_GT(accepted, 0);
}

TEST_P(EagleTest, AContextThatFillsUpEndsAsItDoesWithoutAHead) {
  std::vector<std::vector<Token>> texts = {random_text(kContext - 9, 64, 1),
                                           random_text(150, 64, 2), random_text(30, 64, 3),
                                           random_text(kContext - 1, 64, 4)};
  const auto want = plain(spec_of(), texts, 40, {});
  const auto backend = GetParam().open(2);
  World world(*backend, spec_of(), "", {6, 4, 20});
  EXPECT_TRUE(world->stream(texts, 40) == want);
}

TEST_P(EagleTest, FourStreamsSayWhatEachSaysAlone) {
  const auto backend = GetParam().open(2);
  World four(*backend, spec_of(), "cast:int8:shared", {3, 10, 40});
  const auto together = four->stream(prompts(), 20);
  for (size_t i = 0; i < prompts().size(); ++i) {
    const auto other = GetParam().open(1);
    World one(*other, spec_of(), "cast:int8:shared", {3, 10, 40}, {}, 1);
    EXPECT_TRUE(one->stream({prompts()[i]}, 20)[0] == together[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, EagleTest, ::testing::ValuesIn(near_and_far()),
                         [](const auto& info) { return info.param.name(); });

TEST(EagleOnTheFarSide, NothingIsReadBetweenADraftAndItsRound) {
  for (const char* levels : {"", "cast:mxfp4:shared"}) {
    SCOPED_TRACE(levels);
    FarBackend far("", 1);
    World world(far, spec_of(), levels, {4, 6, 24});
    far.seal();
    world->stream(prompts(), 4);  // both have read the prompts
    auto texts = prompts();
    const auto before = world->counts();
    far.reset_counters();
    world->stream(texts, 24);
    const int64_t rounds = world->counts().rounds - before.rounds;
    const int64_t blocks = world->counts().blocks - before.blocks;
    const FarCounters& c = far.counters();
    EXPECT_EQ(c.waits, rounds + blocks);
    EXPECT_EQ(c.reads, rounds);
    EXPECT_LE(c.largest_read, 256 * kSequences);
    EXPECT_GT(c.uploads, rounds + blocks);
    // A draft tells what is asked, and its rows.
    EXPECT_LE(c.uploads, 3 * rounds + 2 * blocks + kSequences);
    EXPECT_EQ(c.recordings, 0);
    EXPECT_EQ(c.allocations, 0);
    EXPECT_EQ(c.operators, kSequences);  // requests that begin
  }
}

}  // namespace
}  // namespace stepladder
