// JSON read as a stream of events, so that a large or hostile text never becomes a large tree.
#pragma once

#include <cstdint>
#include <string>

#include "io/file.h"

namespace stepladder {

/// What a JSON text holds, in its order. The strings may be moved from.
class JsonEvents {
 public:
  virtual ~JsonEvents() = default;
  virtual void open_object() = 0;
  virtual void open_array() = 0;
  /// The end of the innermost open object or array.
  virtual void close() = 0;
  virtual void key(std::string& name) = 0;
  virtual void string(std::string& value) = 0;
  /// An integer written without a sign.
  virtual void count(uint64_t value) = 0;
  /// An integer written with a minus sign.
  virtual void negative(int64_t value) = 0;
  virtual void real(double value) = 0;
  virtual void boolean(bool value) = 0;
  virtual void null() = 0;
};

/// Reads bytes [begin, end) of `source` as one JSON text. Throws Error(model_format) naming source
/// and byte when they are not strict JSON in UTF-8, are nested more than 64 levels deep, or hold a
/// string or gap of more than 8 MiB. Keys that repeat are left to `events`.
void walk_json(const ByteSource& source, uint64_t begin, uint64_t end, JsonEvents& events);

}  // namespace stepladder
