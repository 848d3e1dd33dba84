// int8 weights with one scale per output row, multiplied with int8 activations per token.
#include "formats/int8_rows.h"
#include "formats/tiles.h"
#include "formats/w8a8/layout.h"

namespace stepladder {
namespace {

bool recognises(const Checkpoint& c, const std::string& prefix) {
  return recognises_int8(c, prefix, Act::a8);
}
std::unique_ptr<WeightReader> open(const Checkpoint& c, const std::string& prefix, int n, int k) {
  return open_int8("w8a8", c, prefix, n, k);
}
CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  return cast_int8("w8a8", values, n, k, group);
}

constexpr ActMode kActs[] = {kA8PerToken};

}  // namespace

namespace format {
extern const WeightFormat w8a8{"w8a8", kActs, recognises, open, cast};
}

namespace w8a8 {

bool supports(const FormatDesc&, int, int k) { return k % 4 == 0 && k <= tiles::kMaxK; }

size_t packed_bytes(const FormatDesc&, int n, int k) { return w8_bytes(n, k); }

void pack(const WeightRows& w, std::byte* out) { pack_w8(w, 128, out); }

}  // namespace w8a8
}  // namespace stepladder
