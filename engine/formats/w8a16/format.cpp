// int8 weights with one scale per output row, multiplied with 16-bit activations.
#include <cstring>

#include "formats/int8_rows.h"
#include "formats/tiles.h"
#include "formats/w8a16/layout.h"

namespace stepladder {
namespace {

bool recognises(const Checkpoint& c, const std::string& prefix) {
  return recognises_int8(c, prefix, Act::a16);
}
CanonicalWeight read(const Checkpoint& c, const std::string& prefix, int n, int k) {
  return read_int8("w8a16", c, prefix, n, k);
}
CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  return cast_int8("w8a16", values, n, k, group);
}

constexpr Act kActs[] = {Act::a16};

}  // namespace

namespace format {
extern const WeightFormat w8a16{"w8a16", kActs, recognises, read, cast, "int8"};
}

namespace w8a16 {

bool supports(const FormatDesc&, int, int k) { return k % 4 == 0 && k <= tiles::kMaxK; }

size_t packed_bytes(const FormatDesc&, int n, int k) {
  return tiles::kHeader + tiles::count(n) * tiles::w8_tile(k);
}

void pack(const CanonicalWeight& w, std::byte* out) {
  std::memset(out, 0, packed_bytes(w.desc, w.n, w.k));
  bool has_min = false;
  for (int n = 0; n < w.n; ++n) {
    std::byte* tile = out + tiles::kHeader + size_t(n / tiles::kRows) * tiles::w8_tile(w.k);
    const int r = n % tiles::kRows, strip = r / tiles::kStrip, lane = r % tiles::kStrip;
    std::memcpy(tile + r * 4, &w.scales[n], 4);
    const int8_t* row = w.codes.data() + size_t(n) * w.k;
    for (int k = 0; k < w.k; ++k) {
      // Four rows share 16 bytes, whose halves hold the first and the second pair of k.
      const int at = lane / 4 * 16 + k % 4 / 2 * 8 + lane % 4 * 2 + k % 2;
      const int code = row[k] < 0 ? 0x80 | (-row[k] & 0x7f) : row[k];
      tile[tiles::kChannelScales + size_t(k / 4) * 128 + strip * 64 + at] =
          static_cast<std::byte>(code);
      has_min |= row[k] == -128;
    }
  }
  out[0] = static_cast<std::byte>(has_min);
}

size_t plain_bytes(const FormatDesc&, int n, int k) { return w8_bytes(n, k); }

void pack_plain(const CanonicalWeight& w, std::byte* out) { pack_w8(w, 0, out); }

}  // namespace w8a16
}  // namespace stepladder
