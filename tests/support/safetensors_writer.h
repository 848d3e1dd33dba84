// Writes small model directories for tests: config.json, model.safetensors and, when asked, a
// tokenizer.json, in a temporary folder that goes away with its owner.
#pragma once

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <unistd.h>

#include "core/dtype.h"

namespace stepladder::testing {

/// A new empty folder, removed with everything in it when its owner goes.
class TempDir {
 public:
  TempDir() {
    std::string pattern = (std::filesystem::temp_directory_path() / "stepladder-XXXXXX").string();
    if (!::mkdtemp(pattern.data())) throw std::runtime_error("mkdtemp failed for " + pattern);
    path_ = pattern;
  }
  ~TempDir() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  TempDir(const TempDir&) = delete;
  TempDir& operator=(const TempDir&) = delete;

  std::string str() const { return path_.string(); }
  /// The path of something inside.
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

inline void write_file(const std::string& path, std::string_view text) {
  std::ofstream out(path, std::ios::binary);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  out.close();
  if (!out) throw std::runtime_error("cannot write " + path);
}

/// One named tensor; `bytes` are little-endian, row-major.
struct NamedTensor {
  std::string name, dtype;  // dtype as safetensors spells it
  std::vector<int64_t> shape;
  std::string bytes;
};

/// A tensor of values already in their stored type.
template <class T>
NamedTensor raw_tensor(std::string name, std::string dtype, std::vector<int64_t> shape,
                       std::span<const T> values) {
  return {std::move(name), std::move(dtype), std::move(shape),
          std::string(reinterpret_cast<const char*>(values.data()), values.size_bytes())};
}

/// A tensor of floats stored as F32, BF16 or F16 (round to nearest even).
inline NamedTensor float_tensor(std::string name, std::string dtype, std::vector<int64_t> shape,
                                std::span<const float> values) {
  if (dtype == "F32") return raw_tensor(std::move(name), dtype, std::move(shape), values);
  if (dtype != "BF16" && dtype != "F16") throw std::invalid_argument("float_tensor: " + dtype);
  std::vector<uint16_t> halves(values.size());
  for (size_t i = 0; i < values.size(); ++i)
    halves[i] = dtype == "BF16" ? to_bf16(values[i]) : to_f16(values[i]);
  return raw_tensor<uint16_t>(std::move(name), dtype, std::move(shape), halves);
}

/// The content of a .safetensors file, its data starting at a multiple of 8 bytes.
inline std::string safetensors_bytes(std::span<const NamedTensor> tensors) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string data;
  for (const NamedTensor& t : tensors) {
    header[t.name] = {{"dtype", t.dtype},
                      {"shape", t.shape},
                      {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const uint64_t length = text.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + text + data;
}

inline void write_safetensors(const std::string& path, std::span<const NamedTensor> tensors) {
  write_file(path, safetensors_bytes(tensors));
}

/// Makes `directory` (with its parents) and writes config.json and model.safetensors into it.
inline void write_model(const std::string& directory, const nlohmann::json& config,
                        std::span<const NamedTensor> tensors) {
  std::filesystem::create_directories(directory);
  write_file((std::filesystem::path(directory) / "config.json").string(), config.dump(2));
  write_safetensors((std::filesystem::path(directory) / "model.safetensors").string(), tensors);
}

/// A tokenizer.json of `count` tokens named t0, t1, ...: enough to compare vocabularies by.
inline void write_tokenizer(const std::string& directory, int count) {
  nlohmann::json vocab = nlohmann::json::object();
  for (int i = 0; i < count; ++i) vocab["t" + std::to_string(i)] = i;
  const nlohmann::json tokenizer = {
      {"version", "1.0"},
      {"added_tokens", nlohmann::json::array()},
      {"model", {{"type", "WordLevel"}, {"vocab", vocab}, {"unk_token", "t0"}}}};
  write_file((std::filesystem::path(directory) / "tokenizer.json").string(), tokenizer.dump());
}

}  // namespace stepladder::testing
