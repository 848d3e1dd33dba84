// What becomes of the sums of a product, in the thread block that has them.
#pragma once

#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kv_layout.h"
#include "formats/cuda/product.h"

namespace stepladder::cuda {

/// A scale of a row, of any type.
__device__ inline float row_scale(DType t, const std::byte* scales, int row) {
  if (t == DType::e8m0) return from_e8m0(reinterpret_cast<const uint8_t*>(scales)[row]);
  if (t == DType::f32) return reinterpret_cast<const float*>(scales)[row];
  return from_16(t, reinterpret_cast<const uint16_t*>(scales)[row]);
}

/// y of output n from its sum: scale of the row, where there is one, and bias.
__device__ inline float with_scale_and_bias(const ProductArgs& p, float y, int n) {
  if (p.layout.spans == 0 && p.layout.scale_bytes)
    y = y * row_scale(p.weight.desc.scale,
                      static_cast<const std::byte*>(p.weight.data) + p.layout.scales, n);
  return p.weight.bias ? y + p.weight.bias[n] : y;
}

/// A value of row i for output n.
__device__ inline void put(const ProductArgs& p, int i, int n, float y) {
  if (p.finish == Finish::add) {
    float* to = row_of<float>(p.out, first_row(p.live) + i) + n;
    *to = *to + y;
  } else {
    row_of<float>(p.out, i)[n] = y;
  }
}

/// Both values of a pair: of outputs n and n + half a head, or of gate n and its up.
__device__ inline void put_pair(const ProductArgs& p, int i, int n, float a, float b) {
  if (p.finish == Finish::gate) {
    row_of<uint16_t>(p.out, i)[n] = to_16(p.out.dtype, silu(a) * b);
    return;
  }
  const RopeAppend& r = p.rope;
  const KVSpec& spec = r.kv.spec;
  const int dim = spec.head_dim, head = n / dim, at = n % dim, row = first_row(p.live) + i;
  const int position = r.rows.position[row];
  if (head < r.heads + spec.kv_heads) {
    const float* table = r.rope + int64_t{position} * dim + 2 * at;
    const float c = table[0], s = table[1], x = a, y = b;
    a = x * c - y * s, b = y * c + x * s;
  }
  uint16_t* to;
  DType type = spec.dtype;
  if (head < r.heads) {
    to = row_of<uint16_t>(r.q, i) + n, type = r.q.dtype;
  } else {
    const int scratch = r.rows.scratch[row], of_kv = head - r.heads;
    const int64_t entry = scratch >= 0 ? entry_of_scratch(spec, scratch) : position;
    to = static_cast<uint16_t*>(r.kv.data) +
         keys_at(spec, r.layer, r.rows.slot[row], of_kv % spec.kv_heads) + entry * dim + at;
    if (of_kv >= spec.kv_heads) to += kv_plane(spec);
  }
  to[0] = to_16(type, a), to[dim / 2] = to_16(type, b);
}

}  // namespace stepladder::cuda
