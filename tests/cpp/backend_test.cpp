// Every operator of the CPU backend but attention, on every instruction set this machine has, on
// one thread and on two, against fp64 or integer references. Bounds come from the unit roundoffs.
// What an operator gives a row must be the same bits whatever stands beside it.
#include <algorithm>
#include <cstdint>
#include <functional>

#include "backends/cpu/kv_layout.h"
#include "backends/cpu/memory.h"
#include "backends/cpu/simd.h"
#include "core/error.h"
#include "core/host_memory.h"
#include "cpp/backend_fixture.h"

namespace stepladder::test {
namespace {

// ---- opening, memory, recording ------------------------------------------------------------

TEST(OpenBackend, RefusesWhatIsNotThereAndNamesWhatIs) {
  for (const BackendOptions& o :
       {BackendOptions{.device = "tpu"}, BackendOptions{.device = "cpu:1"},
        BackendOptions{.device = "cpu:"}, BackendOptions{.device = "cpu:x"},
        BackendOptions{.device = "cpu:-1"}, BackendOptions{.device = "auto:0"},
        BackendOptions{.device = ""}, BackendOptions{.isa = "avx9"}})
    try {
      open_backend(o);
      FAIL() << o.device << o.isa;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::unsupported);
      const std::string text = e.what();
      EXPECT_NE(text.find(o.isa.empty() ? "cpu" : "portable"), std::string::npos) << text;
    }
  EXPECT_EQ(available_isas().front(), "portable");
  for (const char* device : {"cpu", "cpu:0"})
    EXPECT_EQ(open_backend({.device = device, .threads = 1})->name(),
              "cpu/" + available_isas().back());
}

TEST(OpenBackend, AutoIsThePreferredOfThoseThatRun) {
  const BackendEntry* best = nullptr;
  const auto entries = backend_entries();
  for (const BackendEntry& e : entries) {
    EXPECT_TRUE(e.kind || *e.missing) << e.name;
    if (!e.kind || !e.kind->missing().empty()) continue;
    EXPECT_GE(e.kind->devices(), 1) << e.name;
    if (!best || e.kind->preference > best->kind->preference) best = &e;
  }
  ASSERT_TRUE(best);
  const std::string name = open_backend({.device = "auto", .threads = 1})->name();
  EXPECT_EQ(name.substr(0, name.find('/')), best->name);
  // Who asks for an instruction set asks for a backend that has some.
  EXPECT_EQ(open_backend({.device = "auto", .isa = "portable", .threads = 1})->name(),
            "cpu/portable");
}

TEST(Memory, IsAlignedZeroedAndRefusedWithTheNumbers) {
  Machine m("portable", 1);
  for (size_t bytes :
       {size_t{1}, size_t{100}, size_t{4096}, size_t{2} << 20, (size_t{5} << 20) + 1}) {
    auto* p = static_cast<unsigned char*>(m->allocate(bytes));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % (bytes >= (2 << 20) ? 2 << 20 : 64), 0u) << bytes;
    EXPECT_TRUE(std::all_of(p, p + bytes, [](unsigned char c) { return c == 0; })) << bytes;
    std::memset(p, 0xff, bytes);
    m->release(p, bytes);
  }
  EXPECT_GT(available_host_bytes(), size_t{1} << 20);
  for (size_t bytes : {size_t{1} << 50, ~size_t{0}}) try {
      m->allocate(bytes);
      FAIL() << bytes;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::out_of_memory);
      EXPECT_NE(std::string(e.what()).find(std::to_string(bytes)), std::string::npos) << e.what();
    }
}

TEST(KVCache, RefusesShapesTheLayoutCannotHold) {
  Machine m("portable", 1);
  const KVSpec good{2, 3, 64, 96, 8, 2, DType::bf16};
  EXPECT_GE(m->kv_bytes(good), size_t{2} * 2 * 2 * 3 * 64 * (96 + 8) * 2);
  const auto bad = [&](auto change) {
    KVSpec s = good;
    change(s);
    EXPECT_THROW(m->kv_bytes(s), Error);
  };
  bad([](KVSpec& s) { s.positions = 100; });
  bad([](KVSpec& s) { s.head_dim = 63; });
  bad([](KVSpec& s) { s.head_dim = 258; });
  bad([](KVSpec& s) { s.layers = 0; });
  bad([](KVSpec& s) { s.scratch = 65536; });
  bad([](KVSpec& s) { s.dtype = DType::f32; });
}

TEST(Conversions, LoopsRoundLikeTheReference) {
  for (uint32_t x = 0; x < 0x10000; ++x) {
    const auto h = static_cast<uint16_t>(x);
    ASSERT_EQ(float_as_bits(widen_f16(h)), float_as_bits(from_f16(h))) << x;
    for (const uint32_t low :
         {0u, 1u, 0xfffu, 0x1000u, 0x1001u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const float f = bits_as_float(x << 16 | low);
      ASSERT_EQ(narrow_f16(f), to_f16(f)) << std::hexfloat << f;
      ASSERT_EQ(narrow_bf16(f), to_bf16(f)) << std::hexfloat << f;
    }
  }
}

TEST(Conversions, PowersOfTwoAreWithinTheirBound) {
  EXPECT_EQ(exp2_plain(0.f), 1.f);
  for (int i = -124 * 4096; i <= 126 * 4096; ++i) {
    const float x = static_cast<float>(i) / 4096.f;
    ASSERT_NEAR(exp2_plain(x) / std::exp2(double{x}), 1.0, 0x1p-23) << x;
  }
}

TEST_P(CellTest, RunsTheInstructionSetItWasAskedFor) {
  Machine m(GetParam());
  EXPECT_EQ(m->name(), "cpu/" + GetParam().isa);
  EXPECT_EQ(m->kernels(), m->name());
}

TEST_P(CellTest, ARecordingReplaysAtOtherLengths) {
  Machine m(GetParam());
  std::mt19937 g(1);
  const std::vector<uint16_t> table = to_16s(DType::bf16, normal(g, 10 * 8));
  const Tensor t = m.tensor(DType::bf16, 10, 8, table), out = m.tensor(DType::f32, 4, 8);
  auto* token = m.put(std::vector<int32_t>{3, 9, 0, 4});
  auto* total = m.put<int32_t>(1);
  const EmbedArgs args{{total, 0, 4}, token, t, out};
  auto recording = m->record([&] { m->embed(args); });
  EXPECT_EQ(m.get(out.as<float>(), 8), std::vector<float>(8, 0.f)) << "nothing runs yet";
  for (const int32_t live : {1, 4, 2}) {
    std::memset(out.data, 0, out.bytes());
    m->upload(total, &live, 4);
    recording->replay();
    const auto y = m.get(out.as<float>(), 32);
    const int32_t ids[] = {3, 9, 0, 4};
    for (int i = 0; i < 4; ++i)
      for (int c = 0; c < 8; ++c)
        EXPECT_EQ(y[i * 8 + c], i < live ? from_bf16(table[ids[i] * 8 + c]) : 0.f);
  }
}

// ---- rows ----------------------------------------------------------------------------------

/// Runs `op` on the rows of `x` as one block, then on every row alone in a block of its own, and
/// expects the same bytes. op(live, x, out) writes out[i] from x[i].
void expect_rows_alone_equal(Machine& m, const Tensor& x, int64_t out_bytes,
                             const std::function<void(Live, Tensor, std::byte*)>& op) {
  const int rows = static_cast<int>(x.rows);
  auto* together = m.zeros<std::byte>(rows * out_bytes);
  op(m.live(rows, rows), x, together);
  auto* alone = m.zeros<std::byte>(rows * out_bytes);
  for (int i = rows - 1; i >= 0; --i) op(m.live(1, 1), x.slice(i, 1), alone + i * out_bytes);
  EXPECT_EQ(std::memcmp(together, alone, rows * out_bytes), 0);
}

TEST_P(CellTest, RmsNormMatchesFp64AndTakesEachRowAlone) {
  Machine m(GetParam());
  for (const DType t : {DType::bf16, DType::f16})
    for (const int width : {16, 40, 576, 601, 4096}) {
      SCOPED_TRACE(testing::Message() << name(t) << " width " << width);
      std::mt19937 g(width);
      const int rows = 33;
      std::vector<float> xs = normal(g, size_t(rows) * width, 3.f), w = normal(g, width);
      for (int c = 0; c < width; ++c) xs[5 * width + c] = 0.f;  // only eps keeps it finite
      const Tensor x = m.tensor(DType::f32, rows, width, xs), out = m.tensor(t, rows, width);
      const float* weight = m.put(w);
      std::vector<int32_t> pick(rows);
      for (int i = 0; i < rows; ++i) pick[i] = rows - 1 - i;
      const float eps = 1e-5f;
      m->rms_norm({m.live(rows, rows), x, m.put(pick), weight, eps, out});
      const auto y = m.get(out.as<uint16_t>(), size_t(rows) * width);
      // The sum has width/16 additions a lane and 4 across lanes; then mean, eps, root, division
      // and two products.
      const double bound = unit16(t) + (width / 16 / 2.0 + 12) * kUnit32;
      for (int i = 0; i < rows; ++i) {
        const float* row = &xs[size_t(pick[i]) * width];
        double sum = 0;
        for (int c = 0; c < width; ++c) sum += double{row[c]} * row[c];
        const double inverse = 1 / std::sqrt(sum / width + eps);
        for (int c = 0; c < width; ++c) {
          const double want = row[c] * inverse * w[c];
          ASSERT_NEAR(from_16(t, y[i * width + c]), want, std::abs(want) * bound + floor16(t));
        }
      }
      expect_rows_alone_equal(m, x, width * 2, [&](Live live, Tensor in, std::byte* to) {
        m->rms_norm({live, in, nullptr, weight, eps, {to, t, in.rows, width}});
      });
    }
}

TEST_P(CellTest, QuantizeIsExactInIntegers) {
  Machine m(GetParam());
  for (const DType t : {DType::bf16, DType::f16})
    for (const auto& [k, group] :
         {std::pair{64, 32}, {576, 32}, {576, 576}, {1536, 64}, {1408, 1408}, {256, 128}}) {
      SCOPED_TRACE(testing::Message() << name(t) << " k " << k << " group " << group);
      std::mt19937 g(k + group);
      const int rows = 19, groups = k / group;
      std::vector<uint16_t> xs = to_16s(t, normal(g, size_t(rows) * k, 2.f));
      std::fill_n(xs.begin() + 3 * k, group, uint16_t{0});
      xs[4 * k] = to_16(t, 900.f);     // an outlier: the rest of its group becomes small
      for (int c = 0; c < group; ++c)  // half steps: ties go to even
        xs[6 * k + c] = to_16(t, c == 0 ? 127.f : 0.5f * static_cast<float>(c % 32));
      for (int c = 0; c < group; ++c)
        xs[7 * k + c] = static_cast<uint16_t>(1 + c % 3);  // subnormal
      const Tensor x = m.tensor(t, rows, k, xs);
      QuantizeArgs a{m.live(rows, rows),
                     x,
                     group,
                     group,
                     m.zeros<int8_t>(size_t(rows) * k),
                     m.zeros<float>(size_t(rows) * groups),
                     m.zeros<int32_t>(size_t(rows) * groups)};
      m->quantize(a);
      for (int i = 0; i < rows * groups; ++i) {
        float top = 0;
        for (int c = 0; c < group; ++c)
          top = std::max(top, std::abs(from_16(t, xs[i * group + c])));
        const float scale = top / 127.f;
        ASSERT_EQ(a.scale[i], scale) << i;
        int32_t sum = 0;
        for (int c = 0; c < group; ++c) {
          const float v = from_16(t, xs[i * group + c]);
          const int want =
              top == 0 ? 0 : static_cast<int>(std::nearbyint(std::clamp(v / scale, -127.f, 127.f)));
          ASSERT_EQ(a.q[i * group + c], want) << i << " " << c;
          sum += want;
        }
        ASSERT_EQ(a.sum[i], sum) << i;
      }
      expect_rows_alone_equal(m, x, k + groups * 8, [&](Live live, Tensor in, std::byte* to) {
        auto* sc = m.zeros<float>(size_t(in.rows) * groups);
        auto* su = m.zeros<int32_t>(size_t(in.rows) * groups);
        auto* q = m.zeros<int8_t>(size_t(in.rows) * k);
        m->quantize({live, in, group, group, q, sc, su});
        for (int i = 0; i < in.rows; ++i) {
          std::byte* row = to + i * (k + groups * 8);
          std::memcpy(row, q + i * k, k);
          std::memcpy(row + k, sc + i * groups, groups * 4);
          std::memcpy(row + k + groups * 4, su + i * groups, groups * 4);
        }
      });
    }
}

TEST_P(CellTest, QuantizeSumsSmallerGroupsThanThoseOfAScale) {
  Machine m(GetParam());
  for (const auto& [k, each] : {std::pair{640, 32}, {640, 320}, {128, 128}, {96, 24}}) {
    std::mt19937 g(k + each);
    const int rows = 5, sums = k / each;
    const Tensor x =
        m.tensor(DType::bf16, rows, k, to_16s(DType::bf16, normal(g, size_t(rows) * k)));
    const auto quantized = [&](int sum_group) {
      QuantizeArgs a{m.live(rows, rows),
                     x,
                     k,
                     sum_group,
                     m.zeros<int8_t>(size_t(rows) * k),
                     m.zeros<float>(rows),
                     m.zeros<int32_t>(size_t(rows) * (k / sum_group))};
      m->quantize(a);
      return a;
    };
    const QuantizeArgs whole = quantized(k), parts = quantized(each);
    EXPECT_EQ(std::memcmp(whole.q, parts.q, size_t(rows) * k), 0);
    EXPECT_EQ(std::memcmp(whole.scale, parts.scale, rows * sizeof(float)), 0);
    for (int i = 0; i < rows * sums; ++i) {
      int32_t want = 0;
      for (int c = 0; c < each; ++c) want += parts.q[i * each + c];
      EXPECT_EQ(parts.sum[i], want) << "k " << k << ", sum " << i;
    }
  }
}

TEST_P(CellTest, GatedActMatchesFp64AndTakesEachRowAlone) {
  Machine m(GetParam());
  for (const DType t : {DType::bf16, DType::f16})
    for (const int width : {16, 96, 1536, 1001}) {
      SCOPED_TRACE(testing::Message() << name(t) << " width " << width);
      std::mt19937 g(width);
      const int rows = 21;
      std::vector<float> xs = normal(g, size_t(rows) * width * 2, 4.f);
      const float edges[] = {0.f, -0.f, 88.f, -88.f, -200.f, 200.f, 1e-30f, -1e-30f};
      std::copy(std::begin(edges), std::end(edges), xs.begin());
      const Tensor x = m.tensor(DType::f32, rows, 2 * width, xs), out = m.tensor(t, rows, width);
      m->gated_act({m.live(rows, rows), x, out});
      const auto y = m.get(out.as<uint16_t>(), size_t(rows) * width);
      for (int i = 0; i < rows; ++i)
        for (int c = 0; c < width; ++c) {
          const double gate = xs[size_t(i) * 2 * width + c],
                       up = xs[size_t(i) * 2 * width + width + c];
          const double want = gate / (1 + std::exp(-gate)) * up;
          // The exponent's argument is rounded twice, which 2^x turns into a relative error of
          // |gate| units; the clamp leaves e^88 instead of more.
          const double bound = unit16(t) + (2 * std::abs(gate) + 10) * kUnit32;
          ASSERT_NEAR(from_16(t, y[i * width + c]), want,
                      std::abs(want) * bound + floor16(t) + 1e-35 * std::abs(gate * up))
              << gate << " " << up;
        }
      expect_rows_alone_equal(m, x, width * 2, [&](Live live, Tensor in, std::byte* to) {
        m->gated_act({live, in, {to, t, in.rows, width}});
      });
    }
}

// ---- the generic linear layer --------------------------------------------------------------

struct Weight {
  FormatDesc desc;
  int n, k;
  std::vector<double> code;  // [n, k]
  std::vector<float> scale;  // [n, groups]
  std::vector<uint8_t> bytes;
};

Weight random_weight(std::mt19937& g, FormatDesc d, int n, int k) {
  Weight w{d, n, k, {}, {}, {}};
  const int width = bits(d.code), row_bytes = (k * width + 7) / 8;
  w.bytes.resize((size_t(n) * row_bytes + 63) / 64 * 64);
  for (int i = 0; i < n; ++i)
    for (int c = 0; c < k; ++c) {
      uint8_t* at = &w.bytes[size_t(i) * row_bytes + c * width / 8];
      if (width == 16) {
        const uint16_t x = to_16(d.code, normal(g, 1)[0]);
        std::memcpy(at, &x, 2);
        w.code.push_back(from_16(d.code, x));
      } else if (width == 8) {
        const int x = pick(g, -128, 127);
        *at = static_cast<uint8_t>(x);
        w.code.push_back(x);
      } else {
        const int x = pick(g, 0, 15);
        *at |= static_cast<uint8_t>(c % 2 ? x << 4 : x);
        w.code.push_back(d.code == DType::e2m1 ? from_e2m1(static_cast<uint8_t>(x))
                         : x < 8               ? x
                                               : x - 16);
      }
    }
  w.scale = normal(g, size_t(n) * d.groups(k), 0.1f);
  if (d.scaled) {
    const size_t at = w.bytes.size();
    w.bytes.resize(at + w.scale.size() * 4);
    std::memcpy(&w.bytes[at], w.scale.data(), w.scale.size() * 4);
  }
  return w;
}

struct LinearCase {
  FormatDesc desc;
  ActMode mode;
};
const LinearCase kLinearCases[] = {
    {{"dense", DType::bf16}, kA16},
    {{"dense", DType::f16}, kA16},
    {{"w8a16", DType::i8, 0, true}, kA16},
    {{"w8a8", DType::i8, 0, true}, kA8PerToken},
    {{"w4a16", DType::i4, 32, true}, kA16},
    {{"w4a16", DType::i4, 64, true}, kA8PerGroup},
    {{"w4a16", DType::i4, 64, true}, kA8PerToken},
    {{"w4a16", DType::i4, 0, true}, kA8PerToken},
    {{"w8a8", DType::i8, 32, true}, kA8PerToken},
    {{"w4a16", DType::i4, 128, true}, kA8PerGroup},
    {{"mxfp4", DType::e2m1, 32, true, DType::e8m0}, kA16},
    {{"mxfp4", DType::e2m1, 32, true, DType::e8m0}, kA8PerGroup},
};

TEST_P(CellTest, DescribedLinearMatchesFp64ForEveryFormat) {
  Machine m(GetParam());
  for (const LinearCase& c : kLinearCases)
    for (const auto& [n, k] : {std::pair{48, 128}, {70, 384}, {5, 256}})
      for (const bool full : {false, true}) {
        SCOPED_TRACE(testing::Message() << c.desc.name << " " << name(c.desc.code) << " a"
                                        << (c.mode.act == Act::a8 ? 8 : 16)
                                        << (c.mode.per == Per::token ? " per token" : " per group")
                                        << " group " << c.desc.group << " n " << n << " k " << k
                                        << (full ? " bias, accumulate" : ""));
        std::mt19937 g(n * k);
        const Weight w = random_weight(g, c.desc, n, k);
        const DType t = c.desc.code == DType::f16 ? DType::f16 : DType::bf16;
        const int rows = 37, group = c.desc.group ? c.desc.group : k, groups = k / group;
        const int x_group = c.mode.per == Per::group ? group : k, x_groups = k / x_group;
        const std::vector<uint16_t> xs = to_16s(t, normal(g, size_t(rows) * k));
        const Tensor x = m.tensor(t, rows, k, xs);
        const std::vector<float> bias = normal(g, n), before = normal(g, size_t(rows) * n);
        QuantizeArgs x8{m.live(rows, rows),
                        x,
                        x_group,
                        group,
                        m.zeros<int8_t>(size_t(rows) * k),
                        m.zeros<float>(size_t(rows) * x_groups),
                        m.zeros<int32_t>(size_t(rows) * groups)};
        m->quantize(x8);
        const PackedWeight packed{
            c.desc, n, k, m.put(w.bytes), w.bytes.size(), full ? m.put(bias) : nullptr};
        const auto run = [&](Live live, int first, float* y) {
          const QuantizeArgs q{live,
                               x.slice(first, rows - first),
                               x_group,
                               group,
                               x8.q + size_t(first) * k,
                               x8.scale + first * x_groups,
                               x8.sum + first * groups};
          m->linear({live,
                     {y, DType::f32, rows - first, n},
                     x.slice(first, rows - first),
                     q,
                     c.mode.act,
                     packed,
                     full,
                     nullptr});
        };
        float* together = m.put(before);
        run(m.live(rows, rows), 0, together);
        float* alone = m.put(before);
        for (int i = 0; i < rows; ++i) run(m.live(1, 1), i, alone + size_t(i) * n);
        EXPECT_EQ(std::memcmp(together, alone, size_t(rows) * n * 4), 0);
        for (int i = 0; i < rows; ++i)
          for (int o = 0; o < n; ++o) {
            double want = 0, weight = 0;
            for (int j = 0; j < k; ++j) {
              const double v =
                  c.mode.act == Act::a8
                      ? double{x8.scale[i * x_groups + j / x_group]} * x8.q[size_t(i) * k + j]
                      : from_16(t, xs[size_t(i) * k + j]);
              const double wv = w.code[size_t(o) * k + j] *
                                (c.desc.scaled ? w.scale[o * groups + j / group] : 1.f);
              want += v * wv, weight += std::abs(v * wv);
            }
            // One rounding a product and a sum along k (none in integers), then per group a scale
            // and a sum, then bias and what was there before.
            double steps = (c.mode.act == Act::a8 ? 1 : group + 1) + groups + 4;
            if (full)
              want += bias[o] + double{before[size_t(i) * n + o]},
                  weight += std::abs(bias[o]) + std::abs(before[size_t(i) * n + o]);
            ASSERT_NEAR(together[size_t(i) * n + o], want, weight * steps * kUnit32)
                << i << " " << o;
          }
      }
}

INSTANTIATE_TEST_SUITE_P(Cpu, CellTest, ::testing::ValuesIn(cells()), cell_name);

}  // namespace
}  // namespace stepladder::test
