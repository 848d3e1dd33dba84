#include "formats/cpu/tiling.h"
#include "generated/isas.h"
#include "support/isa/nibble_kernels.h"

namespace stepladder {

#define SL_DECLARE(isa)                                                 \
  namespace isa {                                                       \
  extern const FastKernel *const nibble_channels, *const nibble_groups; \
  }
SL_EACH_ISA(SL_DECLARE)
#undef SL_DECLARE

namespace {

bool supports(const FormatDesc&, int, int k) { return k % 32 == 0; }

/// As tiles::w4_tile, with the scales of a channel where those of its one group would be.
size_t tile_bytes(const FormatDesc& d, int k) {
  return tiles::w4_tile(k, d.group ? d.group : k, DType::f32);
}
size_t packed_bytes(const FormatDesc& d, int n, int k) {
  return tiles::count(n) * tile_bytes(d, k);
}

void pack_nibbles(const WeightRows& w, std::byte* out) {
  const int group = w.desc.group ? w.desc.group : w.k, steps = group / 8;
  const size_t groups = w.k / group, group_bytes = tile_bytes(w.desc, w.k) / groups;
  tiles::each_scale(w, [&](int tile, size_t g, int lane, const float* scales, int count) {
    tiles::stream(out + (tile * groups + g) * group_bytes + lane * 4, scales, size_t(count) * 4);
  });
  tiles::each_step(w, [&](int tile, int step, int lane, const uint32_t* words, int count) {
    std::byte* at = out + (tile * groups + step / steps) * group_bytes + tiles::kChannelScales;
    tiles::put_words(at + step % steps * 128 + lane * 4, words, count, tiles::even_then_odd);
  });
}

constexpr Packing kPacking{supports, packed_bytes, pack_nibbles};

}  // namespace

const LinearKernel* nibble_kernel(const std::string& isa, bool grouped) {
#define SL_KERNELS(isa)                                     \
  {"", kA8PerToken, #isa, &kPacking, isa::nibble_channels}, \
      {"", kA8PerToken, #isa, &kPacking, isa::nibble_groups},
  static const LinearKernel kAll[] = {SL_EACH_ISA(SL_KERNELS)};
#undef SL_KERNELS
  for (const LinearKernel* k = std::begin(kAll); k != std::end(kAll); k += 2)
    if (k->family == isa) return k + grouped;
  return nullptr;
}

}  // namespace stepladder
