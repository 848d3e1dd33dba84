// One small layer in every checkpoint layout the engine reads, of random codes.
#pragma once

#include <random>
#include <string>
#include <vector>

#include "formats/linear.h"
#include "support/memory_checkpoint.h"

namespace stepladder::testing {

using Json = nlohmann::json;

inline const std::string kLayer = "model.layers.0.mlp.down_proj";
constexpr int kN = 16, kK = 128, kGroup = 32;

template <class T>
std::vector<T> random_bits(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<T> out(n);
  for (T& v : out) v = static_cast<T>(random());
  return out;
}
inline std::vector<uint16_t> random_scales(size_t n, DType type, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(.01f, .1f);
  std::vector<uint16_t> out(n);
  for (auto& v : out) v = to_16(type, uniform(random));
  return out;
}

inline CanonicalWeight read(const MemoryCheckpoint& c, const std::string& prefix = kLayer,
                            int n = kN, int k = kK) {
  return read_weight(c, prefix, n, k);
}

inline Json gptq_config(bool v2 = false) {
  Json q = {{"quant_method", "gptq"},
            {"bits", 4},
            {"group_size", kGroup},
            {"sym", true},
            {"desc_act", false}};
  if (v2) q["checkpoint_format"] = "gptq_v2";
  return {{"quantization_config", q}};
}

inline MemoryCheckpoint gptq(bool v2 = false) {
  MemoryCheckpoint c(gptq_config(v2), "dir");
  c.add(kLayer + ".qweight", "I32", {kK / 8, kN}, random_bits<uint32_t>(kK / 8 * kN, 1));
  c.add(kLayer + ".scales", "F16", {kK / kGroup, kN},
        random_scales(kK / kGroup * kN, DType::f16, 2));
  c.add(kLayer + ".qzeros", "I32", {kK / kGroup, kN / 8},
        std::vector<uint32_t>(kK / kGroup * kN / 8, v2 ? 0x88888888u : 0x77777777u));
  std::vector<int32_t> order(kK);
  for (int i = 0; i < kK; ++i) order[i] = i / kGroup;
  c.add(kLayer + ".g_idx", "I32", {kK}, order);
  return c;
}

inline Json compressed_config(const std::string& format, Json weights, Json activations = nullptr) {
  weights["symmetric"] = true;
  return {{"quantization_config",
           {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"ignore", {"lm_head", "re:.*gate$"}},
            {"config_groups",
             {{"group_0",
               {{"targets", {"Linear"}},
                {"weights", weights},
                {"input_activations", activations}}}}}}}};
}
inline const Json kInt4 = {
    {"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", kGroup}};
inline const Json kInt8 = {{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}};
inline const Json kMx4 = {
    {"num_bits", 4}, {"type", "float"}, {"strategy", "group"}, {"group_size", 32}};
inline const Json kPerToken = {{"num_bits", 8},
                               {"type", "int"},
                               {"strategy", "token"},
                               {"symmetric", true},
                               {"dynamic", true}};

inline MemoryCheckpoint packed_int4() {
  MemoryCheckpoint c(compressed_config("pack-quantized", kInt4), "dir");
  c.add(kLayer + ".weight_packed", "I32", {kN, kK / 8}, random_bits<uint32_t>(kN * kK / 8, 1));
  c.add(kLayer + ".weight_scale", "BF16", {kN, kK / kGroup},
        random_scales(kN * kK / kGroup, DType::bf16, 2));
  c.add(kLayer + ".weight_shape", "I64", {2}, std::vector<int64_t>{kN, kK});
  return c;
}
inline MemoryCheckpoint int8_rows(bool a8) {
  MemoryCheckpoint c(compressed_config("int-quantized", kInt8, a8 ? kPerToken : Json(nullptr)),
                     "dir");
  c.add(kLayer + ".weight", "I8", {kN, kK}, random_bits<int8_t>(kN * kK, 1));
  c.add(kLayer + ".weight_scale", "BF16", {kN, 1}, random_scales(kN, DType::bf16, 2));
  return c;
}
inline MemoryCheckpoint packed_int8() {
  MemoryCheckpoint c(compressed_config("pack-quantized", kInt8), "dir");
  c.add(kLayer + ".weight_packed", "I32", {kN, kK / 4}, random_bits<uint32_t>(kN * kK / 4, 1));
  c.add(kLayer + ".weight_scale", "F16", {kN, 1}, random_scales(kN, DType::f16, 2));
  c.add(kLayer + ".weight_shape", "I64", {2}, std::vector<int64_t>{kN, kK});
  return c;
}
inline MemoryCheckpoint grouped_int8() {
  Json weights = kInt8;
  weights["strategy"] = "group", weights["group_size"] = kGroup;
  MemoryCheckpoint c = packed_int8();
  c.config() = compressed_config("pack-quantized", weights);
  c.add(kLayer + ".weight_scale", "BF16", {kN, kK / kGroup},
        random_scales(kN * kK / kGroup, DType::bf16, 2));
  return c;
}
inline MemoryCheckpoint packed_mxfp4() {
  MemoryCheckpoint c(compressed_config("mxfp4-pack-quantized", kMx4), "dir");
  c.add(kLayer + ".weight_packed", "U8", {kN, kK / 2}, random_bits<uint8_t>(kN * kK / 2, 1));
  auto scales = random_bits<uint8_t>(kN * kK / 32, 2);
  for (auto& s : scales) s = static_cast<uint8_t>(s % 253);
  scales[0] = 0, scales[1] = 252;
  c.add(kLayer + ".weight_scale", "U8", {kN, kK / 32}, scales);
  return c;
}
inline MemoryCheckpoint dense(const std::string& dtype) {
  MemoryCheckpoint c(Json::object(), "dir");
  if (dtype == "F32")
    c.add(kLayer + ".weight", dtype, {kN, kK}, std::vector<float>(kN * kK, 1.0f + 0x1p-8f));
  else
    c.add(kLayer + ".weight", dtype, {kN, kK},
          random_scales(kN * kK, dtype == "F16" ? DType::f16 : DType::bf16, 1));
  return c;
}

}  // namespace stepladder::testing
