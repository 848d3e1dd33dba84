// A JSON object as typed settings: every getter checks type and range and names file and key in
// what it throws.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>

namespace stepladder {

struct Rope;

class Settings {
 public:
  /// `where` names the file (and the object in it); both must outlive this.
  Settings(const nlohmann::json& object, const std::string& where);

  /// Null when the key is missing or null, as Hugging Face reads most of its settings.
  const nlohmann::json* find(const char* key) const;
  /// A whole number in [low, high].
  std::optional<int64_t> whole(const char* key, int64_t low, int64_t high) const;
  /// whole() that must be there.
  int need_whole(const char* key, int64_t low, int64_t high) const;
  /// A finite number in (above, high].
  std::optional<double> real(const char* key, double above, double high) const;
  std::optional<bool> boolean(const char* key) const;
  std::optional<std::string> text(const char* key) const;

  const nlohmann::json& object() const { return object_; }
  const std::string& where() const { return where_; }

 private:
  const nlohmann::json& object_;
  const std::string& where_;
};

/// The JSON of a value as it goes into messages.
std::string shown(const nlohmann::json& value);

/// Reads rope_parameters or rope_scaling and rope_theta. `positions` is max_position_embeddings.
Rope read_rope(const Settings& config, int positions);

}  // namespace stepladder
