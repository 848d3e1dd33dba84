// check() and fail(): the only ways the engine refuses something.
#pragma once

#include <sstream>

#include "stepladder/error.h"

namespace stepladder {

/// Throws Error(code) whose message is the parts, one after the other.
template <class... Part>
[[noreturn]] void fail(Code code, const Part&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(code, text.str());
}

/// fail() unless `ok`; the message is built only on failure.
template <class... Part>
void check(bool ok, Code code, const Part&... parts) {
  if (!ok) [[unlikely]]
    fail(code, parts...);
}

}  // namespace stepladder
