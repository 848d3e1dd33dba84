// int8 weights with one scale per output row, multiplied with int8 activations per token.
#include <cstring>

#include "formats/int8_rows.h"
#include "formats/tiles.h"
#include "formats/w8a8/layout.h"

namespace stepladder {
namespace {

bool recognises(const Checkpoint& c, const std::string& prefix) {
  return recognises_int8(c, prefix, Act::a8);
}
CanonicalWeight read(const Checkpoint& c, const std::string& prefix, int n, int k) {
  return read_int8("w8a8", c, prefix, n, k);
}
CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  return cast_int8("w8a8", values, n, k, group);
}

constexpr Act kActs[] = {Act::a8};

}  // namespace

namespace format {
extern const WeightFormat w8a8{"w8a8", kActs, recognises, read, cast};
}

namespace w8a8 {

bool supports(const FormatDesc&, int, int k) { return k % 4 == 0 && k <= tiles::kMaxK; }

size_t packed_bytes(const FormatDesc&, int n, int k) { return tiles::count(n) * tiles::w8_tile(k); }

void pack(const CanonicalWeight& w, std::byte* out) {
  std::memset(out, 0, packed_bytes(w.desc, w.n, w.k));
  for (int n = 0; n < w.n; ++n) {
    std::byte* tile = out + size_t(n / tiles::kRows) * tiles::w8_tile(w.k);
    const int r = n % tiles::kRows;
    std::memcpy(tile + r * 4, &w.scales[n], 4);
    const int8_t* row = w.codes.data() + size_t(n) * w.k;
    for (int k = 0; k < w.k; ++k)
      tile[tiles::kChannelScales + size_t(k / 4) * 128 + r * 4 + k % 4] =
          static_cast<std::byte>(row[k] + 128);
  }
}

}  // namespace w8a8
}  // namespace stepladder
