// The floating-point mode results are defined in: round to nearest even, subnormals kept. A host
// program may have set another one in its threads (flush to zero is common), so everything that
// computes runs inside a FloatMode.
#pragma once

#include <cfenv>
#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

namespace stepladder {

/// Sets the calling thread's default floating-point mode and gives the old one back at the end.
class FloatMode {
 public:
#if defined(__x86_64__)
  FloatMode() : saved_(_mm_getcsr()) {
    if ((saved_ | kFlags) != kDefault) _mm_setcsr(kDefault);
  }
  ~FloatMode() {
    if ((saved_ | kFlags) != kDefault) _mm_setcsr(saved_);
  }

 private:
  // The low six bits only record what happened; all exceptions masked and nothing else is default.
  static constexpr unsigned kFlags = 0x3f, kDefault = 0x1f80 | kFlags;
  unsigned saved_;
#else
  FloatMode() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~FloatMode() { std::fesetenv(&saved_); }

 private:
  std::fenv_t saved_;
#endif
 public:
  FloatMode(const FloatMode&) = delete;
  FloatMode& operator=(const FloatMode&) = delete;
};

}  // namespace stepladder
