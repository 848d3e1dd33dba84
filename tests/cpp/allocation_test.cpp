// Once a text streams, the engine's threads take no memory: every allocation that is not made by
// the caller is counted between two chunks far apart. A program of its own, since it replaces
// operator new.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "stepladder/engine.h"
#include "support/fixed_draft.h"
#include "support/safetensors_writer.h"
#include "support/tiny_model.h"

namespace {

std::atomic<long> by_others{0};
thread_local bool is_caller = false;

void* counted(size_t bytes) {
  if (!is_caller) by_others.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(bytes ? bytes : 1);
  if (!memory) throw std::bad_alloc();
  return memory;
}

}  // namespace

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
void* operator new(size_t bytes) { return counted(bytes); }
void* operator new[](size_t bytes) { return counted(bytes); }
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, size_t) noexcept { std::free(memory); }
#endif

namespace stepladder {
namespace {

class Allocation : public ::testing::TestWithParam<const char*> {};
TEST_P(Allocation, NoneWhileATextStreams) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "a sanitizer has an operator new of its own";
#endif
  is_caller = true;
  testing::TempDir folder;
  write_tiny_checkpoint({.seed = 7}, folder / "model");
  Options options;
  options.draft = fixed_draft(GetParam());
  options.max_sequences = 3, options.threads = 2;
  const auto engine = Engine::load(folder / "model", options);
  const long at_load = by_others;
  std::vector<std::shared_ptr<Stream>> streams;
  for (int i = 0; i < 3; ++i) {
    Request request;
    request.prompt = {1, 17, 42, 17, 42, Token(i)};
    request.max_tokens = 400, request.ignore_eos = true;
    request.sampling.temperature = i == 2 ? 0.8f : 0.f;
    request.sampling.repetition_penalty = i == 1 ? 1.1f : 1.f;
    streams.push_back(engine->submit(request));
  }
  // Everybody gets past the first tokens, then the count must stand still until one text ends.
  long before = 0, after = 0;
  int tokens[3] = {};
  for (bool going = true; going;)
    for (int i = 0; i < 3; ++i) {
      Chunk chunk;
      ASSERT_TRUE(streams[i]->next(chunk));
      tokens[i] += int(chunk.tokens.size());
      if (before == 0 && tokens[0] > 20 && tokens[1] > 20 && tokens[2] > 20) before = by_others;
      if (tokens[i] < 360) continue;
      after = by_others, going = false;
      break;
    }
  ASSERT_GT(before, at_load);  // the counter works: a request does take memory when it begins
  EXPECT_EQ(after - before, 0);
}
INSTANTIATE_TEST_SUITE_P(All, Allocation,
                         ::testing::Values("", "lookup", "cast:int8,lookup", "cast:mxfp4:shared",
                                           "cast:w8a8,cast:mxfp4,lookup"));

}  // namespace
}  // namespace stepladder
