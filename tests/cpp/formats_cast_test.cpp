// Casting to every format: the nearest code, the scale each format is said to choose.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "formats/linear.h"
#include "support/refusal.h"

namespace stepladder {
namespace {

using testing::expect_refused;

std::vector<float> random_values(int n, int k, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, .05f);
  std::vector<float> out(size_t(n) * k);
  for (float& v : out) v = normal(random);
  for (int i = 0; i < 32; ++i) out[i] = 0;         // a group of zeros
  for (int i = 64; i < 96; ++i) out[i] *= 1e-38f;  // a group of subnormals
  for (int i = 128; i < 160; ++i) out[i] *= 1e30f;
  out[200] = -.3f, out[201] = .3f;  // a tie for the largest magnitude
  return out;
}

/// The distance to the nearest of `grid` times `scale`.
double nearest(double value, double scale, std::span<const double> grid) {
  double best = INFINITY;
  for (const double g : grid) best = std::min(best, std::fabs(value - g * scale));
  return best;
}

TEST(Cast, EveryCodeIsTheNearestAndEveryScaleIsUsable) {
  const int n = 6, k = 192;
  const auto values = random_values(n, k, 4);
  for (const WeightFormat* format : formats()) {
    if (std::string(format->name) == "dense") continue;
    std::vector<double> grid;
    for (int i = -8; i < 8; ++i) grid.push_back(i);
    if (std::string(format->name) == "mxfp4") {
      grid.clear();
      for (const double m : {0., .5, 1., 1.5, 2., 3., 4., 6.})
        grid.push_back(m), grid.push_back(-m);
    } else if (std::string(format->name).starts_with("w8")) {
      grid.clear();
      for (int i = -127; i <= 127; ++i) grid.push_back(i);
    }
    const CanonicalWeight w = format->cast(values, n, k, 0);
    EXPECT_STREQ(w.desc.name, format->name);
    const int group = w.desc.group ? w.desc.group : k;
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < k; ++c) {
        const float scale = w.scales[(size_t(r) * k + c) / group];
        ASSERT_TRUE(std::isfinite(scale) && scale != 0);
        const double value = values[size_t(r) * k + c], off = std::fabs(w.at(r, c) - value);
        // Dividing by the scale rounds once, which can turn a near-tie.
        ASSERT_LE(off, nearest(value, scale, grid) + 0x1p-23 * std::fabs(value))
            << format->name << r << ", " << c;
      }
    EXPECT_EQ(w.at(0, 3), 0) << format->name;
  }
}

TEST(Cast, Int8ScalesAreTheLargestMagnitudeOver127) {
  const auto values = random_values(4, 192, 5);
  for (const char* name : {"w8a16", "w8a8"}) {
    const CanonicalWeight w = format_named(name).cast(values, 4, 192, 0);
    for (int r = 0; r < 4; ++r) {
      float amax = 0;
      for (int c = 0; c < 192; ++c) amax = std::max(amax, std::fabs(values[r * 192 + c]));
      EXPECT_EQ(w.scales[r], amax / 127);
    }
  }
}

TEST(Cast, Int4MapsTheValueOfLargestMagnitudeToMinusEight) {
  const auto values = random_values(4, 192, 6);
  for (const int group : {32, 64}) {
    const CanonicalWeight w = format_named("w4a16").cast(values, 4, 192, group);
    ASSERT_EQ(w.desc.group, group);
    for (size_t g = group == 32 ? 5 : 3; g < w.scales.size(); ++g) {
      size_t at = g * group;
      for (int i = 0; i < group; ++i)
        if (std::fabs(values[g * group + i]) > std::fabs(values[at])) at = g * group + i;
      EXPECT_EQ(w.codes[at], -8) << g;
      EXPECT_EQ(w.scales[g], from_bf16(to_bf16(values[at] / -8))) << g;
    }
    EXPECT_EQ(w.scales[0], group == 32 ? 1.0f : w.scales[0]);
  }
  EXPECT_EQ(format_named("w4a16").cast(values, 4, 192, 0).desc.group, 32);
}

TEST(Cast, MxFp4RoundsTheLargestMagnitudeToOneBitForItsScale) {
  const auto scale_of = [](float amax) {
    std::vector<float> values(32);
    values[7] = -amax;
    return format_named("mxfp4").cast(values, 1, 32, 0).scales[0];
  };
  // 1.75 rounds up to 2, below it the exponent stays; 4 is the top power of two of the codes
  EXPECT_EQ(scale_of(1.0f), .25f);
  EXPECT_EQ(scale_of(1.5f), .25f);
  EXPECT_EQ(scale_of(std::nextafter(1.75f, 0.f)), .25f);
  EXPECT_EQ(scale_of(1.75f), .5f);
  EXPECT_EQ(scale_of(2.0f), .5f);
  EXPECT_EQ(scale_of(0), 1.0f);
  EXPECT_EQ(scale_of(0x1p-140f), 0x1p-127f);
  EXPECT_EQ(scale_of(3e38f), 0x1p126f);
}

TEST(Cast, MxFp4RoundsTiesToTheEvenCode) {
  std::vector<float> values(32);
  values[0] = 4;  // the scale is 1
  const float ties[] = {.25f, .75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.f, -5.f, 6.5f};
  const double wanted[] = {0, 1, 1, 2, 2, 4, 4, -4, 6};
  std::copy(std::begin(ties), std::end(ties), values.begin() + 1);
  const CanonicalWeight w = format_named("mxfp4").cast(values, 1, 32, 0);
  // 6.5 asks for scale 1 too: below 7 it stays
  ASSERT_EQ(w.scales[0], 1.0f);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(w.at(0, i + 1), wanted[i]) << ties[i];
}

TEST(Cast, RefusesValuesAndGroupsItCannotStore) {
  std::vector<float> values(2 * 96, .5f);
  const Code bad = Code::invalid_argument;
  expect_refused([&] { format_named("w4a16").cast(values, 2, 96, 64); }, bad,
                 {"w4a16", "64", "96"});
  expect_refused([&] { format_named("w4a16").cast(values, 2, 96, 48); }, bad, {"48"});
  expect_refused([&] { format_named("mxfp4").cast(values, 2, 96, 64); }, bad, {"mxfp4"});
  expect_refused([&] { format_named("mxfp4").cast(std::span(values).first(80), 2, 40, 0); }, bad,
                 {"40"});
  expect_refused([&] { format_named("w8a8").cast(values, 2, 96, 32); }, bad, {"w8a8"});
  values[100] = std::nanf("");
  for (const WeightFormat* format : formats())
    expect_refused([&] { format->cast(values, 2, 96, 0); }, bad, {format->name, "not finite"});
}

TEST(Canonical, AppendStacksRowsAndBiases) {
  const auto values = random_values(5, 96, 8);
  for (const WeightFormat* format : formats()) {
    CanonicalWeight whole = format->cast(values, 5, 96, 0);
    CanonicalWeight a = format->cast(std::span(values).first(2 * 96), 2, 96, 0);
    CanonicalWeight b = format->cast(std::span(values).subspan(2 * 96), 3, 96, 0);
    b.bias = {1, 2, 3};
    a.append(b);
    EXPECT_EQ(a.n, 5);
    EXPECT_EQ(a.dequantize(), whole.dequantize()) << format->name;
    EXPECT_EQ(a.bias, (std::vector<float>{0, 0, 1, 2, 3}));
    CanonicalWeight c = format->cast(std::span(values).first(2 * 96), 2, 96, 0);
    a.append(c);
    EXPECT_EQ(a.bias, (std::vector<float>{0, 0, 1, 2, 3, 0, 0}));
  }
}

}  // namespace
}  // namespace stepladder
