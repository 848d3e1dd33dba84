// Number types against references in fp64, the random generator against its published answers,
// the arena, and the thread pool.
#include <gtest/gtest.h>

#include <atomic>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <stdexcept>
#include <thread>
#include <vector>

#include "core/arena.h"
#include "core/error.h"
#include "core/philox.h"
#include "core/thread_pool.h"
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

static std::atomic<size_t> allocations{0};
// Not inlined: the compiler would otherwise see free() meet a pointer of operator new.
[[gnu::noinline]] void* operator new(size_t n) {
  ++allocations;
  if (void* p = std::malloc(n)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept { std::free(p); }
[[gnu::noinline]] void operator delete(void* p, size_t) noexcept { std::free(p); }

namespace stepladder {
namespace {

/// Value of a 16-bit float with the given exponent and mantissa widths; NaN included.
double value_of(uint16_t x, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1, top = (1 << exponent_bits) - 1;
  const int e = (x >> mantissa_bits) & top, m = x & ((1 << mantissa_bits) - 1);
  const double sign = x & 0x8000 ? -1 : 1;
  if (e == top) return m ? std::nan("") : sign * std::numeric_limits<double>::infinity();
  if (e == 0) return sign * std::ldexp(m, 1 - bias - mantissa_bits);
  return sign * std::ldexp((1 << mantissa_bits) + m, e - bias - mantissa_bits);
}

bool same(float a, double b) {
  return std::isnan(b) ? std::isnan(a) : a == b && std::signbit(a) == std::signbit(b);
}

TEST(DType, WidensEvery16BitValueExactly) {
  for (uint32_t x = 0; x < 0x10000; ++x) {
    const auto h = static_cast<uint16_t>(x);
    ASSERT_TRUE(same(from_bf16(h), value_of(h, 8, 7))) << x;
    ASSERT_TRUE(same(from_f16(h), value_of(h, 5, 10))) << x;
  }
}

/// Around every border where rounding may change: each value, each midpoint between neighbours, and
/// the floats just beside them.
void check_rounding(uint16_t (*narrow)(float), int exponent_bits, int mantissa_bits) {
  const int finite = ((1 << exponent_bits) - 1) << mantissa_bits;  // the code of infinity
  const auto expect = [&](float x, int code) {
    for (const float sign : {1.f, -1.f})
      ASSERT_EQ(narrow(sign * x), static_cast<uint16_t>(code | (sign < 0 ? 0x8000 : 0)))
          << std::hexfloat << sign * x;
  };
  for (int code = 0; code < finite; ++code) {
    const double lo = value_of(static_cast<uint16_t>(code), exponent_bits, mantissa_bits);
    // The step above the largest finite value is as wide as the one below it.
    const double hi =
        code + 1 < finite
            ? value_of(static_cast<uint16_t>(code + 1), exponent_bits, mantissa_bits)
            : 2 * lo - value_of(static_cast<uint16_t>(code - 1), exponent_bits, mantissa_bits);
    const float low = static_cast<float>(lo), middle = static_cast<float>((lo + hi) / 2);
    ASSERT_EQ(low, lo);
    ASSERT_EQ(middle, (lo + hi) / 2);
    expect(low, code);
    expect(std::nextafter(middle, 0.f), code);
    expect(middle, code % 2 ? code + 1 : code);
    expect(std::nextafter(middle, INFINITY), code + 1);
  }
  expect(INFINITY, finite);
  const uint16_t nan = narrow(NAN);
  EXPECT_TRUE(std::isnan(value_of(nan, exponent_bits, mantissa_bits)));
  EXPECT_TRUE(std::isnan(
      value_of(narrow(std::bit_cast<float>(0x7f800001u)), exponent_bits, mantissa_bits)));
}

TEST(DType, RoundsToBf16ToNearestEven) {
  check_rounding([](float x) { return to_bf16(x); }, 8, 7);
}
TEST(DType, RoundsToF16ToNearestEven) {
  check_rounding([](float x) { return to_f16(x); }, 5, 10);
}

TEST(DType, DecodesEveryScaleAndFourBitCode) {
  for (int e = 0; e < 255; ++e)
    ASSERT_EQ(from_e8m0(static_cast<uint8_t>(e)), std::ldexp(1.0, e - 127)) << e;
  EXPECT_TRUE(std::isnan(from_e8m0(255)));
  const double values[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  for (int c = 0; c < 16; ++c)
    ASSERT_TRUE(same(from_e2m1(static_cast<uint8_t>(c)), (c & 8 ? -1 : 1) * values[c & 7])) << c;
}

// The known answers of philox4x32 with 10 rounds, as published with Random123.
TEST(Philox, GivesTheKnownAnswers) {
  const struct {
    Philox4 counter;
    uint64_t key;
    Philox4 answer;
  } known[] = {
      {{{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
      {{{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}},
       0xffffffffffffffff,
       {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
      {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}},
       0x299f31d0a4093822,
       {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
  };
  for (const auto& k : known) {
    const Philox4 r = philox(k.counter, k.key);
    for (int i = 0; i < 4; ++i) EXPECT_EQ(r.x[i], k.answer.x[i]);
  }
}

TEST(Philox, NoiseWordsAreLanesOfOneBlock) {
  for (int32_t token : {0, 1, 2, 3, 4, 49151}) {
    const Philox4 r = philox({{static_cast<uint32_t>(token / 4), 77, 0, 0}}, 0x1234567890abcdef);
    EXPECT_EQ(noise_word(0x1234567890abcdef, 77, token), r.x[token % 4]);
  }
}

TEST(Arena, MeasuresWhatItThenHandsOut) {
  const auto use = [](Arena& a) {
    void* first = a.take(10);
    {
      Arena::Scope scope(a);
      a.take_tensor(DType::bf16, 3, 50);
      a.take_array<float>(100);
    }
    a.take(1);
    return first;
  };
  Arena dry;
  use(dry);
  EXPECT_TRUE(dry.measuring());
  EXPECT_EQ(dry.peak(), 64u + 320u + 448u);
  std::vector<std::byte> memory(dry.peak() + 64);
  auto* aligned = memory.data() + (64 - reinterpret_cast<uintptr_t>(memory.data()) % 64) % 64;
  Arena arena(aligned, dry.peak());
  EXPECT_EQ(use(arena), aligned);
  EXPECT_EQ(arena.peak(), dry.peak());
  EXPECT_THROW(arena.take(dry.peak()), Error);
}

TEST(Buffer, ReleasesOnce) {
  int released = 0;
  std::byte block[8];
  {
    Buffer a(block, 8, [&](void* p, size_t n) { released += p == block && n == 8; });
    Buffer b = std::move(a);
    EXPECT_EQ(a.data(), nullptr);
    Buffer c;
    c = std::move(b);
    EXPECT_EQ(c.data(), block);
  }
  EXPECT_EQ(released, 1);
}

TEST(ThreadPool, RunsEveryPartOnceManyTimes) {
  for (int threads : {1, 2, 3, 5}) {
    ThreadPool pool(threads);
    ASSERT_EQ(pool.threads(), threads);
    std::vector<int> ran(threads);  // each part writes its own element, so no atomics are needed
    const int rounds = 3000;
    for (int i = 0; i < rounds; ++i) pool.run([&](int part) { ++ran[part]; });
    for (int part = 0; part < threads; ++part) EXPECT_EQ(ran[part], rounds) << part;
  }
}

TEST(ThreadPool, PartZeroRunsOnTheCaller) {
  ThreadPool pool(3);
  std::vector<std::thread::id> id(3);
  pool.run([&](int part) { id[part] = std::this_thread::get_id(); });
  EXPECT_EQ(id[0], std::this_thread::get_id());
  EXPECT_NE(id[1], id[0]);
  EXPECT_NE(id[1], id[2]);
}

TEST(ThreadPool, WakesWorkersThatSleep) {
  ThreadPool pool(2);
  int ran = 0;
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // far longer than workers spin
    pool.run([&](int part) {
      if (part == 1) ++ran;
    });
  }
  EXPECT_EQ(ran, 20);
}

TEST(ThreadPool, TheCallerSleepsWhileAWorkerIsLate) {
  ThreadPool pool(2);
  int ran = 0;
  for (int i = 0; i < 10; ++i)
    pool.run([&](int part) {
      if (part == 0) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      ++ran;
    });
  EXPECT_EQ(ran, 10);
}

TEST(ThreadPool, NeverAllocatesInARun) {
  ThreadPool pool(2);
  int sum[2] = {};
  pool.run([&](int part) { ++sum[part]; });
  const size_t before = allocations;
  for (int i = 0; i < 100; ++i) pool.run([&](int part) { ++sum[part]; });
  EXPECT_EQ(allocations, before);
}

TEST(ThreadPool, AnExceptionOfTheCallersPartLeavesThePoolUsable) {
  ThreadPool pool(2);
  int ran = 0;
  const auto throws = [&](int part) {
    if (part == 0) throw std::runtime_error("part 0");
    ++ran;
  };
  EXPECT_THROW(pool.run(throws), std::runtime_error);
  pool.run([&](int part) {
    if (part == 1) ++ran;
  });
  EXPECT_EQ(ran, 2);
}

TEST(ThreadPool, TakesTheCoresThereAreAndRefusesNonsense) {
  EXPECT_GE(ThreadPool(0).threads(), 1);
  EXPECT_THROW(ThreadPool(-1), Error);
  EXPECT_THROW(ThreadPool(100000), Error);
}

#if defined(__x86_64__)
TEST(ThreadPool, KeepsSubnormalsWhateverTheCallersMode) {
  for (int threads : {1, 2}) {
    ThreadPool before(threads);
    const unsigned old = _mm_getcsr(), flush = old | 0x8040;  // flush to zero, subnormals are zeros
    _mm_setcsr(flush);
    ThreadPool after(threads);  // its workers start in the flushing mode
    for (ThreadPool* pool : {&before, &after}) {
      float half[2] = {};
      volatile float least = 0x1p-126f;
      pool->run([&](int part) { half[part] = least * 0.5f; });
      for (int part = 0; part < threads; ++part)
        EXPECT_EQ(std::bit_cast<uint32_t>(half[part]), 0x00400000u) << part;
      EXPECT_EQ(_mm_getcsr() & 0xffc0u, flush & 0xffc0u);
    }
    _mm_setcsr(old);
  }
}
#endif

}  // namespace
}  // namespace stepladder
