// The operators of a backend that add up, through backend.h alone: products of every format against
// fp64, and the same bits for a row whatever stands beside it; what a projection does before and
// after its product, attention and the cache beside the CPU's portable kernels, as near as
// roundings allow.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpp/device_fixture.h"
#include "formats/linear.h"
#include "support/linear_call.h"

namespace stepladder::test {
namespace {

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
            if ((!group || k % group == 0) && (type == DType::bf16 || k == 576))
              out.push_back({format, mode, group, n, k, type});
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
  for (const ProductCase& c : product_cases())
    for (const bool own : {false, true}) {
      AnyMachine m(subject());
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

INSTANTIATE_TEST_SUITE_P(Backends, DeviceTest, ::testing::ValuesIn(devices()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace stepladder::test
