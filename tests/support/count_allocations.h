// Counts every allocation of the program it is included in: once, in the test's own file.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace stepladder {

inline std::atomic<int64_t> allocations{0};

}  // namespace stepladder

// Not inlined: the compiler would otherwise see free() meet a pointer of operator new.
[[gnu::noinline]] void* operator new(size_t bytes) {
  ++stepladder::allocations;
  if (void* memory = std::malloc(bytes ? bytes : 1)) return memory;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  ++stepladder::allocations;
  return std::malloc(bytes ? bytes : 1);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept { std::free(memory); }
