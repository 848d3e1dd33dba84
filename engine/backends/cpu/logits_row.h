// A row of logits as a rule shapes it, 64 tokens at a time: bias, penalties, temperature, and the
// random words behind the noise.
#pragma once

#include "backends/cpu/kernels.h"
#include "core/noise.h"
#ifdef SL_ISA_avx512
#include <immintrin.h>
#endif

namespace stepladder::SL_ISA {
namespace {

constexpr int kBlock = 64;

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

struct Values {
  float z[kBlock];
};

SL_INLINE int smaller(int a, int b) { return a < b ? a : b; }

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

// The row under rule `number` of the table, without penalties for tokens that its counts do not
// know.
SL_INLINE Row row_under(const RuleParams& rule, const RuleView& rules, int number,
                        const float* logits) {
  const size_t at = size_t(number) * size_t(rules.vocab);
  const bool greedy = rule.temperature < kLeastTemperature;
  return {logits,
          rule.bias ? rules.bias + at : nullptr,
          rule.penalties ? rules.counts + at : nullptr,
          nullptr,
          nullptr,
          0,
          rules.vocab,
          (rules.vocab + kBlock - 1) / kBlock,
          rule.repetition,
          rule.frequency,
          rule.presence,
          greedy ? 1.f : 1.f / rule.temperature};
}

// Lets the penalties count `n` tokens more, those of the vocabulary; both arrays must stay.
SL_INLINE void count_too(Row& r, int32_t* extra, int n, uint8_t* touched) {
  for (int b = 0; b < r.blocks; ++b) touched[b] = 0;
  int known = 0;
  for (int i = 0; i < n; ++i) {
    if (extra[i] < 0 || extra[i] >= r.vocab) continue;
    touched[extra[i] / kBlock] = 1;
    extra[known++] = extra[i];
  }
  r.extra = extra, r.extras = known, r.touched = touched;
}

}  // namespace
}  // namespace stepladder::SL_ISA
