// Host memory for the CPU backend: aligned, zeroed, really there.
#pragma once

#include <cstddef>

namespace stepladder {

class ThreadPool;

/// Zeroed and 64-byte aligned. From 2 MB on, 2 MB aligned and on huge pages where the system has
/// them, with every page present, so that no first touch interrupts a pass; the pool's threads
/// touch them. Throws Error(out_of_memory) with the bytes wanted and available.
void* allocate_host(size_t bytes, ThreadPool&);
/// Gives back what allocate_host(bytes) returned; null is allowed.
void release_host(void* memory, size_t bytes) noexcept;

}  // namespace stepladder
