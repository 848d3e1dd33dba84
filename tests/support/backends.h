// The backends that a suite runs over, in one place: what a new one has to pass.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backends/backend.h"

namespace stepladder {

struct BackendCase {
  std::string device, isa;  // as in BackendOptions
  bool far = false;         // behind memory that the host cannot read: support/far

  std::unique_ptr<Backend> open(int threads) const;
  /// One that promises the same bits: itself or, for a far one, what does its work.
  std::unique_ptr<Backend> open_plain(int threads) const;
  /// What open() gives says of itself: "cpu/avx2", "far/avx2".
  std::string kernels() const;
  std::string name() const;  // of letters, digits and underscores
};
void PrintTo(const BackendCase&, std::ostream*);

/// Each backend of the build that this machine can run, in each of its instruction sets.
std::vector<BackendCase> backend_cases();
/// These, and the far backend over each of the CPU's.
std::vector<BackendCase> near_and_far();

}  // namespace stepladder
