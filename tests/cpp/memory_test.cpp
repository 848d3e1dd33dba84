// What a load says it takes is what the process grows by, and what it would refuse on.
#include <gtest/gtest.h>
#include <malloc.h>

#include <cmath>

#include "api/plan.h"
#include "support/refusal.h"
#include "support/safetensors_writer.h"
#include "support/said.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

using testing::TempDir;

struct Load {
  const char* draft;
  int sequences, context;
};
void PrintTo(const Load& l, std::ostream* out) {
  *out << '"' << l.draft << "\" " << l.sequences << " x " << l.context;
}

class MemoryOf : public ::testing::TestWithParam<Load> {};
TEST_P(MemoryOf, IsWhatTheLoadSaid) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "shadow memory counts as resident";
#endif
  TempDir folder;
  write_tiny_checkpoint({.seed = 7}, folder / "model");
  Options options;
  options.draft = fixed_draft(GetParam().draft), options.threads = 1;
  options.max_sequences = GetParam().sequences, options.context = GetParam().context;
  options.device = "cpu";  // whose memory is the process's
  const auto resident = [] {
    ::malloc_trim(0);
    return double(testing::memory_status("VmRSS"));
  };
  const double before = resident();
  const auto engine = Engine::load(folder / "model", options);
  // Tables that fill as the texts grow are counted in full.
  std::vector<std::shared_ptr<Stream>> streams;
  for (int i = 0; i < options.max_sequences; ++i) {
    Request request;
    request.prompt = some_prompt(options.context - 2, unsigned(i));
    request.max_tokens = 2, request.ignore_eos = true;
    streams.push_back(engine->submit(request));
  }
  for (const auto& stream : streams) take(*stream);
  const double growth = resident() - before, said = double(engine->info().total_bytes);
  EXPECT_NEAR(said, growth, growth * 0.1) << "said " << said / 1e6 << " MB, took " << growth / 1e6;

  const LoadPlan plan = make_plan(folder / "model", options);
  const auto backend = open_backend({"cpu", "", 1});
  const MemoryNeed need = memory_need(plan, *backend);
  EXPECT_NEAR(double(need.lasting()), growth, growth * 0.1);
}
INSTANTIATE_TEST_SUITE_P(
    All, MemoryOf,
    ::testing::Values(Load{"", 1024, 32}, Load{"lookup", 1024, 32},
                      Load{"lookup:min=1:max=8", 256, 500}, Load{"cast:int8,lookup", 512, 64},
                      Load{"cast:mxfp4:shared,lookup", 512, 64},
                      Load{"cast:int8:tokens=30,cast:mxfp4:tokens=30", 256, 64}));

TEST(Memory, TheContextARefusalAdvisesFits) {
  TempDir folder;
  TinySpec spec{.seed = 7};
  spec.positions = 1 << 16;
  write_tiny_checkpoint(spec, folder / "model");
  const auto backend = open_backend({"cpu", "", 1});
  for (const char* draft : {"", "lookup", "cast:int8,lookup", "cast:mxfp4:shared"}) {
    Options options;
    options.draft = fixed_draft(draft);
    options.max_sequences = 64, options.context = 50000;
    const LoadPlan plan = make_plan(folder / "model", options);
    const MemoryNeed need = memory_need(plan, *backend);
    for (double share : {0.99, 0.7, 0.4, 0.2}) {
      const auto available = static_cast<size_t>(share * double(need.backend.total()));
      try {
        check_memory(plan, *backend, need, {available, available});
        ADD_FAILURE() << "was accepted";
      } catch (const Error& e) {
        const std::string text = e.what(), key = "context=";
        const size_t at = text.find(key);
        ASSERT_NE(at, std::string::npos) << text;
        options.context = std::stoi(text.substr(at + key.size()));
      }
      EXPECT_LT(options.context, 50000);
      const LoadPlan smaller = make_plan(folder / "model", options);
      EXPECT_NO_THROW(
          check_memory(smaller, *backend, memory_need(smaller, *backend), {available, available}));
    }
  }
}

}  // namespace
}  // namespace stepladder
