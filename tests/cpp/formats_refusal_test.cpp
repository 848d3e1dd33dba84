// Checkpoints that contradict themselves or hold what the engine does not do are refused by name.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "support/quantized_layers.h"
#include "support/refusal.h"

namespace stepladder {
namespace {

using namespace testing;

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
/// The same with scales of 1 in F32.
template <class Make>
std::function<MemoryCheckpoint()> in_f32(Make make, const std::string& tensor) {
  return with(make, [=](MemoryCheckpoint& c) {
    const TensorInfo info = *c.find(kLayer + tensor);
    size_t n = 1;
    for (const int64_t d : info.shape) n *= size_t(d);
    c.add(kLayer + tensor, "F32", info.shape, std::vector<float>(n, 1));
  });
}
/// The same with a tensor of another layout beside the right ones.
template <class Make>
std::function<MemoryCheckpoint()> plus(Make make, const std::string& tensor) {
  return with(make, [=](MemoryCheckpoint& c) {
    c.add(kLayer + tensor, "I32", {1}, std::vector<int32_t>{1});
  });
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
      {"method_with_control_characters",
       set(kDense, "/quant_method", "a\n\x1b[2J"),
       no,
       {"quant_method"}},
      {"no_method", set(kDense, "/bits", 4), no, {"quant_method \"\""}},
      {"config_not_an_object",
       with(kDense, [](MemoryCheckpoint& c) { c.config()["quantization_config"] = {1, 2}; }),
       bad,
       {"not an object"}},
      // config.json and tensors that contradict each other
      {"dense_with_gptq_tensors",
       plus(kDense, ".qweight"),
       bad,
       {kLayer + ".qweight", "config.json"}},
      {"dense_with_packed_tensors",
       plus(kDense, ".weight_packed"),
       bad,
       {kLayer + ".weight_packed"}},
      {"gptq_with_compressed_tensors",
       plus(kGptq, ".weight_packed"),
       bad,
       {kLayer + ".weight_packed", "GPTQ"}},
      {"gptq_with_dense_tensor", plus(kGptq, ".weight"), bad, {kLayer + ".weight"}},
      {"gptq_but_dense",
       [] {
         auto c = dense("F16");
         c.config() = gptq_config();
         return c;
       },
       bad,
       {kLayer}},
      {"compressed_with_gptq_tensors", plus(packed_int4, ".qweight"), bad, {kLayer + ".qweight"}},
      {"mxfp4_with_dense_tensor", plus(packed_mxfp4, ".weight"), bad, {kLayer + ".weight"}},
      {"int8_packed_and_plain", plus(kW8, ".weight_packed"), bad, {kLayer + ".weight_packed"}},
      // dense
      {"dense_missing", minus(kDense, ".weight"), bad, {kLayer + ".weight"}},
      {"dense_f64",
       with(kDense,
            [](MemoryCheckpoint& c) {
              c.add(kLayer + ".weight", "F64", {kN, kK}, std::vector<double>(kN * kK));
            }),
       bad,
       {kLayer + ".weight", "F64"}},
      {"dense_bool",
       with(kDense,
            [](MemoryCheckpoint& c) {
              c.add(kLayer + ".weight", "BOOL", {kN, kK}, std::vector<uint8_t>(kN * kK));
            }),
       bad,
       {kLayer + ".weight"}},
      {"dense_empty",
       with(kDense,
            [](MemoryCheckpoint& c) {
              c.add(kLayer + ".weight", "BF16", {0, kK}, std::vector<uint16_t>{});
            }),
       bad,
       {kLayer + ".weight"}},
      {"dense_nan",
       scale<uint16_t>(kDense, ".weight", 0x7fc0),
       bad,
       {kLayer + ".weight", "element 5"}},
      {"dense_f32_too_large",
       scale<float>([] { return dense("F32"); }, ".weight", 3.4e38f),
       bad,
       {kLayer + ".weight"}},
      // GPTQ
      {"gptq_asymmetric", set(kGptq, "/sym", false), no, {"sym"}},
      {"gptq_no_bits",
       with(kGptq, [](MemoryCheckpoint& c) { c.config()["quantization_config"].erase("bits"); }),
       bad,
       {".bits is missing"}},
      {"gptq_rotated", set(kGptq, "/rotation", "hadamard"), no, {"\"rotation\"", "not known"}},
      {"gptq_marlin_layout", set(kGptq, "/is_marlin_format", true), no, {"\"is_marlin_format\""}},
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
      {"gptq_v2_zeros_in_v1",
       set([] { return gptq(true); }, "/checkpoint_format", "gptq"),
       bad,
       {".qzeros", "set checkpoint_format there to \"gptq_v2\""}},
      {"gptq_v1_zeros_in_v2",
       set(kGptq, "/checkpoint_format", "gptq_v2"),
       bad,
       {".qzeros", "set checkpoint_format there to \"gptq\""}},
      {"gptq_other_zeros",
       scale<uint32_t>(kGptq, ".qzeros", 0x77877777u),
       no,
       {kLayer + ".qzeros", "asymmetric"}},
      {"gptq_reordered", order(shuffled), no, {kLayer + ".g_idx", "static_groups"}},
      {"gptq_order_beyond", order(beyond), bad, {kLayer + ".g_idx", "entry 7 is 4"}},
      {"gptq_order_below", order(below), bad, {kLayer + ".g_idx", "entry 7 is -2"}},
      {"gptq_order_missing",
       set(minus(kGptq, ".g_idx"), "/desc_act", true),
       bad,
       {kLayer + ".g_idx"}},
      // compressed-tensors
      {"int4_asymmetric", set(packed_int4, kWeights + "/symmetric", false), no, {"symmetric"}},
      {"rotated_online",
       set(packed_int4, "/transform_config",
           Json{{"config_groups", {{"R4", {{"type", "hadamard"}}}}}}),
       no,
       {"\"transform_config\"", "not known", "stepladder quantize"}},
      {"unknown_of_a_group",
       set(packed_int4, "/config_groups/group_0/transform", "R4"),
       no,
       {"\"transform\""}},
      {"unknown_of_weights",
       set(packed_int4, kWeights + "/codebook", "nf4"),
       no,
       {"weights.\"codebook\""}},
      {"unknown_of_inputs",
       set([] { return int8_rows(true); }, kInput + "/clip", 3.0),
       no,
       {"input_activations.\"clip\""}},
      {"int8_groups_of_tokens",
       with(grouped_int8,
            [](MemoryCheckpoint& c) {
              c.config()["quantization_config"][Json::json_pointer(kInput)] = kPerToken;
            }),
       no,
       {"int8", "groups of 32", "int8 activations"}},
      {"int8_groups_width", grouped_int8, no, {"groups of 32", "144"}, 144},
      {"int8_groups_scales",
       with(grouped_int8,
            [](MemoryCheckpoint& c) {
              c.add(kLayer + ".weight_scale", "F16", {kN, 1}, random_scales(kN, DType::f16, 2));
            }),
       bad,
       {kLayer + ".weight_scale"}},
      {"int4_per_channel",
       set(packed_int4, kWeights + "/strategy", "channel"),
       no,
       {"int4 per channel"}},
      {"int4_block", set(packed_int4, kWeights + "/strategy", "block"), no, {"\"block\""}},
      {"int4_no_group", set(packed_int4, kWeights + "/group_size", nullptr), bad, {"group_size"}},
      {"int4_activations", set(packed_int4, kInput, kPerToken), no, {"int4", "int8 activations"}},
      {"int4_zero_point",
       with(packed_int4,
            [](MemoryCheckpoint& c) {
              c.add(kLayer + ".weight_zero_point", "I32", {1}, std::vector<int32_t>{8});
            }),
       no,
       {"weight_zero_point"}},
      {"int4_shape_lies",
       scale<int64_t>(
           [] {
             auto c = packed_int4();
             c.add(kLayer + ".weight_shape", "I64", {6}, std::vector<int64_t>(6));
             return c;
           },
           ".weight_shape", 1),
       bad,
       {kLayer + ".weight_shape"}},
      {"int4_other_shape",
       with(packed_int4,
            [](MemoryCheckpoint& c) {
              c.add(kLayer + ".weight_shape", "I64", {2}, std::vector<int64_t>{kN, kK + 1});
            }),
       bad,
       {"weight_shape", "129"}},
      {"int4_odd_width", packed_int4, no, {"groups of 32", "127"}, 127},
      {"int4_missing", minus(packed_int4, ".weight_packed"), bad, {kLayer + ".weight_packed"}},
      {"int4_reordered",
       set(packed_int4, kWeights + "/actorder", "group"),
       bad,
       {kLayer + ".weight_g_idx"}},
      {"int8_static_activations",
       set(kW8A8, kInput + "/dynamic", false),
       no,
       {"input_activations", "static"}},
      {"int8_per_tensor_activations",
       set(kW8A8, kInput + "/strategy", "tensor"),
       no,
       {"input_activations"}},
      {"int8_fp8_activations", set(kW8A8, kInput + "/type", "float"), no, {"\"float\"8"}},
      {"fp8_weights", set(kW8, kWeights + "/type", "float"), no, {"float8", "stepladder quantize"}},
      {"nvfp4", set(packed_mxfp4, "/format", "nvfp4-pack-quantized"), no, {"nvfp4-pack-quantized"}},
      {"mxfp4_group_16", set(packed_mxfp4, kWeights + "/group_size", 16), no, {"groups of 16"}},
      {"mxfp4_a4", set(packed_mxfp4, kInput, kMx4), no, {"input_activations"}},
      {"quantized_cache",
       set(packed_int4, "/kv_cache_scheme", Json{{"num_bits", 8}}),
       no,
       {"kv_cache_scheme"}},
      {"sparse",
       set(packed_int4, "/sparsity_config", Json{{"format", "sparse-24-bitmask"}}),
       no,
       {"sparse-24"}},
      {"quantized_outputs",
       set(packed_int4, "/config_groups/group_0/output_activations", kPerToken),
       no,
       {"output"}},
      {"no_groups", set(packed_int4, "/config_groups", Json::object()), bad, {"config_groups"}},
      {"ignore_not_a_list", set(packed_int4, "/ignore", "lm_head"), bad, {"ignore"}},
      {"targets_of_numbers",
       set(packed_int4, "/config_groups/group_0/targets", {1}),
       bad,
       {"targets"}},
      {"lookahead", set(packed_int4, "/ignore", {"re:(?!x).*"}), no, {"ignore", "(?!x)"}},
      {"open_bracket", set(packed_int4, "/ignore", {"re:[a"}), no, {"ignore"}},
      {"endless_pattern",
       set(packed_int4, "/ignore", {"re:" + std::string(5000, '(')}),
       no,
       {"ignore"}},
  };
  // scales that are NaN, infinite, zero or of the wrong sign
  const float inf = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  for (const auto& [label, value] :
       {std::pair{"nan", nan}, {"inf", inf}, {"zero", 0.f}, {"minus_zero", -0.f}}) {
    static std::vector<std::string> names;
    names.reserve(32);
    const auto named = [&](const std::string& n) {
      return names.emplace_back(n + "_scale_" + label).c_str();
    };
    out.push_back({named("gptq"),
                   scale<uint16_t>(kGptq, ".scales", to_f16(value)),
                   bad,
                   {kLayer + ".scales", "scale 5"}});
    out.push_back({named("int4"),
                   scale<uint16_t>(packed_int4, ".weight_scale", to_bf16(value)),
                   bad,
                   {kLayer + ".weight_scale", "scale 5"}});
    out.push_back({named("int8"),
                   scale<uint16_t>(kW8, ".weight_scale", to_bf16(value)),
                   bad,
                   {kLayer + ".weight_scale", "scale 5"}});
  }
  out.push_back({"int8_scale_negative",
                 scale<uint16_t>(kW8, ".weight_scale", to_bf16(-1)),
                 bad,
                 {"weight_scale"}});
  // scales that are finite, of weights that are not
  out.push_back({"gptq_scale_too_large",
                 scale<float>(in_f32(kGptq, ".scales"), ".scales", -1e38f),
                 bad,
                 {kLayer + ".scales", "scale 5", "no float"}});
  out.push_back({"int4_scale_too_large",
                 scale<float>(in_f32(packed_int4, ".weight_scale"), ".weight_scale", 1e38f),
                 bad,
                 {kLayer + ".weight_scale", "scale 5", "no float"}});
  out.push_back({"int8_scale_too_large",
                 scale<float>(in_f32(kW8, ".weight_scale"), ".weight_scale", 1e37f),
                 bad,
                 {kLayer + ".weight_scale", "scale 5", "no float"}});
  out.push_back({"mxfp4_scale_too_large",
                 scale<uint8_t>(packed_mxfp4, ".weight_scale", 253),
                 bad,
                 {"weight_scale", "E8M0 253", "too large"}});
  out.push_back({"mxfp4_scale_nan",
                 scale<uint8_t>(packed_mxfp4, ".weight_scale", 255),
                 bad,
                 {"weight_scale", "NaN", "255"}});
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

}  // namespace
}  // namespace stepladder
