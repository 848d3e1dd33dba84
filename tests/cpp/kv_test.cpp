// The operators around the cache: the row table of a pass, rotation and storing of keys and values,
// and moving accepted entries, on every instruction set and on one thread and two.
#include <algorithm>
#include <cstdint>

#include "backends/cpu/kv_layout.h"
#include "cpp/backend_fixture.h"

namespace stepladder::test {
namespace {

struct KVWorld {
  KVView kv;
  Rows rows;
};
KVWorld kv_world(Machine& m, const KVSpec& s, int capacity, int depth) {
  KVWorld w;
  w.kv = {s, m.bytes(m->kv_bytes(s))};
  w.rows = m.rows(capacity, depth, s.sequences);
  return w;
}

TEST_P(CellTest, RopeAppendMatchesFp64AndStoresWhereTheRowSays) {
  Machine m(GetParam());
  for (const DType t : {DType::bf16, DType::f16})
    for (const int dim : {16, 32, 64, 80, 96, 128})
      for (const bool norms : {false, true}) {
        SCOPED_TRACE(testing::Message() << name(t) << " head_dim " << dim << " norms " << norms);
        std::mt19937 g(dim);
        const int heads = 6, kv_heads = 2, rows = 12, cols = (heads + 2 * kv_heads) * dim;
        const KVSpec spec{2, kv_heads, dim, 64, 8, 3, t};
        KVWorld w = kv_world(m, spec, rows, 8);
        std::vector<float> table(64 * dim);
        for (int p = 0; p < 64; ++p)
          for (int i = 0; i < dim / 2; ++i) {
            const double angle = p * std::pow(10000.0, -2.0 * i / dim);
            table[p * dim + 2 * i] = static_cast<float>(std::cos(angle));
            table[p * dim + 2 * i + 1] = static_cast<float>(std::sin(angle));
          }
        for (int i = 0; i < rows; ++i) {
          w.rows.slot[i] = i % 3, w.rows.position[i] = 13 + 3 * i;
          w.rows.scratch[i] = i % 2 ? i % 8 : -1;
        }
        *w.rows.count = rows;
        const std::vector<float> xs = normal(g, size_t(rows) * cols), qn = normal(g, dim),
                                 kn = normal(g, dim);
        const Tensor x = m.tensor(DType::f32, rows, cols, xs), q = m.tensor(t, rows, heads * dim);
        const float eps = 1e-6f;
        const float *q_norm = norms ? m.put(qn) : nullptr, *k_norm = norms ? m.put(kn) : nullptr;
        m->rope_append({m.live(rows, rows),
                        x,
                        {.rows = w.rows,
                         .q_norm = q_norm,
                         .k_norm = k_norm,
                         .eps = eps,
                         .rope = m.put(table),
                         .heads = heads,
                         .kv = w.kv,
                         .layer = 1,
                         .q = q}});
        const KVLayout l = kv_layout(spec);
        const auto* data = static_cast<const uint16_t*>(w.kv.data);
        for (int i = 0; i < rows; ++i) {
          std::vector<uint16_t> region(size_t(spec.layers) * 2 * kv_heads * dim);
          m->read_entries(region.data(), w.kv, w.rows.slot[i], w.rows.position[i], 1);
          m->wait();
          const uint16_t* base = data + kv_base(l, 1, w.rows.slot[i]);
          const int s = w.rows.scratch[i];
          for (int h = 0; h < heads + 2 * kv_heads; ++h) {
            const float* in = &xs[size_t(i) * cols + h * dim];
            const bool value = h >= heads + kv_heads;
            const int own = h < heads ? h : (h - heads) % kv_heads;
            const uint16_t* got = h < heads ? q.as<uint16_t>() + (size_t(i) * heads + h) * dim
                                  : s < 0   ? &region[((2 + value) * kv_heads + own) * size_t(dim)]
                                  : value   ? base + scratch_value(l, s, own)
                                            : base + scratch_key(l, s, own);
            double mean = 0;
            for (int d = 0; d < dim; ++d) mean += double{in[d]} * in[d] / dim;
            const double inverse = norms && !value ? 1 / std::sqrt(mean + eps) : 1;
            const auto at = [&](int d) {
              return in[d] * inverse * (norms && !value ? (h < heads ? qn : kn)[d] : 1.f);
            };
            for (int d = 0; d < dim; ++d) {
              const int i2 = d % (dim / 2), other = d < dim / 2 ? d + dim / 2 : d - dim / 2;
              const double c = table[w.rows.position[i] * dim + 2 * i2],
                           sn = table[w.rows.position[i] * dim + 2 * i2 + 1];
              const double want =
                  value ? in[d] : at(d) * c + (d < dim / 2 ? -1 : 1) * at(other) * sn;
              const double weight = value ? 0 : std::abs(at(d) * c) + std::abs(at(other) * sn);
              ASSERT_NEAR(
                  from_16(t, got[d]), want,
                  std::abs(want) * unit16(t) + weight * (dim / 32.0 + 16) * kUnit32 + floor16(t))
                  << "row " << i << " head " << h << " element " << d;
            }
          }
        }
        // Nothing else was written: layer 0 is untouched.
        for (size_t i = 0; i < l.sequences * kv_stride(l); ++i) ASSERT_EQ(data[i], 0) << i;
      }
}

struct Trees {
  TreeView view;
  std::vector<std::vector<int>> parent;
};

/// A random tree for each sequence; size 0 = the sequence only reads.
Trees random_trees(Machine& m, std::mt19937& g, const std::vector<int>& sizes, int capacity) {
  const int n = static_cast<int>(sizes.size());
  Trees t{{n, capacity, m.zeros<int32_t>(n), m.zeros<int32_t>(n * capacity),
           m.zeros<int32_t>(n * capacity)},
          {}};
  for (int i = 0; i < n; ++i) {
    t.view.count[i] = sizes[i];
    t.parent.emplace_back();
    for (int x = 0; x < sizes[i]; ++x) {
      t.parent[i].push_back(x == 0 ? -1 : pick(g, std::max(0, x - 4), x - 1));
      t.view.parent[i * capacity + x] = t.parent[i][x];
      t.view.token[i * capacity + x] = pick(g, 0, 999);
    }
  }
  return t;
}

TEST_P(CellTest, ExpandListsCatchUpRowsThenNodesWithTheirPaths) {
  Machine m(GetParam());
  std::mt19937 g(7);
  const std::vector<int> sizes{5, 0, 40, 1}, missing{0, 3, 2, 1}, root{17, 3, 99, 31};
  const Trees t = random_trees(m, g, sizes, 40);
  std::vector<PlanEntry> entries;
  std::vector<int32_t> tokens;
  for (int i = 0; i < 4; ++i) {
    PlanEntry e;
    e.slot = 3 - i, e.root_position = root[i], e.missing = missing[i];
    e.first_missing = static_cast<int32_t>(tokens.size());
    for (int j = 0; j < missing[i]; ++j) tokens.push_back(1000 + i * 10 + j);
    entries.push_back(e);
  }
  const Plan plan{4, m.put<int32_t>(4), m.put(entries), m.put(tokens)};
  KVWorld w = kv_world(m, {1, 1, 16, 128, 40, 4, DType::bf16}, 64, 41);
  m->expand({plan, t.view, w.rows});
  const Rows& r = w.rows;
  ASSERT_EQ(*r.count, 5 + 3 + 42 + 2);
  ASSERT_EQ(*r.node_count, 46);
  int row = 0, node = 0;
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < missing[i]; ++j, ++row) {
      const int p = root[i] - missing[i] + j;
      EXPECT_EQ(r.token[row], 1000 + i * 10 + j);
      EXPECT_EQ(r.position[row], p);
      EXPECT_EQ(r.committed[row], p + 1);
      EXPECT_EQ(r.scratch[row], -1);
      EXPECT_EQ(r.slot[row], 3 - i);
    }
    for (int x = 0; x < sizes[i]; ++x, ++row, ++node) {
      std::vector<uint16_t> path;
      for (int y = x; y >= 0; y = t.parent[i][y])
        path.insert(path.begin(), static_cast<uint16_t>(y));
      EXPECT_EQ(r.token[row], t.view.token[i * 40 + x]);
      EXPECT_EQ(r.position[row], root[i] + static_cast<int>(path.size()) - 1);
      EXPECT_EQ(r.committed[row], root[i]);
      EXPECT_EQ(r.scratch[row], x);
      EXPECT_EQ(r.slot[row], 3 - i);
      EXPECT_EQ(std::memcmp(r.path + size_t(row) * r.depth, path.data(), path.size() * 2), 0);
      EXPECT_EQ(r.node_row[node], row);
      EXPECT_EQ(r.node_sequence[node], i);
      EXPECT_EQ(r.node_index[node], x);
    }
  }
}

TEST_P(CellTest, ExpandNeverWritesPastItsCapacity) {
  Machine m(GetParam());
  std::mt19937 g(8);
  const Trees t = random_trees(m, g, {30, 30}, 30);
  PlanEntry e;
  e.root_position = 50, e.missing = 9;
  const Plan plan{2, m.put<int32_t>(2), m.put(std::vector<PlanEntry>{e, e}),
                  m.put(std::vector<int32_t>(9, 1))};
  for (const int capacity : {1, 9, 10, 45, 60})
    for (const int depth : {1, 3, 31}) {
      const int guard = 16;
      KVWorld w = kv_world(m, {1, 1, 16, 64, 30, 2, DType::bf16}, capacity + guard, depth);
      Rows& r = w.rows;
      r.capacity = capacity;
      int32_t* const arrays[] = {r.token,   r.position, r.slot,          r.committed,
                                 r.scratch, r.node_row, r.node_sequence, r.node_index};
      for (int32_t* a : arrays) std::fill_n(a + capacity, guard, -77);
      std::fill_n(r.path + size_t(capacity) * depth, guard * depth, uint16_t{77});
      m->expand({plan, t.view, r});
      EXPECT_LE(*r.count, capacity);
      EXPECT_LE(*r.node_count, *r.count);
      for (int32_t* a : arrays)
        EXPECT_TRUE(
            std::all_of(a + capacity, a + capacity + guard, [](int32_t x) { return x == -77; }));
      EXPECT_TRUE(std::all_of(r.path + size_t(capacity) * depth,
                              r.path + size_t(capacity + guard) * depth,
                              [](uint16_t x) { return x == 77; }));
    }
}

TEST_P(CellTest, KeepCopiesAcceptedPathsAndNothingElse) {
  Machine m(GetParam());
  for (const int dim : {16, 80}) {
    std::mt19937 g(9);
    const KVSpec spec{3, 2, dim, 64, 12, 3, DType::bf16};
    KVWorld w = kv_world(m, spec, 8, 8);
    auto* data = static_cast<uint16_t*>(w.kv.data);
    const size_t n = m->kv_bytes(spec) / 2;
    for (size_t i = 0; i < n; ++i) data[i] = static_cast<uint16_t>(g());
    const std::vector<uint16_t> before(data, data + n);
    std::vector<PlanEntry> entries(3);
    const int slot[] = {2, 0, 1}, root[] = {14, 40, 62};
    const std::vector<int> path[] = {{0, 3, 7, 11}, {}, {0, 5, 6}};  // the last one meets the end
    std::vector<RoundResult> result(3);
    std::vector<int32_t> paths(3 * kMaxEmitted, -1);
    for (int i = 0; i < 3; ++i) {
      entries[i].slot = slot[i], entries[i].root_position = root[i];
      result[i].emitted = static_cast<int32_t>(path[i].size());
      std::copy(path[i].begin(), path[i].end(), paths.begin() + i * kMaxEmitted);
    }
    m->keep({{3, m.put<int32_t>(3), m.put(entries), nullptr}, w.kv, m.put(result), m.put(paths)});
    std::vector<uint16_t> want = before;
    const KVLayout l = kv_layout(spec);
    for (int layer = 0; layer < 3; ++layer)
      for (int i = 0; i < 3; ++i)
        for (size_t d = 0; d < path[i].size() && root[i] + static_cast<int>(d) < 64; ++d)
          for (int h = 0; h < 2; ++h)
            for (int e = 0; e < dim; ++e) {
              const size_t base = kv_base(l, layer, slot[i]);
              const int p = root[i] + static_cast<int>(d);
              want[base + key_block(l, h, p) + in_key_block(p % 16, e)] =
                  before[base + scratch_key(l, path[i][d], h) + e];
              want[base + value_at(l, h, p) + e] =
                  before[base + scratch_value(l, path[i][d], h) + e];
            }
    EXPECT_EQ(std::memcmp(data, want.data(), n * 2), 0);
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CellTest, ::testing::ValuesIn(cells()), cell_name);

}  // namespace
}  // namespace stepladder::test
