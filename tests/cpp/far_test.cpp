// Everything above backend.h on memory the host cannot read and a queue that runs late: the
// exactness check, hierarchies of levels, and what crosses the bus in a round.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <memory>

#include "backends/cpu/cpu_backend.h"
#include "core/error.h"
#include "support/far/far_backend.h"
#include "support/hierarchy.h"
#include "support/replay.h"

namespace stepladder {
namespace {

// ---- the backend itself --------------------------------------------------------------------

Code code_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& e) {
    return e.code();
  }
  ADD_FAILURE() << "nothing was refused";
  return Code::io;
}

TEST(FarBackendDeathTest, TheHostCannotTouchItsMemory) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  FarBackend backend("portable", 1);
  volatile int* p = static_cast<volatile int*>(backend.allocate(4096));
  EXPECT_EXIT((void)*p, ::testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EXIT(*p = 1, ::testing::KilledBySignal(SIGSEGV), "");
  backend.release(const_cast<int*>(p), 4096);
}

TEST(FarBackend, WorkRunsLateAndInOrder) {
  FarBackend backend("portable", 1);
  void* memory = backend.allocate(64);
  int value = 1, seen = -1, seen_again = -1, zero = -1;
  backend.read(&zero, memory, sizeof zero);
  backend.upload(memory, &value, sizeof value);
  value = 2;  // taken before the call returned
  backend.read(&seen, memory, sizeof seen);
  backend.upload(memory, &value, sizeof value);
  backend.read(&seen_again, memory, sizeof seen_again);
  EXPECT_EQ(backend.pending(), 5u);
  EXPECT_EQ(zero, -1);
  EXPECT_EQ(seen, -1);
  backend.wait();
  EXPECT_EQ(zero, 0);  // memory begins zeroed
  EXPECT_EQ(seen, 1);
  EXPECT_EQ(seen_again, 2);
  EXPECT_EQ(backend.counters().uploads, 2);
  EXPECT_EQ(backend.counters().reads, 3);
  EXPECT_EQ(backend.counters().waits, 1);
  backend.release(memory, 64);
}

TEST(FarBackend, RefusesPointersThatAreNotItsOwn) {
  FarBackend backend("portable", 1);
  std::vector<int32_t> host(64);
  void* memory = backend.allocate(256);
  EXPECT_EQ(code_of([&] { backend.upload(host.data(), host.data(), 4); }), Code::internal);
  EXPECT_EQ(code_of([&] { backend.read(host.data(), host.data(), 4); }), Code::internal);
  EXPECT_EQ(code_of([&] { backend.read(host.data(), memory, 257); }), Code::internal);
  // One host pointer anywhere in an operator's arguments is enough.
  const Live live{static_cast<int32_t*>(memory), 0, 1};
  const Tensor table{memory, DType::bf16, 4, 2}, out{memory, DType::f32, 1, 2};
  const auto* token = static_cast<const int32_t*>(memory);
  backend.embed({live, token, table, out});
  EXPECT_EQ(code_of([&] { backend.embed({{host.data(), 0, 1}, token, table, out}); }),
            Code::internal);
  EXPECT_EQ(code_of([&] { backend.embed({live, host.data(), table, out}); }), Code::internal);
  EXPECT_EQ(code_of([&] { backend.embed({live, token, {host.data(), DType::bf16, 4, 2}, out}); }),
            Code::internal);
  EXPECT_EQ(code_of([&] { backend.embed({live, token, table, {host.data(), DType::f32, 1, 2}}); }),
            Code::internal);
  backend.wait();
  backend.release(memory, 256);
  EXPECT_EQ(code_of([&] { backend.read(host.data(), memory, 4); }), Code::internal);
}

TEST(FarBackend, ARecordingRunsOnTheDataOfTheMomentItRuns) {
  FarBackend backend("portable", 1);
  auto* memory = static_cast<std::byte*>(backend.allocate(256));
  const Live live{reinterpret_cast<int32_t*>(memory), 0, 1};
  const auto* token = reinterpret_cast<const int32_t*>(memory + 64);
  const Tensor table{memory + 128, DType::bf16, 3, 1}, out{memory + 192, DType::f32, 1, 1};
  const auto recording = backend.record([&] { backend.embed({live, token, table, out}); });
  EXPECT_EQ(backend.pending(), 0u);
  const int32_t one = 1;
  const uint16_t values[] = {to_bf16(10), to_bf16(11), to_bf16(12)};
  backend.upload(memory, &one, 4);
  backend.upload(memory + 128, values, sizeof values);
  for (int32_t t : {2, 0, 1}) {
    float seen = -1;
    backend.upload(memory + 64, &t, 4);
    recording->replay();
    backend.read(&seen, memory + 192, 4);
    backend.wait();
    EXPECT_EQ(seen, 10.f + static_cast<float>(t));
  }
  EXPECT_EQ(backend.counters().recordings, 1);
  EXPECT_EQ(backend.counters().replays, 3);
  EXPECT_EQ(code_of([&] { backend.record([&] { backend.wait(); }); }), Code::internal);
  backend.release(memory, 256);
}

TEST(FarBackend, NothingIsAllocatedOnceItIsSealed) {
  FarBackend backend("portable", 1);
  void* memory = backend.allocate(64);
  backend.seal();
  EXPECT_EQ(code_of([&] { backend.allocate(1); }), Code::internal);
  backend.release(memory, 64);
  EXPECT_EQ(backend.held_bytes(), 0u);
}

// ---- the exactness check -------------------------------------------------------------------

class FarTest : public ::testing::TestWithParam<std::string> {};

TEST_P(FarTest, TreesOverTheBusSayWhatTheCpuSaysTokenByToken) {
  for (const Cell& cell : replay_cells()) {
    SCOPED_TRACE(cell.name());
    FarBackend far(GetParam(), 2);
    CpuBackend cpu(GetParam(), 1);
    ASSERT_EQ(far.name(), "far/" + GetParam());
    ASSERT_EQ(far.kernels(), cpu.kernels());
    RigOptions options;
    options.act = cell.act, options.sequences = 4, options.context = 320;
    Rig subject(far, load_cell(far, cell, 320), options);
    options.sequences = 1, options.level = 1;
    Rig plain(cpu, load_cell(cpu, cell, 320), options);
    far.seal();
    const int64_t recordings = far.counters().recordings;
    for (const auto& lengths : {std::vector{1}, {32, 33}, {255, 64, 65, 31}, {257, 100, 2}}) {
      const Differences d = check_lengths(subject, plain, lengths, 24, lengths[0]);
      EXPECT_TRUE(d.none()) << d.choices << " of " << d.nodes << ", " << d.emitted << ", "
                            << d.entries;
    }
    EXPECT_EQ(far.counters().recordings, recordings);
  }
}

// ---- hierarchies ---------------------------------------------------------------------------

struct Ladder {
  const char* format;
  const char* levels;
};
constexpr Ladder kLadders[] = {
    {"bf16", ""},
    {"bf16", "lookup"},
    {"bf16", "cast:int8,lookup"},
    {"bf16", "cast:mxfp4"},
    {"bf16", "cast:mxfp4:shared"},
    {"f16", "cast:mxfp4:shared,lookup"},
    {"bf16", "cast:w8a8,cast:mxfp4,lookup"},
    {"bf16", "cast:w8a8:shared,cast:mxfp4:shared,lookup"},
    {"w4a16", "switch:a8"},
    {"w4a16", "switch:a8,lookup"},
    {"w4a16", "cast:mxfp4,lookup"},
};

std::vector<std::vector<Token>> prompts(int vocab) {
  // One with a pattern in it, for lookup; lengths on both sides of a step and of a block.
  std::vector<std::vector<Token>> out = {random_text(33, vocab, 1), random_text(5, vocab, 2),
                                         random_text(100, vocab, 3)};
  for (int i = 0; i < 24; ++i) out[1].push_back(out[1][i]);
  return out;
}

TEST_P(FarTest, HierarchiesSpeakAsOnTheCpuAndAsWithoutLevels) {
  Sampling sampled;
  sampled.temperature = 0.8f, sampled.top_p = 0.95f, sampled.seed = 3;
  sampled.repetition_penalty = 1.1f, sampled.presence_penalty = 0.2f;
  const int context = 192, count = 40;
  std::map<std::string, std::vector<std::vector<Said>>> plain;  // by format
  for (const Ladder& ladder : kLadders) {
    SCOPED_TRACE(std::string(ladder.format) + " [" + ladder.levels + "]");
    TinySpec spec;
    spec.format = ladder.format, spec.seed = 21;
    const auto texts = prompts(spec.vocab);
    CpuBackend cpu(GetParam(), 2);
    if (!plain.contains(spec.format)) {
      // Each prompt by itself, by the target alone.
      for (const Sampling& s : {Sampling{}, sampled}) {
        std::vector<Said> each;
        for (size_t i = 0; i < texts.size(); ++i) {
          Hierarchy alone(cpu, spec, "", 1, context);
          Sampling own = s;
          own.seed += i;
          each.push_back(alone.stream({texts[i]}, count, own)[0]);
        }
        plain[spec.format].push_back(each);
      }
    }
    FarBackend far(GetParam(), 2);
    Hierarchy on_cpu(cpu, spec, ladder.levels, 3, context);
    Hierarchy on_far(far, spec, ladder.levels, 3, context);
    far.seal();
    for (int way = 0; way < 2; ++way) {
      SCOPED_TRACE(way ? "sampled" : "greedy");
      const Sampling s = way ? sampled : Sampling{};
      const auto want = plain[spec.format][way];
      EXPECT_TRUE(on_cpu.stream(texts, count, s) == want);
      EXPECT_TRUE(on_far.stream(texts, count, s) == want);
      for (const Said& said : want) EXPECT_EQ(said.tokens.size(), static_cast<size_t>(count));
    }
    const LevelStats& stats = on_far.top().stats(0);
    EXPECT_GT(stats.rounds, 0);
    if (*ladder.levels && std::strcmp(ladder.levels, "lookup") != 0)
      EXPECT_GT(stats.accepted, 0) << "of " << stats.drafted;  // the levels were of use
  }
}

TEST_P(FarTest, ARoundIsOneUploadOneWaitAndOneSmallRead) {
  for (const Ladder& ladder : kLadders) {
    SCOPED_TRACE(std::string(ladder.format) + " [" + ladder.levels + "]");
    TinySpec spec;
    spec.format = ladder.format, spec.seed = 21;
    FarBackend far(GetParam(), 1);
    const int sequences = 3;
    Hierarchy on_far(far, spec, ladder.levels, sequences, 192);
    far.seal();
    const size_t held = far.held_bytes();
    auto texts = prompts(spec.vocab);
    for (int length = 0; length < 3; ++length) {
      const CountedVerifier::Counts before = on_far.counts();
      far.reset_counters();
      on_far.stream(texts, 24);
      const int64_t rounds = on_far.counts().rounds - before.rounds;
      const int64_t blocks = on_far.counts().blocks - before.blocks;
      const FarCounters& c = far.counters();
      EXPECT_GE(rounds, 24 / kMaxEmitted + 1);
      // Beginning a greedy request uploads its rule and clears its counts.
      const int64_t begins = sequences;
      EXPECT_EQ(c.uploads, rounds + blocks + begins);
      EXPECT_EQ(c.waits, rounds + blocks);
      EXPECT_EQ(c.reads, rounds);
      EXPECT_LE(c.largest_read, 256 * sequences);
      EXPECT_EQ(c.replays, rounds + blocks);
      EXPECT_EQ(c.recordings, 0);  // other lengths, the recordings made at load
      EXPECT_EQ(c.operators, begins);
      EXPECT_EQ(c.allocations, 0);
      EXPECT_EQ(far.pending(), 0u);
      for (auto& text : texts) text.resize(text.size() / 2 + 17, 9);  // other lengths
    }
    EXPECT_EQ(far.held_bytes(), held);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FarTest, ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace stepladder
