// The interpreter is free while the engine works, and a thread that works when it ends does no
// harm.
#pragma once

#include <nanobind/nanobind.h>

namespace stepladder {

/// Frees the interpreter for a scope. A thread that takes it back while the interpreter ends is
/// ended by CPython in a way that no C++ frame survives, so the way in is closed before: from
/// close_down() on, whoever comes gets Error(unsupported), and close_down() waits for those inside.
class Released {
 public:
  Released();
  ~Released();
  Released(const Released&) = delete;
  Released& operator=(const Released&) = delete;

 private:
  PyThreadState* state_;
};

/// Whether close_down() has begun. Ask with the interpreter's lock held.
bool ending();
/// Waits, with the interpreter free, until no thread is inside a Released; gives up after a while.
void close_down();

}  // namespace stepladder
