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

/// What the tables say of a row, where a result goes by them.
struct RowPlace {
  int row, position = 0, slot = 0, scratch = -1;  // row: of the block
};
__device__ inline RowPlace row_place(const ProductArgs& p, int i) {
  RowPlace r{i};
  if (p.finish != Finish::rope_append) return r;
  const int row = first_row(p.live) + i;
  const Rows& rows = p.rope.rows;
  return {i, rows.position[row], rows.slot[row], rows.scratch[row]};
}

/// Where a result goes, or the first of a pair, and what it is put together with: what stands there
/// to be added to, or cosine and sine where a rotation takes place.
struct Place {
  void* to = nullptr;
  float old = 0.f, cosine = 0.f, sine = 0.f;
  bool rotates = false;
  DType type = DType::f32;
};
/// Of output n of a row; of a pair's first output n, half a head or gate and up apart.
__device__ inline Place place_of(const ProductArgs& p, const RowPlace& at_row, int n) {
  const int i = at_row.row;
  if (p.finish == Finish::store) return {.to = row_of<float>(p.out, i) + n};
  if (p.finish == Finish::add) {
    float* const to = row_of<float>(p.out, first_row(p.live) + i) + n;
    return {.to = to, .old = *to};
  }
  if (p.finish == Finish::gate)
    return {.to = row_of<uint16_t>(p.out, i) + n, .type = p.out.dtype};
  const RopeAppend& r = p.rope;
  const KVSpec& spec = r.kv.spec;
  const int dim = spec.head_dim, head = n / dim, at = n % dim;
  Place place{.rotates = head < r.heads + spec.kv_heads, .type = spec.dtype};
  if (place.rotates) {
    const float* table = r.rope + int64_t{at_row.position} * dim + 2 * at;
    place.cosine = table[0], place.sine = table[1];
  }
  if (head < r.heads) {
    place.to = row_of<uint16_t>(r.q, i) + n, place.type = r.q.dtype;
  } else {
    const int of_kv = head - r.heads;
    const int64_t entry =
        at_row.scratch >= 0 ? entry_of_scratch(spec, at_row.scratch) : at_row.position;
    place.to = static_cast<uint16_t*>(r.kv.data) +
               keys_at(spec, r.layer, at_row.slot, of_kv % spec.kv_heads) + entry * dim + at +
               (of_kv >= spec.kv_heads ? kv_plane(spec) : 0);
  }
  return place;
}

__device__ inline void put(const ProductArgs& p, const Place& place, float y) {
  *static_cast<float*>(place.to) = p.finish == Finish::add ? place.old + y : y;
}

/// Both results of a pair.
__device__ inline void put_pair(const ProductArgs& p, const Place& place, float a, float b) {
  auto* const to = static_cast<uint16_t*>(place.to);
  if (p.finish == Finish::gate) {
    *to = to_16(place.type, silu(a) * b);
    return;
  }
  if (place.rotates) {
    const float x = a, y = b;
    a = x * place.cosine - y * place.sine, b = y * place.cosine + x * place.sine;
  }
  to[0] = to_16(place.type, a), to[p.rope.kv.spec.head_dim / 2] = to_16(place.type, b);
}

}  // namespace stepladder::cuda
