// What the public API tells of the backends that were found.
#include "backends/backend.h"
#include "stepladder/engine.h"

namespace stepladder {

std::vector<BackendInfo> backends() {
  std::vector<BackendInfo> out;
  for (const BackendEntry& e : backend_entries()) {
    BackendInfo info{e.name, {}, e.kind ? e.kind->missing() : e.missing};
    if (info.missing.empty()) {
      const int n = e.kind->devices();
      info.devices.push_back(e.name);
      for (int i = 0; n > 1 && i < n; ++i)
        info.devices.push_back(info.name + ":" + std::to_string(i));
    }
    out.push_back(std::move(info));
  }
  return out;
}

}  // namespace stepladder
