// A fixed set of workers that run one function together. Between two calls the workers stay awake
// for a short while (2 ms) and then sleep, so that back-to-back operators start within a
// microsecond.
#pragma once

#include <memory>
#include <type_traits>

namespace stepladder {

/// How many cores this process may use; at least 1.
int usable_cores();

class ThreadPool {
 public:
  /// `threads` includes the calling thread; 0 = usable_cores().
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  /// Calls f(part) for part 0..threads-1, part 0 on the caller, and returns when all have ended.
  /// Never allocates. Only one thread may call it at a time. The floating-point mode of every
  /// worker is the default one (round to nearest, subnormals kept).
  template <class F>
  void run(F&& f) {
    run_raw(
        [](void* context, int part) { (*static_cast<std::remove_reference_t<F>*>(context))(part); },
        const_cast<void*>(static_cast<const void*>(&f)));
  }

 private:
  void run_raw(void (*call)(void*, int), void* context);
  struct State;
  std::unique_ptr<State> state_;
  int threads_ = 1;
};

}  // namespace stepladder
