// Products of 16-bit tokens with E2M1 weights whose groups of 32 share a power of two. As for
// int4, a table indexed by the low bits of 16-bit lanes gives the bf16 values.
#include "formats/kernel.h"
#ifdef SL_ISA_avx512
#include "formats/cpu/avx512.h"
#else
#include "formats/cpu/plain.h"
#endif

namespace stepladder::packing {
extern const Packing mxfp4;
}

namespace stepladder::SL_ISA {
namespace {

struct Groups {
  static constexpr bool kGrouped = true, kScaled = true;
  static constexpr int kCodeBlocks = 1;
  static constexpr int kFirst = 0, kStep = 8, kStepBytes = 128;
  static constexpr int group = 32;
  const std::byte* tiles;
  size_t tile_bytes;
  explicit Groups(const LinearArgs& a)
      : tiles(static_cast<const std::byte*>(a.weight.data)),
        tile_bytes(tiles::mxfp4_tile(a.weight.k)) {}
  /// The scales of two groups share 64 bytes ahead of the first, so that codes stay on cache lines.
  [[gnu::always_inline]] const std::byte* open_group(const std::byte*& p, int g) const {
    if (g % 2) return p - group * 16 - 32;
    p += 64;
    return p - 64;
  }
};

#ifdef SL_ISA_avx512

struct Codec : Groups, PairCodec {
  using Raw = __m512i;
  __m512i table;
  explicit Codec(const LinearArgs& a) : Groups(a) {
    alignas(64) uint16_t values[32];
    for (int i = 0; i < 32; ++i) values[i] = to_bf16(from_e2m1(static_cast<uint8_t>(i % 16)));
    table = load512(values);
  }
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p) const { raw = load512(p); }
  [[gnu::always_inline]] __m512i pair(const Raw& raw, int j) const {
    return _mm512_permutexvar_epi16(j ? _mm512_srli_epi32(raw, 4 * j) : raw, table);
  }
  [[gnu::always_inline]] __m512 scale(const std::byte* scales, int strip) const {
    const __m512i e = _mm512_cvtepu8_epi32(
        _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + strip * 16)));
    // 2^-127, of e = 0, is subnormal: the maximum puts it in place.
    return _mm512_castsi512_ps(
        _mm512_max_epu32(_mm512_slli_epi32(e, 23), _mm512_set1_epi32(0x00400000)));
  }
};

void run(const LinearArgs& a, Lane lane) {
  if (a.x.dtype == DType::f16)
    product<Codec, FloatTokens>(a, Codec(a), lane);
  else
    product<Codec, PairTokens>(a, Codec(a), lane);
}

#else

struct Codec : Groups, PlainCodec {
  explicit Codec(const LinearArgs& a) : Groups(a) {}
#ifdef __AVX2__
  // A table of 16 bytes holds the doubled values, which are whole, plus 12; the tokens are halved.
  // It is looked up for the low nibbles of all bytes, then for the high ones.
  static constexpr int kLoads = 2;
  static constexpr int kOffset = 6;
  static constexpr bool kPlaced = true;
  static constexpr int kth(int j) { return j % 4 / 2 + j % 2 * 4 + j / 4 * 2; }
  static constexpr float factor(int j) { return field_factor<8>(j % 4) / 2; }
  using Raw = I8;
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p, int v, int part) const {
    const __m256i table = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0));
    U8 word;
    load_from(word, p + v * 32);
    raw = (I8)_mm256_shuffle_epi8(table, (__m256i)((word >> (part * 4)) & 0x0f0f0f0fu));
  }
  [[gnu::always_inline]] void value(F8& w, const Raw& raw, int j) const {
    take_field<8>(w, raw, j);
  }
#else
  using Raw = U8;
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p, int v, int) const {
    load_from(raw, p + v * 32);
  }
  [[gnu::always_inline]] void value(F8& w, const Raw& raw, int j) const {
    const U8 code = raw >> (j / 2 * 4 + j % 2 * 16), magnitude = code & 7;
    // 1 is the subnormal .5; from 2 on, exponent and mantissa are shifted to their f32 places.
    const U8 half = (U8)(magnitude == 1), normal = (U8)(magnitude > 1);
    w = (F8)((code & 8) << 28 | (half & 0x3f000000u) |
             (normal & ((magnitude << 22) + 0x3f000000u)));
  }
#endif
  [[gnu::always_inline]] void scale(F8& out, const std::byte* scales, int v) const {
    // 2^-127, of e = 0, is subnormal: the maximum puts it in place.
#ifdef __AVX2__
    const __m256i e =
        _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(scales + v * 8)));
    out = (F8)_mm256_max_epu32(_mm256_slli_epi32(e, 23), _mm256_set1_epi32(0x00400000));
#else
    using B8 = uint8_t __attribute__((vector_size(8)));
    B8 e;
    load_from(e, scales + v * 8);
    const U8 wide = __builtin_convertvector(e, U8);
    out = (F8)((wide << 23) | ((U8)(wide == 0) & 0x00400000u));
#endif
  }
};

void run(const LinearArgs& a, Lane lane) { product<Codec, kA16>(a, Codec(a), lane); }

#endif

constexpr CpuKernel kRun{{}, run};

constexpr LinearKernel kKernels[] = {{"mxfp4", kA16, "cpu/" SL_ISA_NAME, &packing::mxfp4, &kRun}};

}  // namespace

extern const LinearKernels mxfp4_kernels(kKernels);

}  // namespace stepladder::SL_ISA
