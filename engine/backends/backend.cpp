#include "backends/backend.h"

#include "backends/cpu/cpu_backend.h"
#include "core/error.h"

namespace stepladder {

std::unique_ptr<Backend> open_backend(const BackendOptions& options) {
  check(options.device == "auto" || options.device == "cpu", Code::unsupported, "device \"",
        options.device, "\" is not available; this build has: cpu (or auto)");
  return std::make_unique<CpuBackend>(options.isa, options.threads);
}

}  // namespace stepladder
