// Operators that work row by row: the row table of a pass, embeddings, norms, int8 activations,
// the gated activation, and moving accepted entries from scratch to the region.
#include "backends/cpu/kv_layout.h"
#include "backends/cpu/simd.h"
#include "backends/follow.h"

namespace stepladder::SL_ISA {
namespace {

SL_INLINE bool add_row(const Rows& r, int& n, int32_t token, int32_t position,
                       const PlanEntry& entry, int32_t committed, int32_t scratch) {
  if (n >= r.capacity) return false;
  r.token[n] = token;
  r.position[n] = position;
  r.slot[n] = entry.slot;
  r.committed[n] = committed;
  r.scratch[n] = scratch;
  ++n;
  return true;
}

/// The rows of one tree. A node's path is its parent's and itself. The tree is cut before the
/// first node that has no room, since a later node may be its child.
SL_INLINE void add_tree(const ExpandArgs& a, int sequence, const PlanEntry& entry, int& n,
                        int& nodes) {
  const Rows& r = a.rows;
  const TreeView& t = a.trees;
  const int first = n;
  const int count = t.count[sequence] < t.capacity ? t.count[sequence] : t.capacity;
  for (int x = 0; x < count; ++x) {
    const int64_t at = int64_t{sequence} * t.capacity + x;
    const int parent = t.parent[at];
    const int depth =
        x == 0 || parent < 0 ? 0 : r.position[first + parent] - entry.root_position + 1;
    if (depth >= r.depth) return;
    if (!add_row(r, n, t.token[at], entry.root_position + depth, entry, entry.root_position, x))
      return;
    uint16_t* path = r.path + int64_t{first + x} * r.depth;
    if (depth > 0) {
      const uint16_t* above = r.path + int64_t{first + parent} * r.depth;
      for (int d = 0; d < depth; ++d) path[d] = above[d];
    }
    path[depth] = static_cast<uint16_t>(x);
    r.node_row[nodes] = first + x;
    r.node_sequence[nodes] = sequence;
    r.node_index[nodes] = x;
    ++nodes;
  }
}

}  // namespace

void expand(const ExpandArgs& a, Lane lane) {
  if (lane.part != 0) return;  // a handful of integers, and each row's place depends on the last
  int n = 0, nodes = 0;
  const int sequences = *a.plan.count < a.plan.capacity ? *a.plan.count : a.plan.capacity;
  for (int i = 0; i < sequences; ++i) {
    const PlanEntry& e = a.plan.entries[i];
    a.rows.sequence_row[i] = n, a.rows.sequence_node[i] = nodes;
    for (int j = 0; j < e.missing; ++j) {
      const int position = e.root_position - e.missing + j;
      if (!add_row(a.rows, n, a.plan.tokens[e.first_missing + j], position, e, position + 1, -1))
        break;
    }
    if (i < a.trees.sequences) add_tree(a, i, e, n, nodes);
  }
  for (int i = sequences; i <= a.rows.sequences; ++i)
    a.rows.sequence_row[i] = n, a.rows.sequence_node[i] = nodes;
  *a.rows.count = n;
  *a.rows.node_count = nodes;
  *a.rows.block_row = *a.rows.block_node = 0;
}

void embed(const EmbedArgs& a, Lane lane) {
  const int width = static_cast<int>(a.out.cols);
  const Share s = share(live_rows(a.live), lane);
  const int first = first_row(a.live);
  for (int i = first + s.begin; i < first + s.end; ++i)
    widen(a.table.dtype, row_of<uint16_t>(a.table, a.token[i]), row_of<float>(a.out, i), width);
}

namespace {

/// x through a norm, rounded.
SL_INLINE void norm_row(DType t, const float* x, const float* weight, float eps, int width,
                        uint16_t* out) {
  const float mean = sum_of_squares(x, width) / static_cast<float>(width);
  const float inverse = inverse_root(mean + eps);
  if (t == DType::bf16)
    for (int c = 0; c < width; ++c) out[c] = narrow_bf16(x[c] * inverse * weight[c]);
  else
    for (int c = 0; c < width; ++c) out[c] = narrow_f16(x[c] * inverse * weight[c]);
}

}  // namespace

void rms_norm(const RmsNormArgs& a, Lane lane) {
  const int width = static_cast<int>(a.out.cols);
  const Share s = share(live_rows(a.live), lane);
  const int first = first_row(a.live);
  for (int i = s.begin; i < s.end; ++i) {
    const float* x = row_of<float>(a.x, a.pick ? a.pick[first + i] : first + i);
    norm_row(a.out.dtype, x, a.weight, a.eps, width, row_of<uint16_t>(a.out, i));
  }
}

void feature(const FeatureArgs& a, Lane lane) {
  const KVLayout l = kv_layout(a.kv.spec);
  const DType t = a.kv.spec.dtype;
  const int width = static_cast<int>(a.x.cols), first = first_row(a.live);
  const Share s = share(live_rows(a.live), lane);
  for (int row = first + s.begin; row < first + s.end; ++row) {
    const int slot = a.rows.slot[row], scratch = a.rows.scratch[row];
    const size_t at = scratch >= 0 ? scratch_feature(l, slot, scratch)
                                   : feature_at(l, slot, a.rows.position[row]);
    uint16_t* out = static_cast<uint16_t*>(a.kv.data) + at + static_cast<size_t>(a.index) * l.width;
    const float* x = row_of<float>(a.x, row);
    if (a.norm)
      norm_row(t, x, a.norm, a.eps, width, out);
    else
      narrow(t, x, out, width);
  }
}

void follow(const FollowArgs& a, Lane lane) {
  if (lane.part != 0) return;
  const int sequences = *a.count < a.capacity ? *a.count : a.capacity;
  for (int i = 0; i < sequences; ++i) follow_sequence(a, i);
}

namespace {

#if defined(SL_ISA_avx512)

/// One group: its scale (NaN if a value is), its codes and the sum of every `each` of them.
SL_INLINE void quantize_group(DType t, const uint16_t* x, int n, int each, int8_t* q, float* scale,
                              int32_t* sum) {
  __m512 largest = _mm512_setzero_ps();
  __mmask16 none = 0;  // lanes that met a NaN, which the maximum drops
  for (int c = 0; c < n; c += kLanes) {
    const __m512 v = _mm512_abs_ps(widen_16(t, x + c, lanes_below(n, c)));
    none |= _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
    largest = _mm512_max_ps(largest, v);
  }
  const float step = _mm512_reduce_max_ps(largest) / 127.f;
  *scale = none ? __builtin_nanf("") : step;
  // Where the step itself rounds to 0 the group counts as zeros.
  const __m512 divisor = _mm512_set1_ps(step > 0.f ? step : 1.f);
  const __m512 most = _mm512_set1_ps(127.f), least = _mm512_set1_ps(-127.f);
  for (int first = 0; first < n; first += each) {
    const int end = first + each;
    __m512i total = _mm512_setzero_si512();
    for (int c = first; c < end; c += kLanes) {
      const __mmask16 mask = lanes_below(end, c);
      __m512 v = _mm512_div_ps(widen_16(t, x + c, mask), divisor);
      v = _mm512_max_ps(_mm512_min_ps(v, most), least);
      const __m512i code = _mm512_cvtps_epi32(v);  // ties to even
      _mm512_mask_cvtepi32_storeu_epi8(q + c, mask, code);
      total = _mm512_add_epi32(total, code);
    }
    *sum++ = _mm512_reduce_add_epi32(total);
  }
}

#else

constexpr int kQuantChunk = 256;  // values widened at a time, on the stack

/// One group: its scale (NaN if a value is), its codes and the sum of every `each` of them.
SL_INLINE void quantize_group(DType t, const uint16_t* x, int n, int each, int8_t* q, float* scale,
                              int32_t* sum) {
  float wide[kQuantChunk];
  float largest[kLanes] = {};
  int none = 0;  // NaNs, which the maximum drops
  for (int c = 0; c < n; c += kQuantChunk) {
    const int m = n - c < kQuantChunk ? n - c : kQuantChunk;
    widen(t, x + c, wide, m);
    int i = 0;
    for (; i + kLanes <= m; i += kLanes)
      for (int l = 0; l < kLanes; ++l) {
        const float v = __builtin_fabsf(wide[i + l]);
        none |= v != v;
        largest[l] = v > largest[l] ? v : largest[l];
      }
    for (int l = 0; i + l < m; ++l) {
      const float v = __builtin_fabsf(wide[i + l]);
      none |= v != v;
      largest[l] = v > largest[l] ? v : largest[l];
    }
  }
  float top = 0.f;
  for (int l = 0; l < kLanes; ++l) top = largest[l] > top ? largest[l] : top;
  const float step = top / 127.f;
  *scale = none ? __builtin_nanf("") : step;
  // Where the step itself rounds to 0 the group counts as zeros.
  const float divisor = step > 0.f ? step : 1.f;
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to even
  for (int first = 0; first < n; first += each) {
    const int end = first + each;
    int32_t total = 0;
    for (int c = first; c < end; c += kQuantChunk) {
      const int m = end - c < kQuantChunk ? end - c : kQuantChunk;
      widen(t, x + c, wide, m);
      for (int i = 0; i < m; ++i) {
        float v = wide[i] / divisor;
        v = v > 127.f ? 127.f : v;
        v = v < -127.f ? -127.f : v;
        const uint32_t bits = float_as_bits(v + kRound) - float_as_bits(kRound);
        const int8_t code = static_cast<int8_t>(bits);
        q[c + i] = code;
        total += code;
      }
    }
    *sum++ = total;
  }
}

#endif

}  // namespace

void quantize(const QuantizeArgs& a, Lane lane) {
  const int64_t k = a.x.cols;
  const int groups = static_cast<int>(k / a.group), sums = a.group / a.sum_group;
  const Share s = share(live_rows(a.live), lane);
  for (int i = s.begin; i < s.end; ++i) {
    const uint16_t* x = row_of<uint16_t>(a.x, i);
    for (int g = 0; g < groups; ++g)
      quantize_group(a.x.dtype, x + int64_t{g} * a.group, a.group, a.sum_group,
                     a.q + i * k + int64_t{g} * a.group, a.scale + int64_t{i} * groups + g,
                     a.sum + (int64_t{i} * groups + g) * sums);
  }
}

namespace {

constexpr float kLog2e = 1.44269504f;

/// Columns [from, to) of silu(gate) * up.
#if defined(SL_ISA_avx512)
SL_INLINE void gate_columns(DType t, const float* gate, const float* up, uint16_t* out, int from,
                            int to) {
  for (int c = from; c < to; c += kLanes) {
    const __mmask16 mask = lanes_below(to, c);
    const __m512 g = _mm512_maskz_loadu_ps(mask, gate + c);
    const __m512 e = exp2_16(_mm512_mul_ps(g, _mm512_set1_ps(-kLog2e)));
    const __m512 silu = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.f), e));
    const __m512 y = _mm512_mul_ps(silu, _mm512_maskz_loadu_ps(mask, up + c));
    _mm256_mask_storeu_epi16(out + c, mask, narrow_16(t, y));
  }
}
#else
SL_INLINE void gate_columns(DType t, const float* gate, const float* up, uint16_t* out, int from,
                            int to) {
  const auto gated = [&](int c) { return gate[c] / (1.f + exp2_plain(-gate[c] * kLog2e)) * up[c]; };
  if (t == DType::bf16)
    for (int c = from; c < to; ++c) out[c] = narrow_bf16(gated(c));
  else
    for (int c = from; c < to; ++c) out[c] = narrow_f16(gated(c));
}
#endif

}  // namespace

void gated_act(const GatedActArgs& a, Lane lane) {
  const int width = static_cast<int>(a.out.cols);
  const int rows = live_rows(a.live);
  // Columns are shared out too, in whole cache lines, so that one row keeps every thread busy.
  const Share s = share(rows * width, lane, 32);
  for (int at = s.begin; at < s.end;) {
    const int row = at / width, from = at % width;
    const int to = s.end - at < width - from ? from + (s.end - at) : width;
    const float* gate = row_of<float>(a.gate_up, row);
    gate_columns(a.out.dtype, gate, gate + width, row_of<uint16_t>(a.out, row), from, to);
    at += to - from;
  }
}

namespace {

/// Moves the features of a sequence's accepted path.
SL_INLINE void keep_features(const KeepArgs& a, const KVLayout& l, int sequence, int emitted) {
  uint16_t* const data = static_cast<uint16_t*>(a.kv.data);
  const PlanEntry& e = a.plan.entries[sequence];
  for (int d = 0; d < emitted; ++d) {
    const int position = e.root_position + d, node = a.path[sequence * kMaxEmitted + d];
    if (position >= a.kv.spec.positions || node < 0) return;
    __builtin_memcpy(data + feature_at(l, e.slot, position),
                     data + scratch_feature(l, e.slot, node), l.feature * sizeof(uint16_t));
  }
}

}  // namespace

void keep(const KeepArgs& a, Lane lane) {
  const KVLayout l = kv_layout(a.kv.spec);
  uint16_t* const data = static_cast<uint16_t*>(a.kv.data);
  const int sequences = *a.plan.count < a.plan.capacity ? *a.plan.count : a.plan.capacity;
  if (l.feature > 0 && lane.part == 0)
    for (int i = 0; i < sequences; ++i)
      keep_features(a, l, i, a.result[i].emitted < kMaxEmitted ? a.result[i].emitted : kMaxEmitted);
  const Share layers = share(a.kv.spec.layers, lane);
  for (int layer = layers.begin; layer < layers.end; ++layer)
    for (int i = 0; i < sequences; ++i) {
      const PlanEntry& e = a.plan.entries[i];
      uint16_t* const base = data + kv_base(l, layer, e.slot);
      const int emitted = a.result[i].emitted < kMaxEmitted ? a.result[i].emitted : kMaxEmitted;
      for (int d = 0; d < emitted; ++d) {
        const int position = e.root_position + d, node = a.path[i * kMaxEmitted + d];
        if (position >= a.kv.spec.positions || node < 0) break;
        for (int h = 0; h < a.kv.spec.kv_heads; ++h) {
          put_key(base + key_block(l, h, position), position % kKeyBlock,
                  base + scratch_key(l, node, h), a.kv.spec.head_dim);
          __builtin_memcpy(base + value_at(l, h, position), base + scratch_value(l, node, h),
                           l.head_dim * sizeof(uint16_t));
        }
      }
    }
}

}  // namespace stepladder::SL_ISA
