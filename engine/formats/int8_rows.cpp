#include "formats/int8_rows.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <span>
#include <string>

#include "core/error.h"
#include "formats/cpu/tiling.h"
#include "formats/rounding.h"

namespace stepladder {
namespace {

bool is_packed(const Storage& s) { return s.packing == "pack-quantized"; }

/// Codes [n][k]: bytes, or value + 128 in words of four with the low byte first; scales [n, 1],
/// [n], in groups [n, k / group] or, per tensor, [1].
class Int8Reader final : public WeightReader {
 public:
  Int8Reader(const char* name, const Checkpoint& c, const std::string& prefix, int n, int k)
      : Int8Reader(name, c, prefix, n, k, storage_of(c, prefix)) {}

  Int8Reader(const char* name, const Checkpoint& c, const std::string& prefix, int n, int k,
             const Storage& storage)
      : WeightReader({name, DType::i8, storage.group, true, DType::f32}, n, k),
        checkpoint_(c),
        prefix_(prefix),
        scales_(prefix + ".weight_scale"),
        reordered_(storage.reordered) {
    if (storage.group) check_group(c, prefix, k, storage.group);
    packed_ = is_packed(storage);
    codes_ = prefix + (packed_ ? ".weight_packed" : ".weight");
    row_ = packed_ ? size_t(k + 3) / 4 * 4 : size_t(k);
    const char* const foreign[] = {packed_ ? "weight" : "weight_packed", "qweight", "qzeros",
                                   "scales"};
    check_absent(c, prefix, foreign, storage);
    const int64_t shape[] = {n, static_cast<int64_t>(packed_ ? row_ / 4 : row_)};
    c.need(codes_, packed_ ? "I32" : "I8", shape);
    const auto& stored = c.need(scales_).shape;
    const std::vector<int64_t> one = {1}, flat = {n}, column = {n, 1};
    if (storage.group) {
      const int64_t by_group[] = {n, k / storage.group};
      c.need(scales_, "", by_group);
      return;
    }
    per_tensor_ = stored == one && n != 1;
    c.need(scales_, "", per_tensor_ ? one : stored == flat ? flat : column);
  }

  WeightRows read(int first, int count, RowMemory& memory) const override {
    const size_t width = k(), bytes = row_ * count;
    auto* codes = memory.codes.take<uint8_t>(bytes);
    checkpoint_.read_slice(codes_, {row_ * first, bytes},
                           std::as_writable_bytes(std::span(codes, bytes)));
    if (packed_) {
      for (size_t i = 0; i < bytes; ++i) codes[i] ^= 0x80;
      if (row_ != width)
        for (int r = 1; r < count; ++r) std::memmove(codes + r * width, codes + r * row_, width);
    }
    const size_t groups = desc().groups(k()), from = per_tensor_ ? 0 : groups * first,
                 some = per_tensor_ ? 1 : groups * count;
    const float* scales =
        read_floats(checkpoint_, scales_, {from, some}, memory.stored_scales, memory.values);
    check_scales(checkpoint_, scales_, from, {scales, some}, false, 128);
    float* each = memory.scales.take<float>(groups * count);
    for (size_t i = 0; i < groups * count; ++i) each[i] = scales[per_tensor_ ? 0 : i];
    if (first == 0) {
      const int group = desc().group ? desc().group : k();
      check_compressed_companions(checkpoint_, prefix_, n(), k());
      if (packed_)
        check_trivial_order(checkpoint_, prefix_ + ".weight_g_idx", k(), group,
                            reordered_ && desc().group);
    }
    WeightRows out{desc(), n(), k(), first, count};
    out.codes = reinterpret_cast<const std::byte*>(codes), out.scales = each;
    return out;
  }

 private:
  const Checkpoint& checkpoint_;
  std::string prefix_, codes_, scales_;
  bool packed_ = false, per_tensor_ = false, reordered_ = false;
  size_t row_ = 0;  // bytes a row takes in the file
};

}  // namespace

bool recognises_int8(const Checkpoint& c, const std::string& prefix, Act act) {
  const Storage s = storage_of(c, prefix);
  return s.method == Storage::Method::compressed && s.integer && s.bits == 8 && s.act == act &&
         (s.group == 0 || act == Act::a16) &&
         (s.packing == "int-quantized" || s.packing == "naive-quantized" || is_packed(s));
}

std::unique_ptr<WeightReader> open_int8(const char* name, const Checkpoint& c,
                                        const std::string& prefix, int n, int k) {
  return std::make_unique<Int8Reader>(name, c, prefix, n, k);
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
    const float amax = largest_magnitude(row, k);
    check(std::isfinite(amax), Code::invalid_argument, "cast to ", name, ": value [", r, ", ",
          std::isfinite(amax) ? 0 : first_not_finite(row, k), "] is not finite");
    const float scale = amax == 0 ? 1.0f : std::max(amax / 127.0f, FLT_MIN);
    w.scales[r] = scale;
    for (int i = 0; i < k; ++i)
      w.codes[size_t(r) * k + i] =
          static_cast<int8_t>(std::clamp(to_integer(row[i] / scale), -127.0f, 127.0f));
  }
  return w;
}

size_t w8_bytes(int n, int k) { return tiles::count(n) * tiles::w8_tile(k); }

void pack_w8_scales(const WeightRows& w, std::byte* tiles) {
  tiles::each_scale(w, [&](int tile, size_t, int lane, const float* scales, int count) {
    std::memcpy(tiles + tile * tiles::w8_tile(w.k) + lane * 4, scales, size_t(count) * 4);
  });
}

void pack_w8(const WeightRows& w, int offset, std::byte* out) {
  pack_w8_scales(w, out);
  const uint32_t flip = offset == 128 ? 0x80808080u : 0;
  tiles::each_step(w, [&](int tile, int step, int lane, const uint32_t* words, int count) {
    std::byte* at = out + tile * tiles::w8_tile(w.k) + tiles::kChannelScales + size_t(step) * 128;
    tiles::put_words(at + lane * 4, words, count, [&](uint32_t x) { return x ^ flip; });
  });
}

}  // namespace stepladder
