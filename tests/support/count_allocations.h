// Counts every allocation of the program it is included in: once, in the test's own file.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace stepladder {

inline std::atomic<int64_t> allocations{0};

}  // namespace stepladder

void* operator new(size_t bytes) {
  ++stepladder::allocations;
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
