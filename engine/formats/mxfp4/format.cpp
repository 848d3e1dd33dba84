// OCP MXFP4: E2M1 codes in groups of 32 k that share a power of two (E8M0).
#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "formats/linear.h"
#include "formats/mxfp4/layout.h"
#include "formats/quantization.h"
#include "formats/tiles.h"

namespace stepladder {
namespace {

constexpr int kGroup = 32;
constexpr FormatDesc kDesc{"mxfp4", DType::e2m1, kGroup, true, DType::e8m0};

bool recognises(const Checkpoint& c, const std::string& prefix) {
  const Storage s = storage_of(c, prefix);
  return s.method == Storage::Method::compressed && s.packing == "mxfp4-pack-quantized" &&
         !s.integer && s.bits == 4 && s.group == kGroup && s.act == Act::a16;
}

CanonicalWeight read(const Checkpoint& c, const std::string& prefix, int n, int k) {
  const Storage storage = storage_of(c, prefix);
  constexpr const char* kForeign[] = {"weight", "qweight", "qzeros", "scales",
                                      "weight_global_scale"};
  check_absent(c, prefix, kForeign, storage);
  check_group(c, prefix, k, kGroup);
  const int64_t packed_shape[] = {n, k / 2}, scale_shape[] = {n, k / kGroup};
  CanonicalWeight w{kDesc, n, k};
  const auto packed = c.load<uint8_t>(prefix + ".weight_packed", "U8", packed_shape);
  w.codes.resize(size_t(n) * k);
  for (size_t i = 0; i < w.codes.size(); ++i)
    w.codes[i] = static_cast<int8_t>(packed[i / 2] >> (i % 2 * 4) & 15);
  const std::string scales = prefix + ".weight_scale";
  const auto exponents = c.load<uint8_t>(scales, "U8", scale_shape);
  w.scales.resize(exponents.size());
  for (size_t i = 0; i < exponents.size(); ++i) {
    check(exponents[i] != 255, Code::model_format, tensor_place(c, scales), ": scale ", i,
          " is NaN (E8M0 255); the file is damaged or was badly quantized");
    w.scales[i] = from_e8m0(exponents[i]);
  }
  check_compressed_companions(c, prefix, n, k);
  return w;
}

/// The E2M1 code nearest to `x`, ties to the even code, saturating at 6.
int8_t code_of(float x) {
  constexpr float kBorders[] = {.25f, .75f, 1.25f, 1.75f,
                                2.5f, 3.5f, 5.f};  // between codes i and i + 1
  const float magnitude = std::fabs(x);
  int code = 0;
  for (int i = 0; i < 7; ++i)
    if (magnitude > kBorders[i] || (magnitude == kBorders[i] && i % 2 == 1)) code = i + 1;
  return static_cast<int8_t>(code && x < 0 ? code | 8 : code);
}

/// The group's largest magnitude, rounded to one bit of mantissa, takes the top exponent: it clips
/// less than rounding down and agrees better.
CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  check((group == 0 || group == kGroup) && k % kGroup == 0, Code::invalid_argument,
        "cast to mxfp4: groups are of 32 and must divide the width, which is ", k);
  CanonicalWeight w{kDesc, n, k};
  w.codes.resize(size_t(n) * k);
  w.scales.resize(size_t(n) * (k / kGroup));
  for (size_t g = 0; g < w.scales.size(); ++g) {
    const float* from = values.data() + g * kGroup;
    float amax = 0;
    for (int i = 0; i < kGroup; ++i) {
      check(std::isfinite(from[i]), Code::invalid_argument, "cast to mxfp4: value ", g * kGroup + i,
            " is not finite");
      amax = std::max(amax, std::fabs(from[i]));
    }
    int exponent = 0;  // of a group of zeros: scale 1
    if (amax > 0) {
      int e;
      const float mantissa = std::frexp(amax, &e);  // amax = mantissa 2^e, mantissa in [.5, 1)
      exponent = std::clamp((mantissa >= .875f ? e : e - 1) - 2, -127, 127);
    }
    w.scales[g] = std::ldexp(1.0f, exponent);
    for (int i = 0; i < kGroup; ++i)
      w.codes[g * kGroup + i] = code_of(static_cast<float>(std::ldexp(double{from[i]}, -exponent)));
  }
  return w;
}

constexpr Act kActs[] = {Act::a16};

}  // namespace

namespace format {
extern const WeightFormat mxfp4{"mxfp4", kActs, recognises, read, cast};
}

namespace mxfp4 {

bool supports(const FormatDesc& d, int, int k) {
  return d.group == kGroup && k % kGroup == 0 && k <= tiles::kMaxK;
}

size_t packed_bytes(const FormatDesc&, int n, int k) {
  return tiles::count(n) * tiles::mxfp4_tile(k);
}

void pack(const CanonicalWeight& w, std::byte* out) {
  const int groups = w.k / kGroup;
  std::memset(out, 0, packed_bytes(w.desc, w.n, w.k));
  for (int n = 0; n < w.n; ++n) {
    std::byte* tile = out + size_t(n / tiles::kRows) * tiles::mxfp4_tile(w.k);
    const int r = n % tiles::kRows;
    for (int g = 0; g < groups; ++g) {
      std::byte* pair = tile + size_t(g / 2) * (64 + 2 * kGroup * 16);
      pair[g % 2 * 32 + r] =
          static_cast<std::byte>(std::ilogb(w.scales[size_t(n) * groups + g]) + 127);
      std::byte* codes = pair + 64 + g % 2 * kGroup * 16;
      const int8_t* from = w.codes.data() + size_t(n) * w.k + size_t(g) * kGroup;
      for (int i = 0; i < kGroup; ++i) {
        const tiles::Nibble p = tiles::nibble(r, i % 8);
        codes[size_t(i / 8) * 128 + p.byte] |= static_cast<std::byte>(from[i] << (p.high ? 4 : 0));
      }
    }
  }
}

}  // namespace mxfp4
}  // namespace stepladder
