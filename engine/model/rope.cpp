// Rotary positions: reading how a model scales them, and the frequencies that follow. Frequencies
// are computed in double precision by the formulas of Hugging Face's modeling_rope_utils.
#include <algorithm>
#include <array>
#include <cmath>
#include <nlohmann/json.hpp>
#include <numbers>
#include <string_view>

#include "core/error.h"
#include "io/file.h"
#include "model/config.h"
#include "model/settings.h"

namespace stepladder {
namespace {

using nlohmann::json;

constexpr std::string_view kKnownKeys[] = {
    "rope_type",
    "type",
    "rope_theta",
    "factor",
    "low_freq_factor",
    "beta_fast",
    "beta_slow",
    "original_max_position_embeddings",
    "mscale",
    "truncate",
    "mscale_all_dim",
    "high_freq_factor",
    "finetuned",
    "attention_factor",
    "partial_rotary_factor",
};

// `scaling` in one spelling: the type under one key, and all that stands for it elsewhere.
json spelled_out(const json& scaling, const Settings& config) {
  json out = json::object();
  for (const auto& [key, value] : scaling.items())
    if (!value.is_null() && key != "finetuned" && key != "type") out[key] = value;
  if (scaling.contains("type")) out.emplace("rope_type", scaling["type"]);
  out.emplace("rope_type", "default");
  for (const char* key : {"rope_theta", "original_max_position_embeddings"})
    if (const json* value = config.find(key)) out.emplace(key, *value);
  if (out["rope_type"] == "default" || out["rope_type"] == "linear")
    out.erase("original_max_position_embeddings");
  return out;
}

// The object that describes the scaling: rope_parameters since transformers 5, rope_scaling before.
const json* scaling_of(const Settings& config) {
  const json* now = config.find("rope_parameters");
  const json* before = config.find("rope_scaling");
  for (const json* object : {now, before})
    check(!object || object->is_object(), Code::model_format, config.where(),
          ": rope_parameters or rope_scaling is not an object");
  if (before && before->empty()) before = nullptr;
  if (now && now->empty()) now = nullptr;
  if (!now || !before) return now ? now : before;
  json first = spelled_out(*now, config), second = spelled_out(*before, config);
  // rope_theta stood beside rope_scaling, where it may have been left out.
  if (!second.contains("rope_theta") && first.contains("rope_theta"))
    second["rope_theta"] = first["rope_theta"];
  check(first == second, Code::model_format, config.where(),
        ": rope_parameters and rope_scaling both stand there and differ; remove one");
  return now;
}

Rope::Type type_of(const Settings& scaling) {
  auto name = scaling.text("rope_type");
  if (!name) name = scaling.text("type");
  if (!name || *name == "default") return Rope::Type::plain;
  if (*name == "linear") return Rope::Type::linear;
  if (*name == "llama3") return Rope::Type::llama3;
  if (*name == "yarn") return Rope::Type::yarn;
  fail(Code::unsupported, scaling.where(), ": the rope type ", quote(*name),
       " is not one of default, linear, llama3 and yarn");
}

double need(const Settings& scaling, const char* key) {
  const auto value = scaling.real(key, 0, 1e6);
  check(value.has_value(), Code::model_format, scaling.where(), ": ", key, " is missing");
  return *value;
}

// A number where 0 and nothing mean the same.
double optional_real(const Settings& scaling, const char* key, double otherwise) {
  const json* value = scaling.find(key);
  if (!value || (value->is_number() && value->get<double>() == 0)) return otherwise;
  return *scaling.real(key, 0, 1e6);
}

void read_yarn(const Settings& scaling, Rope& rope) {
  rope.beta_fast = optional_real(scaling, "beta_fast", 32);
  rope.beta_slow = optional_real(scaling, "beta_slow", 1);
  check(rope.beta_fast >= rope.beta_slow, Code::model_format, scaling.where(), ": beta_fast ",
        rope.beta_fast, " is below beta_slow ", rope.beta_slow);
  rope.attention_factor = scaling.real("attention_factor", 0, 1e6).value_or(0);
  rope.mscale = optional_real(scaling, "mscale", 0);
  rope.mscale_all_dim = optional_real(scaling, "mscale_all_dim", 0);
  rope.truncate = scaling.boolean("truncate").value_or(true);
}

double yarn_magnitude(double factor, double mscale) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

double yarn_attention_factor(const Rope& rope) {
  if (rope.attention_factor != 0) return rope.attention_factor;
  if (rope.mscale != 0 && rope.mscale_all_dim != 0)
    return yarn_magnitude(rope.factor, rope.mscale) /
           yarn_magnitude(rope.factor, rope.mscale_all_dim);
  return yarn_magnitude(rope.factor, 1);
}

// Pairs that turn more than beta_fast times over the original context keep their frequency, those
// that turn less than beta_slow times are slowed by the factor, with a ramp between.
void stretch_yarn(const Rope& rope, int dim, std::vector<double>& inv_freq) {
  const auto pair_turning = [&](double turns) {
    return dim * std::log(rope.original_positions / (turns * 2 * std::numbers::pi)) /
           (2 * std::log(rope.theta));
  };
  double low = pair_turning(rope.beta_fast), high = pair_turning(rope.beta_slow);
  if (rope.truncate) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inv_freq.size(); ++i) {
    const double slowed = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inv_freq[i] = inv_freq[i] / rope.factor * slowed + inv_freq[i] * (1 - slowed);
  }
}

void stretch_llama3(const Rope& rope, std::vector<double>& inv_freq) {
  for (double& f : inv_freq) {
    const double turns = rope.original_positions * f / (2 * std::numbers::pi);
    if (turns > rope.high_freq_factor) continue;
    if (turns < rope.low_freq_factor) {
      f /= rope.factor;
      continue;
    }
    const double kept =
        (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
    f = (1 - kept) * f / rope.factor + kept * f;
  }
}

}  // namespace

Rope read_rope(const Settings& config, int positions) {
  constexpr double kMaxTheta = 1e15;
  Rope rope;
  rope.theta = config.real("rope_theta", 1, kMaxTheta).value_or(10000);
  rope.original_positions = positions;
  const json* object = scaling_of(config);
  if (!object) return rope;

  const std::string where = config.where() + ": rope settings";
  const Settings scaling(*object, where);
  for (const auto& [key, value] : object->items()) {
    check(!value.is_object(), Code::unsupported, where, ": ", quote(key),
          " has rope settings of its own for one type of layer");
    check(std::find(std::begin(kKnownKeys), std::end(kKnownKeys), key) != std::end(kKnownKeys),
          Code::unsupported, where, ": Stepladder does not know ", quote(key));
  }
  rope.type = type_of(scaling);
  rope.theta = scaling.real("rope_theta", 1, kMaxTheta).value_or(rope.theta);
  if (const auto part = scaling.real("partial_rotary_factor", 0, 1))
    check(*part == 1, Code::unsupported, where, ": partial_rotary_factor ", *part,
          " (only 1 is supported)");
  if (rope.type == Rope::Type::plain) return rope;

  if (rope.type != Rope::Type::linear) {
    constexpr const char* kOriginal = "original_max_position_embeddings";
    auto original = config.whole(kOriginal, 1, 1 << 30);
    if (!original) original = scaling.whole(kOriginal, 1, 1 << 30);
    if (original) rope.original_positions = static_cast<int>(*original);
  }
  if (rope.type == Rope::Type::yarn && !scaling.find("factor"))
    rope.factor = static_cast<double>(positions) / rope.original_positions;
  else
    rope.factor = need(scaling, "factor");
  if (rope.type == Rope::Type::llama3) {
    rope.low_freq_factor = need(scaling, "low_freq_factor");
    rope.high_freq_factor = need(scaling, "high_freq_factor");
    check(rope.high_freq_factor > rope.low_freq_factor, Code::model_format, where,
          ": high_freq_factor ", rope.high_freq_factor, " must be above low_freq_factor ",
          rope.low_freq_factor);
  }
  if (rope.type == Rope::Type::yarn) read_yarn(scaling, rope);
  return rope;
}

RopeTable rope_table(const ModelConfig& config) {
  const Rope& rope = config.rope;
  RopeTable out;
  out.inv_freq.resize(static_cast<size_t>(config.head_dim / 2));
  for (size_t i = 0; i < out.inv_freq.size(); ++i)
    out.inv_freq[i] = 1.0 / std::pow(rope.theta, 2.0 * static_cast<double>(i) / config.head_dim);
  switch (rope.type) {
    case Rope::Type::plain:
      break;
    case Rope::Type::linear:
      for (double& f : out.inv_freq) f /= rope.factor;
      break;
    case Rope::Type::llama3:
      stretch_llama3(rope, out.inv_freq);
      break;
    case Rope::Type::yarn:
      stretch_yarn(rope, config.head_dim, out.inv_freq);
      out.scale = yarn_attention_factor(rope);
      break;
  }
  return out;
}

std::vector<float> rope_values(const ModelConfig& config, int positions) {
  const RopeTable rope = rope_table(config);
  const size_t half = rope.inv_freq.size();
  std::vector<float> values(size_t(positions) * half * 2);
  for (int p = 0; p < positions; ++p)
    for (size_t i = 0; i < half; ++i) {
      const double angle = p * rope.inv_freq[i];
      values[(size_t(p) * half + i) * 2] = static_cast<float>(std::cos(angle) * rope.scale);
      values[(size_t(p) * half + i) * 2 + 1] = static_cast<float>(std::sin(angle) * rope.scale);
    }
  return values;
}

}  // namespace stepladder
