// Products with int4 weights in groups, of 16-bit tokens and of int8 tokens over the same bytes.
// For 16-bit tokens a table of the 16 values as bf16 is indexed by the low bits of 16-bit lanes, so
// a word of 8 nibbles gives four operands by shifts alone; for int8 tokens masks give two operands
// of bytes.
#include "formats/kernel.h"
#ifdef SL_ISA_avx512
#include "formats/cpu/avx512_a8.h"
#else
#include "formats/cpu/plain.h"
#endif

namespace stepladder::packing {
extern const Packing w4a16;
}

namespace stepladder::SL_ISA {
namespace {

struct Groups {
  static constexpr bool kGrouped = true, kScaled = true;
  static constexpr int kCodeBlocks = 2;
  static constexpr int kFirst = 0, kStep = 8, kStepBytes = 128;
  static constexpr int kOffset = 8;
  const std::byte* tiles;
  size_t tile_bytes;
  int group;
  DType scale_type;
  size_t scale_bytes;
  explicit Groups(const LinearArgs& a)
      : tiles(static_cast<const std::byte*>(a.weight.data)),
        tile_bytes(tiles::w4_tile(a.weight.k, a.weight.desc.group, a.weight.desc.scale)),
        group(a.weight.desc.group),
        scale_type(a.weight.desc.scale),
        scale_bytes(tiles::w4_scales(scale_type)) {}
  /// Moves `p` past the scales of a group and says where they are.
  [[gnu::always_inline]] const std::byte* open_group(const std::byte*& p, int) const {
    const std::byte* scales = p;
    p += scale_bytes;
    return scales;
  }
};

#ifdef SL_ISA_avx512

struct Codec : Groups, PairCodec {
  using Raw = __m512i;
  __m512i table;  // bf16 of q - 8, twice: bit 4 of an index belongs to the next nibble
  explicit Codec(const LinearArgs& a) : Groups(a) {
    alignas(64) uint16_t values[32];
    for (int i = 0; i < 32; ++i) values[i] = to_bf16(static_cast<float>(i % 16 - 8));
    table = load512(values);
  }
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p) const { raw = load512(p); }
  [[gnu::always_inline]] __m512i pair(const Raw& raw, int j) const {
    return _mm512_permutexvar_epi16(j ? _mm512_srli_epi32(raw, 4 * j) : raw, table);
  }
  [[gnu::always_inline]] __m512i bytes(__m512i raw, int j) const {
    return _mm512_and_si512(j ? _mm512_srli_epi32(raw, 4) : raw, _mm512_set1_epi8(15));
  }
  [[gnu::always_inline]] __m512 scale(const std::byte* scales, int strip) const {
    if (scale_type == DType::f32) return _mm512_loadu_ps(scales + strip * 64);
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales + strip * 32));
    if (scale_type == DType::f16) return _mm512_cvtph_ps(v);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(v), 16));
  }
};

void run_a16(const LinearArgs& a, Lane lane) {
  if (a.x.dtype == DType::f16)
    product<Codec, FloatTokens>(a, Codec(a), lane);
  else
    product<Codec, PairTokens>(a, Codec(a), lane);
}
void run_a8(const LinearArgs& a, Lane lane) {
  product_a8<Codec, NibbleTokens, Per::group>(a, Codec(a), lane);
}

#else

struct Codec : Groups, PlainCodec {
  using Groups::kOffset;
  static constexpr bool kPlaced = true;
  explicit Codec(const LinearArgs& a) : Groups(a) {}
  /// The place in a word of k j of a step.
  static constexpr int place(int j) { return j / 2 + j % 2 * 4; }
  static constexpr float factor(int j) { return field_factor<4>(place(j)); }
  using Raw = I8;
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p, int v, int) const {
    load_from(raw, p + v * 32);
  }
  [[gnu::always_inline]] void value(F8& w, const Raw& raw, int j) const {
    take_field<4>(w, raw, place(j));
  }
  [[gnu::always_inline]] void scale(F8& out, const std::byte* scales, int v) const {
    if (scale_type == DType::f32) return load_from(out, scales + v * 32);
    H8 h;
    load_from(h, scales + v * 16);
    if (scale_type == DType::f16)
      widen_f16(out, h);
    else
      widen_bf16(out, __builtin_convertvector(h, U8));
  }
};

void run_a16(const LinearArgs& a, Lane lane) { product<Codec, kA16>(a, Codec(a), lane); }
void run_a8(const LinearArgs& a, Lane lane) { product<Codec, kA8PerGroup>(a, Codec(a), lane); }

#endif

constexpr CpuKernel kRunA16{{}, run_a16}, kRunA8{{}, run_a8};

constexpr LinearKernel kKernels[] = {
    {"w4a16", kA16, "cpu/" SL_ISA_NAME, &packing::w4a16, &kRunA16},
    {"w4a16", kA8PerGroup, "cpu/" SL_ISA_NAME, &packing::w4a16, &kRunA8}};

}  // namespace

extern const LinearKernels w4a16_kernels(kKernels);

}  // namespace stepladder::SL_ISA
