// Reading vocabularies out of tokenizer files and telling whether two are the same.
#include <gtest/gtest.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include <sys/stat.h>

#include "io/file.h"
#include "io/vocabulary.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"

namespace stepladder {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using testing::expect_refused;
using testing::TempDir;
using testing::write_file;

std::vector<std::string> vocabulary_of(const std::string& text) {
  return parse_vocabulary(MemoryBytes(text, "tokenizer.json"));
}

TEST(Vocabulary, ReadsMapsListsAndAddedTokens) {
  EXPECT_EQ(vocabulary_of(R"({"added_tokens": [{"id": 2, "content": "<s>", "special": true}],
      "normalizer": {"vocab": ["no"]}, "model": {"type": "BPE", "vocab": {"b": 1, "a": 0},
      "merges": [["a", "b"]]}})"),
            (std::vector<std::string>{"a", "b", "<s>"}));
  EXPECT_EQ(vocabulary_of(R"({"model": {"type": "Unigram", "vocab": [["x", -1.5], ["y", 0],
      ["z", -3]], "unk_id": 0}, "added_tokens": []})"),
            (std::vector<std::string>{"x", "y", "z"}));
  // An added token usually repeats one of the model's, and may leave a gap before it.
  EXPECT_EQ(vocabulary_of(R"({"model": {"vocab": {"a": 0, "<s>": 1}},
      "added_tokens": [{"id": 1, "content": "<s>"}, {"id": 4, "content": "<e>"}]})"),
            (std::vector<std::string>{"a", "<s>", "", "", "<e>"}));
  TempDir empty;
  EXPECT_TRUE(read_vocabulary(empty.str()).empty());
}

TEST(Vocabulary, RefusesWhatIsNotOne) {
  const auto refuse = [](const std::string& text, std::vector<std::string> words) {
    SCOPED_TRACE(text.substr(0, 100));
    words.push_back("tokenizer.json");
    expect_refused([&] { vocabulary_of(text); }, Code::model_format, words);
  };
  refuse("{}", {"model.vocab"});
  refuse("[]", {"model.vocab"});
  refuse(R"({"model": {"vocab": 5}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": {"a": "0"}}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": {"a": -1}}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": {"a": 0.5}}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": {"a": null}}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": {"a": {}}}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": {"a": []}}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": [["a"]]}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": [["a", 1, 2]]}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": [[1, "a"]]}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": ["a"]}})", {"model.vocab"});
  refuse(R"({"model": {"vocab": [["a", 0], ["a", 0]]}})", {"\"a\"", "twice"});
  refuse(R"({"model": {"vocab": {"a": 0, "a": 1}}})", {"\"a\"", "twice"});
  refuse(R"({"model": {"vocab": {"a": 0, "b": 0}}})", {"id 0", "\"a\"", "\"b\""});
  refuse(R"({"model": {"vocab": {"a": 0}, "vocab": {"a": 0}}})", {"twice"});
  refuse(R"({"model": {"vocab": {"a": 18446744073709551615}}})", {"\"a\"", "far above"});
  refuse(R"({"model": {"vocab": {"a": 2147483647}}})", {"\"a\"", "far above"});
  refuse(R"({"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]})", {"added token"});
  refuse(R"({"model": {"vocab": {"a": 0}}, "added_tokens": [{"content": "x"}]})", {"added token"});
  refuse(std::string("{\"model\": {\"vocab\": {\"") + std::string(9 << 20, 'a') + "\": 0}}}",
         {"8 MiB"});
  refuse(std::string(1'000'000, '['), {"64 levels"});
}

TEST(Vocabulary, OpensNoPipesAndDevices) {
  for (const char* name : {"tokenizer.json", "tokenizer.model"}) {
    TempDir pipe, device;
    ASSERT_EQ(::mkfifo((pipe / name).c_str(), 0600), 0);
    fs::create_symlink("/dev/zero", device / name);
    expect_refused([&] { check_same_vocabulary(pipe.str(), device.str()); }, Code::io,
                   {pipe / name, "regular"});
    expect_refused([&] { check_same_vocabulary(device.str(), pipe.str()); }, Code::io,
                   {device / name, "regular"});
  }
}

TEST(Vocabulary, ComparesTokenByToken) {
  TempDir dir;
  const auto tokenizer = [&](const std::string& name, const json& vocab) {
    fs::create_directories(dir / name);
    write_file((dir / name) + "/tokenizer.json", json{{"model", {{"vocab", vocab}}}}.dump());
    return dir / name;
  };
  const std::string target = tokenizer("target", {{"a", 0}, {"b", 1}, {"c", 2}});
  const std::string same = tokenizer("same", {{"c", 2}, {"a", 0}, {"b", 1}});
  const std::string swapped = tokenizer("swapped", {{"a", 0}, {"c", 1}, {"b", 2}});
  const std::string shorter = tokenizer("shorter", {{"a", 0}, {"b", 1}});
  check_same_vocabulary(target, target);
  check_same_vocabulary(target, same);
  expect_refused([&] { check_same_vocabulary(target, swapped); }, Code::vocab_mismatch,
                 {"token 1", "\"b\"", "\"c\"", "target", "swapped"});
  expect_refused([&] { check_same_vocabulary(target, shorter); }, Code::vocab_mismatch,
                 {"token 2", "\"c\"", "no token"});
  expect_refused([&] { check_same_vocabulary(shorter, target); }, Code::vocab_mismatch,
                 {"token 2", "no token"});
}

TEST(Vocabulary, IsTheUnionOfAllThatADirectorySays) {
  TempDir dir;
  write_file(dir / "tokenizer.json", R"({"model": {"vocab": {"a": 0, "<s>": 1}}})");
  write_file(dir / "tokenizer_config.json",
             R"({"bos_token": {"content": "no"}, "chat_template": [{"name": "x", "template": "no"}],
                 "added_tokens_decoder": {"1": {"content": "<s>", "special": true},
                                          "3": {"content": "<think>", "special": false}},
                 "extra": {"4": {"content": "no"}}})");
  write_file(dir / "added_tokens.json", R"({"<think>": 3, "<end>": 2})");
  const std::vector<std::string> all = {"a", "<s>", "<end>", "<think>"};
  EXPECT_EQ(read_vocabulary(dir.str()), all);

  const auto refuse = [&](const char* file, const char* text, std::vector<std::string> words) {
    SCOPED_TRACE(text);
    TempDir other;
    write_file(other / "tokenizer.json", R"({"model": {"vocab": {"a": 0, "<s>": 1}}})");
    write_file(other / file, text);
    words.push_back(file);
    expect_refused([&] { read_vocabulary(other.str()); }, Code::model_format, words);
  };
  refuse("added_tokens.json", R"({"<s>": 2})", {"\"<s>\"", "id 2", "1"});
  refuse("added_tokens.json", R"({"<e>": 1})", {"id 1", "\"<s>\"", "\"<e>\""});
  refuse("added_tokens.json", R"({"<e>": -1})", {"whole number"});
  refuse("added_tokens.json", R"({"<e>": "2"})", {"whole number"});
  refuse("added_tokens.json", R"({"<e>": {"id": 2}})", {"whole number"});
  refuse("added_tokens.json", R"({"<e>": 999999999})", {"far above"});
  refuse("added_tokens.json", "[]", {"not a JSON object"});
  refuse("added_tokens.json", "5", {"not a JSON object"});
  const auto decoder = [](const std::string& text) {
    return R"({"added_tokens_decoder": )" + text + "}";
  };
  refuse("tokenizer_config.json", decoder(R"({"0": {"content": "b"}})").c_str(), {"\"b\""});
  refuse("tokenizer_config.json", decoder(R"({"2": {"id": 2}})").c_str(), {"content"});
  refuse("tokenizer_config.json", decoder(R"({"x": {"content": "b"}})").c_str(), {"\"x\""});
  refuse("tokenizer_config.json", decoder(R"({"2": "b"})").c_str(), {"malformed"});
  refuse("tokenizer_config.json", "{", {"tokenizer_config.json"});
}

TEST(Vocabulary, ComparesWhatIsAddedBesideATokenizer) {
  TempDir dir;
  for (const char* kind : {"tokenizer.json", "tokenizer.model"})
    for (const char* name : {"plain", "added", "decoder", "other"}) {
      const std::string at = (dir / kind) + name;
      fs::create_directories(at);
      write_file(at + "/" + kind, R"({"model": {"vocab": {"a": 0}}})");
    }
  for (const std::string kind : {"tokenizer.json", "tokenizer.model"}) {
    const std::string plain = dir / kind + "plain", added = dir / kind + "added",
                      decoder = dir / kind + "decoder", other = dir / kind + "other";
    write_file(added + "/added_tokens.json", R"({"<e>": 1})");
    write_file(decoder + "/tokenizer_config.json",
               R"({"added_tokens_decoder": {"1": {"content": "<e>"}}})");
    write_file(other + "/added_tokens.json", R"({"<f>": 1})");
    check_same_vocabulary(added, decoder);
    if (kind == "tokenizer.model")  // whose pieces may be what is named beside it
      check_same_vocabulary(plain, added);
    else
      expect_refused([&] { check_same_vocabulary(plain, added); }, Code::vocab_mismatch,
                     {"token 1", "no token", "\"<e>\""});
    expect_refused([&] { check_same_vocabulary(decoder, other); }, Code::vocab_mismatch,
                   {"token 1", "\"<e>\"", "\"<f>\""});
  }
}

TEST(Vocabulary, ComparesSentencePieceModelsByTheirBytes) {
  TempDir dir;
  for (const char* name : {"a", "b", "c", "none", "json"}) fs::create_directories(dir / name);
  const std::string model(100'000, 'm');
  write_file(dir / "a/tokenizer.model", model);
  write_file(dir / "b/tokenizer.model", model);
  write_file(dir / "c/tokenizer.model", model.substr(1) + "x");
  testing::write_tokenizer(dir / "json", 10);
  check_same_vocabulary(dir / "a", dir / "b");
  expect_refused([&] { check_same_vocabulary(dir / "a", dir / "c"); }, Code::vocab_mismatch,
                 {"a/tokenizer.model", "c/tokenizer.model", "differ"});
  for (const char* other : {"none", "json"}) {
    expect_refused([&] { check_same_vocabulary(dir / "a", dir / other); }, Code::vocab_mismatch,
                   {"cannot be compared", "tokenizer.json"});
    expect_refused([&] { check_same_vocabulary(dir / other, dir / "a"); }, Code::vocab_mismatch,
                   {"cannot be compared", "tokenizer.json"});
  }
  fs::create_directories(dir / "none2");
  expect_refused([&] { check_same_vocabulary(dir / "none", dir / "none2"); }, Code::vocab_mismatch,
                 {"cannot be compared"});
}

}  // namespace
}  // namespace stepladder
