// int8 weights with one scale per output row or group, multiplied with 16-bit activations.
#include <cstring>

#include "formats/cpu/tiling.h"
#include "formats/int8_rows.h"
#include "formats/kernel.h"

namespace stepladder {
namespace {

using Int8 = Int8Format<Act::a16>;
constexpr ActMode kActs[] = {kA16};

}  // namespace

namespace format {
extern const WeightFormat w8a16{.name = Int8::kName,
                                .acts = kActs,
                                .recognises = Int8::recognises,
                                .open = Int8::open,
                                .cast = Int8::cast,
                                .alias = "int8",
                                .draft_tokens = 8,  // agrees 97 times in 100, at half the bytes
                                .tensors = kInt8Tensors};
}

namespace {

// Groups run on the generic path.
bool supports(const FormatDesc& d, int, int k) {
  return d.group == 0 && k % 4 == 0 && k <= tiles::kMaxK;
}

size_t packed_bytes(const FormatDesc&, int n, int k) {
  return tiles::kHeader + tiles::count(n) * tiles::w8_tile(k);
}

void pack(const WeightRows& w, std::byte* out) {
  std::byte* const tiles = out + tiles::kHeader;
  pack_w8_scales(w, tiles);
  bool has_min = false;
  tiles::each_step(w, [&](int tile, int step, int lane, const uint32_t* words, int count) {
    std::byte* at = tiles + tile * tiles::w8_tile(w.k) + tiles::kChannelScales + size_t(step) * 128;
    for (int i = 0; i < count; ++i) {
      uint32_t signs = 0;  // sign and magnitude; -128 has none and becomes 0x80
      for (int b = 0; b < 32; b += 8) {
        const auto x = static_cast<int8_t>(words[i] >> b);
        signs |= static_cast<uint32_t>(x < 0 ? 0x80 | (-x & 0x7f) : x) << b;
        has_min |= x == -128;
      }
      // Four rows share 16 bytes, whose halves hold the first and the second pair of k.
      const int r = lane + i;
      const uint16_t pairs[] = {static_cast<uint16_t>(signs), static_cast<uint16_t>(signs >> 16)};
      std::memcpy(at + r / 4 * 16 + r % 4 * 2, &pairs[0], 2);
      std::memcpy(at + r / 4 * 16 + 8 + r % 4 * 2, &pairs[1], 2);
    }
  });
  // Other threads pack other rows.
  if (has_min) __atomic_store_n(reinterpret_cast<uint8_t*>(out), uint8_t{1}, __ATOMIC_RELAXED);
}

size_t plain_bytes(const FormatDesc&, int n, int k) { return w8_bytes(n, k); }

void pack_plain(const WeightRows& w, std::byte* out) { pack_w8(w, 0, out); }

}  // namespace

namespace packing {
extern const Packing w8a16{supports, packed_bytes, pack};
extern const Packing w8a16_plain{supports, plain_bytes, pack_plain};
}  // namespace packing

}  // namespace stepladder
