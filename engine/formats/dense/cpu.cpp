// Products with bf16 and f16 weights. On AVX-512, bf16 with bf16 runs on the bf16 dot product; a
// pair of which one side is f16 is widened to f32.
#include "formats/kernel.h"
#ifdef SL_ISA_avx512
#include "formats/cpu/avx512.h"
#else
#include "formats/cpu/plain.h"
#endif

namespace stepladder::packing {
extern const Packing dense;
}

namespace stepladder::SL_ISA {
namespace {

struct Dense {
  static constexpr bool kGrouped = false, kScaled = false;
  static constexpr int kCodeBlocks = 2;
  static constexpr int kFirst = 0, kStep = 2, kStepBytes = 128;
  const std::byte* tiles;
  size_t tile_bytes;
  explicit Dense(const LinearArgs& a)
      : tiles(static_cast<const std::byte*>(a.weight.data)),
        tile_bytes(tiles::dense_tile(a.weight.k)) {}
};

#ifdef SL_ISA_avx512

struct Bf16 : Dense, PairCodec {
  using Dense::Dense;
  using Raw = __m512i;
  void load(Raw& raw, const std::byte* p) const { raw = load512(p); }
  __m512i pair(const Raw& raw, int) const { return raw; }
};
struct F16 : Dense {
  using Dense::Dense;
  using Raw = __m512i;
  void load(Raw& raw, const std::byte* p) const { raw = load512(p); }
  __m512i pair(const Raw& raw, int) const { return raw; }
  static __m512 even(__m512i w) { return _mm512_cvtph_ps(_mm512_castsi512_si256(w)); }
  static __m512 odd(__m512i w) { return _mm512_cvtph_ps(_mm512_extracti64x4_epi64(w, 1)); }
};

void run(const LinearArgs& a, Lane lane) {
  if (a.weight.desc.code == DType::f16) return product<F16, FloatTokens>(a, F16(a), lane);
  if (a.x.dtype == DType::f16) return product<Bf16, FloatTokens>(a, Bf16(a), lane);
  product<Bf16, PairTokens>(a, Bf16(a), lane);
}

#else

struct Bf16 : Dense, PlainCodec {
  explicit Bf16(const LinearArgs& a) : Dense(a) {}
  using Raw = U8;
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p, int v, int) const {
    load_from(raw, p + v * 32);
  }
  [[gnu::always_inline]] void value(F8& w, const Raw& raw, int j) const {
    if (j == 0)
      widen_bf16(w, raw);
    else
      w = (F8)(raw & 0xffff0000u);
  }
};
struct F16 : Dense, PlainCodec {
  explicit F16(const LinearArgs& a) : Dense(a) {}
  struct Raw {
    H8 half[2];
  };
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p, int v, int) const {
    for (int i = 0; i < 2; ++i) load_from(raw.half[i], p + (v / 2) * 64 + i * 32 + (v % 2) * 16);
  }
  [[gnu::always_inline]] void value(F8& w, const Raw& raw, int j) const {
    widen_f16(w, raw.half[j]);
  }
};

void run(const LinearArgs& a, Lane lane) {
  if (a.weight.desc.code == DType::f16)
    product<F16, kA16>(a, F16(a), lane);
  else
    product<Bf16, kA16>(a, Bf16(a), lane);
}

#endif

constexpr CpuKernel kRun{{}, run};

constexpr LinearKernel kKernels[] = {{"dense", kA16, "cpu/" SL_ISA_NAME, &packing::dense, &kRun}};

}  // namespace

extern const LinearKernels dense_kernels(kKernels);

}  // namespace stepladder::SL_ISA
