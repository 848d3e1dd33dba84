// What grows a draft tree: rows of hidden states as a head reads them, the likeliest children of
// its nodes, the beams of the next step, and the tree of the best candidates.
#include "backends/growth.h"
#include "backends/cpu/kv_layout.h"
#include "backends/cpu/logits_row.h"
#include "backends/cpu/simd.h"

namespace stepladder::SL_ISA {

void narrow(const NarrowArgs& a, Lane lane) {
  const int width = static_cast<int>(a.out.cols), first = first_row(a.live);
  const Share s = share(live_rows(a.live), lane);
  for (int i = s.begin; i < s.end; ++i)
    narrow(a.out.dtype, row_of<float>(a.x, a.pick ? a.pick[first + i] : first + i),
           row_of<uint16_t>(a.out, i), width);
}

void join(const JoinArgs& a, Lane lane) {
  const KVLayout l = kv_layout(a.kv.spec);
  const size_t width = l.width, bytes = width * sizeof(uint16_t);
  const int first = first_row(a.live);
  const Share s = share(live_rows(a.live), lane);
  for (int i = s.begin; i < s.end; ++i) {
    const int row = first + i, slot = a.rows.slot[row], position = a.rows.position[row];
    uint16_t* out = row_of<uint16_t>(a.out, i);
    __builtin_memcpy(out, row_of<uint16_t>(a.table, a.rows.token[row]), bytes);
    const size_t state = a.of_parents ? scratch_feature(l, slot, parent_slot(a.rows, row))
                                      : feature_at(l, slot, position);
    __builtin_memcpy(out + width, static_cast<const uint16_t*>(a.kv.data) + state, bytes);
    float* residual = row_of<float>(a.residual, row);
    for (size_t c = 0; c < width; ++c) residual[c] = 0.f;
  }
}

namespace {

// The likeliest tokens seen so far, in falling order, lower ids first among equals.
struct Best {
  int32_t* token;
  float* value;
  int most, held = 0;

  float least() const { return held < most ? -__builtin_inff() : value[most - 1]; }
  void see(int32_t id, float z) {
    if (!(z > least())) return;
    int at = held < most ? held++ : most - 1;
    for (; at > 0 && z > value[at - 1]; --at) value[at] = value[at - 1], token[at] = token[at - 1];
    value[at] = z, token[at] = id;
  }
};

// The largest of a block, NaN not counted.
SL_INLINE float largest(const float* z) {
  float most = -__builtin_inff();
  for (int i = 0; i < kBlock; ++i) most = z[i] > most ? z[i] : most;
  return most;
}

// The sum of e^(z - top) over a block whose largest is `top`: 16 partial sums, in one order.
SL_INLINE float weight_below(const float* z, float top) {
  float lanes[kLanes] = {};
  float e[kBlock];
  for (int i = 0; i < kBlock; ++i) e[i] = fixed_exp(z[i] - top);
  for (int i = 0; i < kBlock; i += kLanes)
    for (int j = 0; j < kLanes; ++j) lanes[j] += e[i + j];
  return sum_lanes(lanes);
}

// The likeliest tokens and the logarithm of the weight of all, over that of the likeliest. Blocks
// add up in order, each over the largest value up to it.
float top_tokens(const Row& r, bool sampled, uint64_t seed, int32_t position, Best& best) {
  float top = -__builtin_inff(), total = 0.f;
  for (int b = 0; b < r.blocks; ++b) {
    Values v;
    shape(r, b, v);
    if (sampled) {
      uint32_t words[kBlock];
      words_of(seed, position, b, words);
      for (int i = 0; i < kBlock; ++i) v.z[i] = v.z[i] + gumbel(words[i]);
    }
    const float most = largest(v.z);
    if (!(most > -__builtin_inff())) continue;
    if (most > top) total = total * fixed_exp(top - most), top = most;
    total = total + weight_below(v.z, top);
    if (!(most > best.least())) continue;
    for (int i = 0; i < kBlock; ++i) best.see(b * kBlock + i, v.z[i]);
  }
  return fixed_log(total);
}

// Not inlined, so that the stack it takes is given back after every node.
[[gnu::noinline]] void top_of_node(const TopArgs& a, int node, const float* logits) {
  const GrowthView& g = a.growth;
  const int s = a.rows.node_sequence[node], beam = node - a.rows.sequence_node[s];
  const PlanEntry& entry = a.plan.entries[s];
  const RuleParams& rule = a.rules.params[entry.rule];
  const size_t tree = first_candidate(g, s);
  const int from = candidate_of(g, a.step, a.step ? beam : 0, 0);
  Row r = row_under(rule, a.rules, entry.rule, logits);
  if (rule.penalties) {
    const size_t most = size_t(entry.tentative + a.step) * sizeof(int32_t);
    auto* extra = static_cast<int32_t*>(__builtin_alloca(most + sizeof(int32_t)));
    auto* touched = static_cast<uint8_t*>(__builtin_alloca(size_t(r.blocks)));
    int n = 0;
    for (int i = 0; i < entry.tentative; ++i) extra[n++] = a.plan.tokens[entry.first_tentative + i];
    for (int d = a.step, at = beam; d > 0; --d) {
      const int candidate = beam_of(g, s, d, at);
      extra[n++] = g.token[tree + size_t(candidate)];
      at = parent_beam(g, candidate);
    }
    count_too(r, extra, n, touched);
  }
  Best best{g.token + tree + from, g.score + tree + from, g.width};
  const bool sampled = !(rule.temperature < kLeastTemperature);
  const int32_t position = a.rows.position[a.rows.node_row[node]] + 2;
  const float total = top_tokens(r, sampled, rule.seed, position, best);
  const float above = a.step ? g.score[tree + size_t(beam_of(g, s, a.step, beam))] : 0.f;
  const float top = best.held ? best.value[0] : 0.f;
  for (int j = 0; j < g.width; ++j) {
    const bool there = j < best.held;
    const float own = there ? (best.value[j] - top) - total : 0.f;
    best.value[j] = there ? above + (own < 0.f ? own : 0.f) : -__builtin_inff();
    if (!there) best.token[j] = -1;
  }
}

}  // namespace

void top(const TopArgs& a, Lane lane) {
  const Share mine = share(live_rows(a.live), lane);
  for (int j = mine.begin; j < mine.end; ++j)
    top_of_node(a, first_row(a.live) + j, row_of<float>(a.logits, j));
}

void grow(const GrowArgs& a, Lane lane) {
  if (lane.part != 0) return;
  int rows = 0;
  const int sequences = *a.plan.count < a.plan.capacity ? *a.plan.count : a.plan.capacity;
  for (int s = 0; s < sequences; ++s) {
    a.rows.sequence_row[s] = a.rows.sequence_node[s] = rows;
    choose_beams(a, s);
    rows += add_beams(a, s, rows);
  }
  end_beams(a.rows, sequences, rows);
}

void prune(const PruneArgs& a, Lane lane) {
  const int count = *a.plan.count < a.plan.capacity ? *a.plan.count : a.plan.capacity;
  const Share mine = share(count, lane);
  for (int s = mine.begin; s < mine.end; ++s) {
    const DraftAsk& ask = a.asks[s];
    const size_t tree = size_t(s) * size_t(a.trees.capacity);
    a.trees.token[tree] = ask.root, a.trees.parent[tree] = -1;
    const int all = asked_candidates(a.growth, ask);
    auto* place = static_cast<int32_t*>(__builtin_alloca(size_t(all + 1) * sizeof(int32_t)));
    int nodes = 1;
    for (int c = 0; c < all; ++c) {
      // What is below a candidate that is left out is left out too.
      const int parent = parent_candidate(a.growth, s, c);
      place[c] = parent >= 0 && place[parent] == 0 ? 0 : place_of(a.growth, s, ask, c);
      nodes += place[c] > 0;
    }
    for (int c = 0; c < all; ++c) put_candidate(a, s, c, place);
    a.trees.count[s] = nodes;
  }
}

}  // namespace stepladder::SL_ISA
