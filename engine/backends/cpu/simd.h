// What the kernels of one instruction set share: loops over 16-bit values, sums with a fixed order
// and 2^x. Everything is force-inlined with internal linkage. The loops are written so that the
// compiler vectorizes them; no result depends on how wide it does.
#pragma once

#include "backends/cpu/kernels.h"
#if defined(SL_ISA_avx512)
#include <immintrin.h>
#endif

namespace stepladder {

constexpr int kLanes = 16;  // partial sums of every reduction over columns

template <class T>
SL_INLINE T* data_of(const Tensor& t) {
  return static_cast<T*>(t.data);
}
template <class T>
SL_INLINE T* row_of(const Tensor& t, int64_t row) {
  return static_cast<T*>(t.data) + row * t.cols;
}

SL_INLINE float bits_as_float(uint32_t b) { return __builtin_bit_cast(float, b); }
SL_INLINE uint32_t float_as_bits(float x) { return __builtin_bit_cast(uint32_t, x); }

/// f16 -> f32 without branches; equals from_f16 for every value.
SL_INLINE float widen_f16(uint16_t x) {
  const uint32_t rest = x & 0x7fffu, shifted = rest << 13;
  const uint32_t finite = float_as_bits(bits_as_float(shifted) * 0x1p112f);
  return bits_as_float((rest >= 0x7c00u ? shifted | 0x7f800000u : finite) |
                       static_cast<uint32_t>(x & 0x8000u) << 16);
}

/// f32 -> f16 without branches; equals to_f16 for every value.
SL_INLINE uint16_t narrow_f16(float x) {
  const uint32_t b = float_as_bits(x), a = b & 0x7fffffffu;
  const uint32_t normal = (a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13;
  // Adding 0.5 aligns a subnormal result so that the float unit rounds it.
  const uint32_t small = float_as_bits(bits_as_float(a) + 0.5f) - 0x3f000000u;
  uint32_t r = a >= 0x38800000u ? normal : small;
  r = a >= 0x477ff000u ? 0x7c00u : r;
  r = a > 0x7f800000u ? 0x7e00u : r;
  return static_cast<uint16_t>(r | ((b >> 16) & 0x8000u));
}

/// f32 -> bf16 without branches; equals to_bf16 for every value.
SL_INLINE uint16_t narrow_bf16(float x) {
  const uint32_t b = float_as_bits(x);
  const uint32_t rounded = (b + 0x7fffu + ((b >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((b & 0x7fffffffu) > 0x7f800000u ? (b >> 16) | 0x40u : rounded);
}

/// n 16-bit values of type t -> f32.
SL_INLINE void widen(DType t, const uint16_t* from, float* to, int n) {
  if (t == DType::bf16)
    for (int i = 0; i < n; ++i) to[i] = from_bf16(from[i]);
  else
    for (int i = 0; i < n; ++i) to[i] = widen_f16(from[i]);
}
SL_INLINE void narrow(DType t, const float* from, uint16_t* to, int n) {
  if (t == DType::bf16)
    for (int i = 0; i < n; ++i) to[i] = narrow_bf16(from[i]);
  else
    for (int i = 0; i < n; ++i) to[i] = narrow_f16(from[i]);
}

/// The sum of 16 partial sums, in one order everywhere.
SL_INLINE float sum_lanes(const float* lane) {
  float s[8];
  for (int i = 0; i < 8; ++i) s[i] = lane[i] + lane[i + 8];
  for (int i = 0; i < 4; ++i) s[i] = s[i] + s[i + 4];
  return (s[0] + s[2]) + (s[1] + s[3]);
}

/// Sum of squares: column c goes to partial sum c % 16, in column order.
SL_INLINE float sum_of_squares(const float* x, int n) {
  float lane[kLanes] = {};
  int c = 0;
  for (; c + kLanes <= n; c += kLanes)
    for (int i = 0; i < kLanes; ++i) lane[i] = lane[i] + x[c + i] * x[c + i];
  for (int i = 0; c + i < n; ++i) lane[i] = lane[i] + x[c + i] * x[c + i];
  return sum_lanes(lane);
}

/// 1 / sqrt(x), and NaN for a sum that overflowed: 0 in its place would pass for a row of zeros.
SL_INLINE float inverse_root(float x) {
  return x < __builtin_inff() ? 1.f / __builtin_sqrtf(x) : __builtin_nanf("");
}

// 2^f on [-0.5, 0.5] by a polynomial of degree 6 whose constant is exactly 1, so that 2^0 is 1 and
// a step that leaves the maximum as it is changes no bit. With rounding |relative error| < 2^-23.
constexpr float kExp2[7] = {
    1.f, 0.693147182f, 0.240226477f, 0.0555033237f, 0.00961843692f, 0.0013398875f, 0.00015353359f};

/// 2^x for any x, clamped to [-125, 127]; a multiplication and an addition at each step.
SL_INLINE float exp2_plain(float x) {
  constexpr float kRound = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer
  x = x < -125.f ? -125.f : x;
  x = x > 127.f ? 127.f : x;
  const float shifted = x + kRound;
  const float f = x - (shifted - kRound);
  float p = kExp2[6];
  for (int i = 5; i >= 0; --i) p = p * f + kExp2[i];
  const uint32_t exponent = float_as_bits(shifted) - float_as_bits(kRound);
  return bits_as_float(float_as_bits(p) + (exponent << 23));
}

#if defined(SL_ISA_avx512)
/// Lanes c .. c+15 that lie below n.
SL_INLINE __mmask16 lanes_below(int n, int c) {
  return n - c >= kLanes ? static_cast<__mmask16>(0xffff)
                         : static_cast<__mmask16>((1u << (n - c)) - 1u);
}

/// 16 values of type t -> f32; lanes outside the mask read nothing and are 0.
SL_INLINE __m512 widen_16(DType t, const uint16_t* from, __mmask16 mask) {
  const __m256i x = _mm256_maskz_loadu_epi16(mask, from);
  return t == DType::bf16 ? _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16))
                          : _mm512_cvtph_ps(x);
}

/// f32 -> 16 values of type t. Equals narrow() but that bf16 subnormals become 0 and that a NaN may
/// carry another payload.
SL_INLINE __m256i narrow_16(DType t, __m512 x) {
  return t == DType::bf16 ? (__m256i)_mm512_cvtneps_pbh(x)
                          : _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}

/// 2^x of 16 values, any x; results below the normal range become subnormal and then 0.
SL_INLINE __m512 exp2_16(__m512 x) {
  const __m512 r = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(x, r);
  __m512 p = _mm512_set1_ps(kExp2[6]);
  for (int i = 5; i >= 0; --i) p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(kExp2[i]));
  return _mm512_scalef_ps(p, r);
}
#endif

}  // namespace stepladder
