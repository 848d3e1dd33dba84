// The directory of a ZIP archive whose files are stored as they are.
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "io/file.h"

namespace stepladder {

/// Where a file of the archive lies.
struct ZipEntry {
  uint64_t offset = 0, bytes = 0;
};

/// Every file by its name. Throws Error(model_format) on what is no such archive and
/// Error(unsupported) on compressed or encrypted files, naming them.
std::map<std::string, ZipEntry, std::less<>> read_zip_directory(const ByteSource& archive);

}  // namespace stepladder
