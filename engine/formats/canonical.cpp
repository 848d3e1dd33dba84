// CanonicalWeight: the values behind the codes, and the layout the generic path reads.
#include <algorithm>
#include <cstring>

#include "core/error.h"
#include "formats/linear.h"

namespace stepladder {
namespace {

bool is_dense(const FormatDesc& d) { return d.code == DType::bf16 || d.code == DType::f16; }

}  // namespace

double CanonicalWeight::at(int row, int col) const {
  const size_t i = size_t(row) * k + col;
  if (is_dense(desc)) return from_16(desc.code, dense[i]);
  const double value =
      desc.code == DType::e2m1 ? from_e2m1(static_cast<uint8_t>(codes[i])) : codes[i];
  const int group = desc.group ? desc.group : k;
  return value * scales[size_t(row) * desc.groups(k) + col / group];
}

void CanonicalWeight::append(const CanonicalWeight& other) {
  check(other.k == k && other.desc.code == desc.code && other.desc.group == desc.group &&
            other.desc.scale == desc.scale,
        Code::internal, "formats: rows of another format or width cannot be appended to ",
        desc.name);
  if (bias.empty() != other.bias.empty()) bias.resize(n, 0.0f);
  const auto add = [](auto& to, const auto& from) {
    to.insert(to.end(), from.begin(), from.end());
  };
  add(dense, other.dense), add(codes, other.codes), add(scales, other.scales);
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
  if (is_dense(w.desc)) {
    out.codes = reinterpret_cast<const std::byte*>(w.dense.data());
  } else if (w.desc.code == DType::i8) {
    out.codes = reinterpret_cast<const std::byte*>(w.codes.data());
  } else {
    const size_t row = described_row_bytes(w.desc, w.k), width = w.k;
    const int offset = w.desc.code == DType::i4 ? 8 : 0;
    auto* to = memory.take<uint8_t>(row * w.n);
    for (int r = 0; r < w.n; ++r, to += row) {
      const int8_t* from = w.codes.data() + r * width;
      for (size_t i = 0; i + 1 < width; i += 2)
        to[i / 2] = static_cast<uint8_t>((from[i] + offset) | (from[i + 1] + offset) << 4);
      if (width % 2) to[width / 2] = static_cast<uint8_t>(from[width - 1] + offset);
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
    out.scales.assign(w.scales, w.scales + size_t(w.count) * w.desc.groups(w.k));
    if (w.desc.code == DType::i8) {
      std::memcpy(out.codes.data(), w.codes, size);
    } else {
      const int offset = w.desc.code == DType::i4 ? 8 : 0;
      each_nibble_row(w, [&](int r, const uint8_t* nibbles) {
        int8_t* to = out.codes.data() + size_t(r) * w.k;
        for (int i = 0; i < w.k; ++i)
          to[i] = static_cast<int8_t>((nibbles[i / 2] >> (i % 2 * 4) & 15) - offset);
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
      float* to = out + size_t(r) * w.k + size_t(g) * group;
      for (int i = 0; i < group; ++i) to[i] = code(g * group + i) * scale;
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
    values[q] = w.desc.code == DType::i4 ? float(q - 8) : from_e2m1(static_cast<uint8_t>(q));
  each_nibble_row(w, [&](int r, const uint8_t* nibbles) {
    scaled(r, [&](int i) { return values[nibbles[i / 2] >> (i % 2 * 4) & 15]; });
  });
}

CanonicalWeight read_weight(const Checkpoint& c, const std::string& prefix, int n, int k) {
  RowMemory memory;
  return canonical(format_of(c, prefix).open(c, prefix, n, k)->read(0, n, memory));
}

size_t described_bytes(const FormatDesc& desc, int n, int k) {
  return described_scales(desc, n, k) + size_t(n) * desc.groups(k) * sizeof(float);
}

void pack_described(const WeightRows& w, std::byte* out) {
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
  if (groups)
    std::memcpy(out + described_scales(w.desc, w.n, w.k) + w.first * groups * sizeof(float),
                w.scales, w.count * groups * sizeof(float));
}

}  // namespace stepladder
