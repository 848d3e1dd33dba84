// Reading model directories: what is well formed comes back byte for byte, and what is not is
// refused with a message that names file and tensor.
#include <gtest/gtest.h>

#include <atomic>
#include <clocale>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include <unistd.h>

#include "core/error.h"
#include "io/checkpoint.h"
#include "io/file.h"
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

TEST(Checkpoint, GivesBackEveryTensor) {
  TempDir dir;
  const float values[] = {1.5f, -2.f, 0.25f, 3e-8f, 65504.f, 0.f};
  const int32_t numbers[] = {-1, 7, 1 << 30};
  const NamedTensor tensors[] = {
      testing::float_tensor("f32", "F32", {2, 3}, values),
      testing::float_tensor("bf16", "BF16", {6}, values),
      testing::float_tensor("f16", "F16", {3, 2}, values),
      testing::raw_tensor<int32_t>("i32", "I32", {3}, numbers),
      {"scalar", "U8", {}, "\x2a"},
      {"empty", "F64", {0, 5}, ""},
      {"half bytes", "F4", {2, 3}, "abc"},
  };
  testing::write_model(dir.str(), {{"x", 1}}, tensors);
  write_file(dir / "generation_config.json", "{\"eos_token_id\": 2}");

  const auto checkpoint = open_checkpoint(dir.str());
  EXPECT_EQ(checkpoint->where(), dir.str());
  EXPECT_EQ(checkpoint->config().at("x"), 1);
  EXPECT_EQ(checkpoint->generation().at("eos_token_id"), 2);
  EXPECT_EQ(checkpoint->names().size(), std::size(tensors));
  for (const NamedTensor& t : tensors) {
    const TensorInfo& info = checkpoint->need(t.name);
    EXPECT_EQ(info.dtype, t.dtype);
    EXPECT_EQ(info.shape, t.shape);
    ASSERT_EQ(info.bytes, t.bytes.size());
    std::string bytes(info.bytes, '\0');
    checkpoint->read(t.name, std::as_writable_bytes(std::span(bytes)));
    EXPECT_EQ(bytes, t.bytes) << t.name;
  }
  const int64_t shape[] = {2, 3}, flat[] = {6}, tall[] = {3, 2}, three[] = {3};
  EXPECT_EQ(checkpoint->load_floats("f32", shape),
            std::vector<float>(std::begin(values), std::end(values)));
  const auto halves = checkpoint->load_floats("f16", tall);
  EXPECT_EQ(halves[4], 65504.f);
  EXPECT_EQ(halves[3], from_f16(to_f16(3e-8f)));
  EXPECT_EQ(checkpoint->load_floats("bf16", flat)[2], 0.25f);
  EXPECT_EQ(checkpoint->load<int32_t>("i32", "I32", three),
            std::vector<int32_t>(std::begin(numbers), std::end(numbers)));
  EXPECT_EQ(checkpoint->find("absent"), nullptr);
}

TEST(Checkpoint, ReadsShardsThroughTheIndex) {
  TempDir dir;
  write_shards(dir.str());
  const auto checkpoint = open_checkpoint(dir.str());
  EXPECT_EQ(checkpoint->names(), (std::vector<std::string>{"a", "b", "c"}));
  const int64_t shape[] = {4};
  EXPECT_EQ(checkpoint->load_floats("c", shape), (std::vector<float>{1, 2, 3, 4}));
  EXPECT_NE(checkpoint->need("c").file.find("two.safetensors"), std::string::npos);
  EXPECT_TRUE(checkpoint->generation().is_object());
}

// CACHE/models--o--n/snapshots/REV/* -> ../../blobs/*, and since 2026 those -> CACHE/blobs/xx/*.
TEST(Checkpoint, FollowsTheLinksOfAHuggingFaceCache) {
  TempDir cache;
  const fs::path model = fs::path(cache.str()) / "models--o--n", rev = model / "snapshots" / "abc";
  write_shards(rev.string());
  fs::create_directories(model / "blobs");
  fs::create_directories(fs::path(cache.str()) / "blobs" / "1f");
  for (const char* name :
       {"config.json", "one.safetensors", "two.safetensors", "model.safetensors.index.json"}) {
    fs::rename(rev / name, model / "blobs" / name);
    fs::create_symlink(fs::path("../../blobs") / name, rev / name);
  }
  fs::rename(model / "blobs/two.safetensors", fs::path(cache.str()) / "blobs/1f/hash");
  fs::create_symlink("../../blobs/1f/hash", model / "blobs/two.safetensors");

  const int64_t shape[] = {4};
  EXPECT_EQ(open_checkpoint(rev.string())->load_floats("c", shape).size(), 4u);

  // A neighbour in the same cache is another model.
  fs::create_directories(fs::path(cache.str()) / "models--x--y");
  fs::rename(fs::path(cache.str()) / "blobs/1f/hash",
             fs::path(cache.str()) / "models--x--y/weights");
  fs::remove(model / "blobs/two.safetensors");
  fs::create_symlink("../../models--x--y/weights", model / "blobs/two.safetensors");
  expect_refused([&] { open_checkpoint(rev.string()); }, Code::model_format,
                 {"two.safetensors", "outside"});
}

TEST(Checkpoint, TakesPathsWithSpacesAndOtherAlphabets) {
  TempDir dir;
  const std::string path = dir / "ein Modell/модель 模型";
  write_shards(path);
  EXPECT_EQ(open_checkpoint(path)->names().size(), 3u);
}

TEST(Checkpoint, ReadsALongPathUpToTheSystemsLimitAndRefusesALongerOne) {
  TempDir dir;
  std::string path = dir.str();
  while (path.size() < 3500) path += "/" + std::string(200, 'd');
  write_shards(path);
  EXPECT_EQ(open_checkpoint(path)->names().size(), 3u);
  expect_refused([&] { open_checkpoint(path + "/" + std::string(1000, 'x')); }, Code::io,
                 {"xxxx", "too long"});
}

TEST(Checkpoint, TellsWhichTensorsDifferFromWhatIsAskedFor) {
  TempDir dir;
  const double doubles[] = {1, 2};
  const char flags[] = {1, 0};
  const NamedTensor tensors[] = {
      testing::raw_tensor<double>("f64", "F64", {2}, doubles),
      testing::raw_tensor<char>("bool", "BOOL", {2}, flags),
      counting("w", {2, 3}),
      {"empty", "BF16", {0, 3}, ""},
  };
  testing::write_model(dir.str(), json::object(), tensors);
  const auto checkpoint = open_checkpoint(dir.str());
  const int64_t two[] = {2}, flipped[] = {3, 2}, right[] = {2, 3};
  const auto refuse = [&](const std::function<void()>& f, std::vector<std::string> words) {
    expect_refused(f, Code::model_format, words);
  };
  refuse([&] { checkpoint->load_floats("f64", two); }, {"\"f64\"", "F64", "model.safetensors"});
  refuse([&] { checkpoint->load_floats("bool", two); }, {"\"bool\"", "BOOL", "model.safetensors"});
  refuse([&] { checkpoint->load<uint16_t>("w", "F16", right); }, {"\"w\"", "BF16", "F16"});
  refuse([&] { checkpoint->load_floats("w", flipped); }, {"\"w\"", "[2, 3]", "[3, 2]"});
  refuse([&] { checkpoint->load_floats("empty", right); }, {"\"empty\"", "[0, 3]"});
  refuse([&] { checkpoint->need("lm_head.weight"); }, {"\"lm_head.weight\"", dir.str()});
  // A shape that the config dreamed up costs nothing before it is compared with the file's.
  const int64_t absurd[] = {int64_t{1} << 40, int64_t{1} << 40};
  refuse([&] { checkpoint->load<uint16_t>("w", "BF16", absurd); }, {"\"w\""});
}

TEST(Checkpoint, NamesFileAndTensorWhenTheFileShrinks) {
  TempDir dir;
  const NamedTensor tensors[] = {counting("first", {1024}), counting("second", {4096})};
  testing::write_model(dir.str(), json::object(), tensors);
  const auto checkpoint = open_checkpoint(dir.str());
  fs::resize_file(dir / "model.safetensors", fs::file_size(dir / "model.safetensors") - 100);
  const int64_t first[] = {1024}, second[] = {4096};
  EXPECT_EQ(checkpoint->load_floats("first", first).size(), 1024u);
  expect_refused([&] { checkpoint->load_floats("second", second); }, Code::io,
                 {"model.safetensors", "\"second\"", "ended"});
}

TEST(Checkpoint, SurvivesAFileThatShrinksWhileItIsRead) {
  TempDir dir;
  const NamedTensor tensors[] = {counting("w", {1 << 21})};
  testing::write_model(dir.str(), json::object(), tensors);
  const auto checkpoint = open_checkpoint(dir.str());
  const std::string path = dir / "model.safetensors";
  const auto size = fs::file_size(path);
  std::atomic<bool> done{false};
  std::thread cutter([&] {
    for (int i = 0; !done; ++i) fs::resize_file(path, i % 2 ? size : 4096);
  });
  const int64_t shape[] = {1 << 21};
  int whole = 0, cut = 0;
  for (int i = 0; i < 200; ++i) {
    try {
      whole += checkpoint->load_floats("w", shape).size() == size_t{1} << 21;
    } catch (const Error& e) {
      EXPECT_EQ(e.code(), Code::io) << e.what();
      EXPECT_NE(std::string(e.what()).find("\"w\""), std::string::npos);
      ++cut;
    }
  }
  done = true;
  cutter.join();
  EXPECT_EQ(whole + cut, 200);
}

TEST(Checkpoint, IsReadFromSeveralThreadsAtOnce) {
  TempDir dir;
  write_shards(dir.str());
  const auto checkpoint = open_checkpoint(dir.str());
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      const int64_t shape[] = {4};
      for (int i = 0; i < 100; ++i)
        right += checkpoint->load_floats("c", shape) == std::vector<float>{1, 2, 3, 4};
    });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(right, 400);
}

TEST(Checkpoint, NamesTheFileItMayNotRead) {
  TempDir dir;
  write_shards(dir.str());
  fs::permissions(dir.str(), fs::perms::all);
  fs::permissions(dir / "one.safetensors", fs::perms::none);
  const bool root = ::geteuid() == 0;
  if (root) {  // who may read everything
    ASSERT_EQ(::seteuid(65534), 0);
  }
  expect_refused([&] { open_checkpoint(dir.str()); }, Code::io,
                 {"one.safetensors", "Permission denied"});
  if (root) {
    ASSERT_EQ(::seteuid(0), 0);
  }
}

TEST(Checkpoint, GivesBackItsFilesWhenRefused) {
  const auto open_files = [] {
    size_t n = 0;
    for ([[maybe_unused]] const auto& entry : fs::directory_iterator("/proc/self/fd")) ++n;
    return n;
  };
  TempDir dir;
  write_shards(dir.str());
  write_file(dir / "two.safetensors", "short");
  const size_t before = open_files();
  for (int i = 0; i < 50; ++i) EXPECT_THROW(open_checkpoint(dir.str()), Error);
  EXPECT_EQ(open_files(), before);
}

TEST(Json, KeepsEveryKindOfValue) {
  const json value = parse_json(
      R"({"a": [1, -2, 2.5, true, false, null, "\u00e9\n"], "b": {"c": {}, "d": []},
          "big": 18446744073709551615, "small": -9223372036854775808})",
      "test");
  const json expected = {{"a", {1, -2, 2.5, true, false, nullptr, "é\n"}},
                         {"b", {{"c", json::object()}, {"d", json::array()}}},
                         {"big", ~uint64_t{0}},
                         {"small", std::numeric_limits<int64_t>::min()}};
  EXPECT_EQ(value, expected);
  EXPECT_EQ(parse_json(" 5 ", "test"), 5);
  EXPECT_EQ(parse_json(std::string(64, '[') + std::string(64, ']'), "test").size(), 1u);
}

TEST(Json, ReadsNumbersUnderAnyLocale) {
  TempDir dir;
  // A locale with a decimal comma, made on the spot where the system has the sources for one.
  const std::string made =
      "localedef -i de_DE -f UTF-8 '" + (dir / "de_DE.UTF-8") + "' >/dev/null 2>&1";
  const bool built = std::system(made.c_str()) == 0;
  ASSERT_EQ(::setenv("LOCPATH", dir.str().c_str(), 1), 0);
  const bool comma = built && std::setlocale(LC_ALL, "de_DE.UTF-8") != nullptr &&
                     std::string(std::localeconv()->decimal_point) == ",";
  const json value = parse_json("{\"rope_theta\": 10000.5, \"eps\": 1e-05}", "test");
  std::setlocale(LC_ALL, "C");
  ::unsetenv("LOCPATH");
  EXPECT_EQ(value.at("rope_theta"), 10000.5);
  EXPECT_EQ(value.at("eps"), 1e-5);
  if (!comma) GTEST_SKIP() << "no localedef or no de_DE source: only the C locale was tried";
}

TEST(Quote, MakesAnyBytesPrintable) {
  EXPECT_EQ(quote("plain é 模"), "\"plain é 模\"");
  EXPECT_EQ(quote(std::string_view("a\0b\n\x7f\xff", 6)), "\"a\\x00b\\x0a\\x7f\\xff\"");
  EXPECT_EQ(quote("\xed\xa0\x80"), "\"\\xed\\xa0\\x80\"");  // a surrogate
  EXPECT_EQ(quote("\xe6\xa8"), "\"\\xe6\\xa8\"");           // cut off
  EXPECT_EQ(quote("\xc0\xaf"), "\"\\xc0\\xaf\"");           // overlong
  EXPECT_LT(quote(std::string(100000, 'x')).size(), 200u);
}

}  // namespace
}  // namespace stepladder
