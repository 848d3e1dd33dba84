// Every linear kernel of every instruction set this machine has, against fp64 on the canonical
// weights, and against itself: a row's bits may depend on the row alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>

#include "backends/backend.h"
#include "backends/cpu/cpu_backend.h"
#include "core/arena.h"
#include "formats/linear.h"
#include "support/linear_call.h"

namespace stepladder {
namespace {

/// A way to store weights and tokens; every kernel that takes it is tested.
struct Variant {
  const char* name;
  const char* format;
  Act act;
  DType code, scale;
  int group;
  DType x;
};
constexpr DType kBf16 = DType::bf16, kF16 = DType::f16, kF32 = DType::f32;
constexpr Variant kVariants[] = {
    {"dense_bf16", "dense", Act::a16, kBf16, kF32, 0, kBf16},
    {"dense_f16", "dense", Act::a16, kF16, kF32, 0, kF16},
    {"dense_bf16_x_f16", "dense", Act::a16, kBf16, kF32, 0, kF16},
    {"dense_f16_x_bf16", "dense", Act::a16, kF16, kF32, 0, kBf16},
    {"w8a16", "w8a16", Act::a16, DType::i8, kF32, 0, kBf16},
    {"w8a16_x_f16", "w8a16", Act::a16, DType::i8, kBf16, 0, kF16},
    {"w8a16_g32", "w8a16", Act::a16, DType::i8, kBf16, 32, kBf16},
    {"w8a16_g128_x_f16", "w8a16", Act::a16, DType::i8, kF16, 128, kF16},
    {"w8a8", "w8a8", Act::a8, DType::i8, kF32, 0, kBf16},
    {"w4a16_g32", "w4a16", Act::a16, DType::i4, kBf16, 32, kBf16},
    {"w4a16_g64", "w4a16", Act::a16, DType::i4, kF32, 64, kBf16},
    {"w4a16_g128_x_f16", "w4a16", Act::a16, DType::i4, kF16, 128, kF16},
    {"w4a8_g32", "w4a16", Act::a8, DType::i4, kBf16, 32, kBf16},
    {"w4a8_g64", "w4a16", Act::a8, DType::i4, kF16, 64, kF16},
    {"w4a8_g128", "w4a16", Act::a8, DType::i4, kF32, 128, kBf16},
    {"mxfp4", "mxfp4", Act::a16, DType::e2m1, DType::e8m0, 32, kBf16},
    {"mxfp4_x_f16", "mxfp4", Act::a16, DType::e2m1, DType::e8m0, 32, kF16},
};

float rounded(DType type, float v) {
  return type == kBf16 ? from_bf16(to_bf16(v)) : type == kF16 ? from_f16(to_f16(v)) : v;
}

/// Random codes over the whole range of the format, so also the extreme ones.
CanonicalWeight random_weight(const Variant& v, int n, int k, std::mt19937& random) {
  std::normal_distribution<float> normal;
  CanonicalWeight w{{v.format, v.code, v.group, v.code != kBf16 && v.code != kF16, v.scale}, n, k};
  const size_t size = size_t(n) * k;
  if (!w.desc.scaled) {
    w.dense.resize(size);
    for (auto& c : w.dense) c = to_16(v.code, normal(random));
    for (size_t i = 0; i < size; i += 97)
      w.dense[i] = to_16(v.code, normal(random) * 0x1p-17f);  // f16 subnormals
    return w;
  }
  w.codes.resize(size);
  for (auto& c : w.codes) {
    const int bits = static_cast<int>(random());
    c = static_cast<int8_t>(v.code == DType::i8   ? bits & 255
                            : v.code == DType::i4 ? (bits & 15) - 8
                                                  : bits & 15);
  }
  w.scales.resize(size_t(n) * w.desc.groups(k));
  for (auto& s : w.scales) {
    const float magnitude = rounded(v.scale, .001f + std::fabs(normal(random)));
    s = v.scale == DType::e8m0                ? std::ldexp(1.0f, static_cast<int>(random() % 9) - 4)
        : v.code == DType::i4 && random() % 2 ? -magnitude
                                              : magnitude;
  }
  return w;
}

/// A way to compute: a variant on an instruction set, by its fast kernel or the generic path.
struct Cell {
  Variant variant;
  std::string isa;
  bool generic;
};
std::ostream& operator<<(std::ostream& o, const Cell& c) {
  return o << c.variant.name << " on " << c.isa;
}

std::vector<Cell> cells() {
  std::vector<Cell> out;
  for (const auto& isa : available_isas())
    for (const Variant& v : kVariants)
      for (const bool generic : {false, true}) {
        const bool only_generic = v.code == DType::i8 && v.group;  // no kernel takes such groups
        if (generic || !only_generic) out.push_back({v, isa, generic});
      }
  return out;
}

class LinearKernelTest : public ::testing::TestWithParam<Cell> {
 protected:
  const Variant& v_ = GetParam().variant;
  std::unique_ptr<CpuBackend> backend_ = std::make_unique<CpuBackend>(GetParam().isa, 1);
  std::mt19937 random_{20240611};
  std::vector<std::byte> packed_;

  const LinearKernel* kernel() const {
    if (GetParam().generic) return nullptr;
    for (const LinearKernel& kernel : linear_kernels())
      if (std::string(kernel.family) == "cpu/" + GetParam().isa &&
          std::string(kernel.format) == v_.format && kernel.mode.act == v_.act)
        return &kernel;
    ADD_FAILURE() << "no kernel";
    return nullptr;
  }
  Call call(const CanonicalWeight& w) {
    const LinearKernel* fast = kernel();
    if (fast) {
      EXPECT_TRUE(fast->packing->supports(w.desc, w.n, w.k));
    }
    const std::vector<std::byte> bytes = pack(fast, w);
    packed_.resize(bytes.size() + 64);
    std::byte* at = packed_.data() + (64 - reinterpret_cast<uintptr_t>(packed_.data()) % 64) % 64;
    std::copy(bytes.begin(), bytes.end(), at);
    return {fast, backend_.get(), v_.act, &w, at};
  }
  std::vector<std::pair<int, int>> shapes() const {
    std::vector<std::pair<int, int>> out;
    // The last is too long for its tokens to be widened all at once.
    for (const auto& [n, k] :
         {std::pair{70, 96}, {33, 576}, {96, 1536}, {17, 128}, {131, 640}, {40, 2176}})
      if (!v_.group || k % v_.group == 0) out.emplace_back(n, k);
    return out;
  }
};

TEST_P(LinearKernelTest, MatchesTheReferenceWithinItsRoundingBound) {
  for (const auto& [n, k] : shapes())
    for (const int rows : {1, 2, 3, 5, 8, 13, 64}) {
      const CanonicalWeight w = random_weight(v_, n, k, random_);
      Tokens t(v_.x, rows, k, v_.group, random_);
      std::vector<float> y(size_t(rows) * n, std::numeric_limits<float>::quiet_NaN());
      call(w)(y.data(), t, 0, rows);
      std::vector<double> weights(size_t(n) * k), tokens(size_t(rows) * k);
      for (size_t i = 0; i < weights.size(); ++i)
        weights[i] = w.at(static_cast<int>(i / k), static_cast<int>(i % k));
      for (size_t i = 0; i < tokens.size(); ++i)
        tokens[i] = t.at(v_.act, static_cast<int>(i / k), static_cast<int>(i % k));
      for (int r = 0; r < rows; ++r)
        for (int o = 0; o < n; ++o) {
          double exact = 0, norm = 0;
          for (int i = 0; i < k; ++i) {
            const double term = weights[size_t(o) * k + i] * tokens[size_t(r) * k + i];
            exact += term, norm += std::fabs(term);
          }
          ASSERT_NEAR(y[size_t(r) * n + o], exact, bound(k, norm))
              << "n " << n << ", k " << k << ", rows " << rows << ", output " << r << ", " << o;
        }
    }
}

TEST_P(LinearKernelTest, ARowsBitsDependOnTheRowAlone) {
  for (const auto& [n, k] : shapes()) {
    if (n > 70 && k != 1536) continue;  // one whole tile count, one ragged, one with a long k
    const int most = 64;
    const CanonicalWeight w = random_weight(v_, n, k, random_);
    Tokens t(v_.x, most, k, v_.group, random_);
    Call run = call(w);
    std::vector<float> alone(size_t(most) * n);
    for (int r = 0; r < most; ++r) run(alone.data() + size_t(r) * n, t, r, 1);
    for (const int lanes : {1, 2, 3})
      for (const int rows : {1, 2, 3, 4, 5, 6, 7, 8, 13, 23, 64})
        for (const int first : {0, 5})
          if (first + rows <= most) {
            run.lanes = lanes;
            std::vector<float> y(size_t(rows) * n);
            run(y.data(), t, first, rows);
            ASSERT_EQ(0, std::memcmp(y.data(), alone.data() + size_t(first) * n, y.size() * 4))
                << "n " << n << ", k " << k << ", rows " << rows << " from " << first << ", lanes "
                << lanes;
          }
  }
}

TEST_P(LinearKernelTest, NeighboursThatAreNotFiniteChangeNothing) {
  const auto [n, k] = shapes().front();
  const CanonicalWeight w = random_weight(v_, n, k, random_);
  Tokens t(v_.x, 11, k, v_.group, random_);
  Call run = call(w);
  std::vector<float> clean(size_t(11) * n), soiled(clean.size());
  run(clean.data(), t, 0, 11);
  const uint16_t nan = v_.x == kBf16 ? 0x7fc1 : 0x7e01, inf = v_.x == kBf16 ? 0xff80 : 0xfc00;
  for (const int r : {0, 3, 9})
    for (int i = 0; i < k; ++i) {
      t.x[size_t(r) * k + i] = i % 2 ? nan : inf;
      t.q[size_t(r) * k + i] = i % 2 ? 127 : -127;
    }
  for (const int r : {0, 3, 9})
    for (int g = 0; g < k / t.group; ++g)
      t.scale[size_t(r) * (k / t.group) + g] = std::numeric_limits<float>::quiet_NaN();
  run(soiled.data(), t, 0, 11);
  for (int r = 0; r < 11; ++r)
    if (r != 0 && r != 3 && r != 9) {
      EXPECT_EQ(0, std::memcmp(&clean[size_t(r) * n], &soiled[size_t(r) * n], n * 4))
          << "row " << r;
    }
}

TEST_P(LinearKernelTest, AddsTheBiasThenWhatIsThereAndWritesNothingElse) {
  const auto [n, k] = shapes().front();
  CanonicalWeight w = random_weight(v_, n, k, random_);
  Tokens t(v_.x, 5, k, v_.group, random_);
  std::normal_distribution<float> normal;
  std::vector<float> plain(size_t(5) * n), before(size_t(6) * n);
  call(w)(plain.data(), t, 0, 5);
  for (float& y : before) y = normal(random_);
  for (const bool bias : {false, true})
    for (const bool accumulate : {false, true}) {
      w.bias.clear();
      if (bias)
        for (int i = 0; i < n; ++i) w.bias.push_back(normal(random_));
      Call run = call(w);
      run.accumulate = accumulate;
      std::vector<float> y = before;
      run(y.data(), t, 0, 5);
      for (int r = 0; r < 6; ++r)
        for (int o = 0; o < n; ++o) {
          const size_t at = size_t(r) * n + o;
          float wanted = before[at];  // the row below is not live
          if (r < 5) {
            const float sum = bias ? plain[at] + w.bias[o] : plain[at];
            wanted = accumulate ? before[at] + sum : sum;
          }
          ASSERT_EQ(y[at], wanted)
              << r << ", " << o << ", bias " << bias << ", accumulate " << accumulate;
        }
      std::vector<float> untouched = before;
      run(untouched.data(), t, 0, 0);
      EXPECT_EQ(untouched, before);
    }
}

INSTANTIATE_TEST_SUITE_P(All, LinearKernelTest, ::testing::ValuesIn(cells()), [](const auto& info) {
  return std::string(info.param.variant.name) + (info.param.generic ? "_generic_" : "_") +
         info.param.isa;
});

TEST(MxFp4, TakesEveryScaleThatIsNotNaN) {
  for (const auto& isa : available_isas())
    for (const LinearKernel& kernel : linear_kernels()) {
      if (std::string(kernel.format) != "mxfp4" || kernel.family != "cpu/" + isa) continue;
      CanonicalWeight w{{"mxfp4", DType::e2m1, 32, true, DType::e8m0}, 255, 32};
      w.codes.assign(255 * 32, 0);
      w.scales.resize(255);
      for (int e = 0; e < 255; ++e)
        w.codes[e * 32] = 4, w.scales[e] = from_e8m0(static_cast<uint8_t>(e));  // 2
      const std::vector<std::byte> packed = pack(&kernel, w);
      std::mt19937 random(1);
      Tokens t(kBf16, 1, 32, 0, random);
      t.x.assign(32, 0);
      t.x[0] = to_bf16(.5f);
      std::vector<float> y(255);
      Call{&kernel, nullptr, Act::a16, &w, packed.data()}(y.data(), t, 0, 1);
      EXPECT_EQ(y, w.scales) << isa;
    }
}

/// With scales of one the results are integers, the largest there can be.
TEST(Int8Activations, SumsAreExactAtTheirLargest) {
  for (const auto& isa : available_isas())
    for (const LinearKernel& kernel : linear_kernels()) {
      if (kernel.mode.act != Act::a8 || kernel.family != "cpu/" + isa) continue;
      const bool int4 = std::string(kernel.format) == "w4a16";
      for (const int k : {1536, 65536})
        for (const int8_t x : {127, -127}) {
          CanonicalWeight w{
              {kernel.format, int4 ? DType::i4 : DType::i8, int4 ? 32 : 0, true, kF32}, 3, k};
          w.codes.assign(size_t(3) * k, int4 ? -8 : -128);
          std::fill(w.codes.begin() + k, w.codes.begin() + 2 * k, int4 ? 7 : 127);
          std::fill(w.codes.begin() + 2 * k, w.codes.end(), 0);
          w.codes.back() = 1;
          w.scales.assign(size_t(3) * w.desc.groups(k), 1.0f);
          const std::vector<std::byte> packed = pack(&kernel, w);
          std::mt19937 random(1);
          Tokens t(kBf16, 1, k, w.desc.group, random);
          t.q.assign(k, x);
          t.scale.assign(t.scale.size(), 1.0f);
          t.sum.assign(t.sum.size(), x * t.group);
          std::vector<float> y(3);
          Call{&kernel, nullptr, Act::a8, &w, packed.data()}(y.data(), t, 0, 1);
          const std::vector<float> wanted = {static_cast<float>(k * x * w.codes[0]),
                                             static_cast<float>(k * x * w.codes[k]),
                                             static_cast<float>(x)};
          EXPECT_EQ(y, wanted) << kernel.format << " on " << isa << ", k " << k;
        }
    }
}

/// A larger weight whose first half is a smaller one that int8 activations run with.
TEST(Linear, AModeMayReadAPartOfACopy) {
  static constexpr Packing kNested{[](const FormatDesc&, int, int) { return true; },
                                   [](const FormatDesc&, int n, int k) { return size_t(n) * k; },
                                   [](const WeightRows&, std::byte*) {}};
  static constexpr auto kHalf = [](const FormatDesc&, int n, int k) {
    return ByteRange{64, size_t(n) * k / 2};
  };
  static constexpr CpuKernel kRun{{}, nullptr};
  static constexpr LinearKernel kKernels[] = {
      {"w4a16", kA16, "cpu/portable", &kNested, &kRun},
      {"w4a16", kA8PerToken, "cpu/portable", &kNested, &kRun},
      {"w4a16", kA8PerGroup, "cpu/portable", &kNested, &kRun, kHalf}};
  const CpuBackend backend("portable", 1);
  constexpr Act kBoth[] = {Act::a16, Act::a8};
  Linear linear(backend, {"w4a16", DType::i4, 32, true}, 64, 128, true, kBoth, kKernels);
  EXPECT_EQ(linear.packed_bytes(), 64u * 128);  // one copy
  std::vector<std::byte> memory(linear.bytes());
  linear.place(memory.data());
  const ProjectWeight whole = linear.in(Act::a16), half = linear.in(Act::a8);
  EXPECT_EQ(whole.packed.data, memory.data());
  EXPECT_EQ(whole.packed.bytes, 64u * 128);
  EXPECT_EQ(half.mode.per, Per::group);
  EXPECT_EQ(half.packed.data, memory.data() + 64);
  EXPECT_EQ(half.packed.bytes, 64u * 64);
  EXPECT_EQ(linear.pass_bytes(Act::a16), 64u * 128 + 64 * 4);
  EXPECT_EQ(linear.pass_bytes(Act::a8), 64u * 64 + 64 * 4);
}

TEST(Linear, SharesOneCopyBetweenTheModesOfALayout) {
  std::mt19937 random(3);
  const Variant& v = kVariants[9];
  ASSERT_STREQ(v.name, "w4a16_g32");
  CanonicalWeight w = random_weight(v, 70, 96, random);
  w.bias.assign(70, .5f);
  constexpr Act kBoth[] = {Act::a16, Act::a8};
  for (const auto& isa : available_isas())
    for (const bool generic : {false, true}) {
      const auto backend = open_backend({.device = "cpu", .isa = isa, .threads = 2});
      const Linear one(*backend, w, std::span(kBoth).first(1),
                       generic ? kNoKernels : linear_kernels());
      Linear both(*backend, w, kBoth, generic ? kNoKernels : linear_kernels());
      EXPECT_EQ(one.bytes(), both.bytes());
      EXPECT_EQ(both.bytes() % 64, 0u);
      EXPECT_FALSE(one.runs(Act::a8));
      EXPECT_EQ(both.pass_bytes(Act::a8), both.pass_bytes(Act::a16));
      EXPECT_GE(both.bytes(), both.pass_bytes(Act::a16));
    }
}

/// The whole way: plan, upload, quantize where the mode asks for it, multiply.
TEST(Linear, RunsEveryFormatThroughTheBackend) {
  std::mt19937 random(5);
  for (const auto& isa : available_isas())
    for (const Variant& v : kVariants)
      for (const bool generic : {false, true}) {
        const int n = 70, k = 640, rows = 7;
        const auto backend = open_backend({.device = "cpu", .isa = isa, .threads = 2});
        CanonicalWeight w = random_weight(v, n, k, random);
        std::normal_distribution<float> normal;
        for (int i = 0; i < n; ++i) w.bias.push_back(normal(random));
        Tokens t(v.x, rows, k, v.group, random);

        Linear linear(*backend, w, std::span(&v.act, 1), generic ? kNoKernels : linear_kernels());
        const size_t bytes = linear.bytes() + (1 << 20);
        void* memory = backend->allocate(bytes);
        Arena arena(memory, bytes);
        linear.upload(*backend, w, static_cast<std::byte*>(arena.take(linear.bytes())));
        Tensor x = arena.take_tensor(v.x, rows, k), y = arena.take_tensor(DType::f32, rows, n);
        auto* total = arena.take_array<int32_t>(1);
        backend->upload(x.data, t.x.data(), t.x.size() * 2);
        backend->upload(total, &rows, 4);
        ProjectArgs project{.live = {total, nullptr, rows},
                            .input = {.x = x, .type = v.x},
                            .weight = linear.in(v.act),
                            .result = Store{y}};
        project.workspace = arena.take(backend->workspace_bytes(project));
        backend->project(project);
        std::vector<float> out(size_t(rows) * n);
        backend->read(out.data(), y.data, out.size() * 4);
        backend->wait();
        backend->release(memory, bytes);

        for (int r = 0; r < rows; ++r)
          for (int o = 0; o < n; ++o) {
            double exact = w.bias[o], norm = std::fabs(exact), slack = 0;
            for (int i = 0; i < k; ++i) {
              const double value = w.at(o, i), token = from_16(v.x, t.x[size_t(r) * k + i]);
              exact += value * token, norm += std::fabs(value * token);
              if (v.act == Act::a8)
                slack += std::fabs(value) * t.scale[(size_t(r) * k + i) / t.group] * .501;
            }
            ASSERT_NEAR(out[size_t(r) * n + o], exact, bound(k, norm) + slack)
                << v.name << " on " << isa << (generic ? ", generic" : "") << ", output " << r
                << ", " << o;
          }
      }
}

TEST(Linear, FallsBackToTheGenericPathForWidthsNoKernelTakes) {
  std::mt19937 random(7);
  const auto backend = open_backend({.device = "cpu", .isa = "", .threads = 1});
  for (const int k : {97, 98}) {
    const CanonicalWeight w = random_weight(kVariants[0], 5, k, random);
    const Linear linear(*backend, w, std::span(&kVariants[0].act, 1));
    EXPECT_EQ(linear.pass_bytes(Act::a16),
              k == 97 ? described_bytes(w.desc, 5, k) : size_t(32) * k * 2);
  }
}

TEST(Linear, RefusesAModeTheFormatLacks) {
  std::mt19937 random(9);
  const auto backend = open_backend({.device = "cpu", .isa = "", .threads = 1});
  const CanonicalWeight w = random_weight(kVariants[0], 8, 64, random);
  constexpr Act kInt8 = Act::a8;
  try {
    Linear(*backend, w, std::span(&kInt8, 1));
    FAIL() << "was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::unsupported);
    EXPECT_NE(std::string(e.what()).find("dense"), std::string::npos) << e.what();
  }
}

TEST(Registry, HasAKernelForEveryModeOnEveryInstructionSet) {
  for (const auto& isa : available_isas())
    for (const WeightFormat* format : formats())
      for (const ActMode mode : format->acts) {
        int found = 0;
        for (const LinearKernel& kernel : linear_kernels())
          found += std::string(kernel.format) == format->name && kernel.mode.act == mode.act &&
                   kernel.mode.per == mode.per && kernel.family == "cpu/" + isa;
        EXPECT_EQ(found, 1) << format->name << " on " << isa;
      }
}

}  // namespace
}  // namespace stepladder
