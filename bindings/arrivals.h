// How the engine's thread tells Python which of many streams have something to take, without a
// thread for each of them and without the interpreter's lock.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace stepladder {

/// A list of keys, and a file descriptor that an event loop can watch.
class Arrivals {
 public:
  /// Throws Error(io) where the process has no descriptor left.
  Arrivals();
  /// Readable while the list is not empty.
  int descriptor() const;
  /// What is in the list, which is empty afterwards.
  std::vector<uint64_t> take();
  /// A function for Stream::notify that puts `key` into the list. It allocates nothing, and the
  /// list lives as long as it does.
  std::function<void()> expect(uint64_t key) const;

 private:
  class List;
  std::shared_ptr<List> list_;
};

}  // namespace stepladder
