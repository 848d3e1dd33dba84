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

size_t described_bytes(const FormatDesc& desc, int n, int k) {
  return described_scales(desc, n, k) + size_t(n) * desc.groups(k) * sizeof(float);
}

void pack_described(const CanonicalWeight& w, std::byte* out) {
  std::memset(out, 0, described_bytes(w.desc, w.n, w.k));
  const size_t row_bytes = described_row_bytes(w.desc, w.k);
  if (is_dense(w.desc)) {
    std::memcpy(out, w.dense.data(), w.dense.size() * 2);
  } else if (w.desc.code == DType::i8) {
    std::memcpy(out, w.codes.data(), w.codes.size());
  } else {
    for (int r = 0; r < w.n; ++r)
      for (int i = 0; i < w.k; ++i)
        out[row_bytes * r + i / 2] |=
            static_cast<std::byte>((w.codes[size_t(r) * w.k + i] & 15) << (i % 2 * 4));
  }
  if (!w.scales.empty())
    std::memcpy(out + described_scales(w.desc, w.n, w.k), w.scales.data(), w.scales.size() * 4);
}

}  // namespace stepladder
