#include "backends/cpu/memory.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

#include "core/error.h"
#include "core/host_memory.h"
#include "core/round_up.h"
#include "core/thread_pool.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace stepladder {
namespace {

constexpr size_t kHuge = size_t{2} << 20;
constexpr size_t kUnknown = std::numeric_limits<size_t>::max();

[[noreturn]] void refuse(size_t bytes) {
  fail(Code::out_of_memory, "cpu: ", bytes, " bytes wanted, ", available_host_bytes(),
       " available; use a smaller model, a smaller context, fewer sequences or fewer levels");
}

#if defined(__linux__)
void make_present(std::byte* memory, size_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  if (madvise(memory, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
  volatile std::byte* page = memory;
  for (size_t i = 0; i < bytes; i += 4096) page[i] = std::byte{0};
}

void* allocate_huge(size_t bytes, ThreadPool& pool) {
  // Mapped larger by one huge page, then cut to the aligned middle.
  const size_t size = round_up(bytes, kHuge);
  void* raw = mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (raw == MAP_FAILED) return nullptr;
  const uintptr_t from = reinterpret_cast<uintptr_t>(raw), at = round_up<uintptr_t>(from, kHuge);
  if (at > from) munmap(raw, at - from);
  if (from + kHuge > at) munmap(reinterpret_cast<void*>(at + size), from + kHuge - at);
  void* memory = reinterpret_cast<void*>(at);
  madvise(memory, size, MADV_HUGEPAGE);
  // In pieces: of two virtual cores one is often slowed down by what else its host runs.
  constexpr size_t kPiece = 16 * kHuge;
  std::atomic<size_t> next{0};
  pool.run([&](int) {
    for (size_t i; (i = next.fetch_add(kPiece)) < size;)
      make_present(static_cast<std::byte*>(memory) + i, std::min(kPiece, size - i));
  });
  return memory;
}
#endif

}  // namespace

void* allocate_host(size_t bytes, [[maybe_unused]] ThreadPool& pool) {
  if (bytes == 0) return nullptr;
  if (bytes > kUnknown - 2 * kHuge) refuse(bytes);
  void* memory = nullptr;
#if defined(__linux__)
  if (bytes >= kHuge) {
    // The system would promise more than it has and end the process at the first touch.
    if (bytes > available_host_bytes()) refuse(bytes);
    memory = allocate_huge(bytes, pool);
    if (!memory) refuse(bytes);
    return memory;
  }
#endif
  const size_t align = bytes >= kHuge ? kHuge : 64, size = round_up(bytes, align);
  memory = std::aligned_alloc(align, size);
  if (!memory) refuse(bytes);
  return std::memset(memory, 0, size);
}

void release_host(void* memory, size_t bytes) noexcept {
  if (!memory) return;
#if defined(__linux__)
  if (bytes >= kHuge) {
    munmap(memory, round_up(bytes, kHuge));
    return;
  }
#endif
  std::free(memory);
}

}  // namespace stepladder
