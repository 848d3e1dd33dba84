// OCP MXFP4: E2M1 codes in groups of 32 k that share a power of two (E8M0).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>

#include "core/error.h"
#include "formats/cpu/tiling.h"
#include "formats/kernel.h"
#include "formats/linear.h"
#include "formats/quantization.h"
#include "formats/rounding.h"

namespace stepladder {
namespace {

constexpr int kGroup = 32;
constexpr int kLargestExponent = 127 + 125;  // 6 * 2^125, the code of most magnitude, is finite
constexpr FormatDesc kDesc{"mxfp4", DType::e2m1, kGroup, true, DType::e8m0};

bool recognises(const Checkpoint& c, const std::string& prefix) {
  const Storage s = storage_of(c, prefix);
  return s.method == Storage::Method::compressed && s.packing == "mxfp4-pack-quantized" &&
         !s.integer && s.bits == 4 && s.group == kGroup && s.act == Act::a16;
}

class Reader final : public WeightReader {
 public:
  Reader(const Checkpoint& c, const std::string& prefix, int n, int k)
      : WeightReader(kDesc, n, k),
        checkpoint_(c),
        prefix_(prefix),
        codes_(prefix + ".weight_packed"),
        scales_(prefix + ".weight_scale") {
    const int64_t packed_shape[] = {n, k / 2}, scale_shape[] = {n, k / kGroup};
    c.need(codes_, "U8", packed_shape);
    c.need(scales_, "U8", scale_shape);
  }

  WeightRows read(int first, int count, RowMemory& memory) const override {
    const size_t row = size_t(k()) / 2, groups = size_t(k()) / kGroup;
    auto* codes = memory.codes.take<std::byte>(row * count);
    checkpoint_.read_slice(codes_, {row * first, row * count}, {codes, row * count});
    auto* exponents = memory.stored_scales.take<uint8_t>(groups * count);
    checkpoint_.read_slice(scales_, {groups * first, groups * count},
                           std::as_writable_bytes(std::span(exponents, groups * count)));
    float* scales = memory.scales.take<float>(groups * count);
    for (size_t i = 0; i < groups * count; ++i) {
      check(exponents[i] <= kLargestExponent, Code::model_format,
            tensor_place(checkpoint_, scales_), ": scale ", groups * first + i, " is ",
            exponents[i] == 255 ? "NaN" : "too large for weights that a float holds", " (E8M0 ",
            int(exponents[i]), "); the file is damaged or was badly quantized");
      scales[i] = from_e8m0(exponents[i]);
    }
    if (first == 0) check_compressed_companions(checkpoint_, prefix_, n(), k());
    WeightRows out{desc(), n(), k(), first, count};
    out.codes = codes, out.scales = scales;
    return out;
  }

 private:
  const Checkpoint& checkpoint_;
  std::string prefix_, codes_, scales_;
};

std::unique_ptr<WeightReader> open(const Checkpoint& c, const std::string& prefix, int n, int k) {
  constexpr const char* kForeign[] = {"weight", "qweight", "qzeros", "scales",
                                      "weight_global_scale"};
  check_absent(c, prefix, kForeign, storage_of(c, prefix));
  check_group(c, prefix, k, kGroup);
  return std::make_unique<Reader>(c, prefix, n, k);
}

/// The E2M1 code nearest to `x`, ties to the even code, saturating at 6.
int8_t code_of(float x) {
  const float m = std::fabs(x);
  const int code =
      (m > .25f) + (m >= .75f) + (m > 1.25f) + (m >= 1.75f) + (m > 2.5f) + (m >= 3.5f) + (m > 5.f);
  return static_cast<int8_t>(code | ((code != 0) & (x < 0)) << 3);
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
    const float amax = largest_magnitude(from, kGroup);
    check(std::isfinite(amax), Code::invalid_argument, "cast to mxfp4: value ",
          g * kGroup + (std::isfinite(amax) ? 0 : first_not_finite(from, kGroup)),
          " is not finite");
    int exponent = 0;  // of a group of zeros: scale 1
    if (amax > 0) {
      int e;
      const float mantissa = std::frexp(amax, &e);  // amax = mantissa 2^e, mantissa in [.5, 1)
      exponent = std::clamp((mantissa >= .875f ? e : e - 1) - 2, -127, 127);
    }
    w.scales[g] = std::ldexp(1.0f, exponent);
    // Exact, but for what becomes subnormal and is 0 as a code.
    const float inverse = std::ldexp(1.0f, -exponent);
    int8_t* to = w.codes.data() + g * kGroup;
    for (int i = 0; i < kGroup; ++i) to[i] = code_of(from[i] * inverse);
  }
  return w;
}

constexpr ActMode kActs[] = {kA16};
constexpr const char* kTensors[] = {"weight_packed", "weight_scale", "weight_shape",
                                    "weight_zero_point"};

}  // namespace

namespace format {
extern const WeightFormat mxfp4{
    .name = "mxfp4",
    .acts = kActs,
    .recognises = recognises,
    .open = open,
    .cast = cast,
    .draft_tokens = 3,  // agrees 7 times in 10: longer guesses are wasted
    .tensors = kTensors};
}

namespace {

bool supports(const FormatDesc& d, int, int k) {
  return d.group == kGroup && k % kGroup == 0 && k <= tiles::kMaxK;
}

size_t packed_bytes(const FormatDesc&, int n, int k) {
  return tiles::count(n) * tiles::mxfp4_tile(k);
}

void pack(const WeightRows& w, std::byte* out) {
  const size_t tile_bytes = tiles::mxfp4_tile(w.k);
  constexpr size_t kPair = 64 + 2 * kGroup * 16;
  constexpr int kSteps = kGroup / 8;
  tiles::each_scale(w, [&](int tile, size_t g, int lane, const float* scales, int count) {
    uint8_t codes[tiles::kRows];
    for (int r = 0; r < count; ++r) codes[r] = to_e8m0(scales[r]);
    std::memcpy(out + tile * tile_bytes + g / 2 * kPair + g % 2 * 32 + lane, codes, size_t(count));
  });
  tiles::each_step(w, [&](int tile, int step, int lane, const uint32_t* words, int count) {
    const int g = step / kSteps;
    std::byte* codes = out + tile * tile_bytes + g / 2 * kPair + 64 + g % 2 * kGroup * 16;
    tiles::put_words(codes + step % kSteps * 128 + lane * 4, words, count, tiles::even_then_odd);
  });
}

}  // namespace

namespace packing {
extern const Packing mxfp4{supports, packed_bytes, pack};
}

}  // namespace stepladder
