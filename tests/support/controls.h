// Backends that break one rule of exactness each, so that a check can be seen to fail.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "backends/cpu/kv_layout.h"

namespace stepladder {

/// Attention by a plain tree mask: keys in the order of their slots, the region first and then all
/// of the scratch, those that are not on the row's path weighing 0. In which step of the running
/// softmax a key comes, and so against which maximum its weight is rounded to 16 bits, depends on
/// where the tree put its node.
class MaskedSlotsBackend : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  void attention(const AttentionArgs& a) override {
    for (int i = 0; i < live_rows(a.live); ++i)
      for (int h = 0; h < a.heads; ++h) attend(a, i, first_row(a.live) + i, h);
  }

 private:
  static void attend(const AttentionArgs& a, int i, int row, int h) {
    const KVLayout l = kv_layout(a.kv.spec);
    const DType t = a.kv.spec.dtype;
    const int dim = a.kv.spec.head_dim, kv_head = h / (a.heads / a.kv.spec.kv_heads);
    const auto* base =
        static_cast<const uint16_t*>(a.kv.data) + kv_base(l, a.layer, a.rows.slot[row]);
    const int committed = a.rows.committed[row], own = a.rows.scratch[row];
    const int slots = committed + (own < 0 ? 0 : own + 1);
    const uint16_t* path = a.rows.path + size_t(row) * a.rows.depth;
    const uint16_t* end = path + (own < 0 ? 0 : a.rows.position[row] - committed + 1);
    const uint16_t* q = a.q.as<uint16_t>() + (size_t(i) * a.heads + h) * dim;

    float most = -INFINITY, sum = 0;
    std::vector<float> out(dim, 0.f);
    for (int first = 0; first < slots; first += kAttentionStep) {
      const int last = std::min(first + kAttentionStep, slots);
      std::vector<float> score;
      float top = most;
      for (int slot = first; slot < last; ++slot) {
        const int node = slot - committed;
        const uint16_t* key =
            base + (node < 0 ? key_block(l, kv_head, slot) : scratch_key(l, node, kv_head));
        float s = 0;
        for (int d = 0; d < dim; ++d)
          s += from_16(t, q[d]) *
               from_16(t, key[node < 0 ? in_key_block(slot % kKeyBlock, d) : size_t(d)]);
        const bool seen = node < 0 || std::find(path, end, node) != end;
        score.push_back(seen ? s * a.scale : -INFINITY);
        top = std::max(top, score.back());
      }
      const float shrink = most == top ? 1.f : std::exp(most - top);
      most = top, sum *= shrink;
      for (float& o : out) o *= shrink;
      for (int slot = first; slot < last; ++slot) {
        const float weight = from_16(t, to_16(t, std::exp(score[slot - first] - most)));
        if (weight == 0) continue;
        const uint16_t* value =
            base + (slot < committed ? value_at(l, kv_head, slot)
                                     : scratch_value(l, slot - committed, kv_head));
        sum += weight;
        for (int d = 0; d < dim; ++d) out[d] += weight * from_16(t, value[d]);
      }
    }
    uint16_t* to = a.out.as<uint16_t>() + (size_t(i) * a.heads + h) * dim;
    for (int d = 0; d < dim; ++d) to[d] = to_16(a.out.dtype, out[d] / sum);
  }
};

/// Linears whose K is summed in two halves when there are more than four rows.
class SplitByRowsBackend : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  void linear(const LinearArgs& a) override {
    const int rows = live_rows(a.live);
    if (rows <= 4 || a.act != Act::a16) return CpuBackend::linear(a);
    const size_t k = static_cast<size_t>(a.x.cols);
    LinearArgs half = a;
    for (const bool second : {false, true}) {
      // x with the other half of k zeroed: what a split's worker sees of it.
      std::vector<uint16_t> x(a.x.as<uint16_t>(), a.x.as<uint16_t>() + a.x.rows * k);
      for (size_t at = 0; at < x.size(); ++at)
        if ((at % k < k / 2) == second) x[at] = 0;
      half.x.data = x.data();
      half.accumulate = a.accumulate || second;
      CpuBackend::linear(half);
      half.weight.bias = nullptr;
    }
  }
};

/// Roots whose entries are left as they are: what stood in their scratch slot is used instead.
class StaleRootBackend : public CpuBackend {
 public:
  using CpuBackend::CpuBackend;
  void rope_append(const RopeAppendArgs& a) override {
    // Their own entries go to the last scratch slot, which no tree of the check uses.
    const int first = first_row(a.live), last = a.to.kv.spec.scratch - 1;
    int32_t* const scratch = a.to.rows.scratch;
    for (int i = first; i < first + live_rows(a.live); ++i)
      if (scratch[i] == 0) scratch[i] = last;
    CpuBackend::rope_append(a);
    for (int i = first; i < first + live_rows(a.live); ++i)
      if (scratch[i] == last) scratch[i] = 0;
  }
};

}  // namespace stepladder
