// The one choice rule over a row of logits, without sorting and without memory of its own.
//
// A first pass leaves the largest value of each block of 64 tokens. Every later pass (mass of the
// nucleus, search for a filter's last token, noise) visits only blocks that can matter: on the
// peaked rows of real text a few dozen of 768. Filters keep a prefix of the tokens in falling
// order, so a filter is a cutoff (value, id); its place is found by histograms over the order keys,
// 256 bins at a time, and the integer weights make every sum exact in any order.
// Noise is first bounded from above by a straight line under the logarithm; only tokens whose bound
// reaches the best so far get the exact one.
#include "backends/cpu/logits_row.h"
#include "core/noise.h"
#include "core/philox.h"

namespace stepladder::SL_ISA {
namespace {

constexpr int kBins = 256;
constexpr float kMostNoise = 23.f;         // gumbel() stays below 22.9
constexpr float kNucleusDepth = 21.f;      // nucleus_weight() is 0 further below the top than this
constexpr int32_t kNoneKey = -0x7f800001;  // order_key(-infinity)

// The last token a filter keeps: tokens of larger keys are in, equal keys up to this id.
struct Cutoff {
  int32_t key = kNoneKey;
  int32_t id = 0x7fffffff;
};
SL_INLINE bool keeps(Cutoff c, int32_t key, int32_t id) {
  return key > c.key || (key == c.key && id <= c.id);
}

// Distance between two keys and the key so far below: the span of all keys needs 32 bits.
SL_INLINE uint32_t distance(int32_t high, int32_t low) {
  return static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
}
SL_INLINE int32_t below(int32_t key, uint32_t by) {
  return static_cast<int32_t>(static_cast<uint32_t>(key) - by);
}

SL_INLINE int32_t largest_key(const float* z) {
  int32_t most = kNoneKey;
  for (int i = 0; i < kBlock; ++i) {
    const int32_t key = order_key(z[i]);
    most = key > most ? key : most;
  }
  return most;
}

// The largest key of each block into tops, and of all.
int32_t survey(const Row& r, int32_t* tops) {
  int32_t most = kNoneKey;
  const bool plain = !r.bias && !r.counts && r.scale == 1.f;
  for (int b = 0; b < r.blocks; ++b) {
    int32_t key;
    if (plain && (b + 1) * kBlock <= r.vocab) {
      key = largest_key(r.logits + b * kBlock);
    } else {
      Values v;
      shape(r, b, v);
      key = largest_key(v.z);
    }
    tops[b] = key;
    most = key > most ? key : most;
  }
  return most;
}

// The first token whose key is the largest of the row.
int first_at_top(const Row& r, const int32_t* tops, int32_t most) {
  if (most == kNoneKey) return 0;
  int b = 0;
  while (tops[b] != most) ++b;
  Values v;
  shape(r, b, v);
  int i = 0;
  while (order_key(v.z[i]) != most) ++i;
  return b * kBlock + i;
}

SL_INLINE void keys_of(const Values& v, int32_t* keys) {
  for (int i = 0; i < kBlock; ++i) keys[i] = order_key(v.z[i]);
}

// Weights of one block: 1 a token, or its share of the nucleus; 0 for what `kept` drops.
SL_INLINE void weigh(const Values& v, const int32_t* keys, int block, Cutoff kept, bool by_mass,
                     float top, int32_t* weights) {
  if (by_mass)
    for (int i = 0; i < kBlock; ++i) weights[i] = nucleus_weight(v.z[i], top);
  else
    for (int i = 0; i < kBlock; ++i) weights[i] = 1;
  const int32_t last = kept.id - block * kBlock;
  for (int i = 0; i < kBlock; ++i) {
    const bool in = (keys[i] > kept.key) | ((keys[i] == kept.key) & (i <= last));
    weights[i] = in ? weights[i] : 0;
  }
}

// Below this key nothing weighs in the nucleus.
SL_INLINE int32_t nucleus_floor(Cutoff kept, float top) {
  const int32_t floor = order_key(top - kNucleusDepth);
  return floor > kept.key ? floor : kept.key;
}

// The nucleus weight of all that `kept` keeps, and of the part of it down to a few depths: where
// the search for the nucleus' last token may start.
constexpr int kDepths = 3;
struct Mass {
  int64_t total = 0;
  int32_t key[kDepths];
  int64_t down_to[kDepths] = {};
};

Mass mass_of(const Row& r, const int32_t* tops, float top, Cutoff kept) {
  constexpr float depth[kDepths] = {2.f, 5.f, 9.f};
  const int32_t floor = nucleus_floor(kept, top);
  Mass mass;
  for (int d = 0; d < kDepths; ++d) mass.key[d] = order_key(top - depth[d]);
  for (int b = 0; b < r.blocks; ++b) {
    if (tops[b] < floor) continue;
    Values v;
    int32_t keys[kBlock], weights[kBlock];
    shape(r, b, v);
    keys_of(v, keys);
    weigh(v, keys, b, kept, true, top, weights);
    int64_t sum = 0;
    for (int i = 0; i < kBlock; ++i) sum += weights[i];
    mass.total += sum;
    for (int d = kDepths - 1; d >= 0 && tops[b] >= mass.key[d]; --d) {
      int64_t part = 0;
      for (int i = 0; i < kBlock; ++i) part += keys[i] >= mass.key[d] ? weights[i] : 0;
      mass.down_to[d] += part;
    }
  }
  return mass;
}

// A key that at least `need` tokens reach: as many blocks have a top there. kNoneKey when there
// are fewer blocks than that.
int32_t count_floor(const int32_t* tops, int blocks, int32_t most, int64_t need) {
  if (need > blocks) return kNoneKey;
  int32_t least = most;
  for (int b = 0; b < blocks; ++b) least = tops[b] < least ? tops[b] : least;
  const uint32_t span = distance(most, least);
  int shift = 0;
  while (span >> shift >= kBins) ++shift;
  int bins[kBins] = {};
  for (int b = 0; b < blocks; ++b) ++bins[distance(most, tops[b]) >> shift];
  int64_t seen = 0;
  uint32_t bin = 0;
  while ((seen += bins[bin]) < need) ++bin;
  const uint64_t depth = (uint64_t{bin + 1} << shift) - 1;
  return depth >= span ? least : below(most, static_cast<uint32_t>(depth));
}

// The last token of the shortest prefix of `kept` whose weight reaches `need`, which the keys from
// `low` on do.
Cutoff narrow(const Row& r, const int32_t* tops, int32_t most, Cutoff kept, bool by_mass,
              int64_t need, int32_t low) {
  const float top = from_order_key(most);
  low = low > kept.key ? low : kept.key;
  int32_t high = most;
  int64_t above = 0;  // weight of the keys over `high`
  Values v;
  int32_t keys[kBlock], weights[kBlock];
  while (low < high) {
    const uint32_t span = distance(high, low);
    int shift = 0;
    while (span >> shift >= kBins) ++shift;
    int64_t bins[kBins] = {};
    for (int b = 0; b < r.blocks; ++b) {
      if (tops[b] < low) continue;
      shape(r, b, v);
      keys_of(v, keys);
      int32_t inside = 0;
      for (int i = 0; i < kBlock; ++i) inside |= (keys[i] >= low) & (keys[i] <= high);
      if (!inside) continue;
      weigh(v, keys, b, kept, by_mass, top, weights);
      for (int i = 0; i < kBlock; ++i)
        if (keys[i] >= low && keys[i] <= high) bins[distance(high, keys[i]) >> shift] += weights[i];
    }
    uint32_t bin = 0;
    while (above + bins[bin] < need) above += bins[bin++];
    const uint64_t depth = (uint64_t{bin + 1} << shift) - 1;
    if (depth < span) low = below(high, static_cast<uint32_t>(depth));
    high = below(high, bin << shift);
  }
  for (int b = 0; b < r.blocks; ++b) {
    if (tops[b] < low) continue;
    shape(r, b, v);
    keys_of(v, keys);
    weigh(v, keys, b, kept, by_mass, top, weights);
    for (int i = 0; i < kBlock; ++i)
      if (keys[i] == low && (above += weights[i]) >= need) return {low, b * kBlock + i};
  }
  return kept;
}

Cutoff first_k(const Row& r, const int32_t* tops, int32_t most, int k) {
  return narrow(r, tops, most, {}, false, k, count_floor(tops, r.blocks, most, k));
}

Cutoff nucleus(const Row& r, const int32_t* tops, int32_t most, Cutoff kept, float p) {
  const float top = from_order_key(most);
  const Mass mass = mass_of(r, tops, top, kept);
  const int64_t need = nucleus_need(p, mass.total);
  int32_t low = nucleus_floor(kept, top);
  for (int d = kDepths - 1; d >= 0 && mass.down_to[d] >= need; --d) low = mass.key[d];
  return narrow(r, tops, most, kept, true, need, low);
}

// Never below gumbel(x): noise <= -ln(u), and log2 lies over the line between powers of two. Half
// the word fits a signed conversion, and dropping its last bit only lowers u.
SL_INLINE float noise_bound(uint32_t x) {
  const float half = static_cast<float>(static_cast<int32_t>(x >> 1));
  const float log2_of = static_cast<float>(__builtin_bit_cast(int32_t, half)) * 0x1p-23f - 127.f;
  return (31.f - log2_of) * 0.6931472f + 0.001f;
}

// The kept token of the largest value plus noise.
int sample(const Row& r, const int32_t* tops, int32_t most, Cutoff kept, uint64_t seed,
           int32_t position) {
  int best_id = first_at_top(r, tops, most);
  if (most == kNoneKey) return best_id;
  float best = from_order_key(most) + gumbel(noise_word(seed, position, best_id));
  for (int b = 0; b < r.blocks; ++b) {
    if (tops[b] < kept.key || !(from_order_key(tops[b]) + kMostNoise >= best)) continue;
    Values v;
    uint32_t words[kBlock];
    float bounds[kBlock];
    shape(r, b, v);
    words_of(seed, position, b, words);
    int reach = 0;
    for (int i = 0; i < kBlock; ++i) bounds[i] = v.z[i] + noise_bound(words[i]);
    for (int i = 0; i < kBlock; ++i) reach |= bounds[i] >= best;
    if (!reach) continue;
    for (int i = 0; i < kBlock; ++i) {
      const int id = b * kBlock + i;
      if (!(bounds[i] >= best) || !keeps(kept, order_key(v.z[i]), id)) continue;
      const float value = v.z[i] + gumbel(words[i]);
      if (value > best || (value == best && id < best_id)) best = value, best_id = id;
    }
  }
  return best_id;
}

int choose_token(const Row& r, const RuleParams& rule, int32_t position) {
  auto* tops = static_cast<int32_t*>(__builtin_alloca(size_t(r.blocks) * sizeof(int32_t)));
  const int32_t most = survey(r, tops);
  if (rule.temperature < kLeastTemperature || most == kNoneKey) return first_at_top(r, tops, most);
  Cutoff kept;
  if (rule.top_k > 0 && rule.top_k < r.vocab) kept = first_k(r, tops, most, rule.top_k);
  if (rule.top_p < 1) kept = nucleus(r, tops, most, kept, rule.top_p);
  if (rule.min_p > 0) {
    const int32_t floor = order_key(min_p_floor(rule.min_p, from_order_key(most)));
    if (floor > kept.key) kept = {floor, 0x7fffffff};
  }
  return sample(r, tops, most, kept, rule.seed, position);
}

// Whether no logit of a row is infinite or NaN.
SL_INLINE bool all_finite(const float* logits, int n) {
  int32_t most = 0;
  for (int i = 0; i < n; ++i) {
    const int32_t bits = __builtin_bit_cast(int32_t, logits[i]) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  return most < 0x7f800000;
}

// One node of one tree: finds its row, rule and path. Not inlined, so that the stack it takes is
// given back after every node.
[[gnu::noinline]] void choose_node(const ChooseArgs& a, int node, const float* logits) {
  const int s = a.rows.node_sequence[node], x = a.rows.node_index[node];
  const PlanEntry& entry = a.plan.entries[s];
  const RuleParams& rule = a.rules.params[entry.rule];
  Row r = row_under(rule, a.rules, entry.rule, logits);
  if (rule.penalties) {
    const size_t tree = size_t(s) * size_t(a.trees.capacity);
    int depth = 0;
    for (int at = x; at > 0; at = a.trees.parent[tree + at]) ++depth;
    const size_t most = size_t(entry.tentative + depth) * sizeof(int32_t);
    auto* extra = static_cast<int32_t*>(__builtin_alloca(most + sizeof(int32_t)));
    auto* touched = static_cast<uint8_t*>(__builtin_alloca(size_t(r.blocks)));
    int n = 0;
    for (int i = 0; i < entry.tentative; ++i) extra[n++] = a.plan.tokens[entry.first_tentative + i];
    for (int at = x; at > 0; at = a.trees.parent[tree + at]) extra[n++] = a.trees.token[tree + at];
    count_too(r, extra, n, touched);
  }
  const int32_t position = a.rows.position[a.rows.node_row[node]] + 1;
  const int token = choose_token(r, rule, position);
  a.out.token[node] = token;
  a.out.logit[node] = all_finite(logits, r.vocab) ? logits[token] : __builtin_nanf("");
}

}  // namespace

void choose(const ChooseArgs& a, Lane lane) {
  const Share mine = share(live_rows(a.live), lane);
  for (int j = mine.begin; j < mine.end; ++j)
    choose_node(a, first_row(a.live) + j,
                static_cast<const float*>(a.logits.data) + size_t(j) * size_t(a.logits.cols));
}

}  // namespace stepladder::SL_ISA
