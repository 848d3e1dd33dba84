// Attention: the fp64 reference, and the promise that a row's bits depend on the tokens before it
// alone. Random trees are replayed token by token at every context near a border of the kernel's
// steps; outputs and cache entries must be equal byte for byte.
#include <algorithm>
#include <functional>
#include <map>
#include <numeric>

#include "backends/cpu/kv_layout.h"
#include "cpp/backend_fixture.h"

namespace stepladder::test {
namespace {

struct Shape {
  int heads, kv_heads, head_dim;
  DType dtype;
};

/// What one sequence brings to a pass.
struct Input {
  int slot = 0, root_position = 0;
  std::vector<int> missing;        // tokens of its catch-up rows
  std::vector<int> token, parent;  // its tree; empty = it only reads
};

/// One cache of two layers and the arrays of a pass. A token's qkv row is a pure function of the
/// token and its position, as it is in the first layer of a model.
class World {
 public:
  World(Machine& m, const Shape& s, int positions, int scratch, int sequences, int capacity)
      : m_(m), s_(s), capacity_(capacity), scratch_(scratch) {
    const KVSpec spec{2, s.kv_heads, s.head_dim, positions, scratch, sequences, s.dtype};
    kv_ = {spec, m.bytes(m->kv_bytes(spec))};
    const auto ints = [&](size_t n) { return m.zeros<int32_t>(n); };
    rows_ = m.rows(capacity, scratch, sequences);
    plan_count_ = ints(1);
    entries_ = m.zeros<PlanEntry>(sequences);
    tokens_ = ints(capacity);
    trees_ = {sequences, scratch, ints(sequences), ints(size_t(sequences) * scratch),
              ints(size_t(sequences) * scratch)};
    result_ = m.zeros<RoundResult>(sequences);
    path_ = ints(size_t(sequences) * kMaxEmitted);
    qkv_ = m.tensor(DType::f32, capacity, (s.heads + 2 * s.kv_heads) * s.head_dim);
    q_ = m.tensor(s.dtype, capacity, s.heads * s.head_dim);
    out_ = m.tensor(s.dtype, capacity, s.heads * s.head_dim);
    std::vector<float> rope(size_t(positions) * s.head_dim);
    for (size_t i = 0; i < rope.size(); i += 2) {
      const double angle =
          double(i / s.head_dim) * std::pow(10000.0, -double(i % s.head_dim) / s.head_dim);
      rope[i] = static_cast<float>(std::cos(angle)),
      rope[i + 1] = static_cast<float>(std::sin(angle));
    }
    rope_ = m.put(rope);
  }

  using Bits = std::vector<uint16_t>;

  /// Runs one pass in blocks of `block` rows and returns each row's attention output (of layer 1),
  /// in passing order.
  std::vector<Bits> pass(const std::vector<Input>& in, int block) {
    *plan_count_ = static_cast<int32_t>(in.size());
    int32_t tokens = 0;
    for (size_t i = 0; i < in.size(); ++i) {
      PlanEntry& e = entries_[i];
      e = {};
      e.slot = in[i].slot, e.root_position = in[i].root_position;
      e.missing = static_cast<int32_t>(in[i].missing.size()), e.first_missing = tokens;
      for (int t : in[i].missing) tokens_[tokens++] = t;
      trees_.count[i] = static_cast<int32_t>(in[i].token.size());
      std::copy(in[i].token.begin(), in[i].token.end(), trees_.token + i * scratch_);
      std::copy(in[i].parent.begin(), in[i].parent.end(), trees_.parent + i * scratch_);
    }
    m_->expand({plan(), trees_, rows_});
    const int live = *rows_.count, width = s_.heads * s_.head_dim;
    std::vector<Bits> out;
    for (int first = 0; first < live; first += block) {
      *rows_.block_row = first;
      const Live part{rows_.count, rows_.block_row, block};
      const int n = std::min(block, live - first);
      for (int layer = 0; layer < 2; ++layer) {
        for (int i = 0; i < n; ++i)
          embed(rows_.token[first + i], rows_.position[first + i], layer,
                qkv_.as<float>() + int64_t(i) * qkv_.cols);
        m_->rope_append({part,
                         qkv_,
                         {.rows = rows_,
                          .rope = rope_,
                          .heads = s_.heads,
                          .kv = kv_,
                          .layer = layer,
                          .q = q_}});
        m_->attention({part, rows_, q_, kv_, layer, s_.heads, scale(), out_});
      }
      for (int i = 0; i < n; ++i)
        out.emplace_back(out_.as<uint16_t>() + size_t(i) * width,
                         out_.as<uint16_t>() + size_t(i + 1) * width);
    }
    return out;
  }

  /// Accepts a path of the i-th sequence of the last pass.
  void keep(const std::vector<std::vector<int>>& accepted) {
    for (size_t i = 0; i < accepted.size(); ++i) {
      result_[i].emitted = static_cast<int32_t>(accepted[i].size());
      std::copy(accepted[i].begin(), accepted[i].end(), path_ + i * kMaxEmitted);
    }
    m_->keep({plan(), kv_, result_, path_});
  }

  Bits entries(int slot, int first, int count) {
    Bits b(size_t(2) * 2 * count * s_.kv_heads * s_.head_dim);
    m_->read_entries(b.data(), kv_, slot, first, count);
    m_->wait();
    return b;
  }

  float scale() const { return 1.f / std::sqrt(static_cast<float>(s_.head_dim)); }
  const KVView& kv() const { return kv_; }
  const uint16_t* q() const { return q_.as<uint16_t>(); }

 private:
  Plan plan() const { return {trees_.sequences, plan_count_, entries_, tokens_}; }
  void embed(int token, int position, int layer, float* to) {
    std::minstd_rand g(static_cast<uint32_t>(token * 7919 + position * 31 + layer + 1));
    g.discard(3);
    for (int c = 0; c < qkv_.cols; ++c)
      to[c] = (static_cast<float>(g()) / static_cast<float>(std::minstd_rand::max()) - .5f) * 5.f;
  }

  Machine& m_;
  Shape s_;
  int capacity_, scratch_;
  KVView kv_;
  Rows rows_;
  int32_t *plan_count_, *tokens_, *path_;
  PlanEntry* entries_;
  TreeView trees_;
  RoundResult* result_;
  Tensor qkv_, q_, out_;
  const float* rope_;
};

std::vector<int> random_tokens(std::mt19937& g, int n) {
  std::vector<int> t(n);
  for (int& x : t) x = pick(g, 0, 99999);
  return t;
}

/// A random tree; `reach` bounds how far back a parent may lie: 1 makes chains.
std::vector<int> random_parents(std::mt19937& g, int n, int reach) {
  std::vector<int> p{-1};
  for (int x = 1; x < n; ++x) p.push_back(pick(g, std::max(0, x - reach), x - 1));
  return p;
}

std::vector<int> path_to(const std::vector<int>& parent, int x) {
  std::vector<int> path;
  for (; x >= 0; x = parent[x]) path.insert(path.begin(), x);
  return path;
}

/// Feeds tokens to positions first.. one pass a token, by turns as a catch-up row and as the root
/// of a tree of one node that is kept, and returns each one's output.
std::vector<World::Bits> feed(World& w, int slot, int first, const std::vector<int>& tokens) {
  std::vector<World::Bits> out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    const int p = first + static_cast<int>(i);
    if (i % 2) {
      out.push_back(w.pass({{slot, p + 1, {tokens[i]}, {}, {}}}, 1)[0]);
    } else {
      out.push_back(w.pass({{slot, p, {}, {tokens[i]}, {-1}}}, 1)[0]);
      w.keep({{0}});
    }
  }
  return out;
}

const Shape kShapes[] = {{9, 3, 64, DType::bf16}, {4, 1, 32, DType::bf16}, {6, 1, 16, DType::bf16},
                         {4, 4, 80, DType::bf16}, {10, 2, 96, DType::f16}, {4, 2, 128, DType::bf16},
                         {7, 1, 64, DType::f16},  {2, 1, 256, DType::bf16}};

std::string shape_name(const Shape& s) {
  return std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " heads of " +
         std::to_string(s.head_dim) + " " + std::string(name(s.dtype));
}

// ---- the reference -------------------------------------------------------------------------

TEST_P(CellTest, AttentionMatchesFp64) {
  Machine m(GetParam());
  for (const Shape& s : kShapes)
    for (const int context : {0, 5, 31, 32, 70, 300}) {
      SCOPED_TRACE(shape_name(s) + " context " + std::to_string(context));
      std::mt19937 g(context + s.head_dim);
      World w(m, s, 384, 12, 2, 384);
      const std::vector<int> prompt = random_tokens(g, context), parent = random_parents(g, 12, 3);
      Input in{1, context, prompt, random_tokens(g, 12), parent};
      const auto out = w.pass({in}, 384);  // one block, so q() still holds every row
      const KVLayout l = kv_layout(w.kv().spec);
      const uint16_t* base = static_cast<const uint16_t*>(w.kv().data) + kv_base(l, 1, 1);
      const int dim = s.head_dim;
      for (size_t row = 0; row < out.size(); ++row) {
        const int node = static_cast<int>(row) - context;
        if (node < -3 && row % 11) continue;  // enough rows of a long context
        const std::vector<int> path = node < 0 ? std::vector<int>{} : path_to(parent, node);
        const int committed = node < 0 ? static_cast<int>(row) + 1 : context;
        const int keys = committed + static_cast<int>(path.size());
        for (int h = 0; h < s.heads; ++h) {
          const int kvh = h / (s.heads / s.kv_heads);
          std::vector<double> score(keys);
          double most = 0;  // largest sum of magnitudes of a dot product
          const auto key = [&](int j, int d) {
            return from_16(s.dtype, j < committed
                                        ? base[key_block(l, kvh, j) + in_key_block(j % 16, d)]
                                        : base[scratch_key(l, path[j - committed], kvh) + d]);
          };
          const auto value = [&](int j, int d) {
            return from_16(s.dtype,
                           base[(j < committed ? value_at(l, kvh, j)
                                               : scratch_value(l, path[j - committed], kvh)) +
                                d]);
          };
          const uint16_t* q = w.q() + (row * s.heads + h) * dim;
          for (int j = 0; j < keys; ++j) {
            double sum = 0;
            for (int d = 0; d < dim; ++d) {
              const double p = double{from_16(s.dtype, q[d])} * key(j, d);
              score[j] += p, sum += std::abs(p);
            }
            score[j] *= w.scale(), most = std::max(most, sum * w.scale());
          }
          const double top = *std::max_element(score.begin(), score.end());
          double total = 0;
          for (double& x : score) x = std::exp(x - top), total += x;
          // A score is off by dim+3 roundings of its magnitude, which the power turns into a
          // relative error of the weight; weights and sums then add one rounding a key and two a
          // step of 32.
          const double off = 2 * most * (dim + 5) * kUnit32 + (keys + keys / 16.0 + 16) * kUnit32;
          for (int d = 0; d < dim; ++d) {
            double want = 0, weight = 0;
            for (int j = 0; j < keys; ++j)
              want += score[j] / total * value(j, d),
                  weight += score[j] / total * std::abs(value(j, d));
            ASSERT_NEAR(from_16(s.dtype, out[row][size_t(h) * dim + d]), want,
                        std::abs(want) * unit16(s.dtype) + 2 * weight * off + floor16(s.dtype))
                << "row " << row << " head " << h << " element " << d;
          }
        }
      }
    }
}

// ---- trees against token by token ----------------------------------------------------------

/// Several sequences side by side, each with a random context and tree, in one pass; then every
/// node alone, token by token in a cache of its own.
void replay(Machine& m, const Shape& s, const std::vector<int>& contexts, int nodes, int reach,
            uint32_t seed) {
  SCOPED_TRACE(testing::Message() << shape_name(s) << " contexts "
                                  << testing::PrintToString(contexts) << " nodes " << nodes
                                  << " reach " << reach << " seed " << seed);
  std::mt19937 g(seed);
  const int n = static_cast<int>(contexts.size());
  const int longest = *std::max_element(contexts.begin(), contexts.end());
  const int positions = (longest + nodes + 1 + 31) / 32 * 32;
  World w(m, s, positions, nodes, n, std::max(128, n * (nodes + 8))),
      line(m, s, positions, 1, 1, 128);
  std::vector<int> slot(n);
  std::iota(slot.begin(), slot.end(), 0);
  std::shuffle(slot.begin(), slot.end(), g);

  // Everything but a few last tokens of each context is read ahead, in blocks of any size.
  std::vector<Input> in(n);
  std::vector<std::vector<int>> prompt(n);
  for (int i = 0; i < n; ++i) {
    prompt[i] = random_tokens(g, contexts[i]);
    in[i].slot = slot[i], in[i].root_position = contexts[i];
    const int late = std::min(contexts[i], pick(g, 0, 3));
    for (int from = 0; from < contexts[i] - late;) {
      const int to = std::min(contexts[i] - late, from + pick(g, 1, 100));
      w.pass({{slot[i], to, {prompt[i].begin() + from, prompt[i].begin() + to}, {}, {}}},
             pick(g, 1, 64));
      from = to;
    }
    in[i].missing.assign(prompt[i].end() - late, prompt[i].end());
    in[i].token = random_tokens(g, pick(g, std::max(1, nodes / 2), nodes));
    in[i].parent = random_parents(g, static_cast<int>(in[i].token.size()), reach);
  }
  const auto out = w.pass(in, pick(g, 1, 40));

  size_t row = 0;
  std::vector<std::vector<int>> accepted(n);
  std::vector<World::Bits> kept(n);
  for (int i = 0; i < n; ++i) {
    const auto context_out = feed(line, 0, 0, prompt[i]);
    for (size_t j = contexts[i] - in[i].missing.size(); j < prompt[i].size(); ++j, ++row)
      ASSERT_EQ(out[row], context_out[j]) << "sequence " << i << " position " << j;
    // Leaves only: the outputs along a leaf's path are those of its inner nodes.
    std::vector<char> inner(in[i].token.size());
    for (int p : in[i].parent)
      if (p >= 0) inner[p] = 1;
    for (size_t leaf = 0; leaf < inner.size(); ++leaf) {
      if (inner[leaf]) continue;
      const std::vector<int> path = path_to(in[i].parent, static_cast<int>(leaf));
      std::vector<int> tokens;
      for (int x : path) tokens.push_back(in[i].token[x]);
      const auto replayed = feed(line, 0, contexts[i], tokens);
      for (size_t d = 0; d < path.size(); ++d)
        ASSERT_EQ(out[row + path[d]], replayed[d])
            << "sequence " << i << " node " << path[d] << " depth " << d;
      accepted[i] = path;
      if (accepted[i].size() > kMaxEmitted) accepted[i].resize(kMaxEmitted);
      kept[i] = line.entries(0, 0, contexts[i] + static_cast<int>(accepted[i].size()));
    }
    row += inner.size();
  }
  w.pass(in, 64);
  w.keep(accepted);
  for (int i = 0; i < n; ++i)
    EXPECT_EQ(w.entries(slot[i], 0, contexts[i] + static_cast<int>(accepted[i].size())), kept[i])
        << "sequence " << i;
}

TEST_P(CellTest, EveryNodeOfATreeEqualsItsPathTokenByToken) {
  Machine m(GetParam());
  uint32_t seed = 1;
  for (const int border : {0, 32, 64, 256})
    for (const int off : {-2, -1, 0, 1, 2}) {
      if (border + off < 0) continue;
      const Shape& s = kShapes[seed % std::size(kShapes)];
      replay(m, s, {border + off}, 2 + static_cast<int>(seed * 13 % 63),
             1 + static_cast<int>(seed % 9), seed);
      ++seed;
    }
}

TEST_P(CellTest, TreesOf64NodesAndDeepChainsEqualTheirPaths) {
  Machine m(GetParam());
  replay(m, kShapes[0], {50}, 64, 64, 101);
  replay(m, kShapes[0], {31}, 64, 1, 102);  // a chain: 64 deep, over three borders
  replay(m, kShapes[4], {33}, 64, 2, 103);
  replay(m, kShapes[3], {20}, 200, 1, 104);  // deeper than the buffers a tail keeps
}

TEST_P(CellTest, SequencesSideBySideDoNotTouchEachOther) {
  Machine m(GetParam());
  replay(m, kShapes[0], {0, 31, 32, 33, 63, 64, 65, 100}, 8, 3, 201);
  replay(m, kShapes[5], {40, 7, 40}, 24, 5, 202);
  replay(m, kShapes[6], {96, 95}, 16, 2, 203);
}

TEST_P(CellTest, LongContextsEqualTokenByToken) {
  Machine m(GetParam());
  const Shape small{2, 1, 16, DType::bf16};
  for (const int off : {-1, 0, 1})
    replay(m, small, {2048 + off}, 12, 3, static_cast<uint32_t>(300 + off));
}

TEST_P(CellTest, TheOrderOfNodesInATreeChangesNoBit) {
  Machine m(GetParam());
  std::mt19937 g(5);
  const int context = 45, nodes = 40;
  World a(m, kShapes[0], 128, nodes, 2, 128), b(m, kShapes[0], 128, nodes, 2, 128);
  const std::vector<int> prompt = random_tokens(g, context);
  const Input tree{0, context, prompt, random_tokens(g, nodes), random_parents(g, nodes, 7)};
  const auto out = a.pass({tree}, 128);
  for (int round = 0; round < 5; ++round) {
    // Another order with parents before children: repeatedly take any node whose parent is out.
    std::vector<int> order{0}, place(nodes, -1);
    place[0] = 0;
    while (static_cast<int>(order.size()) < nodes) {
      const int x = pick(g, 1, nodes - 1);
      if (place[x] < 0 && place[tree.parent[x]] >= 0)
        place[x] = static_cast<int>(order.size()), order.push_back(x);
    }
    Input other{1, context, prompt, {}, {}};
    for (int x : order) {
      other.token.push_back(tree.token[x]);
      other.parent.push_back(x ? place[tree.parent[x]] : -1);
    }
    const auto again = b.pass({other}, pick(g, 1, 128));
    for (int x = 0; x < nodes; ++x) ASSERT_EQ(again[context + place[x]], out[context + x]) << x;
  }
}

TEST_P(CellTest, ThreadsChangeNoBit) {
  const Cell cell = GetParam();
  std::map<int, std::vector<World::Bits>> out;
  for (const int threads : {1, 2, 3, 7}) {
    Machine m(cell.isa, threads);
    std::mt19937 g(6);
    World w(m, kShapes[0], 160, 20, 2, 256);
    const Input first{0, 100, random_tokens(g, 100), random_tokens(g, 20),
                      random_parents(g, 20, 4)};
    const Input second{1, 13, random_tokens(g, 13), random_tokens(g, 9), random_parents(g, 9, 2)};
    out[threads] = w.pass({first, second}, 64);
  }
  for (const auto& [threads, o] : out) EXPECT_EQ(o, out[1]) << threads;
}

// ---- controls ------------------------------------------------------------------------------

// What this file exists to catch: attention that walks the tree's slots in slot order under a mask.
// It is built from the kernel itself: every earlier node lies in the region at its slot, and those
// that are no ancestors carry a key so far off that their weight is nothing beside the others (and
// a value of 0). Its result is as good as any, and other bits. They differ in the last places of
// f32, of which rounding to 16 bits hides most: hence many elements, in the finer type.
TEST_P(CellTest, WalkingSlotsUnderAMaskGivesOtherBits) {
  Machine m(GetParam());
  std::mt19937 g(11);
  const int dim = 256, context = 20, nodes = 40;
  const Shape s{1, 1, dim, DType::f16};
  World w(m, s, 96, nodes, 1, 128);
  const KVLayout l = kv_layout(w.kv().spec);
  uint16_t* const base = static_cast<uint16_t*>(w.kv().data) + kv_base(l, 1, 0);
  const Tensor one_q = m.tensor(s.dtype, 1, dim), one_out = m.tensor(s.dtype, 1, dim);
  const Rows r = m.rows(1, 1, 1);
  *r.scratch = -1;
  const Live live = m.live(1, 1);
  int other = 0, contiguous = 0, contiguous_equal = 0;
  for (int round = 0; round < 8; ++round) {
    const std::vector<int> parent = random_parents(g, nodes, 6);
    const auto out =
        w.pass({{0, context, random_tokens(g, context), random_tokens(g, nodes), parent}}, 128);
    const std::vector<uint16_t> q(w.q(), w.q() + (context + nodes) * dim);
    for (int x = 0; x < nodes; ++x) {
      const std::vector<int> path = path_to(parent, x);
      const uint16_t* own = &q[size_t(context + x) * dim];
      for (int y = 0; y <= x; ++y) {
        const uint16_t *k = base + scratch_key(l, y, 0), *v = base + scratch_value(l, y, 0);
        std::vector<uint16_t> key(k, k + dim), value(v, v + dim);
        if (std::find(path.begin(), path.end(), y) == path.end()) {
          for (int d = 0; d < dim; ++d) key[d] = to_f16(-1e3f * from_f16(own[d]));
          std::fill(value.begin(), value.end(), uint16_t{0});
        }
        put_key(base + key_block(l, 0, context + y), (context + y) % 16, key.data(), dim);
        std::copy(value.begin(), value.end(), base + value_at(l, 0, context + y));
      }
      r.position[0] = context + x, r.committed[0] = context + x + 1;
      std::copy(own, own + dim, one_q.as<uint16_t>());
      m->attention({live, r, one_q, w.kv(), 1, 1, w.scale(), one_out});
      const uint16_t* got = one_out.as<uint16_t>();
      const World::Bits& want = out[context + x];
      const bool equal = std::equal(want.begin(), want.end(), got);
      other += !equal;
      for (int d = 0; d < dim; ++d) ASSERT_NEAR(from_f16(got[d]), from_f16(want[d]), 0x1p-8) << x;
      // A node whose path has no gap sees the same keys at the same places.
      if (static_cast<int>(path.size()) == x + 1) ++contiguous, contiguous_equal += equal;
    }
  }
  EXPECT_GT(contiguous, 0);
  EXPECT_EQ(contiguous_equal, contiguous);
  EXPECT_GT(other, 0);
}

// Keys past the row's own position and scratch slots that are not on its path may hold anything.
TEST_P(CellTest, WhatARowMayNotSeeCannotReachIt) {
  Machine m(GetParam());
  for (const int context : {0, 9, 31, 40}) {
    std::vector<World::Bits> clean;
    for (const bool poisoned : {false, true}) {
      std::mt19937 g(12);
      World w(m, kShapes[0], 96, 32, 2, 128);
      if (poisoned) {
        const size_t n = m->kv_bytes(w.kv().spec) / 2;
        auto* data = static_cast<uint16_t*>(w.kv().data);
        for (size_t i = 0; i < n; ++i)
          data[i] = i % 3 ? uint16_t{0x7fc0} : uint16_t{0x7f80};  // NaN, infinity
      }
      const Input in{1, context, random_tokens(g, context), random_tokens(g, 20),
                     random_parents(g, 20, 5)};
      const auto out = w.pass({in}, 16);
      if (poisoned)
        EXPECT_EQ(out, clean) << context;
      else
        clean = out;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CellTest, ::testing::ValuesIn(cells()), cell_name);

}  // namespace
}  // namespace stepladder::test
