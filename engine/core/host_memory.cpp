#include "core/host_memory.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <string>

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
#endif
  return available;
}

}  // namespace stepladder
