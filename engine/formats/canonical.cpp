// CanonicalWeight: the values behind the codes, and the layout the generic path reads.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "formats/linear.h"
#include "formats/rounding.h"

namespace stepladder {
namespace {

bool is_dense(const FormatDesc& d) { return d.code == DType::bf16 || d.code == DType::f16; }

/// What stands in a file for the value 0 of a 4-bit code.
int bias_of(DType code) { return code == DType::i4 ? 8 : 0; }

/// The whole number below the channel's scale that a code of two levels stands for.
int8_t first_level(float code, float scale, float offset) {
  const float whole = to_integer(std::clamp(code * scale, -0x1p20f, 0x1p20f));
  return static_cast<int8_t>(std::clamp(whole - offset, -128.0f, 127.0f));
}

}  // namespace

double CanonicalWeight::at(int row, int col) const {
  const size_t i = size_t(row) * k + col;
  if (is_dense(desc)) return from_16(desc.code, dense[i]);
  const double value =
      desc.code == DType::e2m1 ? from_e2m1(static_cast<uint8_t>(codes[i])) : codes[i];
  const int group = desc.group ? desc.group : k;
  const size_t g = size_t(row) * desc.groups(k) + col / group;
  const float offset = desc.offset ? offsets[g] : 0.0f;
  if (!desc.two_level) return value * scales[g] - offset;
  return double(first_level(static_cast<float>(value), scales[g], offset)) * channels[row];
}

void CanonicalWeight::append(const CanonicalWeight& other) {
  check(other.k == k && other.desc.code == desc.code && other.desc.group == desc.group &&
            other.desc.scale == desc.scale && other.desc.offset == desc.offset &&
            other.desc.two_level == desc.two_level,
        Code::internal, "formats: rows of another format or width cannot be appended to ",
        desc.name);
  if (bias.empty() != other.bias.empty()) bias.resize(n, 0.0f);
  const auto add = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  add(dense, other.dense), add(codes, other.codes), add(scales, other.scales);
  add(offsets, other.offsets), add(channels, other.channels);
  add(bias, other.bias);
  n += other.n;
  if (!bias.empty()) bias.resize(n, 0.0f);
}

std::vector<float> CanonicalWeight::dequantize() const {
  std::vector<float> out(size_t(n) * k);
  for (int r = 0; r < n; ++r)
    for (int c = 0; c < k; ++c) out[size_t(r) * k + c] = static_cast<float>(at(r, c));
  return out;
}

WeightRows rows_of(const CanonicalWeight& w, Scratch& memory) {
  WeightRows out{w.desc, w.n, w.k, 0, w.n};
  out.scales = w.scales.data();
  if (w.desc.offset) out.offsets = w.offsets.data();
  if (w.desc.two_level) out.channels = w.channels.data();
  if (is_dense(w.desc)) {
    out.codes = reinterpret_cast<const std::byte*>(w.dense.data());
  } else if (w.desc.code == DType::i8) {
    out.codes = reinterpret_cast<const std::byte*>(w.codes.data());
  } else {
    const size_t row = described_row_bytes(w.desc, w.k), width = w.k;
    const int bias = bias_of(w.desc.code);
    auto* to = memory.take<uint8_t>(row * w.n);
    for (int r = 0; r < w.n; ++r, to += row) {
      const int8_t* from = w.codes.data() + r * width;
      for (size_t i = 0; i + 1 < width; i += 2)
        to[i / 2] = static_cast<uint8_t>((from[i] + bias) | (from[i + 1] + bias) << 4);
      if (width % 2) to[width / 2] = static_cast<uint8_t>(from[width - 1] + bias);
    }
    out.codes = memory.take<std::byte>(row * w.n);
  }
  return out;
}

namespace {

/// Calls take(row, nibbles) for every row of 4-bit codes, k of them two a byte.
template <class Take>
void each_nibble_row(const WeightRows& w, Take&& take) {
  const size_t row = described_row_bytes(w.desc, w.k), words = row / 4;
  const auto* codes = reinterpret_cast<const uint8_t*>(w.codes);
  if (!w.words_across) {
    for (int r = 0; r < w.count; ++r) take(r, codes + r * row);
    return;
  }
  constexpr int kSome = 16;  // rows: a cache line of words
  std::vector<uint32_t> lines(kSome * words);
  for (int first = 0; first < w.count; first += kSome) {
    const int some = std::min(kSome, w.count - first);
    for (size_t i = 0; i < words; ++i)
      for (int r = 0; r < some; ++r)
        std::memcpy(&lines[r * words + i], codes + (i * w.count + first + r) * 4, 4);
    for (int r = 0; r < some; ++r)
      take(first + r, reinterpret_cast<const uint8_t*>(&lines[r * words]));
  }
}

}  // namespace

CanonicalWeight canonical(const WeightRows& w) {
  CanonicalWeight out{w.desc, w.count, w.k};
  const size_t size = size_t(w.count) * w.k;
  if (is_dense(w.desc)) {
    out.dense.resize(size);
    std::memcpy(out.dense.data(), w.codes, size * 2);
  } else {
    out.codes.resize(size);
    const size_t groups = size_t(w.count) * w.desc.groups(w.k);
    out.scales.assign(w.scales, w.scales + groups);
    if (w.desc.offset) out.offsets.assign(w.offsets, w.offsets + groups);
    if (w.desc.two_level) out.channels.assign(w.channels, w.channels + w.count);
    if (w.desc.code == DType::i8) {
      std::memcpy(out.codes.data(), w.codes, size);
    } else {
      const int bias = bias_of(w.desc.code);
      each_nibble_row(w, [&](int r, const uint8_t* nibbles) {
        int8_t* to = out.codes.data() + size_t(r) * w.k;
        for (int i = 0; i < w.k; ++i)
          to[i] = static_cast<int8_t>((nibbles[i / 2] >> (i % 2 * 4) & 15) - bias);
      });
    }
  }
  return out;
}

void dequantize(const WeightRows& w, float* out) {
  const size_t size = size_t(w.count) * w.k;
  if (is_dense(w.desc)) {
    const auto* codes = reinterpret_cast<const uint16_t*>(w.codes);
    if (w.desc.code == DType::bf16)
      for (size_t i = 0; i < size; ++i) out[i] = from_bf16(codes[i]);
    else
      for (size_t i = 0; i < size; ++i) out[i] = from_f16(codes[i]);
    return;
  }
  const int group = w.desc.group ? w.desc.group : w.k, groups = w.desc.groups(w.k);
  const auto scaled = [&](int r, auto&& code) {
    for (int g = 0; g < groups; ++g) {
      const float scale = w.scales[size_t(r) * groups + g];
      const float offset = w.offsets ? w.offsets[size_t(r) * groups + g] : 0.0f;
      float* to = out + size_t(r) * w.k + size_t(g) * group;
      const auto each = [&](auto&& value) {
        for (int i = 0; i < group; ++i) to[i] = value(code(g * group + i));
      };
      if (w.channels)
        each([&](float q) { return first_level(q, scale, offset) * w.channels[r]; });
      else if (w.offsets)
        each([&](float q) { return static_cast<float>(double(q) * scale - offset); });
      else
        each([&](float q) { return q * scale; });
    }
  };
  if (w.desc.code == DType::i8) {
    const auto* codes = reinterpret_cast<const int8_t*>(w.codes);
    for (int r = 0; r < w.count; ++r)
      scaled(r, [row = codes + size_t(r) * w.k](int i) { return float(row[i]); });
    return;
  }
  float values[16];
  for (int q = 0; q < 16; ++q)
    values[q] = w.desc.code == DType::e2m1 ? from_e2m1(static_cast<uint8_t>(q))
                                           : float(q - bias_of(w.desc.code));
  each_nibble_row(w, [&](int r, const uint8_t* nibbles) {
    scaled(r, [&](int i) { return values[nibbles[i / 2] >> (i % 2 * 4) & 15]; });
  });
}

CanonicalWeight read_weight(const Checkpoint& c, const std::string& prefix, int n, int k) {
  RowMemory memory;
  return canonical(format_of(c, prefix).open(c, prefix, n, k)->read(0, n, memory));
}

size_t described_bytes(const FormatDesc& desc, int n, int k) {
  const FormatDesc d = described_as(desc);
  return described_scales(d, n, k) + size_t(n) * d.groups(k) * sizeof(float) * (d.offset ? 2 : 1);
}

namespace {

/// The rows of a weight of two levels as int8 ones.
CanonicalWeight one_level(const WeightRows& w) {
  CanonicalWeight out = canonical(w);
  const int group = w.desc.group ? w.desc.group : w.k, groups = w.desc.groups(w.k);
  for (int r = 0; r < w.count; ++r)
    for (int i = 0; i < w.k; ++i) {
      int8_t& code = out.codes[size_t(r) * w.k + i];
      const size_t g = size_t(r) * groups + i / group;
      code = first_level(code, out.scales[g], w.desc.offset ? out.offsets[g] : 0.0f);
    }
  out.scales = out.channels;
  out.desc = described_as(w.desc);
  return out;
}

}  // namespace

void pack_described(const WeightRows& w, std::byte* out) {
  if (w.desc.two_level) {
    const CanonicalWeight plain = one_level(w);
    WeightRows rows{plain.desc, w.n, w.k, w.first, w.count};
    rows.codes = reinterpret_cast<const std::byte*>(plain.codes.data());
    rows.scales = plain.scales.data();
    return pack_described(rows, out);
  }
  const size_t row = described_row_bytes(w.desc, w.k), groups = w.desc.groups(w.k);
  std::byte* const codes = out + row * w.first;
  if (bits(w.desc.code) > 4) {
    std::memcpy(codes, w.codes, row * w.count);
  } else {
    const uint8_t flip = w.desc.code == DType::i4 ? 0x88 : 0;  // value + 8 to two's complement
    each_nibble_row(w, [&](int r, const uint8_t* nibbles) {
      for (size_t i = 0; i < row; ++i)
        codes[r * row + i] = static_cast<std::byte>(nibbles[i] ^ flip);
    });
  }
  std::byte* const scales = out + described_scales(w.desc, w.n, w.k);
  const size_t first = w.first * groups * sizeof(float), bytes = w.count * groups * sizeof(float);
  if (groups) std::memcpy(scales + first, w.scales, bytes);
  if (w.desc.offset) std::memcpy(scales + w.n * groups * sizeof(float) + first, w.offsets, bytes);
}

}  // namespace stepladder
