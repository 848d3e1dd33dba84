// The one choice rule over a row of logits, without sorting and without memory of its own.
//
// A first pass leaves the largest value of each block of 64 tokens. Every later pass (mass of the
// nucleus, search for a filter's last token, noise) visits only blocks that can matter: on the
// peaked rows of real text a few dozen of 768. Filters keep a prefix of the tokens in falling
// order, so a filter is a cutoff (value, id); its place is found by histograms over the order keys,
// 256 bins at a time, and the integer weights make every sum exact in any order.
// Noise is first bounded from above by a straight line under the logarithm; only tokens whose bound
// reaches the best so far get the exact one.
#include "backends/cpu/kernels.h"
#include "core/noise.h"
#include "core/philox.h"
#ifdef SL_ISA_avx512
#include <immintrin.h>
#endif

namespace stepladder::SL_ISA {
namespace {

constexpr int kBlock = 64, kBins = 256;
constexpr float kMostNoise = 23.f;         // gumbel() stays below 22.9
constexpr float kNucleusDepth = 21.f;      // nucleus_weight() is 0 further below the top than this
constexpr int32_t kNoneKey = -0x7f800001;  // order_key(-infinity)

struct Row {
  const float* logits;
  const float* bias;       // or null
  const uint32_t* counts;  // or null: no penalties
  const int32_t* extra;    // tokens the counts do not know
  const uint8_t* touched;  // [blocks] whether an extra token falls in the block
  int extras, vocab, blocks;
  float repetition, frequency, presence;
  float scale;  // 1 / temperature
};

// The last token a filter keeps: tokens of larger keys are in, equal keys up to this id.
struct Cutoff {
  int32_t key = kNoneKey;
  int32_t id = 0x7fffffff;
};
SL_INLINE bool keeps(Cutoff c, int32_t key, int32_t id) {
  return key > c.key || (key == c.key && id <= c.id);
}

struct Values {
  float z[kBlock];
};

SL_INLINE int smaller(int a, int b) { return a < b ? a : b; }

// Distance between two keys and the key so far below: the span of all keys needs 32 bits.
SL_INLINE uint32_t distance(int32_t high, int32_t low) {
  return static_cast<uint32_t>(high) - static_cast<uint32_t>(low);
}
SL_INLINE int32_t below(int32_t key, uint32_t by) {
  return static_cast<int32_t>(static_cast<uint32_t>(key) - by);
}

// The penalties of one block. Most blocks hold no token that has occurred and are left alone.
SL_INLINE void punish(const Row& r, int block, int n, float* z) {
  uint32_t counts[kBlock];
  uint32_t any = 0;
  const uint32_t* known = r.counts + block * kBlock;
  if (n == kBlock) {
    for (int i = 0; i < kBlock; ++i) counts[i] = known[i];
  } else {
    for (int i = 0; i < kBlock; ++i) counts[i] = i < n ? known[i] : 0;
  }
  if (r.touched[block])
    for (int i = 0; i < r.extras; ++i)
      if (r.extra[i] / kBlock == block) ++counts[r.extra[i] % kBlock];
  for (int i = 0; i < kBlock; ++i) any |= counts[i];
  if (!any) return;
  const float repetition = r.repetition, inverse = 1.f / repetition;
  const float frequency = r.frequency, presence = r.presence;
  for (int i = 0; i < kBlock; ++i) {
    const float l = z[i], factor = l > 0 ? inverse : repetition;
    const int32_t times = static_cast<int32_t>(counts[i] & 0x7fffffffu);
    const float repeated = counts[i] ? l * factor : l;
    z[i] = (repeated - frequency * static_cast<float>(times)) - (times ? presence : 0.f);
  }
}

// Bias, penalties and scale of one block; tokens past the vocabulary are -infinity.
SL_INLINE void shape(const Row& r, int block, Values& v) {
  const int first = block * kBlock, n = smaller(kBlock, r.vocab - first);
  if (n == kBlock) {
    for (int i = 0; i < kBlock; ++i) v.z[i] = r.logits[first + i];
    if (r.bias)
      for (int i = 0; i < kBlock; ++i) v.z[i] += r.bias[first + i];
  } else {
    for (int i = 0; i < kBlock; ++i) v.z[i] = -__builtin_inff();
    for (int i = 0; i < n; ++i) v.z[i] = r.logits[first + i];
    if (r.bias)
      for (int i = 0; i < n; ++i) v.z[i] += r.bias[first + i];
  }
  if (r.counts) punish(r, block, n, v.z);
  const float scale = r.scale;
  for (int i = 0; i < kBlock; ++i) v.z[i] *= scale;
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

// The random words of one block of tokens: counter block * 16 + c gives tokens 4c to 4c + 3.
#ifdef SL_ISA_avx512
// High and low halves of 16 products of 32 bits.
SL_INLINE void wide_product(__m512i a, __m512i factor, __m512i& high, __m512i& low) {
  const __m512i even = _mm512_mul_epu32(a, factor);
  const __m512i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor);
  high = _mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
  low = _mm512_mask_blend_epi32(0xaaaa, even, _mm512_slli_epi64(odd, 32));
}

SL_INLINE void words_of(uint64_t seed, int32_t position, int block, uint32_t* words) {
  // Counter 4 j + l sits in element l * 4 + j, so that interleaving the four words of every
  // counter within 128 bits leaves whole runs of 16 tokens.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i m0 = _mm512_set1_epi32(static_cast<int>(0xD2511F53u));
  const __m512i m1 = _mm512_set1_epi32(static_cast<int>(0xCD9E8D57u));
  __m512i c0 = _mm512_add_epi32(order, _mm512_set1_epi32(block * (kBlock / 4)));
  __m512i c1 = _mm512_set1_epi32(position), c2 = _mm512_setzero_si512(), c3 = c2;
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    __m512i high0, low0, high1, low1;
    wide_product(c0, m0, high0, low0);
    wide_product(c2, m1, high1, low1);
    c0 = _mm512_ternarylogic_epi32(high1, c1, _mm512_set1_epi32(static_cast<int>(k0)), 0x96);
    c2 = _mm512_ternarylogic_epi32(high0, c3, _mm512_set1_epi32(static_cast<int>(k1)), 0x96);
    c1 = low1, c3 = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  const __m512i a = _mm512_unpacklo_epi32(c0, c1), b = _mm512_unpackhi_epi32(c0, c1);
  const __m512i c = _mm512_unpacklo_epi32(c2, c3), d = _mm512_unpackhi_epi32(c2, c3);
  _mm512_storeu_si512(words, _mm512_unpacklo_epi64(a, c));
  _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(a, c));
  _mm512_storeu_si512(words + 32, _mm512_unpacklo_epi64(b, d));
  _mm512_storeu_si512(words + 48, _mm512_unpackhi_epi64(b, d));
}
#else
// On its own, because the compiler turns these loops into vectors only where it knows nothing of
// the arrays but that they are apart.
[[gnu::noinline]] void philox_rounds(uint32_t* __restrict c0, uint32_t* __restrict c1,
                                     uint32_t* __restrict c2, uint32_t* __restrict c3,
                                     uint64_t key) {
  uint32_t k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < kBlock / 4; ++i) {
      const uint64_t p0 = uint64_t{0xD2511F53u} * c0[i], p1 = uint64_t{0xCD9E8D57u} * c2[i];
      const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1[i] ^ k0;
      const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3[i] ^ k1;
      c1[i] = static_cast<uint32_t>(p1), c3[i] = static_cast<uint32_t>(p0), c0[i] = n0, c2[i] = n2;
    }
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

SL_INLINE void words_of(uint64_t seed, int32_t position, int block, uint32_t* words) {
  constexpr int n = kBlock / 4;
  uint32_t c0[n], c1[n], c2[n], c3[n];
  for (int i = 0; i < n; ++i) {
    c0[i] = static_cast<uint32_t>(block * n + i);
    c1[i] = static_cast<uint32_t>(position), c2[i] = 0, c3[i] = 0;
  }
  philox_rounds(c0, c1, c2, c3, seed);
  for (int i = 0; i < n; ++i) {
    words[4 * i] = c0[i], words[4 * i + 1] = c1[i];
    words[4 * i + 2] = c2[i], words[4 * i + 3] = c3[i];
  }
}
#endif

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
  const size_t rule_row = size_t(entry.rule) * size_t(a.rules.vocab);
  const bool greedy = rule.temperature < kLeastTemperature;
  Row r{logits,          rule.bias ? a.rules.bias + rule_row : nullptr,
        nullptr,         nullptr,
        nullptr,         0,
        a.rules.vocab,   (a.rules.vocab + kBlock - 1) / kBlock,
        rule.repetition, rule.frequency,
        rule.presence,   greedy ? 1.f : 1.f / rule.temperature};
  if (rule.penalties) {
    const size_t tree = size_t(s) * size_t(a.trees.capacity);
    int depth = 0;
    for (int at = x; at > 0; at = a.trees.parent[tree + at]) ++depth;
    const size_t most = size_t(entry.tentative + depth) * sizeof(int32_t);
    auto* extra = static_cast<int32_t*>(__builtin_alloca(most + sizeof(int32_t)));
    auto* touched = static_cast<uint8_t*>(__builtin_alloca(size_t(r.blocks)));
    for (int b = 0; b < r.blocks; ++b) touched[b] = 0;
    int n = 0;
    for (int i = 0; i < entry.tentative; ++i) extra[n++] = a.plan.tokens[entry.first_tentative + i];
    for (int at = x; at > 0; at = a.trees.parent[tree + at]) extra[n++] = a.trees.token[tree + at];
    int known = 0;  // tokens outside the vocabulary count nowhere
    for (int i = 0; i < n; ++i) {
      if (extra[i] < 0 || extra[i] >= r.vocab) continue;
      touched[extra[i] / kBlock] = 1;
      extra[known++] = extra[i];
    }
    r.counts = a.rules.counts + rule_row;
    r.extra = extra, r.extras = known, r.touched = touched;
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
