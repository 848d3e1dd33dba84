// Every operator of a backend, through backend.h alone, beside the CPU's portable kernels, which
// have tests against fp64 of their own: tables and choices must be equal, sums must lie as near as
// their roundings allow, and a row's bits must not depend on the rows beside it.
#include <algorithm>
#include <cstring>
#include <functional>
#include <numeric>

#include "cpp/backend_fixture.h"
#include "formats/linear.h"
#include "spec/choose.h"
#include "support/backends.h"
#include "support/linear_call.h"

namespace stepladder::test {
namespace {

using AnyMachine = MachineOf<Backend>;

class DeviceTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Backend> subject() const { return GetParam().open(2); }
  static std::unique_ptr<Backend> reference() { return open_backend({"cpu", "portable", 1}); }
  /// What `body` gives on the reference and on the subject.
  template <class Body>
  auto both(const Body& body) const {
    AnyMachine a(reference()), b(subject());
    return std::pair(body(a), body(b));
  }
};

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

/// A random round: its plan, trees and rows in a machine's memory.
struct RoundOf {
  static constexpr int kSequences = 4, kTree = 40, kCapacity = 96, kDepth = 24, kTokens = 400;
  Plan plan;
  TreeView trees;
  Rows rows;
  std::vector<PlanEntry> entries;

  RoundOf(AnyMachine& m, std::mt19937& g, int most_missing = 20, int positions = 1000) {
    const int sequences = pick(g, 1, kSequences);
    std::vector<int32_t> tokens(kTokens), count(kSequences), token(kSequences * kTree),
        parent(kSequences * kTree, -1);
    for (int32_t& t : tokens) t = pick(g, -1, 60);
    entries.resize(kSequences);
    for (int i = 0; i < sequences; ++i) {
      PlanEntry& e = entries[i];
      e.slot = e.rule = (i + 1) % kSequences;
      e.missing = pick(g, 0, most_missing), e.first_missing = i * 20;
      e.root_position = e.missing + pick(g, 0, positions - most_missing - kDepth);
      e.tentative = pick(g, 0, 30), e.first_tentative = 100 + i * 70, e.wanted = pick(g, 0, 8);
      count[i] = pick(g, 0, 3) ? pick(g, 0, kTree) : 0;
      for (int x = 0; x < count[i]; ++x) {
        token[i * kTree + x] = pick(g, 0, 60);
        // Mostly deep, so that some paths are longer than there is room for.
        parent[i * kTree + x] = x == 0 ? -1 : pick(g, 0, 4) ? x - 1 : pick(g, 0, x - 1);
      }
    }
    plan = {kSequences, m.put<int32_t>(sequences), m.put(entries), m.put(tokens)};
    trees = {kSequences, kTree, m.put(count), m.put(token), m.put(parent)};
    rows = m.rows(kCapacity, kDepth, kSequences);
    m->expand({plan, trees, rows});
  }
};

/// All that a table of rows says, as one list.
std::vector<int64_t> said(AnyMachine& m, const Rows& r) {
  const int n = m.get(r.count, 1)[0], nodes = m.get(r.node_count, 1)[0];
  std::vector<int64_t> out{n, nodes, m.get(r.block_row, 1)[0], m.get(r.block_node, 1)[0]};
  const auto add = [&](const auto* from, size_t count) {
    for (const auto x : m.get(from, count)) out.push_back(x);
  };
  for (const int32_t* list : {r.token, r.position, r.slot, r.committed, r.scratch}) add(list, n);
  for (const int32_t* list : {r.node_row, r.node_sequence, r.node_index}) add(list, nodes);
  for (const int32_t* list : {r.sequence_row, r.sequence_node}) add(list, r.sequences + 1);
  for (int i = 0; i < n; ++i) {
    const int position = m.get(r.position + i, 1)[0], committed = m.get(r.committed + i, 1)[0];
    if (m.get(r.scratch + i, 1)[0] >= 0)
      add(r.path + int64_t{i} * r.depth, position - committed + 1);
  }
  return out;
}

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

// ---- projections -----------------------------------------------------------------------------

/// What a projection stores of some rows, as f32.
std::vector<float> stored(AnyMachine& m, const ProjectWeight& weight, const Tensor& x, int rows) {
  ProjectArgs a{.live = m.live(rows, rows + (rows > 1))};
  a.input = {.x = x, .type = x.dtype};
  a.weight = weight;
  const Tensor y = m.tensor(DType::f32, rows + 1, weight.packed.n);
  a.result = Store{y};
  a.workspace = m.bytes(m->workspace_bytes(a) + 1);
  m->project(a);
  return m.get(y.as<float>(), size_t(rows) * weight.packed.n);
}

struct ProductCase {
  const WeightFormat* format;
  ActMode mode;
  int group, n, k;
  DType type;  // of the activations
};
std::vector<ProductCase> product_cases() {
  std::vector<ProductCase> out;
  for (const WeightFormat* format : formats())
    for (const ActMode mode : format->acts)
      for (const int group : format->groups.empty()
                                 ? std::vector<int>{0}
                                 : std::vector<int>(format->groups.begin(), format->groups.end()))
        for (const auto& [n, k] :
             {std::pair{40, 64}, {33, 96}, {16, 160}, {50, 384}, {600, 576}, {24, 2176}})
          for (const DType type : {DType::bf16, DType::f16})
            if (!group || k % group == 0) out.push_back({format, mode, group, n, k, type});
  return out;
}

/// Products of one weight, through the format's own kernels or the generic path, against fp64; and
/// the same bits for a row whatever the number of rows.
void check_products(AnyMachine& m, const ProductCase& c, std::span<const LinearKernel> kernels) {
  std::mt19937 g(c.n + c.k);
  CanonicalWeight w = c.format->cast(normal(g, size_t(c.n) * c.k, 0.05f), c.n, c.k, c.group);
  w.bias = normal(g, c.n);
  Linear linear(m.backend(), w, std::span(&c.mode.act, 1), kernels);
  linear.upload(m.backend(), w, m.zeros<std::byte>(linear.bytes()));
  const int weight_group = w.desc.group ? w.desc.group : c.k;
  Tokens tokens(c.type, 70, c.k, c.mode.per == Per::group ? weight_group : c.k, g, weight_group);
  const Tensor x = m.tensor(c.type, 70, c.k, tokens.x);
  std::vector<float> alone;
  for (int r = 0; r < 70; ++r) {
    const auto y = stored(m, linear.in(c.mode.act), x.slice(r, 1), 1);
    alone.insert(alone.end(), y.begin(), y.end());
  }
  for (const int r : {0, 8, 41, 69})
    for (int i = 0; i < c.n; ++i) {
      double sum = w.bias[i], norm = std::fabs(w.bias[i]);
      for (int k = 0; k < c.k; ++k) {
        const double term = w.at(i, k) * tokens.at(c.mode.act, r, k);
        sum += term, norm += std::fabs(term);
      }
      ASSERT_NEAR(alone[size_t(r) * c.n + i], sum, bound(c.k, norm))
          << "row " << r << " output " << i;
    }
  for (const int rows : {3, 8, 9, 16, 17, 32, 33, 64, 70}) {
    const auto y = stored(m, linear.in(c.mode.act), x, rows);
    ASSERT_EQ(std::memcmp(y.data(), alone.data(), y.size() * 4), 0) << rows << " rows";
  }
}

TEST_P(DeviceTest, ProductsOfEveryFormatMatchFp64AndAreTheSameForARowAlone) {
  AnyMachine m(subject());
  for (const ProductCase& c : product_cases())
    for (const bool own : {false, true}) {
      SCOPED_TRACE(testing::Message()
                   << c.format->name << (c.mode.act == Act::a8 ? " a8 g" : " a16 g") << c.group
                   << ' ' << c.n << 'x' << c.k << ' ' << name(c.type)
                   << (own ? " own kernel" : ""));
      check_products(m, c, own ? linear_kernels() : kNoKernels);
    }
}

TEST_P(DeviceTest, WhatAProjectionDoesBeforeAndAfterIsNear) {
  constexpr int kHeads = 6, kKvHeads = 2, kDim = 32, kWidth = 96, kRows = 12, kFirst = 3;
  constexpr int kQkv = (kHeads + 2 * kKvHeads) * kDim;
  const KVSpec spec{2, kKvHeads, kDim, 64, 8, 3, DType::bf16};
  for (const bool norms : {false, true}) {
    const auto [a, b] = both([&](AnyMachine& m) {
      std::mt19937 g(5);
      const CanonicalWeight w =
          format_named("dense").cast(normal(g, kQkv * kWidth, 0.1f), kQkv, kWidth, 0);
      const Act act = Act::a16;
      Linear linear(m.backend(), w, std::span(&act, 1), kNoKernels);
      linear.upload(m.backend(), w, m.zeros<std::byte>(linear.bytes()));
      const Tensor residual =
          m.tensor(DType::f32, kFirst + kRows, kWidth, normal(g, (kFirst + kRows) * kWidth, 3.f));
      Rows rows = m.rows(kFirst + kRows, 8, 3);
      std::vector<int32_t> slot, position, scratch;
      for (int i = 0; i < kFirst + kRows; ++i)
        slot.push_back(i % 3), position.push_back(13 + 3 * i),
            scratch.push_back(i % 2 ? i / 2 : -1);
      m->upload(rows.slot, slot.data(), slot.size() * 4);
      m->upload(rows.position, position.data(), position.size() * 4);
      m->upload(rows.scratch, scratch.data(), scratch.size() * 4);
      std::vector<float> table(64 * kDim);
      for (size_t i = 0; i < table.size(); i += 2) {
        const double angle = double(i / kDim) * std::pow(100.0, -double(i % kDim) / kDim);
        table[i] = static_cast<float>(std::cos(angle)),
        table[i + 1] = static_cast<float>(std::sin(angle));
      }
      const KVView kv{spec, m.bytes(m->kv_bytes(spec))};
      const Tensor q = m.tensor(DType::bf16, kRows, kHeads * kDim);
      const std::vector<float> gain = normal(g, kDim);
      ProjectArgs project{.live = {m.put<int32_t>(kFirst + kRows), m.put<int32_t>(kFirst), kRows}};
      project.input = {
          .x = residual, .type = DType::bf16, .norm = m.put(normal(g, kWidth)), .eps = 1e-5f};
      project.weight = linear.in(act);
      project.result = RopeAppend{.rows = rows,
                                  .q_norm = norms ? m.put(gain) : nullptr,
                                  .k_norm = norms ? m.put(gain) : nullptr,
                                  .eps = 1e-5f,
                                  .rope = m.put(table),
                                  .heads = kHeads,
                                  .kv = kv,
                                  .layer = 1,
                                  .q = q};
      project.workspace = m.bytes(m->workspace_bytes(project) + 1);
      m->project(project);
      std::vector<float> out;
      const auto add16 = [&](const std::vector<uint16_t>& v) {
        for (const uint16_t x : v) out.push_back(from_bf16(x));
      };
      add16(m.get(q.as<uint16_t>(), size_t(kRows) * kHeads * kDim));
      for (int s = 0; s < 3; ++s) {
        std::vector<uint16_t> entries(size_t(2) * 2 * 64 * kKvHeads * kDim);
        m->read_entries(entries.data(), kv, s, 0, 64);
        m->wait();
        add16(entries);
      }
      // The same rows of qkv taken for gate and up, and added to a residual.
      const Tensor gated = m.tensor(DType::bf16, kRows, kQkv / 2);
      project.result = Gate{gated};
      m->project(project);
      add16(m.get(gated.as<uint16_t>(), size_t(kRows) * kQkv / 2));
      const Tensor sum =
          m.tensor(DType::f32, kFirst + kRows, kQkv, normal(g, (kFirst + kRows) * kQkv));
      project.result = AddTo{sum};
      m->project(project);
      for (const float x : m.get(sum.as<float>(), size_t(kFirst + kRows) * kQkv)) out.push_back(x);
      return out;
    });
    ASSERT_EQ(a.size(), b.size());
    for (size_t i = 0; i < a.size(); ++i)
      ASSERT_NEAR(a[i], b[i], 0.02 * std::max(1.f, std::fabs(a[i]))) << i;
  }
}

// ---- the cache -------------------------------------------------------------------------------

TEST_P(DeviceTest, AttentionFeaturesAndKeptEntriesAreNear) {
  for (const auto& [heads, kv_heads, dim] :
       {std::tuple{4, 2, 64}, {3, 1, 80}, {2, 2, 18}, {2, 1, 256}})
    for (unsigned seed = 0; seed < 3; ++seed) {
      const auto [a, b] = both([&, heads = heads, kv_heads = kv_heads, dim = dim](AnyMachine& m) {
        std::mt19937 g(seed);
        constexpr int kPositions = 320, kLayers = 2, kWidth = 40;
        KVSpec spec{kLayers,    kv_heads, dim, kPositions, RoundOf::kTree, RoundOf::kSequences,
                    DType::bf16};
        spec.features = {2, kWidth, {0, 1}};
        const KVView kv{spec, m.bytes(m->kv_bytes(spec))};
        const int qkv = (heads + 2 * kv_heads) * dim;
        // Fills all entries: prompts of every sequence, block by block, then the round in hand.
        const CanonicalWeight w =
            format_named("dense").cast(normal(g, size_t(qkv) * kWidth, 0.3f), qkv, kWidth, 0);
        const Act act = Act::a16;
        Linear linear(m.backend(), w, std::span(&act, 1), kNoKernels);
        linear.upload(m.backend(), w, m.zeros<std::byte>(linear.bytes()));
        std::vector<float> table(kPositions * dim);
        for (size_t i = 0; i < table.size(); i += 2) table[i] = 0.6f, table[i + 1] = 0.8f;
        ProjectArgs project;
        project.weight = linear.in(act);
        std::vector<float> out;
        const auto pass = [&](const Rows& rows, int count) {
          const Tensor x = m.tensor(DType::bf16, count, kWidth,
                                    to_16s(DType::bf16, normal(g, size_t(count) * kWidth)));
          const Tensor q = m.tensor(DType::bf16, count, heads * dim),
                       attended = m.tensor(DType::bf16, count, heads * dim);
          const Tensor hidden =
              m.tensor(DType::f32, count, kWidth, normal(g, size_t(count) * kWidth));
          project.live = m.live(count, count);
          project.input = {.x = x, .type = DType::bf16};
          for (int layer = 0; layer < kLayers; ++layer) {
            project.result = RopeAppend{.rows = rows,
                                        .rope = m.put(table),
                                        .heads = heads,
                                        .kv = kv,
                                        .layer = layer,
                                        .q = q};
            project.workspace = m.bytes(m->workspace_bytes(project) + 1);
            m->project(project);
            m->feature({project.live, rows, hidden, layer ? m.put(normal(g, kWidth)) : nullptr,
                        1e-5f, kv, layer});
          }
          AttentionArgs args{project.live, rows, q, kv, 1, heads, 1.f / std::sqrt(float(dim)),
                             attended};
          args.workspace = m.bytes(m->workspace_bytes(args) + 1);
          m->attention(args);
          for (const uint16_t y : m.get(attended.as<uint16_t>(), size_t(count) * heads * dim))
            out.push_back(from_bf16(y));
        };
        for (int s = 0; s < RoundOf::kSequences; ++s) {
          Rows rows = m.rows(kPositions, 8, 1);
          std::vector<int32_t> position(kPositions), committed(kPositions), slot(kPositions, s),
              scratch(kPositions, -1);
          std::iota(position.begin(), position.end(), 0);
          std::iota(committed.begin(), committed.end(), 1);
          m->upload(rows.position, position.data(), kPositions * 4);
          m->upload(rows.committed, committed.data(), kPositions * 4);
          m->upload(rows.slot, slot.data(), kPositions * 4);
          m->upload(rows.scratch, scratch.data(), kPositions * 4);
          pass(rows, kPositions);
        }
        const RoundOf round(m, g, 5, kPositions);
        const int count = m.get(round.rows.count, 1)[0];
        if (count > 0) pass(round.rows, count);
        // Keeps the first nodes of each tree.
        std::vector<RoundResult> result(RoundOf::kSequences);
        std::vector<int32_t> path(RoundOf::kSequences * kMaxEmitted, -1);
        for (int s = 0; s < RoundOf::kSequences; ++s) {
          result[s].emitted = pick(g, 0, 9);
          for (int d = 0; d < result[s].emitted; ++d)
            path[s * kMaxEmitted + d] = pick(g, 0, RoundOf::kTree - 1);
        }
        m->keep({round.plan, kv, m.put(result), m.put(path)});
        for (int s = 0; s < RoundOf::kSequences; ++s) {
          std::vector<uint16_t> entries(size_t(kLayers) * 2 * kPositions * kv_heads * dim),
              features(size_t(kPositions) * 2 * kWidth);
          m->read_entries(entries.data(), kv, s, 0, kPositions);
          m->read_features(features.data(), kv, s, 0, kPositions);
          m->wait();
          for (const uint16_t y : entries) out.push_back(from_bf16(y));
          for (const uint16_t y : features) out.push_back(from_bf16(y));
        }
        return out;
      });
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i)
        ASSERT_NEAR(a[i], b[i], 0.04 * std::max(1.f, std::fabs(a[i]))) << i << " head_dim " << dim;
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

/// Every device there is, and one that is made of the CPU.
std::vector<BackendCase> devices() {
  std::vector<BackendCase> out{{"cpu", available_isas().back(), true}};
  for (const BackendCase& c : backend_cases())
    if (c.device != "cpu") out.push_back(c);
  return out;
}

INSTANTIATE_TEST_SUITE_P(Backends, DeviceTest, ::testing::ValuesIn(devices()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace stepladder::test
