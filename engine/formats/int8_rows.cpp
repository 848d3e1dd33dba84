#include "formats/int8_rows.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "formats/tiles.h"

namespace stepladder {
namespace {

bool is_packed(const Storage& s) { return s.packing == "pack-quantized"; }

}  // namespace

bool recognises_int8(const Checkpoint& c, const std::string& prefix, Act act) {
  const Storage s = storage_of(c, prefix);
  return s.method == Storage::Method::compressed && s.integer && s.bits == 8 && s.group == 0 &&
         s.act == act &&
         (s.packing == "int-quantized" || s.packing == "naive-quantized" || is_packed(s));
}

CanonicalWeight read_int8(const char* name, const Checkpoint& c, const std::string& prefix, int n,
                          int k) {
  const Storage storage = storage_of(c, prefix);
  CanonicalWeight w{{name, DType::i8, 0, true, DType::f32}, n, k};
  w.codes.resize(size_t(n) * k);
  if (is_packed(storage)) {
    constexpr const char* kForeign[] = {"weight", "qweight", "qzeros", "scales"};
    check_absent(c, prefix, kForeign, storage);
    const int words = (k + 3) / 4;
    const int64_t shape[] = {n, words};
    const auto packed = c.load<uint32_t>(prefix + ".weight_packed", "I32", shape);
    for (int r = 0; r < n; ++r)
      for (int i = 0; i < k; ++i)
        w.codes[size_t(r) * k + i] = static_cast<int8_t>(
            static_cast<int>(packed[size_t(r) * words + i / 4] >> (i % 4 * 8) & 255) - 128);
    check_trivial_order(c, prefix + ".weight_g_idx", k, k, false);
  } else {
    constexpr const char* kForeign[] = {"weight_packed", "qweight", "qzeros", "scales"};
    check_absent(c, prefix, kForeign, storage);
    const int64_t shape[] = {n, k};
    w.codes = c.load<int8_t>(prefix + ".weight", "I8", shape);
  }
  check_compressed_companions(c, prefix, n, k);
  const std::string scales = prefix + ".weight_scale";
  w.scales = load_channel_scales(c, scales, n, w.desc.scale);
  check_scales(c, scales, w.scales, false);
  return w;
}

CanonicalWeight cast_int8(const char* name, std::span<const float> values, int n, int k,
                          int group) {
  check(group == 0 || group == k, Code::invalid_argument, "cast to ", name,
        ": scales are per output row, but group ", group, " was asked for");
  CanonicalWeight w{{name, DType::i8, 0, true, DType::f32}, n, k};
  w.codes.resize(size_t(n) * k);
  w.scales.resize(n);
  for (int r = 0; r < n; ++r) {
    const float* row = values.data() + size_t(r) * k;
    float amax = 0;
    for (int i = 0; i < k; ++i) {
      check(std::isfinite(row[i]), Code::invalid_argument, "cast to ", name, ": value [", r, ", ",
            i, "] is not finite");
      amax = std::max(amax, std::fabs(row[i]));
    }
    const float scale = amax == 0 ? 1.0f : std::max(amax / 127.0f, FLT_MIN);
    w.scales[r] = scale;
    for (int i = 0; i < k; ++i)
      w.codes[size_t(r) * k + i] =
          static_cast<int8_t>(std::clamp(std::nearbyint(row[i] / scale), -127.0f, 127.0f));
  }
  return w;
}

size_t w8_bytes(int n, int k) { return tiles::count(n) * tiles::w8_tile(k); }

void pack_w8(const CanonicalWeight& w, int offset, std::byte* out) {
  std::memset(out, 0, w8_bytes(w.n, w.k));
  for (int n = 0; n < w.n; ++n) {
    std::byte* tile = out + size_t(n / tiles::kRows) * tiles::w8_tile(w.k);
    const int r = n % tiles::kRows;
    std::memcpy(tile + r * 4, &w.scales[n], 4);
    const int8_t* row = w.codes.data() + size_t(n) * w.k;
    for (int k = 0; k < w.k; ++k)
      tile[tiles::kChannelScales + size_t(k / 4) * 128 + r * 4 + k % 4] =
          static_cast<std::byte>(row[k] + offset);
  }
}

}  // namespace stepladder
