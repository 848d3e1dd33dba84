// int4 weights -8..7 in groups of k with a signed scale: GPTQ and compressed-tensors
// pack-quantized.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "formats/linear.h"
#include "formats/quantization.h"
#include "formats/tiles.h"
#include "formats/w4a16/layout.h"

namespace stepladder {
namespace {

constexpr int kDefaultGroup = 32;  // agrees best with 16-bit weights, at 4.5 bits a weight

bool known_group(int group) { return group == 32 || group == 64 || group == 128; }

bool recognises(const Checkpoint& c, const std::string& prefix) {
  const Storage s = storage_of(c, prefix);
  if (s.bits != 4 || !s.integer || s.act != Act::a16 || !known_group(s.group)) return false;
  return s.method == Storage::Method::gptq ||
         (s.method == Storage::Method::compressed && s.packing == "pack-quantized");
}

/// GPTQ packs zeros along n and stores 8, or in the first version of its files 8 - 1.
void check_zeros(const Checkpoint& c, const std::string& name, int n, int groups, bool v2) {
  const int64_t shape[] = {groups, n / 8};
  const auto zeros = c.load<uint32_t>(name, "I32", shape);
  const uint32_t wanted = v2 ? 0x88888888u : 0x77777777u, other = ~wanted;
  for (const uint32_t z : zeros) {
    check(z != other, Code::model_format, tensor_place(c, name),
          ": the zeros are those of checkpoint_format \"", v2 ? "gptq" : "gptq_v2",
          "\", but config.json says \"", v2 ? "gptq_v2" : "gptq", "\"");
    check(z == wanted, Code::unsupported, tensor_place(c, name),
          ": zero points other than 8 mean asymmetric codes, ",
          "which are not supported; quantize with sym=True");
  }
}

CanonicalWeight read_gptq(const Checkpoint& c, const std::string& prefix, int n, int k,
                          const Storage& s) {
  constexpr const char* kForeign[] = {"weight", "weight_packed", "weight_scale"};
  check_absent(c, prefix, kForeign, s);
  check(n % 8 == 0, Code::unsupported, c.where(), ": ", prefix,
        ": GPTQ packs 8 outputs, but there are ", n);
  const int groups = k / s.group;
  const int64_t packed_shape[] = {k / 8, n}, scale_shape[] = {groups, n};
  CanonicalWeight w{{"w4a16", DType::i4, s.group, true, DType::f16}, n, k};
  const auto packed = c.load<uint32_t>(prefix + ".qweight", "I32", packed_shape);
  w.codes.resize(size_t(n) * k);
  for (int i = 0; i < k; ++i)
    for (int r = 0; r < n; ++r)
      w.codes[size_t(r) * k + i] = static_cast<int8_t>(
          static_cast<int>(packed[size_t(i / 8) * n + r] >> (i % 8 * 4) & 15) - 8);
  const auto scales = load_scales(c, prefix + ".scales", scale_shape, w.desc.scale);
  check_scales(c, prefix + ".scales", scales, true);
  w.scales.resize(scales.size());
  for (int g = 0; g < groups; ++g)
    for (int r = 0; r < n; ++r) w.scales[size_t(r) * groups + g] = scales[size_t(g) * n + r];
  check_zeros(c, prefix + ".qzeros", n, groups, s.gptq_v2);
  check_trivial_order(c, prefix + ".g_idx", k, s.group, s.reordered);
  return w;
}

CanonicalWeight read_compressed(const Checkpoint& c, const std::string& prefix, int n, int k,
                                const Storage& s) {
  constexpr const char* kForeign[] = {"weight", "qweight", "qzeros", "scales"};
  check_absent(c, prefix, kForeign, s);
  const int64_t packed_shape[] = {n, k / 8}, scale_shape[] = {n, k / s.group};
  CanonicalWeight w{{"w4a16", DType::i4, s.group, true, DType::bf16}, n, k};
  const auto packed = c.load<uint32_t>(prefix + ".weight_packed", "I32", packed_shape);
  w.codes.resize(size_t(n) * k);
  for (size_t i = 0; i < w.codes.size(); ++i)
    w.codes[i] = static_cast<int8_t>(static_cast<int>(packed[i / 8] >> (i % 8 * 4) & 15) - 8);
  w.scales = load_scales(c, prefix + ".weight_scale", scale_shape, w.desc.scale);
  check_scales(c, prefix + ".weight_scale", w.scales, true);
  check_compressed_companions(c, prefix, n, k);
  check_trivial_order(c, prefix + ".weight_g_idx", k, s.group, s.reordered);
  return w;
}

CanonicalWeight read(const Checkpoint& c, const std::string& prefix, int n, int k) {
  const Storage s = storage_of(c, prefix);
  check_group(c, prefix, k, s.group);
  return s.method == Storage::Method::gptq ? read_gptq(c, prefix, n, k, s)
                                           : read_compressed(c, prefix, n, k, s);
}

/// Maps the value of largest magnitude to -8, the one code without a positive twin.
CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  if (group == 0) group = kDefaultGroup;
  check(known_group(group) && k % group == 0, Code::invalid_argument, "cast to w4a16: groups of ",
        group, " do not divide a width of ", k, "; there are groups of 32, 64 and 128");
  CanonicalWeight w{{"w4a16", DType::i4, group, true, DType::bf16}, n, k};
  w.codes.resize(size_t(n) * k);
  w.scales.resize(size_t(n) * (k / group));
  for (size_t g = 0; g < w.scales.size(); ++g) {
    const float* from = values.data() + g * group;
    int8_t* to = w.codes.data() + g * group;
    float most = 0;
    for (int i = 0; i < group; ++i) {
      check(std::isfinite(from[i]), Code::invalid_argument, "cast to w4a16: value ", g * group + i,
            " is not finite");
      if (std::fabs(from[i]) > std::fabs(most)) most = from[i];
    }
    // The codes are found with the scale as it will be read back.
    float scale = from_bf16(to_bf16(most / -8.0f));
    if (std::fabs(scale) < FLT_MIN) scale = 1.0f;
    w.scales[g] = scale;
    for (int i = 0; i < group; ++i)
      to[i] = static_cast<int8_t>(std::clamp(std::nearbyint(from[i] / scale), -8.0f, 7.0f));
  }
  return w;
}

constexpr Act kActs[] = {Act::a16, Act::a8};

}  // namespace

namespace format {
extern const WeightFormat w4a16{"w4a16", kActs, recognises, read, cast};
}

namespace w4a16 {

bool supports(const FormatDesc& d, int, int k) {
  return known_group(d.group) && k % d.group == 0 && k <= tiles::kMaxK;
}

size_t packed_bytes(const FormatDesc& d, int n, int k) {
  return tiles::count(n) * tiles::w4_tile(k, d.group, d.scale);
}

void pack(const CanonicalWeight& w, std::byte* out) {
  const FormatDesc& d = w.desc;
  const int groups = w.k / d.group;
  const size_t scale_bytes = tiles::w4_scales(d.scale),
               group_bytes = scale_bytes + size_t(d.group) * 16;
  std::memset(out, 0, packed_bytes(d, w.n, w.k));
  for (int n = 0; n < w.n; ++n) {
    const int r = n % tiles::kRows;
    for (int g = 0; g < groups; ++g) {
      std::byte* at = out + (size_t(n / tiles::kRows) * groups + g) * group_bytes;
      const float scale = w.scales[size_t(n) * groups + g];
      if (d.scale == DType::f32) {
        std::memcpy(at + r * 4, &scale, 4);
      } else {
        const uint16_t code = to_16(d.scale, scale);
        std::memcpy(at + r * 2, &code, 2);
      }
      const int8_t* codes = w.codes.data() + size_t(n) * w.k + size_t(g) * d.group;
      for (int i = 0; i < d.group; ++i) {
        const tiles::Nibble p = tiles::nibble(r, i % 8);
        at[scale_bytes + size_t(i / 8) * 128 + p.byte] |=
            static_cast<std::byte>((codes[i] + 8) << (p.high ? 4 : 0));
      }
    }
  }
}

}  // namespace w4a16
}  // namespace stepladder
