// The one exception type of the engine. Everything the library refuses arrives as an Error whose
// code says what kind of refusal it is and whose message says what, where and how to fix it.
#pragma once

#include <stdexcept>
#include <string>

namespace stepladder {

enum class Code {
  invalid_argument,  // an option or request the caller can correct
  unsupported,       // well formed, but not something this engine does
  io,                // a file could not be opened or read
  model_format,      // a file's content breaks its format
  vocab_mismatch,    // draft and target do not speak the same tokens
  out_of_memory,     // does not fit; the message has the numbers
  cancelled,         // stopped by the caller
  internal,          // a bug of ours
  device,            // a device failed or was lost, and what it held with it
};

class Error : public std::runtime_error {
 public:
  Error(Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
  Code code() const noexcept { return code_; }

 private:
  Code code_;
};

}  // namespace stepladder
