// A checkpoint made of bytes in memory, for tests that need one without a file.
#pragma once

#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "core/error.h"
#include "io/checkpoint.h"

namespace stepladder {

class MemoryCheckpoint : public Checkpoint {
 public:
  explicit MemoryCheckpoint(nlohmann::json config = nlohmann::json::object(),
                            std::string where = "memory")
      : config_(std::move(config)), where_(std::move(where)) {}

  const std::string& where() const override { return where_; }
  const nlohmann::json& config() const override { return config_; }
  const nlohmann::json& generation() const override { return generation_; }
  nlohmann::json& config() { return config_; }
  nlohmann::json& generation() { return generation_; }

  std::vector<std::string> names() const override {
    std::vector<std::string> out;
    for (const auto& [name, tensor] : tensors_) out.push_back(name);
    return out;
  }
  const TensorInfo* find(std::string_view name) const override {
    const auto it = tensors_.find(name);
    return it == tensors_.end() ? nullptr : &it->second.info;
  }
  void read_slice(std::string_view name, const Slice& slice,
                  std::span<std::byte> out) const override {
    const auto it = tensors_.find(name);
    check(it != tensors_.end(), Code::model_format, where_, ": there is no tensor ", name);
    check_slice(name, it->second.info, slice, out.size());
    for (size_t i = 0; i < slice.runs && slice.bytes; ++i)
      std::memcpy(out.data() + i * slice.bytes,
                  it->second.bytes.data() + slice.offset + i * slice.stride, slice.bytes);
  }

  /// Adds or replaces a tensor; `dtype` as safetensors spells it.
  template <class T>
  void add(const std::string& name, const std::string& dtype, std::vector<int64_t> shape,
           const std::vector<T>& values) {
    Stored t;
    t.bytes.resize(values.size() * sizeof(T));
    if (!values.empty()) std::memcpy(t.bytes.data(), values.data(), t.bytes.size());
    t.info = {dtype, std::move(shape), t.bytes.size(), where_};
    tensors_[name] = std::move(t);
  }
  void remove(const std::string& name) { tensors_.erase(name); }

 private:
  struct Stored {
    TensorInfo info;
    std::vector<std::byte> bytes;
  };
  nlohmann::json config_, generation_ = nlohmann::json::object();
  std::string where_;
  std::map<std::string, Stored, std::less<>> tensors_;
};

}  // namespace stepladder
