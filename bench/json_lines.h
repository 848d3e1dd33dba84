// Results as JSON lines, their fields in the order in which they are written.
#pragma once

#include <cmath>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace bench {

using Json = nlohmann::ordered_json;

/// `x` with so many decimals: the rest is noise.
inline double rounded(double x, int decimals) {
  const double scale = std::pow(10.0, decimals);
  return std::round(x * scale) / scale;
}

class JsonLines {
 public:
  /// To a file, or to standard output where `path` is empty. Throws std::runtime_error where it
  /// cannot be written.
  explicit JsonLines(const std::string& path) {
    if (path.empty()) return;
    file_.open(path);
    if (!file_) throw std::runtime_error("--json: cannot write " + path);
  }
  void write(const Json& line) {
    // A model's path need not be UTF-8.
    std::ostream& out = file_.is_open() ? file_ : std::cout;
    out << line.dump(-1, ' ', false, Json::error_handler_t::replace) << std::endl;
    if (!out) throw std::runtime_error("--json: a line could not be written; is the disk full?");
  }

 private:
  std::ofstream file_;
};

}  // namespace bench
