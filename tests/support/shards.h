// A small checkpoint in two shards, for tests of what reads directories.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <vector>

#include "support/safetensors_writer.h"

namespace stepladder::testing {

/// A BF16 tensor of 1, 2, 3, ...
inline NamedTensor counting(const std::string& name, std::vector<int64_t> shape) {
  size_t n = 1;
  for (int64_t d : shape) n *= static_cast<size_t>(d);
  std::vector<float> values(n);
  std::iota(values.begin(), values.end(), 1.0f);
  return testing::float_tensor(name, "BF16", std::move(shape), values);
}

/// A directory of two shards: a, b in the first and c in the second.
inline void write_shards(const std::string& dir,
                         const nlohmann::json& weight_map = {{"a", "one.safetensors"},
                                                             {"b", "one.safetensors"},
                                                             {"c", "two.safetensors"}}) {
  std::filesystem::create_directories(dir);
  write_file(dir + "/config.json", "{}");
  const NamedTensor one[] = {counting("a", {2, 2}), counting("b", {3})};
  const NamedTensor two[] = {counting("c", {4})};
  write_safetensors(dir + "/one.safetensors", one);
  write_safetensors(dir + "/two.safetensors", two);
  write_file(dir + "/model.safetensors.index.json",
             nlohmann::json{{"metadata", {{"total_size", 22}}}, {"weight_map", weight_map}}.dump());
}

}  // namespace stepladder::testing
