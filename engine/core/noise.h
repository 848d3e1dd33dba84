// The arithmetic of the choice rule: fp32 logarithm, exponential and Gumbel noise with every
// rounding fixed. Only additions, multiplications, divisions and bit moves are used, so the host,
// every instruction set and every device get the same bits as long as nothing is contracted.
#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace stepladder {

/// Natural logarithm of a normal positive number, within 1 ulp or so.
SL_INLINE float fixed_log(float x) {
  // x = 2^e (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); s = f / (2 + f) makes the series odd.
  const int32_t b = __builtin_bit_cast(int32_t, x);
  const int32_t e = (b - 0x3f3504f3) >> 23;
  const float f = __builtin_bit_cast(float, b - e * (1 << 23)) - 1.f;
  const float s = f / (2.f + f), q = s * s;
  const float tail = s * q * (0.66666667f + q * (0.4f + q * (0.28571429f + q * 0.22222222f)));
  const float k = static_cast<float>(e);
  return k * 0.693145752f + ((s + s) + (tail + k * 1.42860677e-6f));
}

/// e^x for x <= 0, within a few ulp; 0 below -80 and for NaN.
SL_INLINE float fixed_exp(float x) {
  const float at = x > -80.f ? x : -80.f;
  const float shifted = at * 1.44269504f + 12582912.f;  // 1.5 * 2^23: the sum's low bits are n
  const float n = shifted - 12582912.f;
  const float r = (at - n * 0.693145752f) - n * 1.42860677e-6f;
  const float p =
      1.f +
      r * (1.f + r * (0.5f + r * (0.16666667f +
                                  r * (0.041666668f + r * (0.0083333338f + r * 0.0013888889f)))));
  const int32_t power = __builtin_bit_cast(int32_t, shifted) - 0x4b400000;
  const float y = __builtin_bit_cast(float, __builtin_bit_cast(int32_t, p) + power * (1 << 23));
  return x >= -80.f ? y : 0.f;
}

/// Gumbel noise of a random word: u = min((x + 0.5) 2^-32, 1 - 2^-24), -log(-log1p(-u)).
/// It lies in (-2.9, 22.9).
SL_INLINE float gumbel(uint32_t x) {
  const float raw = (static_cast<float>(x) + 0.5f) * 0x1p-32f;
  const float u = raw < 1.f - 0x1p-24f ? raw : 1.f - 0x1p-24f;
  // log1p(-u) = log(w) * -u / (w - 1) undoes the rounding of w = 1 - u.
  const float w = 1.f - u;
  const float e = w == 1.f ? u : fixed_log(w) * (u / (w - 1.f));
  return -fixed_log(e);
}

/// Orders floats as integers; both zeros are equal and NaN counts as -infinity.
SL_INLINE int32_t order_key(float x) {
  const float y = x == x ? x + 0.f : -__builtin_inff();
  const int32_t b = __builtin_bit_cast(int32_t, y);
  return b ^ ((b >> 31) & 0x7fffffff);
}
/// The float of an order key.
SL_INLINE float from_order_key(int32_t key) {
  return __builtin_bit_cast(float, key ^ ((key >> 31) & 0x7fffffff));
}

/// The share of a token in a nucleus, e^(value - top) in units of 2^-30: an integer, so that sums
/// of it do not depend on the order.
SL_INLINE int32_t nucleus_weight(float value, float top) {
  return static_cast<int32_t>(fixed_exp(value == top ? 0.f : value - top) * 0x1p30f);
}

/// How many units of `total` reach a share p of it: at least 1 and at most all.
SL_INLINE int64_t nucleus_need(float p, int64_t total) {
  const double want = static_cast<double>(p) * static_cast<double>(total);
  int64_t need = want > 0 ? static_cast<int64_t>(want) : 0;
  if (static_cast<double>(need) < want) ++need;
  return need < 1 ? 1 : need > total ? total : need;
}

/// Temperatures below this are greedy: logits divided by less leave the range of fp32.
constexpr float kLeastTemperature = 1e-5f;

/// The scaled value from which min_p keeps tokens: those at least min_p times as likely as the top.
SL_INLINE float min_p_floor(float min_p, float top) {
  return top + fixed_log(min_p > 1e-30f ? (min_p < 1.f ? min_p : 1.f) : 1e-30f);
}

}  // namespace stepladder
