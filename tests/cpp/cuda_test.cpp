// What holds on a GPU alone, or can only be seen to fail there: controls that break a rule of
// exactness, the bits that tensor instructions promise, and functions of every 32-bit word.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstring>
#include <numeric>
#include <thread>

#include "core/float_mode.h"
#include "core/thread_pool.h"
#include "cpp/backend_fixture.h"
#include "support/backends.h"
#include "support/cuda/controls.h"
#include "support/hierarchy.h"
#include "support/replay.h"

namespace stepladder {
namespace {

/// The chip, as a failure names it.
std::string chip() {
  cudaDeviceProp properties{};
  if (cudaGetDeviceProperties(&properties, 0) != cudaSuccess) return "no device";
  return std::string(properties.name) + ", sm_" + std::to_string(properties.major) +
         std::to_string(properties.minor);
}

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const BackendInfo& b : backends())
      if (b.name == "cuda" && !b.missing.empty()) GTEST_SKIP() << b.missing;
  }
};

// ---- controls ------------------------------------------------------------------------------

/// A broken backend against itself: it disagrees about its own trees.
template <class Broken>
Differences against_itself() {
  Broken subject(0), plain(0);
  return check_backends(subject, plain);
}

void expect_caught(const Differences& d) {
  EXPECT_GT(d.choices, 0) << "of " << d.nodes;
  EXPECT_GT(d.entries, 0);
}

TEST_F(CudaTest, TheCheckItselfPassesOnASoundBackend) {
  const Differences d = against_itself<CudaBackend>();
  EXPECT_GT(d.nodes, 100);
  EXPECT_TRUE(d.none()) << d.choices << " of " << d.nodes << " on " << chip();
}

TEST_F(CudaTest, AttentionByATreeMaskOverSlotsFails) {
  expect_caught(against_itself<MaskedSlotsCuda>());
}

TEST_F(CudaTest, ASplitOfKChosenByTheNumberOfRowsFails) {
  expect_caught(against_itself<SplitByRowsCuda>());
}

TEST_F(CudaTest, ARootThatIsNotFedAgainFails) {
  StaleRootCuda subject(0);
  CudaBackend plain(0);
  expect_caught(check_backends(subject, plain));
}

// ---- the bus and the clock -----------------------------------------------------------------

TEST_F(CudaTest, ARoundIsOneUploadOneWaitAndOneSmallRead) {
  constexpr int kSequences = 3, kTokens = 24;
  for (const char* levels : {"", "lookup", "cast:int8,lookup", "cast:mxfp4:shared",
                             "cast:w8a8:shared,cast:mxfp4:shared,lookup"}) {
    SCOPED_TRACE(levels);
    TinySpec spec;
    spec.seed = 21;
    CountedCuda cuda(0);
    Hierarchy hierarchy(cuda, spec, levels, kSequences, 192);
    std::vector<std::vector<Token>> texts;
    for (const int length : {33, 58, 100}) texts.push_back(random_text(length, spec.vocab, length));
    for (int again = 0; again < 2; ++again) {
      const CountedVerifier::Counts before = hierarchy.counts();
      cuda.counts = {};
      hierarchy.stream(texts, kTokens);
      const int64_t rounds = hierarchy.counts().rounds - before.rounds;
      const int64_t blocks = hierarchy.counts().blocks - before.blocks;
      EXPECT_GE(rounds, kTokens / kMaxEmitted + 1);
      // Beginning a greedy request uploads its rule.
      EXPECT_EQ(cuda.counts.uploads, rounds + blocks + kSequences);
      EXPECT_EQ(cuda.counts.waits, rounds + blocks);
      EXPECT_EQ(cuda.counts.reads, rounds);
      EXPECT_LE(cuda.counts.read_bytes, 256 * kSequences * rounds);
      EXPECT_EQ(cuda.counts.recordings, 0);
      EXPECT_EQ(cuda.counts.allocations, 0);
    }
  }
}

TEST_F(CudaTest, WorkAndIdleTimeAreTheDevices) {
  using namespace std::chrono;
  test::MachineOf<CudaBackend> m(std::make_unique<CudaBackend>(0));
  constexpr size_t kBytes = size_t{64} << 20;
  auto* memory = m.zeros<std::byte>(kBytes);
  m->wait();
  EXPECT_FALSE(m->idle_ms().has_value()) << "nothing was done before";
  const std::vector<std::byte> bytes(kBytes);
  const auto work = [&] {
    m->upload(memory, bytes.data(), kBytes);
    m->wait();
  };
  work();
  for (const int slept : {0, 30}) {
    const auto began = steady_clock::now();
    std::this_thread::sleep_for(milliseconds(slept));
    work();
    const double all = duration<double, std::milli>(steady_clock::now() - began).count();
    ASSERT_TRUE(m->worked_ms() && m->idle_ms());
    EXPECT_GT(*m->worked_ms(), 0.1);  // 64 MB at most at 640 GB/s
    EXPECT_GE(*m->idle_ms(), 0.9 * slept);
    EXPECT_LE(*m->idle_ms() + *m->worked_ms(), all + 1);
  }
  m->wait();  // nothing was queued: nothing is told
  EXPECT_FALSE(m->worked_ms() || m->idle_ms());
}

// ---- functions of every word ---------------------------------------------------------------

std::vector<uint64_t> sums_on_the_host(cuda::bits::Fixed function) {
  std::vector<uint64_t> sums(cuda::bits::kFixedParts);
  std::vector<std::thread> threads;
  const int count = usable_cores();
  for (int t = 0; t < count; ++t)
    threads.emplace_back([&, t] {
      const FloatMode mode;
      constexpr uint64_t kPart = (uint64_t{1} << 32) / cuda::bits::kFixedParts;
      for (int part = t; part < cuda::bits::kFixedParts; part += count) {
        uint64_t sum = 0;
        for (uint64_t w = part * kPart; w < (part + 1) * kPart; ++w)
          sum += cuda::bits::mixed(function, static_cast<uint32_t>(w));
        sums[part] = sum;
      }
    });
  for (std::thread& thread : threads) thread.join();
  return sums;
}

TEST_F(CudaTest, NoiseOfAll32BitWordsHasTheHostsBits) {
  const auto here = sums_on_the_host(cuda::bits::Fixed::gumbel);
  EXPECT_EQ(cuda::bits::sums_over_words(cuda::bits::Fixed::gumbel), here) << chip();
  RecordProperty("sum", std::to_string(std::accumulate(here.begin(), here.end(), uint64_t{0})));
}

TEST_F(CudaTest, ExponentialsOfAllFloatsUpToZeroHaveTheHostsBits) {
  EXPECT_EQ(cuda::bits::sums_over_words(cuda::bits::Fixed::exp),
            sums_on_the_host(cuda::bits::Fixed::exp))
      << chip();
}

// ---- tensor instructions -------------------------------------------------------------------

/// 16-bit values whose exponents lie up to `spread` below and above that of 1.
std::vector<uint16_t> spread_values(std::mt19937& g, bool bf16, size_t count, int spread) {
  std::vector<uint16_t> out(count);
  for (uint16_t& x : out)
    x = to_16(
        bf16 ? DType::bf16 : DType::f16,
        std::ldexp(1.f + static_cast<float>(g() % 2048) / 2048.f, test::pick(g, -spread, spread)) *
            (g() % 2 ? 1.f : -1.f));
  return out;
}

/// The same token, or weight row, put at every place among random, infinite and NaN neighbours:
/// put() makes a tile so, get() says what became of it there.
template <class Put, class Get>
void expect_equal_everywhere(bool bf16, int places, const Put& put, const Get& get) {
  constexpr int kTrials = 24;
  const uint16_t infinite = bf16 ? 0x7f80 : 0x7c00, nan = infinite + 1;
  std::mt19937 g(bf16 ? 3 : 4);
  for (const int k : {16, 64, 1024}) {
    std::vector<uint16_t> a, b;
    const int spread = bf16 ? 20 : 10;
    std::vector<int> places_of;
    for (int trial = 0; trial < kTrials; ++trial) {
      const auto rows = spread_values(g, bf16, size_t(16) * k, spread),
                 columns = spread_values(g, bf16, size_t(8) * k, spread);
      for (const char* neighbours : {"random", "infinite", "NaN"})
        for (int at = 0; at < places; ++at) {
          std::vector<uint16_t> left = rows, right = columns;
          put(left, right, at, k, neighbours, *neighbours == 'i' ? infinite : nan);
          a.insert(a.end(), left.begin(), left.end());
          b.insert(b.end(), right.begin(), right.end());
          places_of.push_back(at);
        }
    }
    const int each = 3 * places;
    const auto sums = cuda::bits::chains(bf16, kTrials * each, k, a, b);
    int different = 0, results = 0;
    for (int trial = 0; trial < kTrials; ++trial)
      for (int i = 0; i < each; ++i) {
        const size_t tile = size_t(trial) * each + i;
        const std::vector<float> first = get(sums, size_t(trial) * each, places_of[0]),
                                 here = get(sums, tile, places_of[tile]);
        results += static_cast<int>(here.size());
        for (size_t j = 0; j < here.size(); ++j)
          different += std::bit_cast<uint32_t>(here[j]) != std::bit_cast<uint32_t>(first[j]);
      }
    EXPECT_EQ(different, 0) << "of " << results << ", k " << k << ", " << (bf16 ? "bf16" : "f16")
                            << " on " << chip();
  }
}

TEST_F(CudaTest, ATokensSumsAreTheSameInAnyColumnBesideAnyNeighbours) {
  for (const bool bf16 : {true, false})
    expect_equal_everywhere(
        bf16, 8,
        [](auto&, auto& columns, int at, int k, const char* neighbours, uint16_t other) {
          const std::vector<uint16_t> token(columns.begin(), columns.begin() + k);
          if (*neighbours != 'r') std::fill(columns.begin(), columns.end(), other);
          std::copy_n(columns.begin() + size_t(at) * k, k, columns.begin());
          std::copy(token.begin(), token.end(), columns.begin() + size_t(at) * k);
        },
        [](const auto& sums, size_t tile, int at) {
          std::vector<float> out;
          for (int row = 0; row < 16; ++row) out.push_back(sums[tile * 128 + row * 8 + at]);
          return out;
        });
}

TEST_F(CudaTest, AWeightRowsSumsAreTheSameInAnyRowBesideAnyNeighbours) {
  for (const bool bf16 : {true, false})
    expect_equal_everywhere(
        bf16, 16,
        [](auto& rows, auto&, int at, int k, const char* neighbours, uint16_t other) {
          const std::vector<uint16_t> row(rows.begin(), rows.begin() + k);
          if (*neighbours != 'r') std::fill(rows.begin(), rows.end(), other);
          std::copy_n(rows.begin() + size_t(at) * k, k, rows.begin());
          std::copy(row.begin(), row.end(), rows.begin() + size_t(at) * k);
        },
        [](const auto& sums, size_t tile, int at) {
          const auto* row = sums.data() + tile * 128 + at * 8;
          return std::vector<float>(row, row + 8);
        });
}

TEST_F(CudaTest, WgmmaOfAnyWidthAddsAsMmaDoes) {
  if (cuda::bits::compare_wgmma(true, 8, 16, 0, 1, 1).sums == 0)
    GTEST_SKIP() << "no wgmma in this build's code for " << chip();
  uint64_t compared = 0;
  for (const int n : cuda::bits::kWgmmaColumns)
    for (const bool bf16 : {true, false})
      for (const int k : {16, 64, 256, 1024, 4096})
        for (const int spread : {0, 4, 10, 20}) {
          if (!bf16 && spread > 10) continue;
          const int tiles = std::max(1, 64 * 8 / n);
          const auto found = cuda::bits::compare_wgmma(bf16, n, k, spread, tiles, 7u * k + spread);
          EXPECT_EQ(found.sums, uint64_t(tiles) * 64 * n);
          EXPECT_EQ(found.different, 0u)
              << "of " << found.sums << ": m64n" << n << "k16, k " << k << ", exponents within "
              << spread << ", " << (bf16 ? "bf16" : "f16") << " on " << chip();
          compared += found.sums;
        }
  RecordProperty("sums", std::to_string(compared));
}

}  // namespace
}  // namespace stepladder
