// Products of int8 tokens with int8 weights: exact int32 sums, then the token's scale and the
// output row's.
#include "formats/kernel.h"
#ifdef SL_ISA_avx512
#include "formats/cpu/avx512_a8.h"
#else
#include "formats/cpu/plain.h"
#endif

namespace stepladder::packing {
extern const Packing w8a8;
}

namespace stepladder::SL_ISA {
namespace {

struct Bytes {
  static constexpr bool kGrouped = false, kScaled = true;
  static constexpr int kCodeBlocks = 2;
  static constexpr int kFirst = tiles::kChannelScales, kStep = 4, kStepBytes = 128;
  static constexpr int kOffset = 128;
  const std::byte* tiles;
  size_t tile_bytes;
  explicit Bytes(const LinearArgs& a)
      : tiles(static_cast<const std::byte*>(a.weight.data)),
        tile_bytes(tiles::w8_tile(a.weight.k)) {}
};

#ifdef SL_ISA_avx512

struct Codec : Bytes {
  using Bytes::Bytes;
  [[gnu::always_inline]] __m512i bytes(__m512i raw, int) const { return raw; }
  [[gnu::always_inline]] __m512 scale(const std::byte* tile, int strip) const {
    return _mm512_loadu_ps(tile + strip * 64);
  }
};

void run(const LinearArgs& a, Lane lane) {
  product_a8<Codec, ByteTokens, Per::token>(a, Codec(a), lane);
}

#else

struct Codec : Bytes, PlainCodec {
  using Bytes::kOffset;
  static constexpr bool kPlaced = true;
  static constexpr float factor(int j) { return field_factor<8>(j); }
  explicit Codec(const LinearArgs& a) : Bytes(a) {}
  using Raw = I8;
  [[gnu::always_inline]] void load(Raw& raw, const std::byte* p, int v, int) const {
    load_from(raw, p + v * 32);
  }
  [[gnu::always_inline]] void value(F8& w, const Raw& raw, int j) const {
    take_field<8>(w, raw, j);
  }
  [[gnu::always_inline]] void scale(F8& out, const std::byte* tile, int v) const {
    load_from(out, tile + v * 32);
  }
};

void run(const LinearArgs& a, Lane lane) { product<Codec, kA8PerToken>(a, Codec(a), lane); }

#endif

constexpr CpuKernel kRun{{}, run};

constexpr LinearKernel kKernels[] = {
    {"w8a8", kA8PerToken, "cpu/" SL_ISA_NAME, &packing::w8a8, &kRun}};

}  // namespace

extern const LinearKernels w8a8_kernels(kKernels);

}  // namespace stepladder::SL_ISA
