// Rows of hidden state that the entries of a cache carry: they depend on the tokens before them and
// on nothing else, however they came to be written, and go wherever their entries go.
#include <gtest/gtest.h>

#include <memory>
#include <tuple>

#include "backends/cpu/cpu_backend.h"
#include "support/backends.h"
#include "support/replay.h"

namespace stepladder {
namespace {

/// After the final norm, as EAGLE-2 heads read it; or what enters three layers, as EAGLE-3 heads
/// do.
FeatureSpec features_of(const ModelConfig& c, bool three) {
  if (three) return {3, c.width, {0, c.layers / 2, c.layers - 1}};
  return {1, c.width, {c.layers}};
}

class FeatureTest : public ::testing::TestWithParam<std::tuple<BackendCase, bool>> {
 protected:
  bool three() const { return std::get<1>(GetParam()); }

  std::unique_ptr<Backend> backend(int threads) const {
    return std::get<0>(GetParam()).open(threads);
  }
  RigOptions options(const Model& model) const {
    RigOptions o;
    o.features = features_of(model.config(), three());
    return o;
  }
  Cell cell_ = [] {
    Cell cell = replay_cells()[0];
    cell.spec.layers = 4;
    return cell;
  }();
};

TEST_P(FeatureTest, ATreeLeavesWhatItsTokensLeaveOneByOne) {
  const auto subject_backend = backend(2), plain_backend = backend(1);
  const auto model = load_cell(*subject_backend, cell_, 512);
  RigOptions o = options(*model);
  o.sequences = 4;
  Rig subject(*subject_backend, model, o);
  o.sequences = 1, o.block = 32, o.level = 1;
  Rig plain(*plain_backend, load_cell(*plain_backend, cell_, 512), o);
  Differences total;
  for (const auto& lengths : {std::vector{2}, {33, 64, 31, 5}, {257, 3}, {300, 128, 65}}) {
    // Entries are compared with their features.
    total += check_lengths(subject, plain, lengths, 24, 300 + lengths[0]);
  }
  EXPECT_EQ(total.entries, 0);
  EXPECT_TRUE(total.none());
  EXPECT_GT(total.accepted, 0);
}

/// Leaves the features of accepted paths where the tree had them.
class ForgetfulBackend : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  void keep(const KeepArgs& args) override {
    KeepArgs a = args;
    a.kv.spec.features = {};
    CpuBackend::keep(a);
  }
};

TEST(FeatureControl, FeaturesThatDoNotMoveWithTheirEntriesAreSeen) {
  const Cell cell = replay_cells()[0];
  ForgetfulBackend subject_backend("", 1);
  CpuBackend plain_backend("", 1);
  RigOptions o;
  const auto model = load_cell(subject_backend, cell, 512);
  o.features = features_of(model->config(), false);
  Rig subject(subject_backend, model, o);
  o.level = 1;
  Rig plain(plain_backend, load_cell(plain_backend, cell, 512), o);
  const Differences d = check_lengths(subject, plain, {40}, 24, 7);
  EXPECT_EQ(d.choices, 0);
  EXPECT_EQ(d.entries, 1);
}

TEST_P(FeatureTest, APromptLeavesTheSameInBlocksAndRowByRow) {
  const auto own = backend(2);
  const auto model = load_cell(*own, cell_, 512);
  const auto text = random_text(150, cell_.spec.vocab, 3);
  std::vector<uint16_t> first;
  for (const int rows : {128, 1, 7, 33}) {
    RigOptions o = options(*model);
    o.block = rows == 128 ? 128 : 64;
    Rig rig(*own, model, o);
    Sequence s{0, text, text.size()};
    Sequence* const batch[] = {&s};
    rig.feed(batch, 0, rows);
    const auto held = features(rig, 0, 149);
    if (first.empty()) first = held;
    EXPECT_TRUE(held == first) << "blocks of " << rows;
    EXPECT_FALSE(held == std::vector<uint16_t>(held.size())) << "nothing was written";
  }
  // No two rows of a text are alike, so that one in another's place is seen.
  const size_t row = first.size() / 149;
  for (size_t i = row; i < first.size(); i += row)
    EXPECT_FALSE(std::equal(first.begin() + i - row, first.begin() + i, first.begin() + i));
}

/// What plain decoding of `text` leaves.
std::vector<uint16_t> plain_features(const RigOptions& o, Backend& backend,
                                     std::shared_ptr<const Model> model, const Sequence& text) {
  Rig rig(backend, std::move(model), o);
  Sequence s{0, text.tokens, text.committed};
  rig.plain_round(s);
  return features(rig, 0, static_cast<int>(text.tokens.size()));
}

TEST_P(FeatureTest, TheyStandAfterARoundThatNobodyTookAndAfterAnotherText) {
  const auto own = backend(2);
  const auto model = load_cell(*own, cell_, 512);
  Rig rig(*own, model, options(*model));
  const auto text = random_text(70, cell_.spec.vocab, 5);
  Sequence s{0, text, text.size()};
  Sequence* const batch[] = {&s};
  rig.feed(batch, 0, 64);
  DraftTrees trees(1, 64);
  trees.reset(0, s.tokens.back());
  for (int x = 1; x < 20; ++x) trees.add(0, x - 1, (x * 37) % cell_.spec.vocab);
  RoundResult result;
  rig.verifier->verify(batch, trees, {&result, 1});
  // The caller was cancelled: the round's tokens are not taken, another text shares 40 tokens.
  auto other = random_text(70, cell_.spec.vocab, 6);
  std::copy_n(text.begin(), 40, other.begin());
  s.tokens = other, s.committed = other.size();
  rig.plain_round(s);
  EXPECT_TRUE(features(rig, 0, 70) == plain_features(options(*model), *own, model, s));
}

TEST_P(FeatureTest, TheTargetWritesOverWhatADraftLeftInASharedCache) {
  const auto own = backend(2);
  Cell cheap = cell_;
  cheap.cast = "mxfp4";
  const auto model = load_cell(*own, cell_, 512), cast = load_cell(*own, cheap, 512);
  RigOptions o = options(*model);
  Rig target(*own, model, o);
  o.level = 1;
  Rig draft(*own, cast, o, target.cache);
  const auto text = random_text(50, cell_.spec.vocab, 9);
  Sequence s{0, text, text.size()};
  draft.plain_round(s);
  const auto by_draft = features(draft, 0, 50);
  target.plain_round(s);
  const auto by_target = features(target, 0, 50);
  EXPECT_FALSE(by_draft == by_target);
  o.level = 0;
  EXPECT_TRUE(by_target == plain_features(o, *own, model, s));
  // What the target wrote serves the draft, which writes its own only from there on.
  s.tokens.push_back(7);
  draft.plain_round(s);
  const auto after = features(draft, 0, 51);
  EXPECT_TRUE(std::equal(by_target.begin(), by_target.end(), after.begin()));
}

INSTANTIATE_TEST_SUITE_P(All, FeatureTest,
                         ::testing::Combine(::testing::ValuesIn(near_and_far()), ::testing::Bool()),
                         [](const auto& info) {
                           return std::get<0>(info.param).name() +
                                  (std::get<1>(info.param) ? "_three" : "_one");
                         });

}  // namespace
}  // namespace stepladder
