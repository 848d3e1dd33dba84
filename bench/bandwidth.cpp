#include "bench/bandwidth.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <new>
#include <thread>
#include <vector>

namespace bench {

constexpr size_t kPage = size_t{2} << 20;
constexpr int kPasses = 5;
constexpr size_t kAheads[] = {0, 4096, 16384}, kPiece = size_t{1} << 20;

class BandwidthMeter::Pages {
 public:
  explicit Pages(size_t bytes) : bytes_((bytes + kPage - 1) / kPage * kPage) {
    data_ = std::aligned_alloc(kPage, bytes_);
    if (!data_) throw std::bad_alloc();
    madvise(data_, bytes_, MADV_HUGEPAGE);
    std::memset(data_, 1, bytes_);
  }
  ~Pages() { std::free(data_); }
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;
  const std::byte* data() const { return static_cast<const std::byte*>(data_); }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_;
  void* data_;
};

namespace {

/// Four independent sums, so that loads never wait for additions. Looking `ahead` bytes further
/// helps where a core's own prefetching stops short of what memory can give.
uint64_t sum(const std::byte* from, size_t bytes, size_t ahead) {
  using V = uint64_t __attribute__((vector_size(64)));
  V a{}, b{}, c{}, d{};
  for (size_t at = 0; at + 256 <= bytes; at += 256) {
    if (ahead)
      for (int line = 0; line < 256; line += 64)
        __builtin_prefetch(from + std::min(at + ahead, bytes - 256) + line, 0, 2);
    const auto* p = reinterpret_cast<const V*>(from + at);
    a += p[0], b += p[1], c += p[2], d += p[3];
  }
  a += b + c + d;
  uint64_t out = 0;
  for (int i = 0; i < 8; ++i) out += a[i];
  return out;
}

}  // namespace

BandwidthMeter::BandwidthMeter(int threads, size_t bytes)
    : pages_(std::make_unique<Pages>(bytes)), threads_(threads) {
  // The first second after a pause is slow; whoever comes first would look good against it.
  for (int i = 0; i < 5; ++i) sample();
}

BandwidthMeter::~BandwidthMeter() = default;

double BandwidthMeter::sample() {
  double most = 0;
  for (const size_t ahead : kAheads) most = std::max(most, read(ahead));
  return most;
}

double BandwidthMeter::read(size_t ahead) {
  using Clock = std::chrono::steady_clock;
  // Threads take pieces as they come, as the engine's do: a slow one holds nobody up.
  const size_t pieces = pages_->bytes() / kPiece;
  std::vector<uint64_t> sums(threads_);
  std::vector<double> seconds;
  std::atomic<size_t> next{0};
  Clock::time_point start;
  std::barrier step(threads_, [&]() noexcept {
    const auto now = Clock::now();
    if (start != Clock::time_point{})
      seconds.push_back(std::chrono::duration<double>(now - start).count());
    start = now, next = 0;
  });
  const auto work = [&](int part) {
    step.arrive_and_wait();
    for (int r = 0; r < kPasses; ++r) {
      for (size_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < pieces;)
        sums[part] += sum(pages_->data() + i * kPiece, kPiece, ahead);
      step.arrive_and_wait();
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads_; ++i) others.emplace_back(work, i);
  work(0);
  for (auto& t : others) t.join();
  volatile uint64_t keep = sums[0];
  (void)keep;
  return static_cast<double>(pieces * kPiece) / *std::min_element(seconds.begin(), seconds.end());
}

}  // namespace bench
