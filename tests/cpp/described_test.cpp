// What a descriptor can say (codes, groups, offsets, a second level of scales, what int8 tokens
// share a scale over), by the generic path and the shared bodies of every instruction set, against
// fp64.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>

#include "backends/backend.h"
#include "backends/cpu/cpu_backend.h"
#include "formats/linear.h"
#include "support/isa/nibble_kernels.h"
#include "support/linear_call.h"

namespace stepladder {
namespace {

constexpr DType kBf16 = DType::bf16;

struct Numbers {
  DType code;
  int group;
  bool offset, two_level;
  friend std::ostream& operator<<(std::ostream& out, const Numbers& c) {
    return out << name(c.code) << ", group " << c.group << (c.offset ? ", offsets" : "")
               << (c.two_level ? ", two levels" : "");
  }
};

std::vector<Numbers> all_numbers() {
  std::vector<Numbers> out;
  for (const DType code : {DType::i8, DType::i4, DType::u4, DType::e2m1})
    for (const int group : {0, 32, 128})
      for (const bool offset : {false, true})
        for (const bool two_level : {false, true})
          if (code != DType::e2m1 || !two_level) out.push_back({code, group, offset, two_level});
  return out;
}

/// Random codes over their whole range. Of two levels, scales that are whole as QoQ's and such that
/// need rounding as QQQ's; some products lie outside of int8.
CanonicalWeight random_weight(const Numbers& c, int n, int k, std::mt19937& random) {
  std::normal_distribution<float> normal;
  CanonicalWeight w{{"test", c.code, c.group, true, DType::f32, c.offset, c.two_level}, n, k};
  for (size_t i = 0; i < size_t(n) * k; ++i) {
    const int bits = static_cast<int>(random());
    w.codes.push_back(static_cast<int8_t>(c.code == DType::i8   ? bits & 255
                                          : c.code == DType::i4 ? (bits & 15) - 8
                                                                : bits & 15));
  }
  const float most = c.code == DType::i8 ? 1.2f : 18.f;
  for (size_t g = 0; g < size_t(n) * w.desc.groups(k); ++g) {
    const float share = static_cast<float>(random() % 1000) / 1000.f;
    w.scales.push_back(!c.two_level   ? .001f + std::fabs(normal(random))
                       : random() % 2 ? std::ceil(share * most)
                                      : share * most);
    if (c.offset)
      w.offsets.push_back(c.two_level ? float(int(random() % 256) - 128) : normal(random) * 4.f);
  }
  if (c.two_level)
    for (int r = 0; r < n; ++r) w.channels.push_back(.001f + std::fabs(normal(random)));
  return w;
}

/// A weight by the words of the descriptor, in fp64 but for the rounding it speaks of.
double described_value(const CanonicalWeight& w, int row, int col) {
  const int group = w.desc.group ? w.desc.group : w.k;
  const size_t g = size_t(row) * w.desc.groups(w.k) + col / group;
  const int8_t stored = w.codes[size_t(row) * w.k + col];
  const float code = w.desc.code == DType::e2m1 ? from_e2m1(uint8_t(stored)) : stored;
  const double offset = w.desc.offset ? w.offsets[g] : 0;
  if (!w.desc.two_level) return double(code) * w.scales[g] - offset;
  const double whole = std::nearbyint(double(code * w.scales[g])) - offset;
  return std::clamp(whole, -128.0, 127.0) * w.channels[row];
}

TEST(Described, GenericPathRunsWhateverADescriptorSays) {
  std::mt19937 random(17);
  const int n = 37, k = 256, rows = 35;
  for (const auto& isa : available_isas()) {
    CpuBackend backend(isa, 1);
    for (const Numbers& c : all_numbers())
      for (const ActMode mode : {kA16, kA8PerToken, kA8PerGroup}) {
        SCOPED_TRACE(::testing::Message()
                     << c << " on " << isa << ", a" << (mode.act == Act::a16 ? 16 : 8)
                     << (mode.per == Per::group ? " per group" : ""));
        const CanonicalWeight w = random_weight(c, n, k, random);
        const std::vector<std::byte> packed = pack(nullptr, w);
        ASSERT_EQ(packed.size(), described_bytes(w.desc, n, k));
        const int group = c.group ? c.group : k;
        Tokens t(kBf16, rows, k, mode.per == Per::group ? group : k, random, group);
        std::vector<float> y(size_t(rows) * n), alone(y.size());
        const Call run{nullptr, &backend, mode.act, &w, packed.data()};
        run(y.data(), t, 0, rows);
        for (int r = 0; r < rows; ++r) run(alone.data() + size_t(r) * n, t, r, 1);
        EXPECT_EQ(0, std::memcmp(y.data(), alone.data(), y.size() * 4));
        for (int r = 0; r < rows; ++r)
          for (int o = 0; o < n; ++o) {
            double exact = 0, norm = 0;
            for (int i = 0; i < k; ++i) {
              const double token = t.at(mode.act, r, i), value = described_value(w, o, i);
              exact += token * value;
              norm += std::fabs(token) * std::fabs(value);
              // Scaled codes and offsets are summed apart.
              if (c.offset && !c.two_level)
                norm += std::fabs(token) * 2 * std::fabs(w.offsets[o * (k / group) + i / group]);
            }
            ASSERT_NEAR(y[size_t(r) * n + o], exact, bound(k, norm)) << r << ", " << o;
          }
      }
  }
}

TEST(Described, RowsKeepWhatADescriptorSays) {
  std::mt19937 random(19);
  const int n = 21, k = 256;
  for (const Numbers& c : all_numbers()) {
    SCOPED_TRACE(::testing::Message() << c);
    const CanonicalWeight w = random_weight(c, n, k, random);
    Scratch memory;
    const WeightRows rows = rows_of(w, memory);
    const CanonicalWeight back = canonical(rows);
    EXPECT_EQ(back.codes, w.codes);
    EXPECT_EQ(back.scales, w.scales);
    EXPECT_EQ(back.offsets, w.offsets);
    EXPECT_EQ(back.channels, w.channels);
    std::vector<float> values(size_t(n) * k);
    dequantize(rows, values.data());
    EXPECT_EQ(values, w.dequantize());
    for (int r = 0; r < n; ++r)
      for (int i = 0; i < k; ++i) ASSERT_EQ(w.at(r, i), described_value(w, r, i));

    // Packed a few rows at a time, and appended, it is the same.
    CanonicalWeight top = canonical({.desc = w.desc,
                                     .n = n,
                                     .k = k,
                                     .count = 8,
                                     .codes = rows.codes,
                                     .scales = rows.scales,
                                     .offsets = rows.offsets,
                                     .channels = rows.channels});
    const size_t groups = size_t(8) * w.desc.groups(k);
    const WeightRows rest{.desc = w.desc,
                          .n = n,
                          .k = k,
                          .first = 8,
                          .count = n - 8,
                          .codes = rows.codes + 8 * described_row_bytes(w.desc, k),
                          .scales = rows.scales + groups,
                          .offsets = rows.offsets ? rows.offsets + groups : nullptr,
                          .channels = rows.channels ? rows.channels + 8 : nullptr};
    WeightRows first = rows;
    first.count = 8;
    std::vector<std::byte> parts(described_bytes(w.desc, n, k));
    pack_described(rest, parts.data());
    pack_described(first, parts.data());
    EXPECT_EQ(parts, pack(nullptr, w));
    top.append(canonical(rest));
    EXPECT_EQ(pack(nullptr, top), parts);
  }
}

/// Nibbles per channel and in groups, with one scale a token; the sums are longer than what the
/// bodies prepare of a token at a time.
TEST(Int8Activations, NibblesOfEveryLengthRunWithOneScaleAToken) {
  std::mt19937 random(11);
  for (const auto& isa : available_isas())
    for (const int group : {0, 32, 128})
      for (const int k : {128, 512, 640, 1024, 2176, 4096}) {
        const LinearKernel* kernel = nibble_kernel(isa, group != 0);
        if (!kernel) continue;
        const int n = 70, rows = 13;
        const CanonicalWeight w = random_weight({DType::i4, group, false, false}, n, k, random);
        const std::vector<std::byte> packed = pack(kernel, w);
        Tokens t(kBf16, rows, k, k, random, group);
        std::vector<float> y(size_t(rows) * n), alone(y.size());
        const Call run{kernel, nullptr, Act::a8, &w, packed.data()};
        run(y.data(), t, 0, rows);
        for (int r = 0; r < rows; ++r) run(alone.data() + size_t(r) * n, t, r, 1);
        EXPECT_EQ(0, std::memcmp(y.data(), alone.data(), y.size() * 4));
        for (int r = 0; r < rows; ++r)
          for (int o = 0; o < n; ++o) {
            double exact = 0, norm = 0;
            for (int i = 0; i < k; ++i) {
              const double term = w.at(o, i) * t.at(Act::a8, r, i);
              exact += term, norm += std::fabs(term);
            }
            // Integers sum exactly; each group is scaled twice and added.
            ASSERT_NEAR(y[size_t(r) * n + o], exact, (w.desc.groups(k) + 4) * 0x1p-24 * norm)
                << isa << ", group " << group << ", k " << k << ", output " << r << ", " << o;
          }
      }
}

}  // namespace
}  // namespace stepladder
