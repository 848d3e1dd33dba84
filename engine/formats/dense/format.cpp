// bf16 and f16 weights as they are; f32 checkpoints are rounded to bf16.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <span>
#include <string>
#include <utility>

#include "core/error.h"
#include "formats/cpu/tiling.h"
#include "formats/kernel.h"
#include "formats/linear.h"
#include "formats/quantization.h"

namespace stepladder {
namespace {

constexpr FormatDesc describe(DType code) { return {"dense", code, 0, false, DType::f32}; }

bool recognises(const Checkpoint& c, const std::string& prefix) {
  return storage_of(c, prefix).method == Storage::Method::none;
}

/// Whether any of n 16-bit codes is infinite or NaN.
bool any_not_finite(DType type, const uint16_t* codes, size_t n) {
  const int16_t exponent = type == DType::bf16 ? 0x7f80 : 0x7c00;
  int16_t most = 0;
  for (size_t i = 0; i < n; ++i)
    most = std::max(most, static_cast<int16_t>(static_cast<int16_t>(codes[i]) & exponent));
  return most == exponent;
}

class DenseReader final : public WeightReader {
 public:
  DenseReader(const Checkpoint& c, std::string name, int n, int k, DType as)
      : WeightReader(describe(as), n, k), checkpoint_(c), name_(std::move(name)) {
    const int64_t shape[] = {n, k};
    stored_ = float_type(c.need(name_, "", shape));
  }

  WeightRows read(int first, int count, RowMemory& memory) const override {
    const size_t at = size_t(first) * k(), size = size_t(count) * k();
    const DType type = desc().code;
    auto* codes = memory.codes.take<uint16_t>(size);
    if (stored_ == type) {
      const std::span out(codes, size);
      checkpoint_.read_slice(name_, {at * 2, size * 2}, std::as_writable_bytes(out));
    } else {
      const float* values =
          read_floats(checkpoint_, name_, {at, size}, memory.stored, memory.values);
      for (size_t i = 0; i < size; ++i) codes[i] = to_16(type, values[i]);
    }
    if (any_not_finite(type, codes, size))
      for (size_t i = 0; i < size; ++i)
        check(std::isfinite(from_16(type, codes[i])), Code::model_format,
              tensor_place(checkpoint_, name_), ": element ", at + i,
              " is not a finite number; the file is damaged or does not fit its 16-bit type",
              type == DType::f16 ? "; set dtype to bfloat16 in config.json, which holds larger ones"
                                 : "");
    WeightRows out{desc(), n(), k(), first, count};
    out.codes = reinterpret_cast<const std::byte*>(codes);
    return out;
  }

 private:
  const Checkpoint& checkpoint_;
  std::string name_;
  DType stored_;
};

std::unique_ptr<WeightReader> open(const Checkpoint& c, const std::string& prefix, int n, int k) {
  constexpr const char* kForeign[] = {"qweight", "weight_packed", "weight_scale", "qzeros",
                                      "scales"};
  check_absent(c, prefix, kForeign, {});
  const std::string name = prefix + ".weight";
  return open_dense(c, name, n, k, c.need(name).dtype == "F16" ? DType::f16 : DType::bf16);
}

CanonicalWeight cast(std::span<const float> values, int n, int k, int group) {
  check(group == 0, Code::invalid_argument, "cast to dense: there are no groups, but group ", group,
        " was asked for");
  CanonicalWeight w{describe(DType::bf16), n, k};
  w.dense.resize(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    w.dense[i] = to_bf16(values[i]);
    check(std::isfinite(from_bf16(w.dense[i])), Code::invalid_argument, "cast to dense: value ", i,
          " is not finite");
  }
  return w;
}

constexpr ActMode kActs[] = {kA16};
constexpr const char* kTensors[] = {"weight"};

}  // namespace

namespace format {
extern const WeightFormat dense{.name = "dense",
                                .acts = kActs,
                                .recognises = recognises,
                                .open = open,
                                .cast = cast,
                                .tensors = kTensors};
}

std::unique_ptr<WeightReader> open_dense(const Checkpoint& c, const std::string& name, int n, int k,
                                         DType as) {
  return std::make_unique<DenseReader>(c, name, n, k, as);
}

namespace {

bool supports(const FormatDesc&, int, int k) { return k % 2 == 0 && k <= tiles::kMaxK; }

size_t packed_bytes(const FormatDesc&, int n, int k) {
  return tiles::count(n) * tiles::dense_tile(k);
}

void pack(const WeightRows& w, std::byte* out) {
  const bool pairs = w.desc.code == DType::bf16;
  tiles::each_step(w, [&](int tile, int step, int lane, const uint32_t* words, int count) {
    std::byte* at = out + tile * tiles::dense_tile(w.k) + size_t(step) * 128;
    if (pairs) {
      tiles::stream(at + lane * 4, words, size_t(count) * 4);
      return;
    }
    auto* codes = reinterpret_cast<uint16_t*>(at);
    for (int i = 0; i < count; ++i) {
      const int r = lane + i, strip = r / tiles::kStrip, in_strip = r % tiles::kStrip;
      codes[strip * 32 + in_strip] = static_cast<uint16_t>(words[i]);
      codes[strip * 32 + tiles::kStrip + in_strip] = static_cast<uint16_t>(words[i] >> 16);
    }
  });
}

}  // namespace

namespace packing {
extern const Packing dense{supports, packed_bytes, pack};
}

}  // namespace stepladder
