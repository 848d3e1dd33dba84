// How fast this machine reads memory: the limit that decoding is held against.
#pragma once

#include <cstddef>
#include <memory>

namespace bench {

/// Memory no cache holds, on large pages as the engine's weights are, and threads that sum it. A
/// machine's speed drifts by a third within seconds, so a sample belongs beside every timing.
class BandwidthMeter {
 public:
  BandwidthMeter(int threads, size_t bytes);
  ~BandwidthMeter();
  /// Bytes a second: of the fastest of a few passes, with and without fetching ahead, since a
  /// ceiling is what nothing passes; about half a second in all.
  double sample();

 private:
  class Pages;
  double read(size_t ahead);
  std::unique_ptr<Pages> pages_;
  int threads_;
};

}  // namespace bench
