#include "support/backends.h"

#include <cctype>
#include <ostream>

#include "stepladder/engine.h"
#include "support/far/far_backend.h"

namespace stepladder {

std::unique_ptr<Backend> BackendCase::open(int threads) const {
  if (far) return std::make_unique<FarBackend>(isa, threads);
  return open_plain(threads);
}

std::unique_ptr<Backend> BackendCase::open_plain(int threads) const {
  return open_backend({device, isa, threads});
}

std::string BackendCase::kernels() const {
  return (far ? "far" : device) + (isa.empty() ? "" : "/" + isa);
}

std::string BackendCase::name() const {
  std::string out = kernels();
  for (char& ch : out)
    if (!std::isalnum(static_cast<unsigned char>(ch))) ch = '_';
  return out;
}

void PrintTo(const BackendCase& c, std::ostream* out) { *out << c.kernels(); }

std::vector<BackendCase> backend_cases() {
  std::vector<BackendCase> out;
  for (const std::string& isa : available_isas()) out.push_back({"cpu", isa});
  for (const BackendInfo& b : backends())
    if (b.missing.empty() && b.name != "cpu") out.push_back({b.name, ""});
  return out;
}

std::vector<BackendCase> near_and_far() {
  std::vector<BackendCase> out = backend_cases();
  for (const std::string& isa : available_isas()) out.push_back({"cpu", isa, true});
  return out;
}

}  // namespace stepladder
