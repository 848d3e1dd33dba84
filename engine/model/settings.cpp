// Typed access to the keys of a config file.
#include "model/settings.h"

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "io/file.h"

namespace stepladder {

using nlohmann::json;

Settings::Settings(const json& object, const std::string& where) : object_(object), where_(where) {
  check(object.is_object(), Code::model_format, where, " is not a JSON object");
}

const json* Settings::find(const char* key) const {
  const auto at = object_.find(key);
  return at == object_.end() || at->is_null() ? nullptr : &*at;
}

std::optional<int64_t> Settings::whole(const char* key, int64_t low, int64_t high) const {
  const json* value = find(key);
  if (!value) return {};
  check(value->is_number_integer(), Code::model_format, where_, ": ", key,
        " must be a whole number, not ", shown(*value));
  const bool huge = value->is_number_unsigned() &&
                    value->get<uint64_t>() > static_cast<uint64_t>(high < 0 ? 0 : high);
  check(!huge && value->get<int64_t>() >= low && value->get<int64_t>() <= high, Code::model_format,
        where_, ": ", key, " must be between ", low, " and ", high, ", not ", shown(*value));
  return value->get<int64_t>();
}

int Settings::need_whole(const char* key, int64_t low, int64_t high) const {
  const auto value = whole(key, low, high);
  check(value.has_value(), Code::model_format, where_, ": ", key, " is missing");
  return static_cast<int>(*value);
}

std::optional<double> Settings::real(const char* key, double above, double high) const {
  const json* value = find(key);
  if (!value) return {};
  check(value->is_number(), Code::model_format, where_, ": ", key, " must be a number, not ",
        shown(*value));
  const double x = value->get<double>();
  check(std::isfinite(x) && x > above && x <= high, Code::model_format, where_, ": ", key,
        " must be above ", above, " and at most ", high, ", not ", shown(*value));
  return x;
}

std::optional<bool> Settings::boolean(const char* key) const {
  const json* value = find(key);
  if (!value) return {};
  check(value->is_boolean(), Code::model_format, where_, ": ", key, " must be true or false, not ",
        shown(*value));
  return value->get<bool>();
}

std::optional<std::string> Settings::text(const char* key) const {
  const json* value = find(key);
  if (!value) return {};
  check(value->is_string(), Code::model_format, where_, ": ", key, " must be a string, not ",
        shown(*value));
  return value->get<std::string>();
}

std::string shown(const json& value) {
  if (value.is_string()) return quote(value.get_ref<const std::string&>());
  if (value.is_object()) return "an object";
  if (value.is_array()) return "a list";
  if (value.is_number_float() && !std::isfinite(value.get<double>())) return "NaN or infinity";
  return value.dump();
}

}  // namespace stepladder
