// How an operator's work is shared out to the threads. No operator's result depends on it.
#pragma once

#include "backends/cpu/kernels.h"
#include "core/float_mode.h"
#include "core/thread_pool.h"

namespace stepladder {

// Below this many values an operator ends on one thread before a second one has begun.
inline constexpr int64_t kWorthSharing = 8192;

/// Runs an operator on every thread when its work is worth it, else on the caller alone.
template <class Args>
void share_out(ThreadPool& pool, void (*kernel)(const Args&, Lane), const Args& args, bool shared) {
  if (!shared || pool.threads() == 1) {
    const FloatMode mode;
    kernel(args, Lane{});
    return;
  }
  const int parts = pool.threads();
  pool.run([&](int part) { kernel(args, Lane{part, parts}); });
}

inline bool worth_sharing(const Live& live, int64_t values_a_row) {
  return live_rows(live) * values_a_row >= kWorthSharing;
}

}  // namespace stepladder
