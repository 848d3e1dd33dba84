// Attention of any backend, through backend.h alone: against fp64, and a row's bits the same alone
// and among any rows, as a node of a tree and as one of a prompt.
#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpp/device_fixture.h"
#include "formats/linear.h"

namespace stepladder::test {
namespace {

struct Heads {
  int heads, kv_heads, dim;
  DType dtype;
};
using Bits = std::vector<uint16_t>;

/// A cache of one layer whose queries, keys and values are a dense product of rows that the host
/// knows; nothing is rotated, so it knows them too.
class Attended {
 public:
  static constexpr int kWidth = 16, kNodes = 24, kDepth = kNodes;

  Attended(AnyMachine& m, const Heads& h, int positions, int sequences)
      : m_(m), h_(h), spec_{1, h.kv_heads, h.dim, positions, kNodes, sequences, h.dtype} {
    std::mt19937 g(h.dim + h.heads);
    const CanonicalWeight w =
        format_named("dense").cast(normal(g, size_t(qkv()) * kWidth, 0.4f), qkv(), kWidth, 0);
    const Act act = Act::a16;
    linear_ = std::make_unique<Linear>(m.backend(), w, std::span(&act, 1), kNoKernels);
    linear_->upload(m.backend(), w, m.zeros<std::byte>(linear_->bytes()));
    kv_ = {spec_, m.bytes(m->kv_bytes(spec_))};
    std::vector<float> still(size_t(positions) * h.dim);
    for (size_t i = 0; i < still.size(); i += 2) still[i] = 1.f;
    rope_ = m.put(still);
  }

  int qkv() const { return (h_.heads + 2 * h_.kv_heads) * h_.dim; }
  int width() const { return h_.heads * h_.dim; }
  float scale() const { return 1.f / std::sqrt(static_cast<float>(h_.dim)); }

  /// A row: what it is made of, where it stands and what it sees.
  struct Row {
    std::vector<float> x;
    int slot = 0, position = 0, committed = 0, scratch = -1;
    std::vector<uint16_t> path = {};
  };
  /// Runs rows in blocks of these sizes, by turns. Their outputs; the first call's qkv are kept in
  /// `made`, if it is given.
  std::vector<Bits> pass(const std::vector<Row>& in, const std::vector<int>& blocks,
                         std::vector<Bits>* made = nullptr) {
    const int n = static_cast<int>(in.size());
    Rows rows = m_.rows(n, kDepth, spec_.sequences);
    std::vector<int32_t> slot, position, committed, scratch;
    Bits path(size_t(n) * kDepth);
    std::vector<float> all;
    for (int i = 0; i < n; ++i) {
      slot.push_back(in[i].slot), position.push_back(in[i].position);
      committed.push_back(in[i].committed), scratch.push_back(in[i].scratch);
      std::copy(in[i].path.begin(), in[i].path.end(), path.begin() + size_t(i) * kDepth);
      all.insert(all.end(), in[i].x.begin(), in[i].x.end());
    }
    for (const auto& [to, from] : {std::pair{rows.slot, &slot},
                                   {rows.position, &position},
                                   {rows.committed, &committed},
                                   {rows.scratch, &scratch}})
      m_->upload(to, from->data(), from->size() * 4);
    m_->upload(rows.path, path.data(), path.size() * 2);
    const Bits rounded = to_16s(h_.dtype, all);
    auto* total = m_.put<int32_t>(n);
    std::vector<Bits> out;
    size_t turn = 0;
    for (int first = 0; first < n; ++turn) {
      const int block = blocks[turn % blocks.size()], here = std::min(block, n - first);
      ProjectArgs project{.live = {total, m_.put<int32_t>(first), block}};
      Bits x(size_t(block) * kWidth);
      std::copy(rounded.begin() + int64_t{first} * kWidth,
                rounded.begin() + int64_t{first + here} * kWidth, x.begin());
      project.input = {.x = m_.tensor(h_.dtype, block, kWidth, x), .type = h_.dtype};
      project.weight = linear_->in(Act::a16);
      const Tensor q = m_.tensor(h_.dtype, block, width()), y = m_.tensor(h_.dtype, block, width());
      const auto run = [&](auto result) {
        project.result = result;
        project.workspace = m_.bytes(m_->workspace_bytes(project) + 1);
        m_->project(project);
      };
      if (made) {
        const Tensor plain = m_.tensor(DType::f32, block, qkv());
        run(Store{plain});
        const auto values = m_.get(plain.as<float>(), size_t(here) * qkv());
        for (int i = 0; i < here; ++i)
          made->push_back(to_16s(h_.dtype, {values.begin() + int64_t{i} * qkv(),
                                            values.begin() + int64_t{i + 1} * qkv()}));
      }
      run(RopeAppend{
          .rows = rows, .rope = rope_, .heads = h_.heads, .kv = kv_, .layer = 0, .q = q});
      AttentionArgs args{project.live, rows, q, kv_, 0, h_.heads, scale(), y};
      args.workspace = m_.bytes(m_->workspace_bytes(args) + 1);
      m_->attention(args);
      const Bits bits = m_.get(y.as<uint16_t>(), size_t(here) * width());
      for (int i = 0; i < here; ++i)
        out.emplace_back(bits.begin() + int64_t{i} * width(),
                         bits.begin() + int64_t{i + 1} * width());
      first += here;
    }
    return out;
  }

  /// What a row of such a query, over such keys and values, is to be, and how far it may be off.
  /// `seen`: the qkv of every position it attends to, its own last.
  void check(const Bits& out, const std::vector<const Bits*>& seen) const {
    const int keys = static_cast<int>(seen.size()), dim = h_.dim;
    const auto at = [&](const Bits& b, int head, int c) {
      return double{from_16(h_.dtype, b[size_t(head) * dim + c])};
    };
    for (int head = 0; head < h_.heads; ++head) {
      const int of_key = h_.heads + head / (h_.heads / h_.kv_heads),
                of_value = of_key + h_.kv_heads;
      std::vector<double> score(keys);
      double most = 0, total = 0;  // the largest sum of magnitudes of a score
      for (int j = 0; j < keys; ++j) {
        double norm = 0;
        for (int c = 0; c < dim; ++c) {
          const double term = at(*seen.back(), head, c) * at(*seen[j], of_key, c) * scale();
          score[j] += term, norm += std::fabs(term);
        }
        most = std::max(most, norm);
      }
      const double top = *std::max_element(score.begin(), score.end());
      for (double& s : score) total += s = std::exp(s - top);
      // A weight may be rounded to 16 bits, in the sum of values and in the total alike; its power
      // is off by what the score is, some roundings of its magnitude a step of the sum; each key
      // and each fold of a step adds a rounding or two, a tensor instruction's with its last bits
      // cut off.
      const double off = 2 * unit16(h_.dtype) + (4 * most * (dim + 8) + 4.0 * keys + 64) * kUnit32;
      for (int c = 0; c < dim; ++c) {
        double want = 0, weight = 0;
        for (int j = 0; j < keys; ++j) {
          const double term = score[j] / total * at(*seen[j], of_value, c);
          want += term, weight += std::fabs(term);
        }
        ASSERT_NEAR(at(out, head, c), want,
                    std::fabs(want) * unit16(h_.dtype) + weight * off + floor16(h_.dtype))
            << "head " << head << " element " << c << " keys " << keys;
      }
    }
  }

 private:
  AnyMachine& m_;
  Heads h_;
  KVSpec spec_;
  KVView kv_;
  std::unique_ptr<Linear> linear_;
  const float* rope_;
};

using Row = Attended::Row;

std::vector<Row> prompt_of(std::mt19937& g, int slot, int from, int count) {
  std::vector<Row> out;
  for (int p = from; p < from + count; ++p)
    out.push_back({normal(g, Attended::kWidth, 1.5f), slot, p, p + 1});
  return out;
}

/// Contexts around the borders of steps and of what a block of the device's threads takes of them.
TEST_P(DeviceTest, AttentionMatchesFp64AndARowsBitsAreItsOwn) {
  for (const Heads& h : {Heads{8, 2, 128, DType::bf16},
                         {7, 1, 64, DType::f16},
                         {9, 3, 64, DType::bf16},
                         {8, 1, 128, DType::f16},
                         {2, 2, 128, DType::bf16},
                         {20, 1, 64, DType::bf16},
                         {32, 16, 64, DType::bf16},
                         {4, 1, 80, DType::bf16}})
    for (const int context : {0, 5, 31, 64, 505, 1050, 2100}) {
      if (context > 100 && (h.dim == 80 || (context > 2000 && h.heads > 7))) continue;
      SCOPED_TRACE(testing::Message() << h.heads << '/' << h.kv_heads << " heads of " << h.dim
                                      << " context " << context);
      std::mt19937 g(context + h.heads);
      AnyMachine m(subject());
      Attended a(m, h, 2144, 3);
      // Two sequences of that context, and a short one that stands between their trees.
      std::vector<Row> prompt = prompt_of(g, 0, 0, context);
      const std::vector<Row> beside = prompt_of(g, 1, 0, 3);
      std::vector<Bits> made, made_beside;
      const auto read = a.pass(prompt, {128}, &made);
      a.pass(beside, {3}, &made_beside);
      // A tree of one chain and twigs.
      std::vector<Row> tree;
      std::vector<int> parent;
      for (int x = 0; x < Attended::kNodes; ++x) {
        parent.push_back(x == 0 ? -1 : x < 12 ? x - 1 : pick(g, 0, x - 1));
        Row r{normal(g, Attended::kWidth, 1.5f), 0, 0, context, x};
        if (x > 0) r.path = tree[parent[x]].path;
        r.path.push_back(static_cast<uint16_t>(x));
        r.position = context + static_cast<int>(r.path.size()) - 1;
        tree.push_back(r);
      }
      std::vector<Row> round =
          prompt_of(g, 1, 3, 2);  // catch-up rows of another sequence before it
      round.insert(round.end(), tree.begin(), tree.end());
      std::vector<Bits> made_round;
      const auto together = a.pass(round, {int(round.size())}, &made_round);
      for (const int x : {0, 1, 7, 11, Attended::kNodes - 1}) {
        std::vector<const Bits*> seen;
        for (const Bits& b : made) seen.push_back(&b);
        for (const uint16_t node : tree[x].path) seen.push_back(&made_round[2 + node]);
        ASSERT_NO_FATAL_FAILURE(a.check(together[2 + x], seen)) << "node " << x;
      }
      for (const int i : {0, 1, 40, context - 1}) {
        if (i < 0 || i >= context) continue;
        std::vector<const Bits*> seen;
        for (int j = 0; j <= i; ++j) seen.push_back(&made[j]);
        ASSERT_NO_FATAL_FAILURE(a.check(read[i], seen)) << "position " << i;
      }
      // The same rows in other blocks, and alone.
      for (const std::vector<int>& blocks :
           {std::vector<int>{1}, {2, 5}, {8}, {16, 3}, {24, 1}, {64}})
        ASSERT_EQ(a.pass(round, blocks), together) << "blocks of " << blocks[0];
      for (const std::vector<int>& blocks : {std::vector<int>{64, 1}, {7}})
        ASSERT_EQ(a.pass(prompt, blocks), read) << "blocks of " << blocks[0];
      // A path of the tree fed as a prompt of its own, in another place.
      std::vector<Row> line = prompt;
      for (const uint16_t node : tree[11].path) {
        line.push_back(tree[node]);
        Row& r = line.back();
        r.committed = r.position + 1, r.scratch = -1, r.path.clear();
      }
      for (Row& r : line) r.slot = 2;
      const auto fed = a.pass(line, {96});
      for (int d = 0; d < 12; ++d) ASSERT_EQ(fed[context + d], together[2 + d]) << "depth " << d;
    }
}

INSTANTIATE_TEST_SUITE_P(Backends, DeviceTest, ::testing::ValuesIn(devices()),
                         [](const auto& info) { return info.param.name(); });

}  // namespace
}  // namespace stepladder::test
