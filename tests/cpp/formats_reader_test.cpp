// Reading every checkpoint layout into canonical weights, refusing what contradicts itself or what
// the engine does not do, and casting to every format.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "formats/linear.h"
#include "formats/pattern.h"
#include "support/memory_checkpoint.h"
#include "support/refusal.h"

namespace stepladder {
namespace {

using Json = nlohmann::json;
using testing::expect_refused;

const std::string kLayer = "model.layers.0.mlp.down_proj";
constexpr int kN = 16, kK = 128, kGroup = 32;

template <class T>
std::vector<T> random_bits(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<T> out(n);
  for (T& v : out) v = static_cast<T>(random());
  return out;
}
std::vector<uint16_t> random_scales(size_t n, DType type, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> uniform(.01f, .1f);
  std::vector<uint16_t> out(n);
  for (auto& v : out) v = to_16(type, uniform(random));
  return out;
}

CanonicalWeight read(const MemoryCheckpoint& c, const std::string& prefix = kLayer, int n = kN, int k = kK) {
  return format_of(c, prefix).read(c, prefix, n, k);
}

Json gptq_config(bool v2 = false) {
  Json q = {{"quant_method", "gptq"}, {"bits", 4}, {"group_size", kGroup}, {"sym", true}, {"desc_act", false}};
  if (v2) q["checkpoint_format"] = "gptq_v2";
  return {{"quantization_config", q}};
}

MemoryCheckpoint gptq(bool v2 = false) {
  MemoryCheckpoint c(gptq_config(v2), "dir");
  c.add(kLayer + ".qweight", "I32", {kK / 8, kN}, random_bits<uint32_t>(kK / 8 * kN, 1));
  c.add(kLayer + ".scales", "F16", {kK / kGroup, kN}, random_scales(kK / kGroup * kN, DType::f16, 2));
  c.add(kLayer + ".qzeros", "I32", {kK / kGroup, kN / 8},
        std::vector<uint32_t>(kK / kGroup * kN / 8, v2 ? 0x88888888u : 0x77777777u));
  std::vector<int32_t> order(kK);
  for (int i = 0; i < kK; ++i) order[i] = i / kGroup;
  c.add(kLayer + ".g_idx", "I32", {kK}, order);
  return c;
}

Json compressed_config(const std::string& format, Json weights, Json activations = nullptr) {
  weights["symmetric"] = true;
  return {{"quantization_config",
           {{"quant_method", "compressed-tensors"},
            {"format", format},
            {"ignore", {"lm_head", "re:.*gate$"}},
            {"config_groups",
             {{"group_0", {{"targets", {"Linear"}}, {"weights", weights}, {"input_activations", activations}}}}}}}};
}
const Json kInt4 = {{"num_bits", 4}, {"type", "int"}, {"strategy", "group"}, {"group_size", kGroup}};
const Json kInt8 = {{"num_bits", 8}, {"type", "int"}, {"strategy", "channel"}};
const Json kMx4 = {{"num_bits", 4}, {"type", "float"}, {"strategy", "group"}, {"group_size", 32}};
const Json kPerToken = {{"num_bits", 8}, {"type", "int"}, {"strategy", "token"}, {"symmetric", true}, {"dynamic", true}};

MemoryCheckpoint packed_int4() {
  MemoryCheckpoint c(compressed_config("pack-quantized", kInt4), "dir");
  c.add(kLayer + ".weight_packed", "I32", {kN, kK / 8}, random_bits<uint32_t>(kN * kK / 8, 1));
  c.add(kLayer + ".weight_scale", "BF16", {kN, kK / kGroup}, random_scales(kN * kK / kGroup, DType::bf16, 2));
  c.add(kLayer + ".weight_shape", "I64", {2}, std::vector<int64_t>{kN, kK});
  return c;
}
MemoryCheckpoint int8_rows(bool a8) {
  MemoryCheckpoint c(compressed_config("int-quantized", kInt8, a8 ? kPerToken : Json(nullptr)), "dir");
  c.add(kLayer + ".weight", "I8", {kN, kK}, random_bits<int8_t>(kN * kK, 1));
  c.add(kLayer + ".weight_scale", "BF16", {kN, 1}, random_scales(kN, DType::bf16, 2));
  return c;
}
MemoryCheckpoint packed_int8() {
  MemoryCheckpoint c(compressed_config("pack-quantized", kInt8), "dir");
  c.add(kLayer + ".weight_packed", "I32", {kN, kK / 4}, random_bits<uint32_t>(kN * kK / 4, 1));
  c.add(kLayer + ".weight_scale", "F16", {kN, 1}, random_scales(kN, DType::f16, 2));
  c.add(kLayer + ".weight_shape", "I64", {2}, std::vector<int64_t>{kN, kK});
  return c;
}
MemoryCheckpoint packed_mxfp4() {
  MemoryCheckpoint c(compressed_config("mxfp4-pack-quantized", kMx4), "dir");
  c.add(kLayer + ".weight_packed", "U8", {kN, kK / 2}, random_bits<uint8_t>(kN * kK / 2, 1));
  auto scales = random_bits<uint8_t>(kN * kK / 32, 2);
  for (auto& s : scales) s = static_cast<uint8_t>(s % 255);
  scales[0] = 0, scales[1] = 254;
  c.add(kLayer + ".weight_scale", "U8", {kN, kK / 32}, scales);
  return c;
}
MemoryCheckpoint dense(const std::string& dtype) {
  MemoryCheckpoint c(Json::object(), "dir");
  if (dtype == "F32")
    c.add(kLayer + ".weight", dtype, {kN, kK}, std::vector<float>(kN * kK, 1.0f + 0x1p-8f));
  else
    c.add(kLayer + ".weight", dtype, {kN, kK}, random_scales(kN * kK, dtype == "F16" ? DType::f16 : DType::bf16, 1));
  return c;
}

// ---- what is read --------------------------------------------------------------------------

TEST(Read, DenseKeepsItsBitsAndRoundsF32ToNearestEven) {
  const auto bf16 = read(dense("BF16")), f16 = read(dense("F16")), f32 = read(dense("F32"));
  EXPECT_EQ(bf16.desc.code, DType::bf16);
  EXPECT_EQ(bf16.dense, random_scales(kN * kK, DType::bf16, 1));
  EXPECT_EQ(f16.desc.code, DType::f16);
  EXPECT_EQ(f16.dense, random_scales(kN * kK, DType::f16, 1));
  EXPECT_EQ(f32.desc.code, DType::bf16);
  EXPECT_EQ(f32.dense, std::vector<uint16_t>(kN * kK, 0x3f80));  // a tie
}

TEST(Read, GptqOfBothVersions) {
  const auto bits = random_bits<uint32_t>(kK / 8 * kN, 1);
  const auto scales = random_scales(kK / kGroup * kN, DType::f16, 2);
  for (const bool v2 : {false, true}) {
    const MemoryCheckpoint c = gptq(v2);
    ASSERT_STREQ(format_of(c, kLayer).name, "w4a16");
    const CanonicalWeight w = read(c);
    EXPECT_EQ(w.desc.group, kGroup);
    EXPECT_EQ(w.desc.scale, DType::f16);
    for (int n = 0; n < kN; ++n)
      for (int k = 0; k < kK; ++k) {
        const int q = bits[k / 8 * kN + n] >> (4 * (k % 8)) & 15;
        ASSERT_EQ(w.at(n, k), (q - 8.0) * from_f16(scales[k / kGroup * kN + n])) << n << ", " << k;
      }
  }
}

TEST(Read, GptqInActivationOrderWithStaticGroups) {
  MemoryCheckpoint c = gptq();
  c.config()["quantization_config"]["desc_act"] = true;
  EXPECT_EQ(read(c).codes, read(gptq()).codes);
}

TEST(Read, GptqLeavesTheHeadAndTheEmbeddingDense) {
  MemoryCheckpoint c = gptq();
  for (const char* name : {"lm_head", "model.embed_tokens"}) {
    c.add(std::string(name) + ".weight", "F16", {kN, kK}, random_scales(kN * kK, DType::f16, 3));
    EXPECT_STREQ(format_of(c, name).name, "dense");
    EXPECT_EQ(read(c, name).dense, random_scales(kN * kK, DType::f16, 3));
  }
}

TEST(Read, CompressedInt4) {
  const MemoryCheckpoint c = packed_int4();
  ASSERT_STREQ(format_of(c, kLayer).name, "w4a16");
  const CanonicalWeight w = read(c);
  EXPECT_EQ(w.desc.scale, DType::bf16);
  const auto bits = random_bits<uint32_t>(kN * kK / 8, 1);
  const auto scales = random_scales(kN * kK / kGroup, DType::bf16, 2);
  for (int n = 0; n < kN; ++n)
    for (int k = 0; k < kK; ++k) {
      const int q = bits[(n * kK + k) / 8] >> (4 * (k % 8)) & 15;
      ASSERT_EQ(w.at(n, k), (q - 8.0) * from_bf16(scales[(n * kK + k) / kGroup]));
    }
}

TEST(Read, CompressedInt8InBothPackingsAndActivationModes) {
  for (const bool a8 : {false, true}) {
    const MemoryCheckpoint c = int8_rows(a8);
    ASSERT_STREQ(format_of(c, kLayer).name, a8 ? "w8a8" : "w8a16");
    const CanonicalWeight w = read(c);
    EXPECT_EQ(w.codes, random_bits<int8_t>(kN * kK, 1));
    EXPECT_EQ(w.at(3, 5), w.codes[3 * kK + 5] * double(from_bf16(random_scales(kN, DType::bf16, 2)[3])));
  }
  const MemoryCheckpoint c = packed_int8();
  ASSERT_STREQ(format_of(c, kLayer).name, "w8a16");
  const auto bits = random_bits<uint32_t>(kN * kK / 4, 1);
  const CanonicalWeight w = read(c);
  for (int i = 0; i < kN * kK; ++i) ASSERT_EQ(w.codes[i], int(bits[i / 4] >> (8 * (i % 4)) & 255) - 128);
}

TEST(Read, Int8ScalesOfAnyShape) {
  MemoryCheckpoint c = int8_rows(false);
  const auto column = read(c).scales;
  c.add(kLayer + ".weight_scale", "BF16", {kN}, random_scales(kN, DType::bf16, 2));
  EXPECT_EQ(read(c).scales, column);
  c.add(kLayer + ".weight_scale", "F32", {1}, std::vector<float>{.25f});
  EXPECT_EQ(read(c).scales, std::vector<float>(kN, .25f));
}

TEST(Read, CompressedMxFp4) {
  const MemoryCheckpoint c = packed_mxfp4();
  ASSERT_STREQ(format_of(c, kLayer).name, "mxfp4");
  const CanonicalWeight w = read(c);
  const auto bits = random_bits<uint8_t>(kN * kK / 2, 1);
  constexpr double kValues[] = {0, .5, 1, 1.5, 2, 3, 4, 6};
  EXPECT_EQ(w.scales[0], 0x1p-127f);
  EXPECT_EQ(w.scales[1], 0x1p127f);
  for (int i = 0; i < kN * kK; ++i) {
    const int code = bits[i / 2] >> (i % 2 ? 4 : 0) & 15;
    ASSERT_EQ(w.at(i / kK, i % kK), (code & 8 ? -1 : 1) * kValues[code & 7] * w.scales[i / 32]);
  }
}

TEST(Read, IgnoreListsAndTargetsDecideLayerByLayer) {
  MemoryCheckpoint c = packed_int4();
  EXPECT_STREQ(format_of(c, "lm_head").name, "dense");
  EXPECT_STREQ(format_of(c, "model.layers.0.mlp.gate").name, "dense");
  EXPECT_STREQ(format_of(c, "model.layers.0.mlp.gate_proj").name, "w4a16");
  EXPECT_STREQ(format_of(c, "model.embed_tokens").name, "dense");  // not a Linear
  auto& groups = c.config()["quantization_config"]["config_groups"];
  groups["a_named"] = {{"targets", {"re:.*up_proj"}}, {"weights", kInt8}, {"format", "int-quantized"}};
  groups["group_0"]["targets"] = {"re:.*(down|up)_proj", "Linear"};
  EXPECT_STREQ(format_of(c, "model.layers.3.mlp.up_proj").name, "w8a16");
  EXPECT_STREQ(format_of(c, kLayer).name, "w4a16");
}

TEST(Read, ZeroBiasesOfSymmetricCodesAreNotAsymmetric) {
  MemoryCheckpoint c = int8_rows(true);
  c.add(kLayer + ".weight_zero_point", "I8", {kN, 1}, std::vector<int8_t>(kN));
  EXPECT_EQ(read(c).codes.size(), size_t(kN) * kK);
}

// ---- what is refused -----------------------------------------------------------------------

struct Refusal {
  const char* name;
  std::function<MemoryCheckpoint()> make;
  Code code;
  std::vector<std::string> mentions;
  int k = kK;
};
std::ostream& operator<<(std::ostream& o, const Refusal& r) { return o << r.name; }

/// `make` changed by `change`.
template <class Make, class Change>
std::function<MemoryCheckpoint()> with(Make make, Change change) {
  return [=] {
    MemoryCheckpoint c = make();
    change(c);
    return c;
  };
}
/// The same with quantization_config at `path` set to `value`.
template <class Make>
std::function<MemoryCheckpoint()> set(Make make, const std::string& path, Json value) {
  return with(make, [=](MemoryCheckpoint& c) {
    c.config()["quantization_config"][Json::json_pointer(path)] = value;
  });
}
/// The same with one scale of `tensor` replaced.
template <class T, class Make>
std::function<MemoryCheckpoint()> scale(Make make, const std::string& tensor, T value) {
  return with(make, [=](MemoryCheckpoint& c) {
    const TensorInfo info = *c.find(kLayer + tensor);
    std::vector<T> values(info.bytes / sizeof(T));
    c.read(kLayer + tensor, std::as_writable_bytes(std::span(values)));
    values[5] = value;
    c.add(kLayer + tensor, info.dtype, info.shape, values);
  });
}
/// The same with a tensor of another layout beside the right ones.
template <class Make>
std::function<MemoryCheckpoint()> plus(Make make, const std::string& tensor) {
  return with(make, [=](MemoryCheckpoint& c) { c.add(kLayer + tensor, "I32", {1}, std::vector<int32_t>{1}); });
}
template <class Make>
std::function<MemoryCheckpoint()> minus(Make make, const std::string& tensor) {
  return with(make, [=](MemoryCheckpoint& c) { c.remove(kLayer + tensor); });
}

const std::string kWeights = "/config_groups/group_0/weights";
const std::string kInput = "/config_groups/group_0/input_activations";
const auto kGptq = [] { return gptq(); };
const auto kDense = [] { return dense("BF16"); };
const auto kW8 = [] { return int8_rows(false); };
const auto kW8A8 = [] { return int8_rows(true); };

std::vector<Refusal> refusals() {
  const Code bad = Code::model_format, no = Code::unsupported;
  const auto order = [](std::vector<int32_t> g_idx) {
    return with(kGptq, [=](MemoryCheckpoint& c) { c.add(kLayer + ".g_idx", "I32", {kK}, g_idx); });
  };
  std::vector<int32_t> shuffled(kK), beyond(kK), below(kK);
  for (int i = 0; i < kK; ++i) shuffled[i] = i % 4, beyond[i] = below[i] = i / kGroup;
  beyond[7] = 4, below[7] = -2;
  std::vector<Refusal> out = {
      // methods
      {"awq", set(kGptq, "/quant_method", "awq"), no, {"\"awq\"", "GPTQ", "stepladder quantize"}},
      {"fp8", set(packed_int4, "/quant_method", "fp8"), no, {"\"fp8\"", "stepladder quantize"}},
      {"gguf", set(kDense, "/quant_method", "gguf"), no, {"\"gguf\"", "stepladder quantize"}},
      {"bitsandbytes", set(kDense, "/quant_method", "bitsandbytes"), no, {"\"bitsandbytes\""}},
      {"method_with_control_characters", set(kDense, "/quant_method", "a\n\x1b[2J"), no, {"quant_method"}},
      {"no_method", set(kDense, "/bits", 4), no, {"quant_method \"\""}},
      {"config_not_an_object",
       with(kDense, [](MemoryCheckpoint& c) { c.config()["quantization_config"] = {1, 2}; }), bad, {"not an object"}},
      // config.json and tensors that contradict each other
      {"dense_with_gptq_tensors", plus(kDense, ".qweight"), bad, {kLayer + ".qweight", "config.json"}},
      {"dense_with_packed_tensors", plus(kDense, ".weight_packed"), bad, {kLayer + ".weight_packed"}},
      {"gptq_with_compressed_tensors", plus(kGptq, ".weight_packed"), bad, {kLayer + ".weight_packed", "GPTQ"}},
      {"gptq_with_dense_tensor", plus(kGptq, ".weight"), bad, {kLayer + ".weight"}},
      {"gptq_but_dense", [] { auto c = dense("F16"); c.config() = gptq_config(); return c; }, bad, {kLayer}},
      {"compressed_with_gptq_tensors", plus(packed_int4, ".qweight"), bad, {kLayer + ".qweight"}},
      {"mxfp4_with_dense_tensor", plus(packed_mxfp4, ".weight"), bad, {kLayer + ".weight"}},
      {"int8_packed_and_plain", plus(kW8, ".weight_packed"), bad, {kLayer + ".weight_packed"}},
      // dense
      {"dense_missing", minus(kDense, ".weight"), bad, {kLayer + ".weight"}},
      {"dense_f64", with(kDense, [](MemoryCheckpoint& c) {
         c.add(kLayer + ".weight", "F64", {kN, kK}, std::vector<double>(kN * kK)); }), bad, {kLayer + ".weight", "F64"}},
      {"dense_bool", with(kDense, [](MemoryCheckpoint& c) {
         c.add(kLayer + ".weight", "BOOL", {kN, kK}, std::vector<uint8_t>(kN * kK)); }), bad, {kLayer + ".weight"}},
      {"dense_empty", with(kDense, [](MemoryCheckpoint& c) {
         c.add(kLayer + ".weight", "BF16", {0, kK}, std::vector<uint16_t>{}); }), bad, {kLayer + ".weight"}},
      {"dense_nan", scale<uint16_t>(kDense, ".weight", 0x7fc0), bad, {kLayer + ".weight", "element 5"}},
      {"dense_f32_too_large", scale<float>([] { return dense("F32"); }, ".weight", 3.4e38f), bad, {kLayer + ".weight"}},
      // GPTQ
      {"gptq_asymmetric", set(kGptq, "/sym", false), no, {"sym"}},
      {"gptq_8_bits", set(kGptq, "/bits", 8), no, {"GPTQ int8", "groups of 32"}},
      {"gptq_3_bits", set(kGptq, "/bits", 3), no, {"GPTQ int3"}},
      {"gptq_per_channel", set(kGptq, "/group_size", -1), no, {"GPTQ int4 per channel"}},
      {"gptq_group_16", set(kGptq, "/group_size", 16), no, {"groups of 16"}},
      {"gptq_group_not_a_number", set(kGptq, "/group_size", "32"), bad, {"group_size"}},
      {"gptq_bits_huge", set(kGptq, "/bits", 1e300), bad, {"bits"}},
      {"gptq_marlin", set(kGptq, "/checkpoint_format", "marlin"), no, {"\"marlin\""}},
      {"gptq_per_layer", set(kGptq, "/dynamic", Json{{"-:.*", Json::object()}}), no, {"dynamic"}},
      {"gptq_width", kGptq, no, {"groups of 32", "144"}, 144},
      {"gptq_shape", kGptq, bad, {kLayer + ".qweight"}, 160},
      {"gptq_no_zeros", minus(kGptq, ".qzeros"), bad, {kLayer + ".qzeros"}},
      {"gptq_no_scales", minus(kGptq, ".scales"), bad, {kLayer + ".scales"}},
      {"gptq_v2_zeros_in_v1", set([] { return gptq(true); }, "/checkpoint_format", "gptq"), bad, {".qzeros", "gptq_v2"}},
      {"gptq_v1_zeros_in_v2", set(kGptq, "/checkpoint_format", "gptq_v2"), bad, {".qzeros", "gptq_v2"}},
      {"gptq_other_zeros", scale<uint32_t>(kGptq, ".qzeros", 0x77877777u), no, {kLayer + ".qzeros", "asymmetric"}},
      {"gptq_reordered", order(shuffled), no, {kLayer + ".g_idx", "static_groups"}},
      {"gptq_order_beyond", order(beyond), bad, {kLayer + ".g_idx", "entry 7 is 4"}},
      {"gptq_order_below", order(below), bad, {kLayer + ".g_idx", "entry 7 is -2"}},
      {"gptq_order_missing", set(minus(kGptq, ".g_idx"), "/desc_act", true), bad, {kLayer + ".g_idx"}},
      // compressed-tensors
      {"int4_asymmetric", set(packed_int4, kWeights + "/symmetric", false), no, {"symmetric"}},
      {"int4_per_channel", set(packed_int4, kWeights + "/strategy", "channel"), no, {"int4 per channel"}},
      {"int4_block", set(packed_int4, kWeights + "/strategy", "block"), no, {"\"block\""}},
      {"int4_no_group", set(packed_int4, kWeights + "/group_size", nullptr), bad, {"group_size"}},
      {"int4_activations", set(packed_int4, kInput, kPerToken), no, {"int4", "int8 activations"}},
      {"int4_zero_point", with(packed_int4, [](MemoryCheckpoint& c) {
         c.add(kLayer + ".weight_zero_point", "I32", {1}, std::vector<int32_t>{8}); }), no, {"weight_zero_point"}},
      {"int4_shape_lies", scale<int64_t>([] { auto c = packed_int4();
         c.add(kLayer + ".weight_shape", "I64", {6}, std::vector<int64_t>(6)); return c; }, ".weight_shape", 1), bad,
       {kLayer + ".weight_shape"}},
      {"int4_other_shape", with(packed_int4, [](MemoryCheckpoint& c) {
         c.add(kLayer + ".weight_shape", "I64", {2}, std::vector<int64_t>{kN, kK + 1}); }), bad, {"weight_shape", "129"}},
      {"int4_odd_width", packed_int4, no, {"groups of 32", "127"}, 127},
      {"int4_missing", minus(packed_int4, ".weight_packed"), bad, {kLayer + ".weight_packed"}},
      {"int4_reordered", set(packed_int4, kWeights + "/actorder", "group"), bad, {kLayer + ".weight_g_idx"}},
      {"int8_in_groups", set(kW8, kWeights, Json{{"num_bits", 8}, {"type", "int"}, {"strategy", "group"},
       {"group_size", 64}}), no, {"int8", "groups of 64"}},
      {"int8_static_activations", set(kW8A8, kInput + "/dynamic", false), no, {"input_activations", "static"}},
      {"int8_per_tensor_activations", set(kW8A8, kInput + "/strategy", "tensor"), no, {"input_activations"}},
      {"int8_fp8_activations", set(kW8A8, kInput + "/type", "float"), no, {"\"float\"8"}},
      {"fp8_weights", set(kW8, kWeights + "/type", "float"), no, {"float8", "stepladder quantize"}},
      {"nvfp4", set(packed_mxfp4, "/format", "nvfp4-pack-quantized"), no, {"nvfp4-pack-quantized"}},
      {"mxfp4_group_16", set(packed_mxfp4, kWeights + "/group_size", 16), no, {"groups of 16"}},
      {"mxfp4_a4", set(packed_mxfp4, kInput, kMx4), no, {"input_activations"}},
      {"quantized_cache", set(packed_int4, "/kv_cache_scheme", Json{{"num_bits", 8}}), no, {"kv_cache_scheme"}},
      {"sparse", set(packed_int4, "/sparsity_config", Json{{"format", "sparse-24-bitmask"}}), no, {"sparse-24"}},
      {"quantized_outputs", set(packed_int4, "/config_groups/group_0/output_activations", kPerToken), no, {"output"}},
      {"no_groups", set(packed_int4, "/config_groups", Json::object()), bad, {"config_groups"}},
      {"ignore_not_a_list", set(packed_int4, "/ignore", "lm_head"), bad, {"ignore"}},
      {"targets_of_numbers", set(packed_int4, "/config_groups/group_0/targets", {1}), bad, {"targets"}},
      {"lookahead", set(packed_int4, "/ignore", {"re:(?!x).*"}), no, {"ignore", "(?!x)"}},
      {"open_bracket", set(packed_int4, "/ignore", {"re:[a"}), no, {"ignore"}},
      {"endless_pattern", set(packed_int4, "/ignore", {"re:" + std::string(5000, '(')}), no, {"ignore"}},
  };
  // scales that are NaN, infinite, zero or of the wrong sign
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const auto& [label, value] : {std::pair{"nan", nan}, {"inf", inf}, {"zero", 0.f}, {"minus_zero", -0.f}}) {
    static std::vector<std::string> names;
    names.reserve(32);
    const auto named = [&](const std::string& n) { return names.emplace_back(n + "_scale_" + label).c_str(); };
    out.push_back({named("gptq"), scale<uint16_t>(kGptq, ".scales", to_f16(value)), bad, {kLayer + ".scales", "scale 5"}});
    out.push_back({named("int4"), scale<uint16_t>(packed_int4, ".weight_scale", to_bf16(value)), bad,
                   {kLayer + ".weight_scale", "scale 5"}});
    out.push_back({named("int8"), scale<uint16_t>(kW8, ".weight_scale", to_bf16(value)), bad,
                   {kLayer + ".weight_scale", "scale 5"}});
  }
  out.push_back({"int8_scale_negative", scale<uint16_t>(kW8, ".weight_scale", to_bf16(-1)), bad, {"weight_scale"}});
  out.push_back({"mxfp4_scale_nan", scale<uint8_t>(packed_mxfp4, ".weight_scale", 255), bad, {"weight_scale", "255"}});
  return out;
}

class RefusalTest : public ::testing::TestWithParam<Refusal> {};

TEST_P(RefusalTest, NamesWhatWhereAndHowToFix) {
  const Refusal& r = GetParam();
  const MemoryCheckpoint c = r.make();
  std::vector<std::string> mentions = r.mentions;
  mentions.push_back("dir");
  expect_refused([&] { read(c, kLayer, kN, r.k); }, r.code, mentions);
}
INSTANTIATE_TEST_SUITE_P(All, RefusalTest, ::testing::ValuesIn(refusals()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Read, NegativeInt4ScalesAreLegal) {
  EXPECT_EQ(read(scale<uint16_t>(packed_int4, ".weight_scale", to_bf16(-1))()).scales[5], -1.0f);
  EXPECT_EQ(read(scale<uint16_t>(kGptq, ".scales", to_f16(-1))()).scales[5 * (kK / kGroup)], -1.0f);
}

TEST(Registry, RefusesAnUnknownNameAndListsTheKnown) {
  expect_refused([] { format_named("int3"); }, Code::unsupported, {"int3", "dense", "mxfp4", "w4a16", "w8a16", "w8a8"});
}

TEST(Pattern, MatchesAsPythonsMatchDoes) {
  const std::string name = "model.layers.12.mlp.down_proj";
  for (const char* yes : {"model", ".*down_proj", ".*down_proj$", "^model", "model\\.layers\\.[0-9]+\\.mlp", "model.*?proj",
                          "(x|model).(layers|y)", ".*(up|down)_proj", "model.layers.\\d+.mlp", "[^x]+$", "mo?del", "", "(a*)*",
                          "model.layers.1(?:2)?.mlp.\\w+", "a|m"})
    EXPECT_TRUE(matches_pattern(yes, name, "here")) << yes;
  for (const char* no : {"down_proj", ".*down$", "^layers", "model$", "(x|y)odel", "[^m]", "mo+del.x", "model.layers.\\d+$"})
    EXPECT_FALSE(matches_pattern(no, name, "here")) << no;
  expect_refused([] { matches_pattern("a{2}", "aa", "here"); }, Code::unsupported, {"here"});
  expect_refused([] { matches_pattern("\\D", "aa", "here"); }, Code::unsupported, {"here"});
  expect_refused([] { matches_pattern("*a", "aa", "here"); }, Code::unsupported, {"here"});
  const std::string long_name(200, 'a');
  EXPECT_FALSE(matches_pattern("(a+)+$b", long_name, "here"));  // linear, where backtracking takes for ever
}

// ---- casts ---------------------------------------------------------------------------------

std::vector<float> random_values(int n, int k, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, .05f);
  std::vector<float> out(size_t(n) * k);
  for (float& v : out) v = normal(random);
  for (int i = 0; i < 32; ++i) out[i] = 0;              // a group of zeros
  for (int i = 64; i < 96; ++i) out[i] *= 1e-38f;       // a group of subnormals
  for (int i = 128; i < 160; ++i) out[i] *= 1e30f;
  out[200] = -.3f, out[201] = .3f;                      // a tie for the largest magnitude
  return out;
}

/// The distance to the nearest of `grid` times `scale`.
double nearest(double value, double scale, std::span<const double> grid) {
  double best = INFINITY;
  for (const double g : grid) best = std::min(best, std::fabs(value - g * scale));
  return best;
}

TEST(Cast, EveryCodeIsTheNearestAndEveryScaleIsUsable) {
  const int n = 6, k = 192;
  const auto values = random_values(n, k, 4);
  for (const WeightFormat* format : formats()) {
    if (std::string(format->name) == "dense") continue;
    std::vector<double> grid;
    for (int i = -8; i < 8; ++i) grid.push_back(i);
    if (std::string(format->name) == "mxfp4") {
      grid.clear();
      for (const double m : {0., .5, 1., 1.5, 2., 3., 4., 6.}) grid.push_back(m), grid.push_back(-m);
    } else if (std::string(format->name).starts_with("w8")) {
      grid.clear();
      for (int i = -127; i <= 127; ++i) grid.push_back(i);
    }
    const CanonicalWeight w = format->cast(values, n, k, 0);
    EXPECT_STREQ(w.desc.name, format->name);
    const int group = w.desc.group ? w.desc.group : k;
    for (int r = 0; r < n; ++r)
      for (int c = 0; c < k; ++c) {
        const float scale = w.scales[(size_t(r) * k + c) / group];
        ASSERT_TRUE(std::isfinite(scale) && scale != 0);
        const double value = values[size_t(r) * k + c], off = std::fabs(w.at(r, c) - value);
        // Dividing by the scale rounds once, which can turn a near-tie.
        ASSERT_LE(off, nearest(value, scale, grid) + 0x1p-23 * std::fabs(value)) << format->name << r << ", " << c;
      }
    EXPECT_EQ(w.at(0, 3), 0) << format->name;
  }
}

TEST(Cast, Int8ScalesAreTheLargestMagnitudeOver127) {
  const auto values = random_values(4, 192, 5);
  for (const char* name : {"w8a16", "w8a8"}) {
    const CanonicalWeight w = format_named(name).cast(values, 4, 192, 0);
    for (int r = 0; r < 4; ++r) {
      float amax = 0;
      for (int c = 0; c < 192; ++c) amax = std::max(amax, std::fabs(values[r * 192 + c]));
      EXPECT_EQ(w.scales[r], amax / 127);
    }
  }
}

TEST(Cast, Int4MapsTheValueOfLargestMagnitudeToMinusEight) {
  const auto values = random_values(4, 192, 6);
  for (const int group : {32, 64}) {
    const CanonicalWeight w = format_named("w4a16").cast(values, 4, 192, group);
    ASSERT_EQ(w.desc.group, group);
    for (size_t g = group == 32 ? 5 : 3; g < w.scales.size(); ++g) {
      size_t at = g * group;
      for (int i = 0; i < group; ++i)
        if (std::fabs(values[g * group + i]) > std::fabs(values[at])) at = g * group + i;
      EXPECT_EQ(w.codes[at], -8) << g;
      EXPECT_EQ(w.scales[g], from_bf16(to_bf16(values[at] / -8))) << g;
    }
    EXPECT_EQ(w.scales[0], group == 32 ? 1.0f : w.scales[0]);
  }
  EXPECT_EQ(format_named("w4a16").cast(values, 4, 192, 0).desc.group, 32);
}

TEST(Cast, MxFp4RoundsTheLargestMagnitudeToOneBitForItsScale) {
  const auto scale_of = [](float amax) {
    std::vector<float> values(32);
    values[7] = -amax;
    return format_named("mxfp4").cast(values, 1, 32, 0).scales[0];
  };
  // 1.75 rounds up to 2, below it the exponent stays; 4 is the top power of two of the codes
  EXPECT_EQ(scale_of(1.0f), .25f);
  EXPECT_EQ(scale_of(1.5f), .25f);
  EXPECT_EQ(scale_of(std::nextafter(1.75f, 0.f)), .25f);
  EXPECT_EQ(scale_of(1.75f), .5f);
  EXPECT_EQ(scale_of(2.0f), .5f);
  EXPECT_EQ(scale_of(0), 1.0f);
  EXPECT_EQ(scale_of(0x1p-140f), 0x1p-127f);
  EXPECT_EQ(scale_of(3e38f), 0x1p126f);
}

TEST(Cast, MxFp4RoundsTiesToTheEvenCode) {
  std::vector<float> values(32);
  values[0] = 4;  // the scale is 1
  const float ties[] = {.25f, .75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.f, -5.f, 6.5f};
  const double wanted[] = {0, 1, 1, 2, 2, 4, 4, -4, 6};
  std::copy(std::begin(ties), std::end(ties), values.begin() + 1);
  const CanonicalWeight w = format_named("mxfp4").cast(values, 1, 32, 0);
  // 6.5 asks for scale 1 too: below 7 it stays
  ASSERT_EQ(w.scales[0], 1.0f);
  for (int i = 0; i < 9; ++i) EXPECT_EQ(w.at(0, i + 1), wanted[i]) << ties[i];
}

TEST(Cast, RefusesValuesAndGroupsItCannotStore) {
  std::vector<float> values(2 * 96, .5f);
  const Code bad = Code::invalid_argument;
  expect_refused([&] { format_named("w4a16").cast(values, 2, 96, 64); }, bad, {"w4a16", "64", "96"});
  expect_refused([&] { format_named("w4a16").cast(values, 2, 96, 48); }, bad, {"48"});
  expect_refused([&] { format_named("mxfp4").cast(values, 2, 96, 64); }, bad, {"mxfp4"});
  expect_refused([&] { format_named("mxfp4").cast(std::span(values).first(80), 2, 40, 0); }, bad, {"40"});
  expect_refused([&] { format_named("w8a8").cast(values, 2, 96, 32); }, bad, {"w8a8"});
  values[100] = std::nanf("");
  for (const WeightFormat* format : formats())
    expect_refused([&] { format->cast(values, 2, 96, 0); }, bad, {format->name, "not finite"});
}

TEST(Canonical, AppendStacksRowsAndBiases) {
  const auto values = random_values(5, 96, 8);
  for (const WeightFormat* format : formats()) {
    CanonicalWeight whole = format->cast(values, 5, 96, 0);
    CanonicalWeight a = format->cast(std::span(values).first(2 * 96), 2, 96, 0);
    CanonicalWeight b = format->cast(std::span(values).subspan(2 * 96), 3, 96, 0);
    b.bias = {1, 2, 3};
    a.append(b);
    EXPECT_EQ(a.n, 5);
    EXPECT_EQ(a.dequantize(), whole.dequantize()) << format->name;
    EXPECT_EQ(a.bias, (std::vector<float>{0, 0, 1, 2, 3}));
    CanonicalWeight c = format->cast(std::span(values).first(2 * 96), 2, 96, 0);
    a.append(c);
    EXPECT_EQ(a.bias, (std::vector<float>{0, 0, 1, 2, 3, 0, 0}));
  }
}

}  // namespace
}  // namespace stepladder
