// The engine on a GPU: what is refused at load, what a lost device does to its streams, two engines
// side by side, and device memory that stays what it was.
#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>

#include "api/load.h"
#include "backends/memory.h"
#include "support/backends.h"
#include "support/cuda/kernels.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"
#include "support/said.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

using testing::TempDir;

constexpr const char* kDevice = "cuda:0";

Options on_device(int sequences = 1) {
  Options options;
  options.device = kDevice, options.max_sequences = sequences;
  return options;
}

Request request_of(unsigned seed, int tokens) {
  Request r;
  r.prompt = some_prompt(20 + int(seed % 50), seed);
  r.max_tokens = tokens, r.ignore_eos = true;
  if (seed % 2) r.sampling.temperature = 0.8f, r.sampling.seed = seed;
  return r;
}

class CudaEngine : public ::testing::Test {
 protected:
  void SetUp() override {
    for (const BackendInfo& b : backends())
      if (b.name == "cuda" && !b.missing.empty()) GTEST_SKIP() << b.missing;
    write_tiny_checkpoint({.seed = 7}, model());
  }
  std::string model() const { return folder_ / "model"; }

 private:
  TempDir folder_;
};

TEST_F(CudaEngine, TooLittleMemoryIsRefusedWithItsNumbersBeforeAWeightIsRead) {
  const auto backend = open_backend({kDevice, "", 1});
  // All but a little is taken already: by somebody else, as the engine sees it.
  constexpr size_t kLeft = size_t{64} << 20;
  const size_t free = backend->available_bytes();
  ASSERT_GT(free, 4 * kLeft);
  const size_t taken = free - kLeft;
  void* const memory = backend->allocate(taken);
  size_t read = 0;
  Options options = on_device(512);
  options.context = 512;
  options.progress = [&read](size_t done, size_t) {
    read = done;
    return true;
  };
  try {
    Engine::load(model(), options);
    ADD_FAILURE() << "was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::out_of_memory);
    const std::string text = e.what();
    for (const char* word : {"MB needed on cuda/", "MB available", "context=", "max_sequences"})
      EXPECT_NE(text.find(word), std::string::npos) << text;
  }
  EXPECT_EQ(read, 0u);
  backend->release(memory, taken);
  EXPECT_EQ(say(*Engine::load(model(), options), request_of(1, 8)).tokens.size(), 8u);
  EXPECT_GT(read, 0u);
}

TEST_F(CudaEngine, TwoOnOneDeviceSayWhatEachSaysAlone) {
  const char* const drafts[] = {"cast:int8:shared,lookup", "cast:mxfp4,lookup"};
  std::vector<Said> alone;
  std::vector<Request> asked;
  for (unsigned seed = 0; seed < 8; ++seed) asked.push_back(request_of(seed, 60));
  {
    const auto engine = load(model(), "", on_device());
    for (const Request& r : asked) alone.push_back(say(*engine, r));
  }
  const auto a = load(model(), drafts[0], on_device(3)), b = load(model(), drafts[1], on_device(2));
  for (int again = 0; again < 3; ++again) {
    std::vector<std::shared_ptr<Stream>> streams;
    for (const Request& r : asked)
      for (const auto& engine : {a, b}) streams.push_back(engine->submit(r));
    for (size_t i = 0; i < streams.size(); ++i) {
      EXPECT_EQ(take(*streams[i]), alone[i / 2]) << "request " << i / 2;
      EXPECT_GT(streams[i]->stats().levels[0].accepted, 0);
    }
  }
}

TEST_F(CudaEngine, SaysWithLevelsWhatItSaysWithout) {
  Options options = on_device(2);
  options.context = 64;
  const auto engine = load(model(), "cast:int8:shared,lookup", options);
  std::vector<Said> plain;
  for (const bool levels : {false, true}) {
    std::vector<std::shared_ptr<Stream>> streams;
    for (unsigned seed = 0; seed < 3; ++seed) {
      Request r = request_of(seed, 16);
      r.draft = levels;
      streams.push_back(engine->submit(r));
    }
    for (size_t i = 0; i < streams.size(); ++i) {
      const Said said = take(*streams[i]);
      if (levels)
        EXPECT_EQ(said, plain[i]);
      else
        plain.push_back(said);
      EXPECT_EQ(streams[i]->stats().levels[0].drafted > 0, levels);
    }
  }
}

TEST_F(CudaEngine, AThousandGenerationsLeaveDeviceMemoryAsItWas) {
  const auto watch = open_backend({kDevice, "", 1});
  const auto engine = load(model(), "cast:int8:shared,cast:mxfp4,lookup", on_device(4));
  const size_t after_load = watch->available_bytes();
  size_t after_some = 0;
  for (unsigned i = 0; i < 1000; i += 8) {
    std::vector<std::shared_ptr<Stream>> streams;
    for (unsigned j = i; j < i + 8; ++j) {
      Request r = request_of(j, 6);
      r.logprobs = j % 5 == 0 ? 3 : -1;
      if (j % 3 == 0) r.sampling.repetition_penalty = 1.2f, r.sampling.logit_bias = {{5, 1.f}};
      streams.push_back(engine->submit(r));
    }
    if (i % 64 == 0) streams.back()->cancel();
    for (const auto& stream : streams) take(*stream);
    if (i == 0) after_some = watch->available_bytes();
  }
  EXPECT_EQ(watch->available_bytes(), after_load) << "free; behind the first eight " << after_some;
}

// ---- a device that is lost -----------------------------------------------------------------

/// Takes to the end; whether that was Error(device).
bool ends_with_device(Stream& stream) {
  try {
    for (Chunk chunk; stream.next(chunk);) continue;
    std::fputs("a stream ended as if nothing had happened\n", stderr);
  } catch (const Error& e) {
    if (e.code() == Code::device) return true;
    std::fprintf(stderr, "a stream ended with %s: %s\n", testing::code_name(e.code()), e.what());
  }
  return false;
}

/// In a process of its own, whose device is lost in the middle of texts. Ends the process.
[[noreturn]] void lose_the_device(const std::string& model) {
  alarm(120);  // what hangs is killed
  int right = 0, wanted = 0;
  const auto count = [&](bool ok) { ++wanted, right += ok; };
  {
    const auto engine = load(model, "cast:int8:shared,lookup", on_device(2));
    const auto idle = load(model, "lookup", on_device(1));
    std::vector<std::shared_ptr<Stream>> streams;  // two that are served, three that wait
    for (unsigned seed = 0; seed < 5; ++seed)
      streams.push_back(engine->submit(request_of(seed, 400)));
    Chunk chunk;
    count(streams[0]->next(chunk));
    cuda::control::break_device(nullptr);
    for (const auto& stream : streams) count(ends_with_device(*stream));
    const auto refused = [&](Engine& of) {
      try {
        return ends_with_device(*of.submit(request_of(9, 5)));
      } catch (const Error& e) {
        return e.code() == Code::device;
      }
    };
    for (int again = 0; again < 2; ++again) count(refused(*engine)), count(refused(*idle));
    try {
      load(model, "", on_device());
      count(false);
    } catch (const Error& e) {
      std::fprintf(stderr, "%s\n", e.what());
      count(e.code() == Code::device || e.code() == Code::unsupported);
    }
  }
  std::filesystem::remove_all(model);  // nobody else does when a process ends so
  std::fprintf(stderr, "%d of %d as they should\n", right, wanted);
  std::exit(right == wanted ? 0 : 1);
}

using CudaEngineDeathTest = CudaEngine;
TEST_F(CudaEngineDeathTest, ALostDeviceEndsEveryStreamWithATypedErrorAndNothingHangs) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  EXPECT_EXIT(lose_the_device(model()), ::testing::ExitedWithCode(0), "as they should");
}

}  // namespace
}  // namespace stepladder
