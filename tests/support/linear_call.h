// A product called by hand: tokens, one call of a kernel or of the generic path, and the error its
// roundings may come to.
#pragma once

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "backends/cpu/cpu_backend.h"
#include "formats/linear.h"

namespace stepladder {

/// Tokens in 16 bits and, for a8, in int8 by the definition of the quantize operator.
struct Tokens {
  int rows, k, group, sum_group;
  DType type;
  std::vector<uint16_t> x;
  std::vector<int8_t> q;
  std::vector<float> scale;
  std::vector<int32_t> sum;

  Tokens(DType t, int rows_, int k_, int group_, std::mt19937& random, int sum_group_ = 0)
      : rows(rows_),
        k(k_),
        group(group_ ? group_ : k_),
        sum_group(sum_group_ ? sum_group_ : group),
        type(t),
        x(size_t(rows) * k) {
    std::normal_distribution<float> normal;
    for (size_t i = 0; i < x.size(); ++i)
      x[i] = to_16(type, normal(random) * (i % 37 ? 1.f : 30.f));
    quantize();
  }
  void quantize() {
    q.assign(x.size(), 0), scale.assign(x.size() / group, 0);
    sum.assign(x.size() / sum_group, 0);
    for (size_t g = 0; g < scale.size(); ++g) {
      float amax = 0;
      for (int i = 0; i < group; ++i)
        amax = std::max(amax, std::fabs(from_16(type, x[g * group + i])));
      if (!(amax > 0) || !std::isfinite(amax)) continue;
      scale[g] = amax / 127;
      for (int i = 0; i < group; ++i) {
        const size_t at = g * group + i;
        q[at] = static_cast<int8_t>(std::nearbyint(from_16(type, x[at]) / scale[g]));
        sum[at / sum_group] += q[at];
      }
    }
  }
  double at(Act act, int row, int i) const {
    const size_t p = size_t(row) * k + i;
    return act == Act::a16 ? double(from_16(type, x[p])) : double(q[p]) * scale[p / group];
  }
};

/// One call of a kernel, on `lanes` shares one after the other.
struct Call {
  const LinearKernel* kernel;  // null: `backend`'s generic path
  CpuBackend* backend;
  Act act;
  const CanonicalWeight* weight;
  const std::byte* packed;
  int lanes = 1;
  bool accumulate = false;

  void operator()(float* y, Tokens& t, int first, int rows) const {
    const int k = weight->k, n = weight->n, groups = k / t.group, sums = k / t.sum_group;
    int32_t total = rows;
    LinearArgs a{};
    a.live = {&total, nullptr, rows + 3};  // capacity beyond what is live
    a.y = {y, DType::f32, rows, n};
    a.x = {t.x.data() + size_t(first) * k, t.type, rows, k};
    a.x8 = {a.live,
            a.x,
            t.group,
            t.sum_group,
            t.q.data() + size_t(first) * k,
            t.scale.data() + size_t(first) * groups,
            t.sum.data() + size_t(first) * sums};
    a.act = act;
    a.weight = {weight->desc, n, k,
                packed,       0, weight->bias.empty() ? nullptr : weight->bias.data()};
    a.accumulate = accumulate;
    if (!kernel) {
      backend->linear(a);
      backend->wait();
      return;
    }
    for (int part = 0; part < lanes; ++part) function_of (*kernel->run)(a, Lane{part, lanes});
  }
};

/// k roundings of a sum whose terms add up to `norm` in magnitude, and of its scales and bias; and
/// for the bf16 dot product, which takes subnormals as zeros, those of every product.
inline double bound(int k, double norm) { return (k + 8) * 0x1p-24 * 1.01 * norm + k * 0x1p-120; }

}  // namespace stepladder
