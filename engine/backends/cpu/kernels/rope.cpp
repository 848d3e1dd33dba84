// Splits a row of qkv, normalizes queries and keys per head where the model asks for it, rotates
// them, rounds everything to the cache's 16-bit type and stores the key and the value.
#include "backends/cpu/kv_layout.h"
#include "backends/cpu/simd.h"

namespace stepladder::SL_ISA {
namespace {

constexpr int kMaxHeadDim = 256;

/// One head of a query or key: norm, rotation, rounding.
SL_INLINE void rotate(const float* x, const float* norm, float eps, const float* table, int dim,
                      DType t, uint16_t* out) {
  float normed[kMaxHeadDim], turned[kMaxHeadDim];
  if (norm) {
    const float mean = sum_of_squares(x, dim) / static_cast<float>(dim);
    const float inverse = inverse_root(mean + eps);
    for (int d = 0; d < dim; ++d) normed[d] = x[d] * inverse * norm[d];
    x = normed;
  }
  const int half = dim / 2;
  for (int i = 0; i < half; ++i) {
    const float c = table[2 * i], s = table[2 * i + 1];
    turned[i] = x[i] * c - x[i + half] * s;
    turned[i + half] = x[i + half] * c + x[i] * s;
  }
  narrow(t, turned, out, dim);
}

}  // namespace

void rope_append(const RopeAppendArgs& args, Lane lane) {
  const RopeAppend& a = args.to;
  const KVLayout l = kv_layout(a.kv.spec);
  const int dim = a.kv.spec.head_dim, kv_heads = a.kv.spec.kv_heads;
  uint16_t* const data = static_cast<uint16_t*>(a.kv.data);
  const Share s = share(live_rows(args.live), lane);
  const int first = first_row(args.live);
  for (int i = s.begin; i < s.end; ++i) {
    const int row = first + i, position = a.rows.position[row], scratch = a.rows.scratch[row];
    const float* table = a.rope + int64_t{position} * dim;
    const float* x = row_of<float>(args.qkv, i);
    uint16_t* q = row_of<uint16_t>(a.q, i);
    for (int h = 0; h < a.heads; ++h, x += dim, q += dim)
      rotate(x, a.q_norm, a.eps, table, dim, a.q.dtype, q);
    const float* v = x + int64_t{kv_heads} * dim;
    uint16_t* const base = data + kv_base(l, a.layer, a.rows.slot[row]);
    for (int h = 0; h < kv_heads; ++h, x += dim, v += dim) {
      uint16_t key[kMaxHeadDim];
      rotate(x, a.k_norm, a.eps, table, dim, a.kv.spec.dtype, key);
      if (scratch >= 0)
        __builtin_memcpy(base + scratch_key(l, scratch, h), key, l.head_dim * sizeof(uint16_t));
      else
        put_key(base + key_block(l, h, position), position % kKeyBlock, key, dim);
      narrow(a.kv.spec.dtype, v,
             base + (scratch >= 0 ? scratch_value(l, scratch, h) : value_at(l, h, position)), dim);
    }
  }
}

}  // namespace stepladder::SL_ISA
