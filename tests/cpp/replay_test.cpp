// The central proof: a row's bits depend on the tokens before it and on nothing else. Random trees
// go through the real verifier and are replayed token by token; choices, logits and cache entries
// must be equal by memcmp, in every format and mode, on every backend and instruction set, at one
// thread and two, beside any neighbours, in blocks of any size. Controls that break the rule on
// purpose must fail the same check.
//
// STEPLADDER_SWEEP=1 runs many more trees over every cell.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <memory>
#include <tuple>

#include "backends/cpu/cpu_backend.h"
#include "support/backends.h"
#include "support/controls.h"
#include "support/replay.h"

namespace stepladder {
namespace {

bool sweeping() {
  const char* on = std::getenv("STEPLADDER_SWEEP");
  return on && *on == '1';
}

/// A subject and a plain rig of one cell, each on a backend of its own.
struct Pair {
  Pair(const BackendCase& on, int threads, const Cell& cell, RigOptions options)
      : subject_backend(on.open(threads)), plain_backend(on.open_plain(1)) {
    options.act = cell.act;
    const int positions = (options.context + 31) / 32 * 32;
    subject = std::make_unique<Rig>(*subject_backend, load_cell(*subject_backend, cell, positions),
                                    options);
    plain = std::make_unique<Rig>(*plain_backend, load_cell(*plain_backend, cell, positions),
                                  plain_options(options));
  }
  std::unique_ptr<Backend> subject_backend, plain_backend;
  std::unique_ptr<Rig> subject, plain;
};

Sampling lively_sampling() {
  Sampling s;
  s.temperature = 0.8f, s.top_p = 0.95f, s.min_p = 0.01f, s.top_k = 60, s.seed = 99;
  s.repetition_penalty = 1.1f, s.frequency_penalty = 0.2f, s.presence_penalty = 0.3f;
  s.logit_bias = {{5, 1.5f}, {7, -2.f}};
  return s;
}

/// Loves what it has said before, so that a token missing from a path's counts is seen at once.
Sampling fond_sampling() {
  Sampling s;
  s.frequency_penalty = -1.5f, s.presence_penalty = -1.f, s.repetition_penalty = 0.9f;
  return s;
}

void expect_exact(const Differences& d) {
  EXPECT_GT(d.nodes, 0);
  EXPECT_EQ(d.choices, 0) << "of " << d.nodes << " nodes";
  EXPECT_EQ(d.emitted, 0);
  EXPECT_EQ(d.entries, 0);
}

// ---- every cell ----------------------------------------------------------------------------

class ReplayTest : public ::testing::TestWithParam<std::tuple<BackendCase, Cell>> {
 protected:
  const BackendCase& on() const { return std::get<0>(GetParam()); }
  const Cell& cell() const { return std::get<1>(GetParam()); }
};

TEST_P(ReplayTest, ATreeSaysWhatItsTokensSayOneByOne) {
  Differences total;
  for (const int threads : {1, 2}) {
    Pair pair(on(), threads, cell(), {});
    ASSERT_TRUE(pair.subject_backend->name().starts_with(on().kernels()));
    std::vector<int> lengths = {33, 64, 257};
    if (threads == 1) lengths = {1, 2, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300};
    if (sweeping())
      for (int n = 3; n < 420; n += 7) lengths.push_back(n);
    for (const int n : lengths) {
      SCOPED_TRACE("length " + std::to_string(n) + ", threads " + std::to_string(threads));
      const int most = n % 4 == 0 ? 64 : 12;
      const Differences d = check_lengths(*pair.subject, *pair.plain, {n}, most, 1000 + n);
      expect_exact(d);
      total += d;
    }
  }
  EXPECT_GT(total.accepted, 10);  // the check has seen kept paths
}

TEST_P(ReplayTest, NeighboursChangeNothing) {
  RigOptions options;
  options.sequences = 8, options.context = 384, options.block = 32;
  Pair pair(on(), 2, cell(), options);
  TestRandom random(5);
  const int rounds = sweeping() ? 24 : 1;
  for (int round = 0; round < rounds; ++round) {
    const int batch = round == 0 ? 8 : random.between(1, 8);
    std::vector<int> lengths(batch);
    for (int& n : lengths) n = random.between(1, sweeping() ? 290 : 140);
    SCOPED_TRACE("round " + std::to_string(round));
    expect_exact(check_lengths(*pair.subject, *pair.plain, lengths, 10, 2000 + round));
  }
}

TEST_P(ReplayTest, SampledChoicesDependOnTheirPathAlone) {
  RigOptions options;
  options.sequences = 3;
  Pair pair(on(), 2, cell(), options);
  expect_exact(check_lengths(*pair.subject, *pair.plain, {20, 65, 100}, 16, 7, lively_sampling()));
  expect_exact(check_lengths(*pair.subject, *pair.plain, {20, 65, 50}, 16, 8, fond_sampling()));
}

TEST_P(ReplayTest, PromptsReadInAnyBlocksLeaveTheSameEntries) {
  const int length = sweeping() ? 700 : 150;
  const auto text = random_text(length, cell().spec.vocab, 3);
  const auto backend = on().open(2);
  const int context = 736;
  const auto model = load_cell(*backend, cell(), context);
  std::vector<uint16_t> first;
  for (const int rows : {128, 1, 7, 33, 64}) {
    RigOptions options;
    options.act = cell().act, options.block = rows == 128 ? 128 : 64;
    options.context = context;
    Rig rig(*backend, model, options);
    Sequence s{0, text, text.size()};
    Sequence* const batch[] = {&s};
    rig.feed(batch, 0, rows);
    const auto held = entries(rig, 0, length - 1);
    if (first.empty()) first = held;
    EXPECT_TRUE(held == first) << "blocks of " << rows;
  }
}

std::vector<Cell> cells() { return replay_cells(); }

INSTANTIATE_TEST_SUITE_P(All, ReplayTest,
                         ::testing::Combine(::testing::ValuesIn(backend_cases()),
                                            ::testing::ValuesIn(cells())),
                         [](const auto& info) {
                           return std::get<0>(info.param).name() + "_" +
                                  std::get<1>(info.param).name();
                         });

// ---- long contexts, wide trees -------------------------------------------------------------

class LongReplayTest : public ::testing::TestWithParam<BackendCase> {};

TEST_P(LongReplayTest, AroundChunksOfTheCache) {
  for (const Cell& cell : replay_cells()) {
    const bool quick = cell.name() == "llama_bf16";
    const bool a8 = cell.act == Act::a8 && cell.spec.group == 32;
    if (!quick && !a8 && !sweeping()) continue;
    SCOPED_TRACE(cell.name());
    RigOptions options;
    options.context = 2240, options.block = 128;
    Pair pair(GetParam(), 2, cell, options);
    std::vector<int> lengths = {2047, 2048, 2049};
    if ((quick && GetParam().isa != "portable") || sweeping())
      lengths = {511, 512, 513, 2016, 2047, 2048, 2049, 2100};
    for (const int n : lengths)
      expect_exact(check_lengths(*pair.subject, *pair.plain, {n}, 10, 3000 + n));
  }
}

TEST_P(LongReplayTest, TreesWiderThanABlockOfRows) {
  RigOptions options;
  options.sequences = 3, options.tree_capacity = 200, options.block = 32;
  Pair pair(GetParam(), 2, replay_cells()[0], options);
  expect_exact(check_lengths(*pair.subject, *pair.plain, {50, 31, 129}, 200, 17));
  expect_exact(check_lengths(*pair.subject, *pair.plain, {96, 64, 200}, 200, 18));
}

TEST_P(LongReplayTest, ASequenceFillsItsContextToTheLastPosition) {
  RigOptions options;
  options.context = 96;
  Pair pair(GetParam(), 2, replay_cells()[0], options);
  for (int left = 1; left <= 4; ++left) {
    // `left` positions are free: a chain that deep, the root included, just fits.
    Sequence s{0, random_text(96 - left + 1, 320, 5), 0};
    s.committed = s.tokens.size();
    Sequence* const batch[] = {&s};
    pair.subject->feed(batch, 0, 64);
    ASSERT_EQ(pair.subject->verifier->room(s), left);
    DraftTrees trees(1, 64);
    trees.reset(0, s.tokens.back());
    for (int d = 1; d < left; ++d) trees.add(0, d - 1, 10 + d);
    expect_exact(check_trees(*pair.subject, batch, trees, *pair.plain, {Sampling{}}));
  }
}

INSTANTIATE_TEST_SUITE_P(All, LongReplayTest, ::testing::ValuesIn(backend_cases()),
                         [](const auto& info) { return info.param.name(); });

// ---- shared caches -------------------------------------------------------------------------

/// A cheap level writes the cache first; a verifier of level `trusting` then checks trees over it.
Differences over_a_cheap_levels_entries(const BackendCase& on, LevelId trusting) {
  const auto backend = on.open(2), plain_backend = on.open_plain(1);
  const Cell cell = replay_cells()[0];
  Cell cheap = cell;
  cheap.cast = "mxfp4";
  RigOptions options;
  options.level = trusting;
  Rig target(*backend, load_cell(*backend, cell, 512), options);
  options.level = 1;
  Rig draft(*backend, load_cell(*backend, cheap, 512), options, target.cache);
  Rig plain(*plain_backend, load_cell(*plain_backend, cell, 512), plain_options(options));

  Differences out;
  for (const int n : {40, 70, 131}) {
    Sequence s{0, random_text(n, cell.spec.vocab, 77), 0};
    s.committed = s.tokens.size();
    draft.plain_round(s);  // reads the text into the shared cache, its last token included
    out += check_lengths(target, plain, {n}, 16, 50 + n);
  }
  return out;
}

class SharedCache : public ::testing::TestWithParam<BackendCase> {};

TEST_P(SharedCache, TheTargetRecomputesWhatALowerLevelWrote) {
  expect_exact(over_a_cheap_levels_entries(GetParam(), 0));
}

TEST_P(SharedCache, TrustingALowerLevelsEntriesFails) {
  const Differences d = over_a_cheap_levels_entries(GetParam(), 1);
  EXPECT_GT(d.choices, 0) << "of " << d.nodes;
  EXPECT_GT(d.entries, 0);
}

TEST_P(SharedCache, ALowerLevelReusesWhatTheTargetWrote) {
  const auto backend = GetParam().open(2);
  const Cell cell = replay_cells()[0];
  Cell cheap = cell;
  cheap.cast = "mxfp4";
  Rig target(*backend, load_cell(*backend, cell, 512), {});
  RigOptions options;
  options.level = 1;
  Rig draft(*backend, load_cell(*backend, cheap, 512), options, target.cache);
  Sequence s{0, random_text(100, 320, 4), 100};
  Sequence* const batch[] = {&s};
  target.plain_round(s);
  draft.verifier->sync(batch);
  EXPECT_EQ(draft.verifier->lacking(s), 0);
  draft.plain_round(s);
  target.verifier->sync(batch);
  EXPECT_EQ(target.verifier->lacking(s), 0);  // the root's entry alone was written again
}

INSTANTIATE_TEST_SUITE_P(All, SharedCache, ::testing::ValuesIn(backend_cases()),
                         [](const auto& info) { return info.param.name(); });

// ---- controls: the same check must fail ----------------------------------------------------

/// A broken backend against itself: it disagrees about its own trees.
template <class Broken>
Differences against_itself() {
  Broken subject("", 1), plain("", 1);
  return check_backends(subject, plain);
}

void expect_caught(const Differences& d) {
  EXPECT_GT(d.choices, 0) << "of " << d.nodes;
  EXPECT_GT(d.entries, 0);
}

TEST(Control, TheCheckItselfPassesOnASoundBackend) { expect_exact(against_itself<CpuBackend>()); }

TEST(Control, AttentionByATreeMaskOverSlotsFails) {
  expect_caught(against_itself<MaskedSlotsBackend>());
}

TEST(Control, ASplitOfKChosenByTheNumberOfRowsFails) {
  expect_caught(against_itself<SplitByRowsBackend>());
}

TEST(Control, ARootThatIsNotFedAgainFails) {
  StaleRootBackend subject("", 1);
  CpuBackend plain("", 1);
  expect_caught(check_backends(subject, plain));
}

}  // namespace
}  // namespace stepladder
