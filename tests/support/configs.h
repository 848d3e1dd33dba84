// A checkpoint that is nothing but two config files, and small configs to put there.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "io/checkpoint.h"
#include "model/config.h"

namespace stepladder::testing {

using nlohmann::json;

/// Two config files and, if asked, the names of some tensors.
class ConfigOnly final : public Checkpoint {
 public:
  explicit ConfigOnly(json config, json generation = json::object(),
                      std::vector<std::string> names = {}, std::string dtype = "BF16")
      : config_(std::move(config)), generation_(std::move(generation)), names_(std::move(names)) {
    info_.dtype = std::move(dtype);
  }
  const std::string& where() const override { return where_; }
  const json& config() const override { return config_; }
  const json& generation() const override { return generation_; }
  std::vector<std::string> names() const override { return names_; }
  const TensorInfo* find(std::string_view name) const override {
    for (const std::string& n : names_)
      if (n == name) return &info_;
    return nullptr;
  }
  void read_slice(std::string_view, const Slice&, std::span<std::byte>) const override { FAIL(); }

 private:
  std::string where_ = "DIR";
  json config_, generation_;
  std::vector<std::string> names_;
  TensorInfo info_;
};

/// A small model of the family with `changes` merged in.
inline json small(const std::string& architecture, const json& changes = json::object()) {
  json config = {{"architectures", {architecture}},
                 {"num_hidden_layers", 2},
                 {"hidden_size", 64},
                 {"num_attention_heads", 4},
                 {"num_key_value_heads", 2},
                 {"intermediate_size", 128},
                 {"vocab_size", 1000},
                 {"max_position_embeddings", 2048},
                 {"rms_norm_eps", 1e-5}};
  config.update(changes);
  return config;
}

/// small() of the Llama family.
inline json llama(const json& changes = json::object()) {
  return small("LlamaForCausalLM", changes);
}

/// The numbers of a model that is these two files.
inline ModelConfig read(const json& config, const json& generation = json::object()) {
  return read_config(ConfigOnly(config, generation));
}

/// `config` without one of its keys.
inline json without(json config, const std::string& key) {
  config.erase(key);
  return config;
}

}  // namespace stepladder::testing
