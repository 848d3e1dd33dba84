// Malformed model directories, one row a case: each is refused with the kind of error it is and a
// message that names the file, and the tensor where there is one.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include <sys/stat.h>

#include "core/error.h"
#include "io/checkpoint.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"
#include "support/shards.h"

namespace stepladder {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::counting;
using testing::expect_refused;
using testing::NamedTensor;
using testing::TempDir;
using testing::write_file;
using testing::write_shards;

// The content of a .safetensors file with this header and `data` zero bytes.
std::string with_header(const std::string& header, size_t data = 0) {
  const uint64_t length = header.size();
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + header + std::string(data, '\0');
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  uint64_t begin, uint64_t end) {
  return std::string("\"") + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

std::string object(std::initializer_list<std::string> entries) {
  std::string out = "{";
  for (const std::string& e : entries) out.append(out.size() > 1 ? "," : "").append(e);
  return out + "}";
}

// A directory whose model.safetensors is `content`.
void write_weights(const TempDir& dir, const std::string& content) {
  write_file(dir / "config.json", "{}");
  write_file(dir / "model.safetensors", content);
}

struct Bad {
  const char* name;
  Code code;
  std::vector<std::string> mentions;
  std::function<void(const TempDir&)> write;
  std::string inside = "";  // what is opened, below the directory
};
void PrintTo(const Bad& bad, std::ostream* out) { *out << bad.name; }

class BadDirectory : public ::testing::TestWithParam<Bad> {};

TEST_P(BadDirectory, IsRefused) {
  TempDir dir;
  GetParam().write(dir);
  const std::string path = dir.str() + GetParam().inside;
  expect_refused([&] { open_checkpoint(path); }, GetParam().code, GetParam().mentions);
}

Bad bad_file(const char* name, std::vector<std::string> mentions, std::string content) {
  mentions.push_back("model.safetensors");
  return {name, Code::model_format, std::move(mentions),
          [content](const TempDir& dir) { write_weights(dir, content); }};
}

Bad bad_index(const char* name, Code code, std::vector<std::string> mentions, json weight_map) {
  return {name, code, std::move(mentions),
          [weight_map](const TempDir& dir) { write_shards(dir.str(), weight_map); }};
}

Bad bad_config(const char* name, std::vector<std::string> mentions, std::string content) {
  mentions.push_back("config.json");
  return {name, Code::model_format, std::move(mentions), [content](const TempDir& dir) {
            write_weights(dir, with_header("{}"));
            write_file(dir / "config.json", content);
          }};
}

std::string header_length(uint64_t length, const std::string& rest) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &length, 8);
  return out + rest;
}

// A file of `size` bytes that takes no room on disk.
void write_sparse(const std::string& path, const std::string& start, uint64_t size) {
  write_file(path, start);
  fs::resize_file(path, size);
}

std::string many(const std::string& what, size_t times) {
  std::string out;
  out.reserve(what.size() * times);
  for (size_t i = 0; i < times; ++i) out += what;
  return out;
}

INSTANTIATE_TEST_SUITE_P(
    Directories, BadDirectory,
    ::testing::Values(
        Bad{"Empty", Code::io, {"config.json"}, [](const TempDir&) {}},
        Bad{"Missing", Code::io, {"no such", "/nowhere"}, [](const TempDir&) {}, "/nowhere"},
        Bad{"NotADirectory",
            Code::io,
            {"not a directory", "/file"},
            [](const TempDir& d) { write_file(d / "file", "x"); },
            "/file"},
        Bad{"NoConfig",
            Code::io,
            {"config.json"},
            [](const TempDir& d) { write_file(d / "model.safetensors", with_header("{}")); }},
        Bad{"ConfigIsADirectory",
            Code::io,
            {"config.json", "regular"},
            [](const TempDir& d) { fs::create_directory(d / "config.json"); }},
        Bad{"ConfigIsAPipe",
            Code::io,
            {"config.json", "regular"},
            [](const TempDir& d) { ASSERT_EQ(::mkfifo((d / "config.json").c_str(), 0600), 0); }},
        Bad{"GenerationConfigIsAPipe",
            Code::io,
            {"generation_config.json", "regular"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              ASSERT_EQ(::mkfifo((d / "generation_config.json").c_str(), 0600), 0);
            }},
        Bad{"IndexIsAPipe",
            Code::io,
            {"model.safetensors.index.json", "regular"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              ASSERT_EQ(::mkfifo((d / "model.safetensors.index.json").c_str(), 0600), 0);
            }},
        Bad{"WeightsAreAPipe",
            Code::io,
            {"model.safetensors", "regular"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              ASSERT_EQ(::mkfifo((d / "model.safetensors").c_str(), 0600), 0);
            }},
        Bad{"WeightsAreADevice",
            Code::io,
            {"model.safetensors", "regular"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              fs::create_symlink("/dev/zero", d / "model.safetensors");
            }},
        Bad{"NoWeights",
            Code::io,
            {"model.safetensors"},
            [](const TempDir& d) { write_file(d / "config.json", "{}"); }},
        Bad{"OnlyGguf",
            Code::unsupported,
            {"m.gguf", "convert"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              write_file(d / "m.gguf", "GGUF");
            }},
        Bad{"OnlyPickles",
            Code::unsupported,
            {"pytorch_model.bin", "safetensors"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              write_file(d / "pytorch_model.bin", "PK");
            }}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Configs, BadDirectory,
    ::testing::Values(
        Bad{"GigabyteOfBrackets",
            Code::model_format,
            {"config.json", "1073741824"},
            [](const TempDir& d) {
              write_sparse(d / "config.json", many("[", 65536), uint64_t{1} << 30);
            }},
        bad_config("DeepNesting", {"64 levels"}, many("[", 1 << 20)),
        bad_config("DeepNestingOfObjects", {"64 levels"}, many("{\"a\":", 100000)),
        bad_config("LongArray", {"not a JSON object"},
                   std::string("[0") + many(",0", (1 << 19) - 2) + "]"),
        bad_config("ManyEmptyObjects", {"not a JSON object"},
                   std::string("[{}") + many(",{}", (1 << 20) / 3 - 2) + "]"),
        bad_config("ManyKeys", {"twice", "\"zz\""},
                   std::string("{\"zz\":0") + many(",\"zz\":0", 120000) + "}"),
        bad_config("LongString", {"byte"}, std::string("\"") + std::string((1 << 20) - 2, 'a')),
        bad_config("DuplicateKey", {"\"vocab_size\"", "twice"},
                   "{\"vocab_size\": 1, \"vocab_size\": 2}"),
        bad_config("DuplicateKeyInside", {"\"a\"", "twice"}, "{\"x\": {\"a\": 1, \"a\": 1}}"),
        bad_config("NotUtf8", {"byte"}, "{\"a\": \"\xff\xfe\"}"),
        bad_config("OverlongUtf8", {"byte"}, "{\"a\": \"\xc0\xaf\"}"),
        bad_config("LoneSurrogate", {"byte"}, "{\"a\": \"\\ud800\"}"),
        bad_config("ByteOrderMark", {"byte order mark"}, "\xef\xbb\xbf{}"),
        bad_config("NulByteEndsNothing", {"NUL"}, std::string("{}\0garbage", 10)),
        bad_config("TrailingGarbage", {"byte"}, "{} x"), bad_config("TwoValues", {"byte"}, "{}{}"),
        bad_config("Comment", {"byte"}, "{} // no"),
        bad_config("TrailingComma", {"byte"}, "{\"a\": 1,}"),
        bad_config("NotANumber", {"byte"}, "{\"rope_theta\": NaN}"),
        bad_config("HugeNumber", {"byte"}, "{\"rope_theta\": 1e999}"),
        bad_config("EmptyFile", {"byte"}, ""), bad_config("Truncated", {"byte"}, "{\"a\": [1, 2"),
        bad_config("AList", {"not a JSON object"}, "[1, 2]"),
        Bad{"GenerationConfigTruncated",
            Code::model_format,
            {"generation_config.json"},
            [](const TempDir& d) {
              write_weights(d, with_header("{}"));
              write_file(d / "generation_config.json", "{\"eos");
            }}),
    [](const auto& info) { return info.param.name; });

const std::string kGood = entry("w", "BF16", "[2,2]", 0, 8);

INSTANTIATE_TEST_SUITE_P(
    Safetensors, BadDirectory,
    ::testing::Values(
        bad_file("EmptyFile", {"too short"}, ""), bad_file("SevenBytes", {"too short"}, "1234567"),
        bad_file("HeaderOf2To63", {"9223372036854775808"}, header_length(uint64_t{1} << 63, "{}")),
        bad_file("HeaderOf2To64Minus1", {"18446744073709551615"},
                 header_length(~uint64_t{0}, "{}")),
        bad_file("HeaderAboveTheLimit", {"100000001"}, header_length(100'000'001, "{}")),
        bad_file("HeaderPastTheEnd", {"claims a header of 3"}, header_length(3, "{}")),
        Bad{"HeaderOfZeros",
            Code::model_format,
            {"start with {"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              write_sparse(d / "model.safetensors", header_length(100'000'000, ""), 100'000'008);
            }},
        Bad{"HeaderOfBracketThenZeros",
            Code::model_format,
            {"NUL"},
            [](const TempDir& d) {
              write_file(d / "config.json", "{}");
              write_sparse(d / "model.safetensors", header_length(100'000'000, "{"), 100'000'008);
            }},
        bad_file("HeaderOfSpaces", {"8 MiB"},
                 with_header(std::string("{") + std::string(40 << 20, ' ') + "}")),
        bad_file("HeaderOfOneString", {"8 MiB"},
                 with_header(std::string("{\"") + std::string(40 << 20, 'a') + "\":1}")),
        bad_file("HeaderOfOneNumber", {"8 MiB"},
                 with_header(std::string("{\"w\":{\"dtype\":\"F4\",\"shape\":[") +
                             std::string(40 << 20, '1'))),
        bad_file("ManyTensors", {"65536"},
                 [] {
                   std::string header = "{";
                   for (int i = 0; i < 70'000; ++i)
                     header.append(i ? "," : "")
                         .append(entry(std::to_string(i), "U8", "[0]", 0, 0));
                   return with_header(header + "}");
                 }()),
        bad_file("HeaderNotUtf8", {"byte"}, with_header("{\"\xff\":1}")),
        bad_file("HeaderIsAList", {"start with {"}, with_header("[]")),
        bad_file("HeaderIsEmpty", {"too short"}, with_header("")),
        bad_file("HeaderStartsWithSpace", {"start with {"}, with_header(" {}")),
        bad_file("HeaderTruncated", {"byte"}, with_header("{\"w\":{\"dtype\":")),
        bad_file("HeaderThenGarbage", {"byte"}, with_header("{}x")),
        bad_file("HeaderPaddedWithNul", {"NUL"}, with_header(std::string("{}\0\0", 4))),
        bad_file("DuplicateTensor", {"\"w\"", "twice"},
                 with_header(object({kGood, entry("w", "BF16", "[2]", 8, 12)}), 12)),
        bad_file("DuplicateField", {"\"w\"", "shape", "twice"},
                 with_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"shape\":[1],"
                             "\"data_offsets\":[0,1]}}",
                             1)),
        bad_file("UnknownField", {"\"w\"", "\"stride\""},
                 with_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],"
                             "\"stride\":[1]}}",
                             1)),
        bad_file("MissingField", {"\"w\"", "data_offsets"},
                 with_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1]}}", 1)),
        bad_file("EntryIsANumber", {"\"w\""}, with_header("{\"w\":5}")),
        bad_file("MetadataOfNumbers", {"__metadata__"},
                 with_header(object({"\"__metadata__\":{\"a\":1}", kGood}), 8)),
        bad_file("MetadataOfObjects", {"__metadata__"},
                 with_header(object({"\"__metadata__\":{\"a\":{}}", kGood}), 8)),
        bad_file("MetadataKeyTwice", {"__metadata__"},
                 with_header(object({"\"__metadata__\":{\"a\":\"b\",\"a\":\"b\"}", kGood}), 8)),
        bad_file("MetadataTwice", {"__metadata__"},
                 with_header(object({"\"__metadata__\":{}", "\"__metadata__\":{}", kGood}), 8)),
        bad_file("UnknownDtype", {"\"w\"", "\"Q4_K\""},
                 with_header(object({entry("w", "Q4_K", "[2,2]", 0, 8)}), 8)),
        bad_file("NegativeDimension", {"\"w\""},
                 with_header(object({entry("w", "BF16", "[-2,2]", 0, 8)}), 8)),
        bad_file("FractionalDimension", {"\"w\""},
                 with_header(object({entry("w", "BF16", "[2.0,2]", 0, 8)}), 8)),
        bad_file("NestedShape", {"\"w\""},
                 with_header(object({entry("w", "BF16", "[[2],2]", 0, 8)}), 8)),
        bad_file("ManyDimensions", {"\"w\"", "32"},
                 with_header(object({entry("w", "U8", std::string("[1") + many(",1", 99) + "]", 0,
                                           1)}),
                             1)),
        bad_file("ShapeOverflows", {"\"w\"", "too large"},
                 with_header(object({entry("w", "BF16", "[4294967296,4294967296]", 0, 8)}), 8)),
        bad_file("ShapeOverflowsToZero", {"\"w\"", "too large"},
                 with_header(object({entry("w", "U8", "[9223372036854775807,4,4,0]", 0, 0)}))),
        bad_file("DimensionOf2To63", {"\"w\""},
                 with_header(object({entry("w", "U8", "[9223372036854775808,0]", 0, 0)}))),
        bad_file("HalfAByte", {"\"w\"", "whole bytes"},
                 with_header(object({entry("w", "F4", "[3]", 0, 1)}), 1)),
        bad_file("BytesDisagree", {"\"w\"", "8"},
                 with_header(object({entry("w", "BF16", "[2,2]", 0, 6)}), 6)),
        bad_file("OneOffset", {"\"w\""},
                 with_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}", 1)),
        bad_file("ThreeOffsets", {"\"w\""},
                 with_header("{\"w\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}",
                             1)),
        bad_file("EndsBeforeItBegins", {"\"w\"", "before"},
                 with_header(object({entry("w", "U8", "[1]", 1, 0)}), 1)),
        bad_file("HoleAtTheStart", {"\"w\"", "hole"},
                 with_header(object({entry("w", "BF16", "[2,2]", 8, 16)}), 16)),
        bad_file("HoleBetween", {"\"v\"", "hole"},
                 with_header(object({kGood, entry("v", "U8", "[1]", 9, 10)}), 10)),
        bad_file("Overlap", {"\"v\"", "overlap"},
                 with_header(object({kGood, entry("v", "U8", "[4]", 4, 8)}), 8)),
        bad_file("SameBytesTwice", {"overlap"},
                 with_header(object({kGood, entry("v", "U8", "[8]", 0, 8)}), 8)),
        bad_file("CutShort", {"cut short"}, with_header(object({kGood}), 7)),
        bad_file("OffsetFarPastTheEnd", {"\"w\"", "too large"},
                 with_header(object({entry("w", "U8", "[9223372036854775807,3]", 0, ~uint64_t{0})}),
                             8)),
        bad_file("ZipBehindTheData", {"follow"}, with_header(object({kGood}), 8) + "PK\x05\x06"),
        bad_file("LongNameIsCutOff", {"..."},
                 with_header(object({entry(std::string(4000, 'n'), "??", "[1]", 0, 1)}), 1)),
        bad_file("ControlCharactersAreEscaped", {"\\x1b[31m"},
                 with_header(object({entry("\\u001b[31m\\n", "??", "[1]", 0, 1)}), 1))),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Indexes, BadDirectory,
    ::testing::Values(
        bad_index("ShardIsAbsent", Code::io, {"three.safetensors", "index.json"},
                  {{"a", "one.safetensors"}, {"d", "three.safetensors"}}),
        bad_index("ShardAboveTheDirectory", Code::model_format, {"../../etc/passwd", "index.json"},
                  {{"a", "../../etc/passwd"}}),
        bad_index("ShardIsAbsolute", Code::model_format, {"/etc/passwd", "index.json"},
                  {{"a", "/etc/passwd"}}),
        bad_index("ShardLeavesAndReturns", Code::model_format, {"index.json"},
                  {{"a", "x/../one.safetensors"}}),
        bad_index("ShardHasNoName", Code::model_format, {"index.json"}, {{"a", ""}}),
        bad_index("ShardNameWithNul", Code::model_format, {"index.json"},
                  {{"a", std::string("one\0x", 5)}}),
        bad_index("ShardIsTheDirectory", Code::model_format, {"index.json"}, {{"a", "."}}),
        bad_index("TensorNotInItsShard", Code::model_format, {"\"d\"", "one.safetensors"},
                  {{"a", "one.safetensors"}, {"d", "one.safetensors"}}),
        bad_index("TensorInAnotherShard", Code::model_format, {"\"b\"", "two.safetensors"},
                  {{"a", "one.safetensors"}, {"b", "two.safetensors"}, {"c", "two.safetensors"}}),
        bad_index("MapIsEmpty", Code::model_format, {"weight_map"}, json::object()),
        bad_index("MapIsAList", Code::model_format, {"weight_map"}, {1, 2}),
        bad_index("MapHoldsNumbers", Code::model_format, {"weight_map"}, {{"a", 1}}),
        bad_index("MapHoldsObjects", Code::model_format, {"weight_map"}, {{"a", json::object()}}),
        Bad{"TensorInTwoShards",
            Code::model_format,
            {"\"a\"", "one.safetensors", "two.safetensors"},
            [](const TempDir& d) {
              write_shards(d.str());
              const NamedTensor both[] = {counting("c", {4}), counting("a", {2, 2})};
              testing::write_safetensors(d / "two.safetensors", both);
            }},
        Bad{"TensorTwiceInTheMap",
            Code::model_format,
            {"\"a\"", "twice"},
            [](const TempDir& d) {
              write_shards(d.str());
              write_file(d / "model.safetensors.index.json",
                         "{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}}");
            }},
        Bad{"NoMap",
            Code::model_format,
            {"weight_map"},
            [](const TempDir& d) {
              write_shards(d.str());
              write_file(d / "model.safetensors.index.json", "{\"metadata\":{}}");
            }},
        Bad{"NotAnObject",
            Code::model_format,
            {"index.json"},
            [](const TempDir& d) {
              write_shards(d.str());
              write_file(d / "model.safetensors.index.json", "\"weight_map\"");
            }},
        Bad{"DeepNesting",
            Code::model_format,
            {"index.json", "64 levels"},
            [](const TempDir& d) {
              write_shards(d.str());
              write_file(d / "model.safetensors.index.json", many("[", 30 << 20));
            }},
        Bad{"LinkOutOfTheDirectory",
            Code::model_format,
            {"two.safetensors", "outside"},
            [](const TempDir& d) {
              write_shards(d / "model");
              fs::rename(d / "model/two.safetensors", d / "elsewhere");
              fs::create_symlink("../elsewhere", d / "model/two.safetensors");
            },
            "/model"},
        Bad{"DanglingLink",
            Code::io,
            {"two.safetensors"},
            [](const TempDir& d) {
              write_shards(d.str());
              fs::remove(d / "two.safetensors");
              fs::create_symlink("gone", d / "two.safetensors");
            }},
        Bad{"LinkToItself",
            Code::io,
            {"two.safetensors"},
            [](const TempDir& d) {
              write_shards(d.str());
              fs::remove(d / "two.safetensors");
              fs::create_symlink("two.safetensors", d / "two.safetensors");
            }},
        Bad{"BadShard",
            Code::model_format,
            {"two.safetensors"},
            [](const TempDir& d) {
              write_shards(d.str());
              write_file(d / "two.safetensors", "short");
            }}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace stepladder
