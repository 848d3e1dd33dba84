// The backends that CMake found, and how one of them is named and opened.
#include "backends/backend.h"

#include <charconv>

#include "core/error.h"
#include "generated/backends.h"

namespace stepladder {

namespace backend {
#define SL_DECLARE_BACKEND(name) extern const BackendKind name;
SL_EACH_BACKEND(SL_DECLARE_BACKEND)
}  // namespace backend

namespace {

std::string missing(const BackendEntry& e) { return e.kind ? e.kind->missing() : e.missing; }

/// "cpu (or auto); not available: cuda (no driver was found)".
std::string what_there_is() {
  std::string there, not_there;
  for (const BackendEntry& e : backend_entries()) {
    if (const std::string why = missing(e); !why.empty()) {
      not_there += (not_there.empty() ? "" : ", ") + std::string(e.name) + " (" + why + ")";
      continue;
    }
    there += (there.empty() ? "" : ", ") + std::string(e.name);
    if (const int n = e.kind->devices(); n > 1) there += ":0 to " + std::to_string(n - 1);
  }
  return there + " (or auto)" + (not_there.empty() ? "" : "; not available: " + not_there);
}

const BackendEntry* find(const std::string& name, bool with_isas) {
  static const std::vector<BackendEntry> all = backend_entries();
  const BackendEntry* found = nullptr;
  for (const BackendEntry& e : all) {
    if (name == e.name) return &e;
    if (name == "auto" && missing(e).empty() && (e.kind->has_isas || !with_isas) &&
        (!found || e.kind->preference > found->kind->preference))
      found = &e;
  }
  return found;
}

}  // namespace

std::vector<BackendEntry> backend_entries() {
#define SL_ENTRY_OF(name) {#name, &backend::name, ""},
#define SL_MISSING_ENTRY_OF(name, why) {#name, nullptr, why},
  return {SL_EACH_BACKEND(SL_ENTRY_OF) SL_EACH_MISSING_BACKEND(SL_MISSING_ENTRY_OF)};
}

std::unique_ptr<Backend> open_backend(const BackendOptions& options) {
  const std::string& device = options.device;
  const size_t colon = device.find(':');
  const BackendEntry* entry = find(device.substr(0, colon), !options.isa.empty());
  int index = 0;
  bool well = entry && missing(*entry).empty();
  if (well && colon != std::string::npos) {
    const char *from = device.data() + colon + 1, *to = device.data() + device.size();
    const auto [end, error] = std::from_chars(from, to, index);
    well = error == std::errc() && end == to && index >= 0 && index < entry->kind->devices() &&
           !device.starts_with("auto");
  }
  check(well, Code::unsupported, "device \"", device, "\" is not available; there is ",
        what_there_is());
  return entry->kind->open(index, options);
}

}  // namespace stepladder
