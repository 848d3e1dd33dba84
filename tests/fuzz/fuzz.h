// What a fuzz driver consists of: one entry that must survive any bytes, and well-formed inputs to
// start from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

/// libFuzzer's entry. Returns for every input; anything else it finds is a crash.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace stepladder::fuzz {

/// Inputs that the reader accepts.
std::vector<std::string> seeds();

/// Ends the process, so that the driver keeps the input, when what must hold does not.
inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

}  // namespace stepladder::fuzz
