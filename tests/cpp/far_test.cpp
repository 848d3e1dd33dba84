// Everything above backend.h on memory the host cannot read and a queue that runs late: the
// exactness check, hierarchies of levels, and what crosses the bus in a round.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <tuple>

#include "api/load.h"
#include "api/plan.h"
#include "backends/cpu/cpu_backend.h"
#include "core/error.h"
#include "support/backends.h"
#include "support/far/far_backend.h"
#include "support/fixed_draft.h"
#include "support/hierarchy.h"
#include "support/replay.h"
#include "support/safetensors_writer.h"

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

/// Killed for the access; a sanitizer turns the signal into an exit of its own.
bool died_of_the_access(int status) {
  return WIFSIGNALED(status) ? WTERMSIG(status) == SIGSEGV : WEXITSTATUS(status) != 0;
}

TEST(FarBackendDeathTest, TheHostCannotTouchItsMemory) {
  ::testing::FLAGS_gtest_death_test_style = "threadsafe";
  FarBackend backend("portable", 1);
  volatile int* p = static_cast<volatile int*>(backend.allocate(4096));
  EXPECT_EXIT((void)*p, died_of_the_access, "");
  EXPECT_EXIT(*p = 1, died_of_the_access, "");
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
  const Live live{static_cast<int32_t*>(memory), nullptr, 1};
  const Tensor table{memory, DType::bf16, 4, 2}, out{memory, DType::f32, 1, 2};
  const auto* token = static_cast<const int32_t*>(memory);
  backend.embed({live, token, table, out});
  EXPECT_EQ(code_of([&] { backend.embed({{host.data(), nullptr, 1}, token, table, out}); }),
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
  const Live live{reinterpret_cast<int32_t*>(memory), nullptr, 1};
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
    for (const auto& lengths : {std::vector{1}, {32, 33}, {129, 64, 65, 31}, {257}}) {
      const Differences d = check_lengths(subject, plain, lengths, 10, lengths[0]);
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

class HierarchyTest : public ::testing::TestWithParam<BackendCase> {};

TEST_P(HierarchyTest, SpeaksAsItsBackendDoesWithoutLevels) {
  Sampling sampled;
  sampled.temperature = 0.8f, sampled.top_p = 0.95f, sampled.seed = 3;
  sampled.repetition_penalty = 1.1f, sampled.presence_penalty = 0.2f;
  const int context = 192, count = 32;
  std::map<std::string, std::vector<std::vector<Said>>> plain;  // by format
  for (const Ladder& ladder : kLadders) {
    SCOPED_TRACE(std::string(ladder.format) + " [" + ladder.levels + "]");
    TinySpec spec;
    spec.format = ladder.format, spec.seed = 21;
    const auto texts = prompts(spec.vocab);
    if (!plain.contains(spec.format)) {
      // Each prompt by itself, by the target alone.
      const auto backend = GetParam().open_plain(2);
      for (const Sampling& s : {Sampling{}, sampled}) {
        std::vector<Said> each;
        for (size_t i = 0; i < texts.size(); ++i) {
          Hierarchy alone(*backend, spec, "", 1, context);
          Sampling own = s;
          own.seed += i;
          each.push_back(alone.stream({texts[i]}, count, own)[0]);
        }
        plain[spec.format].push_back(each);
      }
    }
    const auto backend = GetParam().open(2);
    Hierarchy levels(*backend, spec, ladder.levels, 3, context);
    if (auto* far = dynamic_cast<FarBackend*>(backend.get())) far->seal();
    for (int way = 0; way < 2; ++way) {
      SCOPED_TRACE(way ? "sampled" : "greedy");
      const Sampling s = way ? sampled : Sampling{};
      const auto want = plain[spec.format][way];
      EXPECT_TRUE(levels.stream(texts, count, s) == want);
      for (const Said& said : want) EXPECT_EQ(said.tokens.size(), static_cast<size_t>(count));
    }
    const LevelStats& stats = levels.top().stats(0);
    EXPECT_GT(stats.rounds, 0);
    if (*ladder.levels && std::strcmp(ladder.levels, "lookup") != 0) {
      EXPECT_GT(stats.accepted, 0) << "of " << stats.drafted;  // the levels were of use
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, HierarchyTest, ::testing::ValuesIn(near_and_far()),
                         [](const auto& info) { return info.param.name(); });

TEST_P(FarTest, ALayerIsFiveOperatorsInEveryMode) {
  for (const Cell& cell : replay_cells()) {
    SCOPED_TRACE(cell.name());
    int64_t recorded[2];
    for (const int more : {0, 1}) {
      Cell c = cell;
      c.spec.layers += more;
      FarBackend far(GetParam(), 1);
      RigOptions o;
      o.act = c.act;
      Rig rig(far, load_cell(far, c, 512), o);
      recorded[more] = far.counters().recorded;
      // All recordings hold the layers but five: expand, a block of nodes, what ends a wide round,
      // and the two that go on with a chain.
      if (more) {
        EXPECT_EQ(recorded[1] - recorded[0], 5 * (rig.verifier->recordings() - 5));
      }
    }
  }
}

TEST_P(FarTest, RecordingsAddUp) {
  TinySpec spec;
  for (const auto& [sequences, nodes, most] : {std::tuple{1, 64, 30}, {8, 201, 50}, {32, 64, 50}}) {
    FarBackend far(GetParam(), 1);
    const Cell cell{spec};
    RigOptions o;
    o.sequences = sequences, o.tree_capacity = nodes, o.context = 32, o.block = 128;
    Rig rig(far, load_cell(far, cell, 32), o);
    EXPECT_EQ(far.counters().recordings, rig.verifier->recordings());
    EXPECT_LT(rig.verifier->recordings(), most) << sequences << " x " << nodes;
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
      // A round is one recording; one of a chain is another, which makes the next of it.
      const int64_t chained = on_far.counts().chained - before.chained;
      EXPECT_GE(c.replays, rounds + blocks);
      EXPECT_LE(c.replays, rounds + blocks + 2 * chained);
      EXPECT_EQ(c.recordings, 0);  // other lengths, the recordings made at load
      EXPECT_EQ(c.operators, begins);
      EXPECT_EQ(c.allocations, 0);
      EXPECT_EQ(far.pending(), 0u);
      for (auto& text : texts) text.resize(text.size() / 2 + 17, 9);  // other lengths
    }
    EXPECT_EQ(far.held_bytes(), held);
  }
}

// ---- the engine ----------------------------------------------------------------------------

struct Answer {
  Said said;
  std::vector<float> chosen;  // log-probabilities
  std::vector<std::pair<Token, float>> top;
  Finish finish = Finish::none;
  bool operator==(const Answer&) const = default;
};

Answer collect(Stream& stream) {
  Answer out;
  for (Chunk chunk; stream.next(chunk);) {
    out.said.tokens.insert(out.said.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    out.said.logits.insert(out.said.logits.end(), chunk.logits.begin(), chunk.logits.end());
    for (const TokenLogprobs& l : chunk.logprobs) {
      out.chosen.push_back(l.chosen);
      out.top.insert(out.top.end(), l.top.begin(), l.top.end());
    }
    out.finish = chunk.finish;
  }
  return out;
}

std::vector<Request> requests(int vocab) {
  std::vector<Request> out;
  for (const auto& prompt : prompts(vocab)) {
    Request r;
    r.prompt = prompt, r.max_tokens = 32, r.ignore_eos = true;
    out.push_back(r);
  }
  out[1].sampling.temperature = 0.7f, out[1].sampling.top_k = 50, out[1].sampling.seed = 5;
  out[2].logprobs = 3;
  out.push_back(out[0]);  // a fourth for three slots, with a text of its own
  out[3].prompt = random_text(150, vocab, 8), out[3].sampling.temperature = 1;
  out[3].sampling.frequency_penalty = 0.3f;
  return out;
}

TEST_P(FarTest, TheWholeEngineRunsOnItAndAllocatesNothingAfterLoad) {
  // With fixed lengths, and with planned ones, by prices that nobody measures.
  for (const auto& [ladder, planned] :
       {std::pair(Ladder{"bf16", "cast:mxfp4:shared,lookup"}, false),
        std::pair(Ladder{"w4a16", "switch:a8,lookup"}, false),
        std::pair(Ladder{"bf16", "cast:mxfp4:shared,lookup"}, true)}) {
    SCOPED_TRACE(std::string(ladder.format) + " [" + ladder.levels + "]");
    TinySpec spec;
    spec.format = ladder.format, spec.seed = 21;
    const testing::TempDir directory;
    write_tiny_checkpoint(spec, directory.str());
    Options options;
    options.context = 320;
    const auto alone =
        load_engine(directory.str(), options, std::make_unique<CpuBackend>(GetParam(), 1));
    options.draft = planned ? parse_draft(ladder.levels) : fixed_draft(ladder.levels);
    options.max_sequences = 3;
    auto owned = std::make_unique<FarBackend>(GetParam(), 2);
    FarBackend& far = *owned;
    const auto engine = load_engine(directory.str(), options, std::move(owned));
    far.seal();
    EXPECT_EQ(engine->info().backend, "far/" + GetParam());

    auto asked = requests(spec.vocab);
    for (int turn = 0; turn < 2; ++turn) {
      SCOPED_TRACE("turn " + std::to_string(turn));
      std::vector<std::shared_ptr<Stream>> streams;
      for (const Request& r : asked) streams.push_back(engine->submit(r));
      // One more is given up half way.
      const auto dropped = engine->submit(asked[0]);
      for (size_t i = 0; i < asked.size(); ++i) {
        const Answer got = collect(*streams[i]);
        if (i == 1) dropped->cancel();
        const auto plain = alone->submit(asked[i]);
        EXPECT_TRUE(got == collect(*plain)) << "request " << i;
        EXPECT_GT(plain->stats().levels[0].verify_ms, 0);
        EXPECT_EQ(got.said.tokens.size(), 32u);
        EXPECT_EQ(got.finish, Finish::length);
        EXPECT_EQ(got.chosen.size(), asked[i].logprobs < 0 ? 0u : 32u);
        // The next turn goes on from what was said.
        asked[i].prompt.insert(asked[i].prompt.end(), got.said.tokens.begin(),
                               got.said.tokens.end());
        asked[i].prompt.push_back(11);
      }
      collect(*dropped);
      const LevelStats target = streams[0]->stats().levels[0];
      EXPECT_GT(target.drafted, 0);
      EXPECT_EQ(target.verify_ms, 0) << "time was measured where none can be";
    }
  }
}

// ---- what the engine asks of a backend
// ------------------------------------------------------------

TEST(FarEngine, TooLittleMemoryOfTheBackendIsRefusedWithItsNumbers) {
  TinySpec spec;
  spec.positions = 1 << 16;
  const testing::TempDir directory;
  write_tiny_checkpoint(spec, directory.str());
  Options options;
  options.max_sequences = 16, options.context = 4096, options.draft = parse_draft("lookup");
  const LoadPlan plan = make_plan(directory.str(), options);
  FarBackend probe("", 1);
  const MemoryNeed need = memory_need(plan, probe);
  // Counted apart: what lies on the backend, and the host's tokens, queues and tables.
  EXPECT_GT(need.backend.weights, 0u);
  EXPECT_EQ(need.host.weights, 0u);
  EXPECT_GT(need.backend.caches, 10 * need.host.caches);
  EXPECT_GT(need.host.work, 0u);
  EXPECT_EQ(need.backend.transient, 0u);
  const auto load = [&](size_t memory) {
    auto far = std::make_unique<FarBackend>("", 1);
    far->set_memory(memory);
    const FarBackend& backend = *far;
    const auto engine = load_engine(directory.str(), options, std::move(far));
    EXPECT_LE(backend.held_bytes(), memory);
    return engine;
  };
  const size_t there = need.backend.total() * 6 / 10;
  const std::string mb = std::to_string((there + (1 << 20) - 1) >> 20) + " MB available";
  int advised = 0;
  try {
    load(there);
    ADD_FAILURE() << "was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), Code::out_of_memory);
    const std::string text = e.what();
    EXPECT_NE(text.find("MB needed on far/"), std::string::npos) << text;
    EXPECT_NE(text.find(mb), std::string::npos) << text;
    EXPECT_EQ(text.find("on the host"), std::string::npos) << text;
    ASSERT_NE(text.find("context="), std::string::npos) << text;
    advised = std::stoi(text.substr(text.find("context=") + 8));
  }
  ASSERT_GT(advised, 0);
  EXPECT_LT(advised, 4096);
  options.context = advised;
  EXPECT_EQ(load(there)->info().context, advised);
  EXPECT_THROW(check_memory(plan, probe, need, {need.backend.total(), need.host.total() - 1}),
               Error);
  EXPECT_NO_THROW(check_memory(plan, probe, need, {need.backend.total(), need.host.total()}));
}

/// Other buckets, and prompt blocks of 48 rows.
class NarrowBackend final : public FarBackend {
 public:
  using FarBackend::FarBackend;
  std::vector<int> row_buckets() const override { return {1, 3, 16, 48}; }
};

TEST(FarEngine, PromptBlocksAreTheBackendsOwnAndChangeNoText) {
  TinySpec spec;
  spec.seed = 21;
  const testing::TempDir directory;
  write_tiny_checkpoint(spec, directory.str());
  Options options;
  options.draft = fixed_draft("cast:int8:shared,lookup"), options.context = 256;
  const LoadPlan plan = make_plan(directory.str(), options);
  NarrowBackend narrow("", 1);
  EXPECT_EQ(verifier_options(plan, narrow, 0, Act::a16).block, 48);
  EXPECT_EQ(verifier_options(plan, FarBackend("", 1), 0, Act::a16).block, 128);
  const auto wide = load_engine(directory.str(), options, std::make_unique<FarBackend>("", 1));
  const auto engine = load_engine(directory.str(), options, std::make_unique<NarrowBackend>("", 1));
  for (const Request& r : requests(spec.vocab)) {
    const auto a = engine->submit(r), b = wide->submit(r);
    EXPECT_TRUE(collect(*a) == collect(*b));
  }
}

INSTANTIATE_TEST_SUITE_P(All, FarTest, ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace stepladder
