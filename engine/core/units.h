// Many pieces of work over the threads of a pool, begun in order.
#pragma once

#include <cstddef>
#include <functional>

#include "core/thread_pool.h"

namespace stepladder {

/// Calls work(unit, thread) for every unit from 0 to count - 1: each thread takes the next one that
/// nobody has begun. The calling thread, which is thread 0, also calls told(unit) once for each
/// that has ended. When one throws no others are begun, and once those that run have ended the
/// error of the first unit that failed is thrown, the same for any number of threads; but what
/// `told` throws goes before it.
void run_units(ThreadPool&, size_t count, const std::function<void(size_t unit, int thread)>& work,
               const std::function<void(size_t unit)>& told);

}  // namespace stepladder
