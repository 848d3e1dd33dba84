#include "core/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>
#if defined(__linux__)
#include <sys/resource.h>
#include <unistd.h>
#endif

namespace stepladder {
namespace {

constexpr size_t kUnknown = std::numeric_limits<size_t>::max();

#if defined(__linux__)
/// The first number in the file; "max" and a missing file are unknown.
size_t number_in(const char* path) {
  std::ifstream file(path);
  size_t value = 0;
  return file >> value ? value : kUnknown;
}

/// What the process may still map: `ulimit -v`.
size_t left_to_map() {
  rlimit limit{};
  if (getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return kUnknown;
  const size_t pages = number_in("/proc/self/statm");
  if (pages == kUnknown) return kUnknown;
  const size_t used = pages * static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return limit.rlim_cur > used ? limit.rlim_cur - used : 0;
}
#endif

}  // namespace

size_t available_host_bytes() {
  size_t available = kUnknown;
#if defined(__linux__)
  std::ifstream info("/proc/meminfo");
  for (std::string key; info >> key;) {
    size_t kilobytes = 0;
    if (key == "MemAvailable:" && info >> kilobytes) {
      available = kilobytes * 1024;
      break;
    }
    info.ignore(256, '\n');
  }
  const size_t limit = number_in("/sys/fs/cgroup/memory.max");
  const size_t used = number_in("/sys/fs/cgroup/memory.current");
  if (limit != kUnknown && used != kUnknown)
    available = std::min(available, limit > used ? limit - used : 0);
  available = std::min(available, left_to_map());
#endif
  return available;
}

}  // namespace stepladder
