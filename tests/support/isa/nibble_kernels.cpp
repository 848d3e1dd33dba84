// Compiled once per instruction set, like a format's cpu.cpp.
#ifdef SL_ISA_avx512
#include "formats/cpu/avx512_a8.h"
#else
#include "formats/cpu/plain.h"
#endif

namespace stepladder::SL_ISA {
namespace {

template <bool Grouped>
struct Nibbles {
  static constexpr bool kGrouped = Grouped, kScaled = true;
  static constexpr int kCodeBlocks = 2;
  static constexpr int kFirst = Grouped ? 0 : tiles::kChannelScales, kStep = 8, kStepBytes = 128;
  static constexpr int kOffset = 8;
  const std::byte* tiles;
  size_t tile_bytes;
  int group;
  explicit Nibbles(const LinearArgs& a)
      : tiles(static_cast<const std::byte*>(a.weight.data)),
        tile_bytes(
            tiles::w4_tile(a.weight.k, Grouped ? a.weight.desc.group : a.weight.k, DType::f32)),
        group(a.weight.desc.group) {}
  [[gnu::always_inline]] const std::byte* open_group(const std::byte*& p, int) const {
    p += tiles::kChannelScales;
    return p - tiles::kChannelScales;
  }
};

#ifdef SL_ISA_avx512

template <bool Grouped>
struct Codec : Nibbles<Grouped> {
  explicit Codec(const LinearArgs& a) : Nibbles<Grouped>(a) {}
  [[gnu::always_inline]] __m512i bytes(__m512i raw, int j) const {
    return _mm512_and_si512(j ? _mm512_srli_epi32(raw, 4) : raw, _mm512_set1_epi8(15));
  }
  [[gnu::always_inline]] __m512 scale(const std::byte* scales, int strip) const {
    return _mm512_loadu_ps(scales + strip * 64);
  }
};
template <bool Grouped>
void run(const LinearArgs& a, Lane lane) {
  product_a8<Codec<Grouped>, NibbleTokens, Per::token>(a, Codec<Grouped>(a), lane);
}

#else

template <bool Grouped>
struct Codec : Nibbles<Grouped>, PlainCodec {
  using Nibbles<Grouped>::kOffset;
  static constexpr bool kPlaced = true;
  explicit Codec(const LinearArgs& a) : Nibbles<Grouped>(a) {}
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
    load_from(out, scales + v * 32);
  }
};
template <bool Grouped>
void run(const LinearArgs& a, Lane lane) {
  product<Codec<Grouped>, kA8PerToken>(a, Codec<Grouped>(a), lane);
}

#endif

constexpr CpuKernel kChannels{{}, run<false>}, kGroups{{}, run<true>};

}  // namespace

extern const FastKernel* const nibble_channels;
extern const FastKernel* const nibble_groups;
const FastKernel* const nibble_channels = &kChannels;
const FastKernel* const nibble_groups = &kGroups;

}  // namespace stepladder::SL_ISA
