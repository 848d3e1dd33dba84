// Number types and their conversions. The conversions are force-inlined with internal linkage so
// that a translation unit compiled for one instruction set never lends its copy to another; a
// device's compiler makes them for both sides.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#ifdef __CUDACC__
#define SL_INLINE __host__ __device__ [[gnu::always_inline]] static inline
#else
#define SL_INLINE [[gnu::always_inline]] static inline
#endif

namespace stepladder {

enum class DType : uint8_t { f32, bf16, f16, i64, i32, u8, i8, i4, u4, e2m1, e8m0 };

/// Bits of one element.
constexpr int bits(DType t) {
  switch (t) {
    case DType::i64:
      return 64;
    case DType::f32:
    case DType::i32:
      return 32;
    case DType::bf16:
    case DType::f16:
      return 16;
    case DType::u8:
    case DType::i8:
    case DType::e8m0:
      return 8;
    case DType::i4:
    case DType::u4:
    case DType::e2m1:
      return 4;
  }
  return 0;
}

constexpr std::string_view name(DType t) {
  constexpr std::string_view kNames[] = {"f32", "bf16", "f16", "i64",  "i32", "u8",
                                         "i8",  "i4",   "u4",  "e2m1", "e8m0"};
  return kNames[static_cast<int>(t)];
}

/// bf16 -> f32, exact.
SL_INLINE float from_bf16(uint16_t x) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16);
}

/// f32 -> bf16, round to nearest even; NaN stays NaN.
SL_INLINE uint16_t to_bf16(float x) {
  const uint32_t b = __builtin_bit_cast(uint32_t, x);
  if ((b & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((b >> 16) | 0x40u);
  return static_cast<uint16_t>((b + 0x7fffu + ((b >> 16) & 1u)) >> 16);
}

/// f16 -> f32, exact.
SL_INLINE float from_f16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16, rest = x & 0x7fffu;
  if (rest >= 0x7c00u)
    return __builtin_bit_cast(float, sign | 0x7f800000u | ((rest & 0x3ffu) << 13));
  if (rest >= 0x400u) return __builtin_bit_cast(float, sign | ((rest << 13) + 0x38000000u));
  const float magnitude = static_cast<float>(rest) * 0x1p-24f;
  return __builtin_bit_cast(float, sign | __builtin_bit_cast(uint32_t, magnitude));
}

/// f32 -> f16, round to nearest even; overflow becomes infinity, NaN stays NaN.
SL_INLINE uint16_t to_f16(float x) {
  const uint32_t b = __builtin_bit_cast(uint32_t, x), sign = (b >> 16) & 0x8000u,
                 a = b & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (a >= 0x38800000u)
    return static_cast<uint16_t>(sign | ((a + 0xfffu + ((a >> 13) & 1u) - 0x38000000u) >> 13));
  // Subnormal: adding 2^-1 * 2^-13 aligns the value so that the float unit rounds it for us.
  const float aligned = __builtin_bit_cast(float, a) + 0.5f;
  return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, aligned) - 0x3f000000u));
}

/// 16-bit activation type -> f32.
SL_INLINE float from_16(DType t, uint16_t x) {
  return t == DType::bf16 ? from_bf16(x) : from_f16(x);
}
SL_INLINE uint16_t to_16(DType t, float x) { return t == DType::bf16 ? to_bf16(x) : to_f16(x); }

/// E8M0 scale 2^(e-127); e = 255 is NaN.
SL_INLINE float from_e8m0(uint8_t e) {
  return __builtin_bit_cast(float, e == 0     ? 0x00400000u
                                   : e == 255 ? 0x7fc00000u
                                              : static_cast<uint32_t>(e) << 23);
}

/// The E8M0 code of a power of two from 2^-127 to 2^127.
SL_INLINE uint8_t to_e8m0(float x) {
  return static_cast<uint8_t>(__builtin_bit_cast(uint32_t, x) >> 23);  // 0 of the subnormal 2^-127
}

/// E2M1: [sign:1][exponent:2][mantissa:1], codes 0..7 -> 0 .5 1 1.5 2 3 4 6.
SL_INLINE float from_e2m1(uint8_t code) {
  const float magnitude[8] = {0.f, .5f, 1.f, 1.5f, 2.f, 3.f, 4.f, 6.f};
  return code & 8 ? -magnitude[code & 7] : magnitude[code & 7];
}

}  // namespace stepladder
