// The ceilings of a device: how fast it reads the weights of a model where they lie, and how fast
// it reads at all. Measured in the run whose figures are held against them.
#pragma once

#include <memory>
#include <vector>

#include "stepladder/engine.h"

namespace bench {

class DeviceReads {
 public:
  /// Of weights that stay where they are. Null where no GPU of this build holds them. Takes a while
  /// and, as long as it takes, most of kPlainBytes of memory. Throws stepladder::Error.
  static std::unique_ptr<DeviceReads> of(const std::vector<stepladder::WeightMemory>& weights);
  virtual ~DeviceReads() = default;

  /// Milliseconds of one pass of pure reads, the median of a few: a kernel a matrix, in the order
  /// of the pass, in one graph in which each begins as the one before it ends. Call it while the
  /// engine has nothing to do.
  virtual double pass_ms() = 0;
  /// Bytes a second of a single kernel over plain_bytes() of memory: kPlainBytes, or what fits.
  virtual double plain_bytes_per_s() const = 0;
  virtual size_t plain_bytes() const = 0;
  static constexpr size_t kPlainBytes = 8'000'000'000;
};

}  // namespace bench
