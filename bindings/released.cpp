#include "released.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "stepladder/error.h"

namespace stepladder {
namespace {

constexpr std::chrono::seconds kMostWait{10};
std::atomic<int> inside{0};
std::atomic<bool> closed{false};

}  // namespace

// The interpreter's lock is held here and in close_down(): nobody enters once it has begun.
Released::Released() {
  if (closed) throw Error(Code::unsupported, "the interpreter is ending: no model works any more");
  ++inside;
  state_ = PyEval_SaveThread();
}

Released::~Released() {
  PyEval_RestoreThread(state_);
  --inside;
}

bool ending() { return closed; }

void close_down() {
  closed = true;
  PyThreadState* const state = PyEval_SaveThread();
  const auto until = std::chrono::steady_clock::now() + kMostWait;
  while (inside > 0 && std::chrono::steady_clock::now() < until)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  PyEval_RestoreThread(state);
}

}  // namespace stepladder
