// A format that the engine does not have: codes of 3 bits, in groups of 32 k with a scale and an
// offset, which run with 16-bit tokens and with int8 ones of one scale each. All that is known of
// it stands in this file.
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "core/error.h"
#include "formats/linear.h"
#include "formats/quantization.h"
#include "formats/rounding.h"

namespace stepladder {
namespace {

constexpr int kGroup = 32, kMost = 7;
constexpr FormatDesc kDesc{"w3a16", DType::u4, kGroup, true, DType::f32, true};

bool recognises(const Checkpoint& c, const std::string& prefix) {
  return storage_of(c, prefix).method == Storage::Method::other &&
         c.config().at("quantization_config").value("quant_method", "") == "w3a16";
}

class Reader final : public WeightReader {
 public:
  Reader(const Checkpoint& c, const std::string& prefix, int n, int k)
      : WeightReader(kDesc, n, k), checkpoint_(c), prefix_(prefix) {
    const int64_t codes[] = {n, k}, scales[] = {n, k / kGroup};
    c.need(prefix + ".weight", "I8", codes);
    c.need(prefix + ".weight_scale", "F32", scales);
    c.need(prefix + ".weight_offset", "F32", scales);
  }

  WeightRows read(int first, int count, RowMemory& memory) const override {
    const size_t size = size_t(count) * k(), groups = size_t(count) * (k() / kGroup);
    auto* bytes = memory.stored.take<uint8_t>(size);
    checkpoint_.read_slice(prefix_ + ".weight", {size_t(first) * k(), size},
                           std::as_writable_bytes(std::span(bytes, size)));
    auto* codes = memory.codes.take<uint8_t>(size / 2);
    for (size_t i = 0; i < size / 2; ++i) {
      check(std::max(bytes[2 * i], bytes[2 * i + 1]) <= kMost, Code::model_format, prefix_,
            ".weight: a code is above ", kMost);
      codes[i] = static_cast<uint8_t>(bytes[2 * i] | bytes[2 * i + 1] << 4);
    }
    WeightRows out{desc(), n(), k(), first, count};
    out.codes = reinterpret_cast<const std::byte*>(codes);
    out.scales = floats(".weight_scale", first, groups, memory.scales);
    out.offsets = floats(".weight_offset", first, groups, memory.values);
    return out;
  }

 private:
  const float* floats(const char* name, int first, size_t count, Scratch& memory) const {
    auto* out = memory.take<float>(count);
    const size_t at = size_t(first) * (k() / kGroup) * sizeof(float);
    checkpoint_.read_slice(prefix_ + name, {at, count * sizeof(float)},
                           std::as_writable_bytes(std::span(out, count)));
    return out;
  }
  const Checkpoint& checkpoint_;
  std::string prefix_;
};

std::unique_ptr<WeightReader> open(const Checkpoint& c, const std::string& prefix, int n, int k) {
  const std::string plain = prefix + ".weight";
  if (!c.find(prefix + ".weight_offset"))  // the head and the embedding
    return open_dense(c, plain, n, k, c.need(plain).dtype == "F16" ? DType::f16 : DType::bf16);
  check_group(c, prefix, k, kGroup);
  return std::make_unique<Reader>(c, prefix, n, k);
}

/// The smallest value of a group takes code 0 and the largest 7.
CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  check((group == 0 || group == kGroup) && k % kGroup == 0, Code::invalid_argument,
        "cast to w3a16: groups are of 32 and must divide the width, which is ", k);
  CanonicalWeight w{kDesc, n, k};
  for (size_t at = 0; at < values.size(); at += kGroup) {
    const auto some = values.subspan(at, kGroup);
    check(std::isfinite(largest_magnitude(some.data(), kGroup)), Code::invalid_argument,
          "cast to w3a16: a value is not finite");
    const auto [least, most] = std::minmax_element(some.begin(), some.end());
    const float scale = *most > *least ? (*most - *least) / kMost : 1.0f;
    w.scales.push_back(scale), w.offsets.push_back(-*least);
    for (const float x : some)
      w.codes.push_back(
          static_cast<int8_t>(std::clamp(to_integer((x - *least) / scale), 0.0f, float(kMost))));
  }
  return w;
}

constexpr ActMode kActs[] = {kA16, kA8PerToken};
constexpr const char* kTensors[] = {"weight", "weight_scale", "weight_offset"};

}  // namespace

namespace format {
extern const WeightFormat w3a16{.name = "w3a16",
                                .acts = kActs,
                                .recognises = recognises,
                                .open = open,
                                .cast = cast,
                                .tensors = kTensors};
}

}  // namespace stepladder
