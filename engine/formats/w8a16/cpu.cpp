// Products of 16-bit tokens with int8 weights, one scale per output row. On AVX-512 a packed byte
// is sign and magnitude; the magnitude's bf16 is looked up in two tables of 128 bytes and the sign
// is OR-ed in, which is exact. The one value without a magnitude of 7 bits, -128, is stored as
// minus zero. Elsewhere a byte is the value.
#include "formats/kernel.h"
#ifdef SL_ISA_avx512
#include "formats/cpu/avx512.h"
#else
#include "formats/cpu/plain.h"
#endif

namespace stepladder::packing {
extern const Packing w8a16, w8a16_plain;
}

namespace stepladder::SL_ISA {
namespace {

#ifdef SL_ISA_avx512
constexpr int kHeader = tiles::kHeader;
#else
constexpr int kHeader = 0;
#endif

struct Int8Rows {
  static constexpr bool kGrouped = false, kScaled = true;
  static constexpr int kCodeBlocks = 2;
  static constexpr int kFirst = tiles::kChannelScales, kStep = 4, kStepBytes = 128;
  const std::byte* tiles;
  size_t tile_bytes;
  explicit Int8Rows(const LinearArgs& a)
      : tiles(static_cast<const std::byte*>(a.weight.data) + kHeader),
        tile_bytes(tiles::w8_tile(a.weight.k)) {}
};

#ifdef SL_ISA_avx512

/// The bytes of the bf16 values 0..127, low and high.
struct ByteTables {
  alignas(64) uint8_t low[128], high[128];
};
constexpr ByteTables byte_tables() {
  ByteTables t{};
  for (int m = 1; m < 128; ++m) {
    int exponent = 0;
    while (m >> (exponent + 1)) ++exponent;
    const int bits = (127 + exponent) << 7 | ((m << 7 >> exponent) & 127);
    t.low[m] = static_cast<uint8_t>(bits);
    t.high[m] = static_cast<uint8_t>(bits >> 8);
  }
  return t;
}
constexpr ByteTables kBytes = byte_tables();

template <bool HasMin>
struct Int8 : Int8Rows, PairCodec {
  struct Raw {
    __m512i low, high;
  };
  __m512i low0, low1, high0, high1;
  explicit Int8(const LinearArgs& a)
      : Int8Rows(a),
        low0(load512(kBytes.low)),
        low1(load512(kBytes.low + 64)),
        high0(load512(kBytes.high)),
        high1(load512(kBytes.high + 64)) {}

  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p) const {
    const __m512i code = load512(p);
    raw.low = _mm512_permutex2var_epi8(low0, code, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, code, high1);
    // magnitude | (code & 0x80)
    raw.high = _mm512_ternarylogic_epi64(magnitude, code, _mm512_set1_epi8(char(0x80)), 0xf8);
    if constexpr (HasMin) {
      const __mmask64 min = _mm512_cmpeq_epi8_mask(code, _mm512_set1_epi8(char(0x80)));
      raw.high = _mm512_mask_mov_epi8(raw.high, min, _mm512_set1_epi8(char(0xc3)));
    }
  }
  [[gnu::always_inline]] __m512i pair(const Raw& raw, int j) const {
    return j ? _mm512_unpackhi_epi8(raw.low, raw.high) : _mm512_unpacklo_epi8(raw.low, raw.high);
  }
  [[gnu::always_inline]] __m512 scale(const std::byte* tile, int strip) const {
    return _mm512_loadu_ps(tile + strip * 64);
  }
};

template <class X>
void run_with(const LinearArgs& a, Lane lane) {
  if (*static_cast<const uint8_t*>(a.weight.data))
    product<Int8<true>, X>(a, Int8<true>(a), lane);
  else
    product<Int8<false>, X>(a, Int8<false>(a), lane);
}

void run(const LinearArgs& a, Lane lane) {
  if (a.x.dtype == DType::f16)
    run_with<FloatTokens>(a, lane);
  else
    run_with<PairTokens>(a, lane);
}

#else

struct Int8 : Int8Rows, PlainCodec {
  explicit Int8(const LinearArgs& a) : Int8Rows(a) {}
  using Raw = I8;
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p, int v, int) const {
    load_from(raw, p + v * 32);
  }
  [[gnu::always_inline]] void value(F8& w, const Raw& raw, int j) const {
    w = __builtin_convertvector((raw << (24 - j * 8)) >> 24, F8);
  }
  [[gnu::always_inline]] void scale(F8& out, const std::byte* tile, int v) const {
    load_from(out, tile + v * 32);
  }
};

void run(const LinearArgs& a, Lane lane) { product<Int8, kA16>(a, Int8(a), lane); }

#endif

constexpr CpuKernel kRun{{}, run};

#ifdef SL_ISA_avx512
constexpr const Packing& kPacking = packing::w8a16;
#else
constexpr const Packing& kPacking = packing::w8a16_plain;
#endif
constexpr LinearKernel kKernels[] = {{"w8a16", kA16, "cpu/" SL_ISA_NAME, &kPacking, &kRun}};

}  // namespace

extern const LinearKernels w8a16_kernels(kKernels);

}  // namespace stepladder::SL_ISA
