#include "core/units.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <vector>

namespace stepladder {
namespace {

class Units {
 public:
  Units(size_t count, const std::function<void(size_t, int)>& work,
        const std::function<void(size_t)>& told)
      : count_(count), work_(work), told_(told) {
    ended_.reserve(count);
  }

  void take(int thread) {
    while (!stopped_.load(std::memory_order_relaxed)) {
      const size_t unit = next_.fetch_add(1, std::memory_order_relaxed);
      if (unit >= count_) return;
      try {
        work_(unit, thread);
        const std::lock_guard lock(mutex_);
        ended_.push_back(unit);
      } catch (...) {
        // All units before this one have begun, so the first that fails is always among them.
        const std::lock_guard lock(mutex_);
        if (!error_ || unit < failed_) error_ = std::current_exception(), failed_ = unit;
        stopped_ = true;
      }
      if (thread == 0) tell();
    }
  }

  /// Tells of what has ended since; the caller alone.
  void tell() {
    try {
      for (;; ++told_count_) {
        size_t unit;
        {
          const std::lock_guard lock(mutex_);
          if (error_ || interrupted_ || told_count_ == ended_.size()) return;
          unit = ended_[told_count_];
        }
        told_(unit);
      }
    } catch (...) {
      interrupted_ = std::current_exception();
      stopped_ = true;
    }
  }

  void rethrow() const {
    if (interrupted_) std::rethrow_exception(interrupted_);
    if (error_) std::rethrow_exception(error_);
  }

 private:
  const size_t count_;
  const std::function<void(size_t, int)>& work_;
  const std::function<void(size_t)>& told_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> stopped_{false};
  std::mutex mutex_;           // of the three below
  std::vector<size_t> ended_;  // in the order in which they did
  size_t failed_ = 0;          // the unit whose error is held
  std::exception_ptr error_;
  size_t told_count_ = 0;  // of ended_; the caller's own, as the next
  std::exception_ptr interrupted_;
};

}  // namespace

void run_units(ThreadPool& pool, size_t count, const std::function<void(size_t, int)>& work,
               const std::function<void(size_t)>& told) {
  Units units(count, work, told);
  pool.run([&](int thread) { units.take(thread); });
  units.tell();
  units.rethrow();
}

}  // namespace stepladder
