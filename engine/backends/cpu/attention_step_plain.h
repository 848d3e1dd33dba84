// One step of attention in plain C++, for instruction sets without a body of their own: 32 keys
// against up to four query heads of one row. Written so that the compiler vectorizes over keys for
// the scores and over elements for the values.
#pragma once

#include "backends/cpu/kv_layout.h"
#include "backends/cpu/simd.h"

namespace stepladder::SL_ISA {
namespace {

constexpr int kHeads = 4;         // query heads a step serves together
constexpr int kMaxHeadDim = 256;  // elements of a head

/// Elements a running sum takes.
SL_INLINE int padded_dim(int head_dim) { return head_dim; }

/// What a row's heads have seen so far: the largest score, the sum of weights in 16 parts by key
/// position, and the weighted sum of values.
struct Running {
  float largest[kHeads];
  float weight[kHeads][kLanes];
};

SL_INLINE void scores(DType t, const uint16_t* const* q, int heads, const uint16_t* block, int dim,
                      float (*s)[kKeyBlock]) {
  for (int h = 0; h < heads; ++h)
    for (int j = 0; j < kKeyBlock; ++j) s[h][j] = 0.f;
  for (int i = 0; i < dim / 2; ++i) {
    float even[kKeyBlock], odd[kKeyBlock];
    uint32_t pair[kKeyBlock];
    __builtin_memcpy(pair, block + i * 2 * kKeyBlock, sizeof pair);
    if (t == DType::bf16)
      for (int j = 0; j < kKeyBlock; ++j)
        even[j] = bits_as_float(pair[j] << 16), odd[j] = bits_as_float(pair[j] & 0xffff0000u);
    else
      for (int j = 0; j < kKeyBlock; ++j) {
        even[j] = widen_f16(static_cast<uint16_t>(pair[j]));
        odd[j] = widen_f16(static_cast<uint16_t>(pair[j] >> 16));
      }
    for (int h = 0; h < heads; ++h) {
      const float q0 = from_16(t, q[h][2 * i]), q1 = from_16(t, q[h][2 * i + 1]);
      for (int j = 0; j < kKeyBlock; ++j) s[h][j] = s[h][j] + q0 * even[j];
      for (int j = 0; j < kKeyBlock; ++j) s[h][j] = s[h][j] + q1 * odd[j];
    }
  }
}

/// Adds `valid` keys, of which the first 16 lie in k0 and the rest in k1. value(j) is the row of
/// key j; only valid rows are read. `sum` holds the heads' weighted sums, padded_dim apart.
template <int kCount, class Value>
void step(DType t, const uint16_t* const* q, const uint16_t* k0, const uint16_t* k1, Value value,
          int valid, int dim, float scale, Running& run, float* sum) {
  float s[2][kHeads][kKeyBlock];
  scores(t, q, kCount, k0, dim, s[0]);
  if (valid > kKeyBlock) scores(t, q, kCount, k1, dim, s[1]);
  float p[kHeads][kAttentionStep];
  for (int h = 0; h < kCount; ++h) {
    float top = run.largest[h];
    for (int j = 0; j < valid; ++j) {
      p[h][j] = s[j / kKeyBlock][h][j % kKeyBlock] * scale;
      top = p[h][j] > top ? p[h][j] : top;
    }
    for (int j = valid; j < kAttentionStep; ++j) p[h][j] = 0.f;
    for (int j = 0; j < kAttentionStep; ++j) p[h][j] = exp2_plain(p[h][j] - top);
    for (int j = valid; j < kAttentionStep; ++j) p[h][j] = 0.f;
    if (top != run.largest[h]) {
      const float shrink = exp2_plain(run.largest[h] - top);
      run.largest[h] = top;
      for (int j = 0; j < kLanes; ++j) run.weight[h][j] = run.weight[h][j] * shrink;
      for (int d = 0; d < dim; ++d) sum[h * dim + d] = sum[h * dim + d] * shrink;
    }
    for (int j = 0; j < kLanes; ++j)
      run.weight[h][j] = run.weight[h][j] + (p[h][j] + p[h][j + kLanes]);
  }
  for (int j = 0; j < valid; ++j) {
    float v[kMaxHeadDim];
    widen(t, value(j), v, dim);
    for (int h = 0; h < kCount; ++h) {
      const float weight = p[h][j];
      float* to = sum + h * dim;
      for (int d = 0; d < dim; ++d) to[d] = to[d] + weight * v[d];
    }
  }
}

/// Divides by the sum of weights and rounds.
SL_INLINE void finish(DType t, const Running& run, int head, const float* sum, int dim,
                      uint16_t* out) {
  const float inverse = 1.f / sum_lanes(run.weight[head]);
  float scaled[kMaxHeadDim];
  for (int d = 0; d < dim; ++d) scaled[d] = sum[d] * inverse;
  narrow(t, scaled, out, dim);
}

}  // namespace
}  // namespace stepladder::SL_ISA
