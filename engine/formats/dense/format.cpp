// bf16 and f16 weights as they are; f32 checkpoints are rounded to bf16.
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "formats/dense/layout.h"
#include "formats/linear.h"
#include "formats/quantization.h"
#include "formats/tiles.h"

namespace stepladder {
namespace {

constexpr FormatDesc describe(DType code) { return {"dense", code, 0, false, DType::f32}; }

bool recognises(const Checkpoint& c, const std::string& prefix) {
  return storage_of(c, prefix).method == Storage::Method::none;
}

void check_finite(const Checkpoint& c, const std::string& name, const CanonicalWeight& w) {
  for (size_t i = 0; i < w.dense.size(); ++i)
    check(std::isfinite(from_16(w.desc.code, w.dense[i])), Code::model_format,
          tensor_place(c, name), ": element ", i,
          " is not a finite number; the file is damaged or does not fit its 16-bit type");
}

CanonicalWeight read(const Checkpoint& c, const std::string& prefix, int n, int k) {
  constexpr const char* kForeign[] = {"qweight", "weight_packed", "weight_scale", "qzeros",
                                      "scales"};
  check_absent(c, prefix, kForeign, {});
  const std::string name = prefix + ".weight";
  const TensorInfo& info = c.need(name);
  const int64_t shape[] = {n, k};
  CanonicalWeight w{describe(info.dtype == "F16" ? DType::f16 : DType::bf16), n, k};
  if (info.dtype == "BF16" || info.dtype == "F16") {
    w.dense = c.load<uint16_t>(name, info.dtype, shape);
  } else {
    const auto values = c.load_floats(name, shape);
    w.dense.resize(values.size());
    for (size_t i = 0; i < values.size(); ++i) w.dense[i] = to_bf16(values[i]);
  }
  check_finite(c, name, w);
  return w;
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

constexpr Act kActs[] = {Act::a16};

}  // namespace

namespace format {
extern const WeightFormat dense{"dense", kActs, recognises, read, cast};
}

namespace dense {

bool supports(const FormatDesc&, int, int k) { return k % 2 == 0 && k <= tiles::kMaxK; }

size_t packed_bytes(const FormatDesc&, int n, int k) {
  return tiles::count(n) * tiles::dense_tile(k);
}

void pack(const CanonicalWeight& w, std::byte* out) {
  std::memset(out, 0, packed_bytes(w.desc, w.n, w.k));
  auto* codes = reinterpret_cast<uint16_t*>(out);
  for (int n = 0; n < w.n; ++n) {
    uint16_t* tile = codes + size_t(n / tiles::kRows) * w.k * tiles::kRows;
    const int r = n % tiles::kRows, strip = r / tiles::kStrip, lane = r % tiles::kStrip;
    const uint16_t* row = w.dense.data() + size_t(n) * w.k;
    for (int k = 0; k < w.k; ++k) {
      uint16_t* step = tile + size_t(k / 2) * 64 + strip * 32;
      step[w.desc.code == DType::bf16 ? lane * 2 + k % 2 : k % 2 * tiles::kStrip + lane] = row[k];
    }
  }
}

}  // namespace dense
}  // namespace stepladder
