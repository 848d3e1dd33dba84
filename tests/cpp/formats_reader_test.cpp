// Reading every checkpoint layout into canonical weights, bit for bit.
#include <gtest/gtest.h>

#include "formats/pattern.h"
#include "support/quantized_layers.h"
#include "support/refusal.h"

namespace stepladder {
namespace {

using namespace testing;

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
    EXPECT_EQ(w.at(3, 5),
              w.codes[3 * kK + 5] * double(from_bf16(random_scales(kN, DType::bf16, 2)[3])));
  }
  const MemoryCheckpoint c = packed_int8();
  ASSERT_STREQ(format_of(c, kLayer).name, "w8a16");
  const auto bits = random_bits<uint32_t>(kN * kK / 4, 1);
  const CanonicalWeight w = read(c);
  for (int i = 0; i < kN * kK; ++i)
    ASSERT_EQ(w.codes[i], int(bits[i / 4] >> (8 * (i % 4)) & 255) - 128);
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
  EXPECT_EQ(w.scales[1], 0x1p125f);
  for (int i = 0; i < kN * kK; ++i) {
    const int code = bits[i / 2] >> (i % 2 ? 4 : 0) & 15;
    ASSERT_EQ(w.at(i / kK, i % kK), (code & 8 ? -1 : 1) * kValues[code & 7] * w.scales[i / 32]);
  }
}

TEST(Read, Int8InGroupsHasAScaleForEach) {
  const MemoryCheckpoint c = grouped_int8();
  ASSERT_STREQ(format_of(c, kLayer).name, "w8a16");
  const CanonicalWeight w = read(c), codes = read(packed_int8());
  EXPECT_EQ(w.desc.group, kGroup);
  EXPECT_EQ(w.codes, codes.codes);
  const auto stored = random_scales(kN * kK / kGroup, DType::bf16, 2);
  for (int r = 0; r < kN; ++r)
    for (int i = 0; i < kK; ++i)
      ASSERT_EQ(w.at(r, i),
                w.codes[r * kK + i] * from_bf16(stored[r * (kK / kGroup) + i / kGroup]));
}

// What a quantizer writes about itself, or leaves empty, changes nothing.
TEST(Read, SettingsThatSayNothingAreNoObstacle) {
  MemoryCheckpoint c = packed_int4();
  Json& q = c.config()["quantization_config"];
  q["version"] = "0.12.2", q["transform_config"] = {{"config_groups", Json::object()}};
  q["sparsity_config"] = Json::object(), q["new"] = nullptr, q["newer"] = false;
  EXPECT_STREQ(format_of(c, kLayer).name, "w4a16");
  MemoryCheckpoint g = gptq(true);
  Json& old = g.config()["quantization_config"];
  old.erase("checkpoint_format");
  old["format"] = "gptq_v2", old["meta"] = {{"quantizer", {"gptqmodel:5.0"}}};
  old["damp_percent"] = 0.01, old["is_marlin_format"] = false, old["rotation"] = nullptr;
  EXPECT_EQ(read(g).codes, read(gptq(true)).codes);
}

TEST(Read, IgnoreListsAndTargetsDecideLayerByLayer) {
  MemoryCheckpoint c = packed_int4();
  EXPECT_STREQ(format_of(c, "lm_head").name, "dense");
  EXPECT_STREQ(format_of(c, "model.layers.0.mlp.gate").name, "dense");
  EXPECT_STREQ(format_of(c, "model.layers.0.mlp.gate_proj").name, "w4a16");
  EXPECT_STREQ(format_of(c, "model.embed_tokens").name, "dense");  // not a Linear
  auto& groups = c.config()["quantization_config"]["config_groups"];
  groups["a_named"] = {
      {"targets", {"re:.*up_proj"}}, {"weights", kInt8}, {"format", "int-quantized"}};
  groups["group_0"]["targets"] = {"re:.*(down|up)_proj", "Linear"};
  EXPECT_STREQ(format_of(c, "model.layers.3.mlp.up_proj").name, "w8a16");
  EXPECT_STREQ(format_of(c, kLayer).name, "w4a16");
}

TEST(Read, ZeroBiasesOfSymmetricCodesAreNotAsymmetric) {
  MemoryCheckpoint c = int8_rows(true);
  c.add(kLayer + ".weight_zero_point", "I8", {kN, 1}, std::vector<int8_t>(kN));
  EXPECT_EQ(read(c).codes.size(), size_t(kN) * kK);
}

TEST(Registry, RefusesAnUnknownNameAndListsTheKnown) {
  expect_refused([] { format_named("int3"); }, Code::unsupported,
                 {"int3", "dense", "mxfp4", "w4a16", "w8a16", "w8a8"});
}

TEST(Pattern, MatchesAsPythonsMatchDoes) {
  const std::string name = "model.layers.12.mlp.down_proj";
  for (const char* yes : {"model",
                          ".*down_proj",
                          ".*down_proj$",
                          "^model",
                          "model\\.layers\\.[0-9]+\\.mlp",
                          "model.*?proj",
                          "(x|model).(layers|y)",
                          ".*(up|down)_proj",
                          "model.layers.\\d+.mlp",
                          "[^x]+$",
                          "mo?del",
                          "",
                          "(a*)*",
                          "model.layers.1(?:2)?.mlp.\\w+",
                          "a|m",
                          "model.layers.\\d{2}\\.",
                          "model.layers.\\d{1,}.mlp",
                          "(\\w+[.]){2,4}down",
                          "x{0}model",
                          "mod{,3}el",
                          "\\bmodel\\b.*\\bmlp\\b",
                          "mo\\Bdel",
                          "(?i)MODEL.LAYERS",
                          "(?i)[L-N]ODEL",
                          "model.layers.12.mlp\\b",
                          "(?i)Model\\.(X|Layers)"})
    EXPECT_TRUE(matches_pattern(yes, name, "here")) << yes;
  for (const char* no :
       {"down_proj", ".*down$", "^layers", "model$", "(x|y)odel", "[^m]", "mo+del.x",
        "model.layers.\\d+$", "model.layers.\\d{3}", "(\\w+[.]){5}", "mo{2}del", "model\\B",
        "mod\\bel", "\\Bmodel", "MODEL", "(?i)LAYERS", "model.layers.\\d{1}.mlp", "model{"})
    EXPECT_FALSE(matches_pattern(no, name, "here")) << no;
  EXPECT_TRUE(matches_pattern("a{x}{,y", "a{x}{,y", "here"));
  for (const char* no : {"a{3,2}", "{2}", "(?=a)", "(a{100}){100}", "a(?i)b"})
    expect_refused([&] { matches_pattern(no, "aa", "here"); }, Code::unsupported, {"here"});
  expect_refused([] { matches_pattern("\\D", "aa", "here"); }, Code::unsupported, {"here"});
  expect_refused([] { matches_pattern("*a", "aa", "here"); }, Code::unsupported, {"here"});
  const std::string long_name(200, 'a');
  EXPECT_FALSE(
      matches_pattern("(a+)+$b", long_name, "here"));  // linear, where backtracking takes for ever
}

}  // namespace
}  // namespace stepladder
