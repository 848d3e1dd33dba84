#include "core/thread_pool.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

#include "core/error.h"
#include "core/float_mode.h"
#if defined(__linux__)
#include <sched.h>
#endif

namespace stepladder {
namespace {

constexpr int kMostThreads = 1024;
// A waiter spins, then yields its core between looks, then sleeps. It stays runnable for longer
// than any gap inside a pass: two threads that slept between operators would be woken on one core
// and stay there, at 0.1 ms an operator (27 ms instead of 6 for a pass of 240). Yielding keeps that
// first moment on a shared core short, until the kernel moves one of them to an idle core.
constexpr std::chrono::microseconds kSpin{20}, kYield{2000};
constexpr int kPausesPerLook = 32;  // pauses between two looks at the clock

void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Waits until the value is no longer `old`.
template <class T>
T wait_change(const std::atomic<T>& value, T old) {
  const auto start = std::chrono::steady_clock::now();
  for (;;) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (const T now = value.load(std::memory_order_acquire); now != old) return now;
      pause();
    }
    const auto waited = std::chrono::steady_clock::now() - start;
    if (waited > kYield) break;
    if (waited > kSpin) std::this_thread::yield();
  }
  T now;
  while ((now = value.load(std::memory_order_acquire)) == old)
    value.wait(old, std::memory_order_acquire);
  return now;
}

}  // namespace

int usable_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  const unsigned n = std::thread::hardware_concurrency();
  return n ? static_cast<int>(n) : 1;
}

// One cache line for what the caller writes and one for what the workers write, so that a worker
// that ends does not disturb one that still looks for its start.
struct ThreadPool::State {
  alignas(64) std::atomic<uint32_t> epoch{0};  // one more for every run
  void (*call)(void*, int) = nullptr;          // published by epoch; null = the pool ends
  void* context = nullptr;
  alignas(64) std::atomic<int32_t> pending{0};  // workers still in the current run
  std::vector<std::thread> workers;

  void start(void (*f)(void*, int), void* c) {
    call = f, context = c;
    pending.store(static_cast<int32_t>(workers.size()), std::memory_order_relaxed);
    epoch.fetch_add(1, std::memory_order_seq_cst);
    epoch.notify_all();
  }

  void work(int part) {
    const FloatMode mode;
    uint32_t seen = 0;
    for (;;) {
      seen = wait_change(epoch, seen);
      if (!call) return;
      call(context, part);
      if (pending.fetch_sub(1, std::memory_order_seq_cst) == 1) pending.notify_one();
    }
  }

  void finish() {
    int32_t left = pending.load(std::memory_order_acquire);
    while (left != 0) left = wait_change(pending, left);
  }

  ~State() {
    start(nullptr, nullptr);
    for (std::thread& t : workers) t.join();
  }
};

ThreadPool::ThreadPool(int threads) {
  check(threads >= 0 && threads <= kMostThreads, Code::invalid_argument, "threads=", threads,
        ": pass 1 to ", kMostThreads, ", or 0 for the cores this process may use");
  threads_ = threads ? threads : usable_cores();
  if (threads_ > kMostThreads) threads_ = kMostThreads;
  state_ = std::make_unique<State>();
  state_->workers.reserve(threads_ - 1);
  try {
    for (int part = 1; part < threads_; ++part)
      state_->workers.emplace_back([state = state_.get(), part] { state->work(part); });
  } catch (const std::system_error& e) {
    fail(Code::out_of_memory, "thread pool: starting thread ", state_->workers.size() + 2, " of ",
         threads_, ": ", e.what(), "; pass fewer threads");
  }
}

ThreadPool::~ThreadPool() = default;

void ThreadPool::run_raw(void (*call)(void*, int), void* context) {
  const FloatMode mode;
  if (threads_ == 1) return call(context, 0);
  state_->start(call, context);
  // Also when part 0 throws: the workers use what the caller's frame owns.
  const struct Join {
    State& state;
    ~Join() { state.finish(); }
  } join{*state_};
  call(context, 0);
}

}  // namespace stepladder
