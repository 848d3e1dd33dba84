// Where weights come from: named tensors that are read on demand, never mapped.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/dtype.h"

namespace stepladder {

/// Reads a whole text file; throws Error(io) naming it, or Error(model_format) above `limit` bytes.
std::string read_text(const std::string& path, size_t limit = size_t{64} << 20);
/// Strict JSON: UTF-8, no duplicate keys, at most 64 levels deep. `where` names the source.
nlohmann::json parse_json(std::string_view text, const std::string& where);

struct TensorInfo {
  std::string dtype;  // as safetensors spells it: "BF16", "F16", "F32", "I32", "U8", ...
  std::vector<int64_t> shape;
  size_t bytes = 0;
  std::string file;  // for messages
};

/// Part of a tensor's bytes: `runs` runs of `bytes`, each beginning `stride` after the last.
struct Slice {
  size_t offset = 0, bytes = 0, runs = 1, stride = 0;
};

/// Any of it may be called from several threads.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;
  /// The directory or whatever else names the source in messages.
  virtual const std::string& where() const = 0;
  virtual const nlohmann::json& config() const = 0;      // config.json
  virtual const nlohmann::json& generation() const = 0;  // generation_config.json or {}
  virtual std::vector<std::string> names() const = 0;
  /// Null when there is no such tensor.
  virtual const TensorInfo* find(std::string_view name) const = 0;
  /// Fills `out` (exactly the slice's bytes, run after run); throws Error(io) naming file and
  /// tensor.
  virtual void read_slice(std::string_view name, const Slice&, std::span<std::byte> out) const = 0;

  /// Fills `out`, exactly the tensor's bytes.
  void read(std::string_view name, std::span<std::byte> out) const {
    read_slice(name, {0, out.size()}, out);
  }

  /// find() that throws Error(model_format) naming the tensor and the directory.
  const TensorInfo& need(std::string_view name) const;
  /// need() that also refuses, naming file and tensor, another dtype ("" = any of BF16, F16, F32)
  /// or another shape.
  const TensorInfo& need(std::string_view name, std::string_view dtype,
                         std::span<const int64_t> shape) const;
  /// The tensor's bytes as T; throws when dtype or shape differ from what is asked.
  template <class T>
  std::vector<T> load(std::string_view name, std::string_view dtype,
                      std::span<const int64_t> shape) const;
  /// A floating-point tensor (BF16, F16, F32) of `shape` as f32.
  std::vector<float> load_floats(std::string_view name, std::span<const int64_t> shape) const;
  /// One of `n` values, all of them finite; Error(model_format) where one is not.
  std::vector<float> load_finite(const std::string& name, int n) const;

 protected:
  /// Throws Error(internal) unless the slice lies in the tensor and is as long as `out`.
  static void check_slice(std::string_view name, const TensorInfo&, const Slice&, size_t out);
};

template <class T>
std::vector<T> Checkpoint::load(std::string_view name, std::string_view dtype,
                                std::span<const int64_t> shape) const {
  // Only what the file says is allocated, and only once it is what config.json calls for.
  std::vector<T> out(need(name, dtype, shape).bytes / sizeof(T));
  read(name, std::as_writable_bytes(std::span(out)));
  return out;
}

/// A Hugging Face directory: config.json, generation_config.json if there is one, and
/// model.safetensors or model.safetensors.index.json with its shards.
std::unique_ptr<Checkpoint> open_checkpoint(const std::string& directory);
/// The same, or pytorch_model.bin where there is no safetensors file: heads are often published so.
std::unique_ptr<Checkpoint> open_head_checkpoint(const std::string& directory);

}  // namespace stepladder
