// int4 weights -8..7 in groups of k with a signed scale: GPTQ and compressed-tensors
// pack-quantized.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <iterator>
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

// The first agrees best with 16-bit weights, at 4.5 bits a weight.
constexpr int kGroups[] = {32, 64, 128};

bool known_group(int group) {
  return std::find(std::begin(kGroups), std::end(kGroups), group) != std::end(kGroups);
}

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
          "\", but config.json says \"", v2 ? "gptq_v2" : "gptq",
          "\"; set checkpoint_format there to \"", v2 ? "gptq" : "gptq_v2", "\"");
    check(z == wanted, Code::unsupported, tensor_place(c, name),
          ": zero points other than 8 mean asymmetric codes, ",
          "which are not supported; quantize with sym=True");
  }
}

/// qweight holds words [k / 8][n] and the scales are [groups][n]: a few outputs are spread over all
/// of both.
class GptqReader final : public WeightReader {
 public:
  GptqReader(const Checkpoint& c, const std::string& prefix, int n, int k, const Storage& s)
      : WeightReader(describe(c, prefix, n, k, s), n, k),
        checkpoint_(c),
        codes_(prefix + ".qweight"),
        scales_(prefix + ".scales"),
        zeros_(prefix + ".qzeros"),
        order_(prefix + ".g_idx"),
        v2_(s.gptq_v2),
        reordered_(s.reordered) {
    const int64_t zeros_shape[] = {k / s.group, n / 8};
    c.need(zeros_, "I32", zeros_shape);
  }

  int least_rows() const override { return 256; }

  WeightRows read(int first, int count, RowMemory& memory) const override {
    const size_t words = size_t(k()) / 8 * count, all = n();
    auto* codes = memory.codes.take<uint32_t>(words);
    checkpoint_.read_slice(codes_, {size_t(first) * 4, size_t(count) * 4, size_t(k()) / 8, all * 4},
                           std::as_writable_bytes(std::span(codes, words)));
    const size_t groups = desc().groups(k()), some = count;
    const float* by_group = read_floats(checkpoint_, scales_, {size_t(first), some, groups, all},
                                        memory.stored_scales, memory.values);
    float* scales = memory.scales.take<float>(groups * some);
    for (size_t g = 0; g < groups; ++g) {
      check_scales(checkpoint_, scales_, g * all + first, {by_group + g * some, some}, true, 8);
      for (size_t r = 0; r < some; ++r) scales[r * groups + g] = by_group[g * some + r];
    }
    if (first == 0) {
      check_zeros(checkpoint_, zeros_, n(), static_cast<int>(groups), v2_);
      check_trivial_order(checkpoint_, order_, k(), desc().group, reordered_);
    }
    WeightRows out{desc(), n(), k(), first, count};
    out.codes = reinterpret_cast<const std::byte*>(codes), out.words_across = true;
    out.scales = scales;
    return out;
  }

 private:
  static FormatDesc describe(const Checkpoint& c, const std::string& prefix, int n, int k,
                             const Storage& s) {
    constexpr const char* kForeign[] = {"weight", "weight_packed", "weight_scale"};
    check_absent(c, prefix, kForeign, s);
    check(n % 8 == 0, Code::unsupported, c.where(), ": ", prefix,
          ": GPTQ packs 8 outputs, but there are ", n);
    const int64_t packed_shape[] = {k / 8, n}, scale_shape[] = {k / s.group, n};
    c.need(prefix + ".qweight", "I32", packed_shape);
    return {"w4a16", DType::i4, s.group, true,
            float_type(c.need(prefix + ".scales", "", scale_shape))};
  }

  const Checkpoint& checkpoint_;
  std::string codes_, scales_, zeros_, order_;
  bool v2_, reordered_;
};

/// weight_packed holds words [n][k / 8], and the scales are [n][groups].
class PackedReader final : public WeightReader {
 public:
  PackedReader(const Checkpoint& c, const std::string& prefix, int n, int k, const Storage& s)
      : WeightReader(describe(c, prefix, n, k, s), n, k),
        checkpoint_(c),
        prefix_(prefix),
        codes_(prefix + ".weight_packed"),
        scales_(prefix + ".weight_scale"),
        reordered_(s.reordered) {}

  WeightRows read(int first, int count, RowMemory& memory) const override {
    const size_t row = size_t(k()) / 2, groups = desc().groups(k());
    auto* codes = memory.codes.take<std::byte>(row * count);
    checkpoint_.read_slice(codes_, {row * first, row * count}, {codes, row * count});
    const float* scales = read_floats(checkpoint_, scales_, {groups * first, groups * count},
                                      memory.stored_scales, memory.scales);
    check_scales(checkpoint_, scales_, groups * first, {scales, groups * count}, true, 8);
    if (first == 0) {
      check_compressed_companions(checkpoint_, prefix_, n(), k());
      check_trivial_order(checkpoint_, prefix_ + ".weight_g_idx", k(), desc().group, reordered_);
    }
    WeightRows out{desc(), n(), k(), first, count};
    out.codes = codes, out.scales = scales;
    return out;
  }

 private:
  static FormatDesc describe(const Checkpoint& c, const std::string& prefix, int n, int k,
                             const Storage& s) {
    constexpr const char* kForeign[] = {"weight", "qweight", "qzeros", "scales"};
    check_absent(c, prefix, kForeign, s);
    const int64_t packed_shape[] = {n, k / 8}, scale_shape[] = {n, k / s.group};
    c.need(prefix + ".weight_packed", "I32", packed_shape);
    return {"w4a16", DType::i4, s.group, true,
            float_type(c.need(prefix + ".weight_scale", "", scale_shape))};
  }

  const Checkpoint& checkpoint_;
  std::string prefix_, codes_, scales_;
  bool reordered_;
};

std::unique_ptr<WeightReader> open(const Checkpoint& c, const std::string& prefix, int n, int k) {
  const Storage s = storage_of(c, prefix);
  check_group(c, prefix, k, s.group);
  if (s.method == Storage::Method::gptq) return std::make_unique<GptqReader>(c, prefix, n, k, s);
  return std::make_unique<PackedReader>(c, prefix, n, k, s);
}

/// Maps the value of largest magnitude to -8, the one code without a positive twin.
CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  if (group == 0) group = kGroups[0];
  check(known_group(group) && k % group == 0, Code::invalid_argument, "cast to w4a16: groups of ",
        group, " do not divide a width of ", k, "; there are groups of 32, 64 and 128");
  CanonicalWeight w{{"w4a16", DType::i4, group, true, DType::bf16}, n, k};
  w.codes.resize(size_t(n) * k);
  w.scales.resize(size_t(n) * (k / group));
  for (size_t g = 0; g < w.scales.size(); ++g) {
    const float* from = values.data() + g * group;
    int8_t* to = w.codes.data() + g * group;
    const float amax = largest_magnitude(from, group);
    check(std::isfinite(amax), Code::invalid_argument, "cast to w4a16: value ",
          g * group + (std::isfinite(amax) ? 0 : first_not_finite(from, group)), " is not finite");
    const float most =
        *std::find_if(from, from + group, [&](float x) { return std::fabs(x) == amax; });
    // The codes are found with the scale as it will be read back.
    float scale = from_bf16(to_bf16(most / -8.0f));
    if (std::fabs(scale) < FLT_MIN) scale = 1.0f;
    w.scales[g] = scale;
    for (int i = 0; i < group; ++i)
      to[i] = static_cast<int8_t>(std::clamp(to_integer(from[i] / scale), -8.0f, 7.0f));
  }
  return w;
}

constexpr ActMode kActs[] = {kA16, kA8PerGroup};
constexpr const char* kTensors[] = {"qweight",      "qzeros",        "scales",
                                    "g_idx",        "weight_packed", "weight_scale",
                                    "weight_shape", "weight_g_idx",  "weight_zero_point"};

}  // namespace

namespace format {
extern const WeightFormat w4a16{.name = "w4a16",
                                .acts = kActs,
                                .recognises = recognises,
                                .open = open,
                                .cast = cast,
                                .draft_tokens = 3,  // agrees 3 times in 4
                                .groups = kGroups,
                                .tensors = kTensors};
}

namespace {

bool supports(const FormatDesc& d, int, int k) {
  return known_group(d.group) && k % d.group == 0 && k <= tiles::kMaxK;
}

size_t packed_bytes(const FormatDesc& d, int n, int k) {
  return tiles::count(n) * tiles::w4_tile(k, d.group, d.scale);
}

void pack(const WeightRows& w, std::byte* out) {
  const FormatDesc& d = w.desc;
  const size_t groups = w.k / d.group, scale_bytes = tiles::w4_scales(d.scale),
               group_bytes = scale_bytes + size_t(d.group) * 16;
  tiles::each_scale(w, [&](int tile, size_t g, int lane, const float* scales, int count) {
    std::byte* at = out + (tile * groups + g) * group_bytes;
    if (d.scale == DType::f32) {
      tiles::stream(at + lane * 4, scales, size_t(count) * 4);
    } else {
      uint16_t codes[tiles::kRows];
      for (int r = 0; r < count; ++r) codes[r] = to_16(d.scale, scales[r]);
      tiles::stream(at + lane * 2, codes, size_t(count) * 2);
    }
  });
  const int steps = d.group / 8;
  tiles::each_step(w, [&](int tile, int step, int lane, const uint32_t* words, int count) {
    std::byte* group = out + (tile * groups + step / steps) * group_bytes + scale_bytes;
    tiles::put_words(group + step % steps * 128 + lane * 4, words, count, tiles::even_then_odd);
  });
}

}  // namespace

namespace packing {
extern const Packing w4a16{supports, packed_bytes, pack};
}

}  // namespace stepladder
