// A stream that nobody reads lends its slot to those that wait, and goes on later as if it had
// never left: tokens, logits, log-probabilities and counts.
#include <gtest/gtest.h>

#include <bit>
#include <chrono>
#include <thread>

#include "api/load.h"
#include "api/stream.h"
#include "support/far/far_backend.h"
#include "support/safetensors_writer.h"
#include "support/said.h"
#include "support/tiny_model.h"

namespace stepladder {
namespace {

using testing::TempDir;

const std::string& model() {
  static TempDir folder;
  static const std::string directory = [] {
    write_tiny_checkpoint({.positions = 1024, .seed = 7}, folder / "model");
    return folder / "model";
  }();
  return directory;
}

/// A text long enough to fill the queue many times, under penalties, a bias and noise.
Request long_request(unsigned seed, int tokens, bool sampled = true) {
  Request r;
  r.prompt = some_prompt(40 + int(seed) * 7, seed);
  r.max_tokens = tokens, r.ignore_eos = true, r.logprobs = 2;
  Sampling& s = r.sampling;
  if (sampled) s.temperature = 0.8f, s.top_p = 0.95f, s.seed = seed;
  s.repetition_penalty = 1.2f, s.frequency_penalty = 0.3f, s.presence_penalty = 0.4f;
  s.logit_bias = {{5, 2.f}, {17, -1e9f}};
  return r;
}

struct WithLogprobs {
  Said said;
  std::vector<float> logprobs;
  bool operator==(const WithLogprobs&) const = default;
};
void PrintTo(const WithLogprobs& w, std::ostream* out) { PrintTo(w.said, out); }

void put(const Chunk& chunk, WithLogprobs& to) {
  to.said.tokens.insert(to.said.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
  for (float l : chunk.logits) to.said.logits.push_back(std::bit_cast<uint32_t>(l));
  for (const TokenLogprobs& l : chunk.logprobs) {
    to.logprobs.push_back(l.chosen);
    for (const auto& [token, value] : l.top) to.logprobs.push_back(float(token) + value);
  }
  to.said.finish = chunk.finish, to.said.stop_token = chunk.stop_token;
}
WithLogprobs read_all(Stream& stream) {
  WithLogprobs out;
  for (Chunk chunk; stream.next(chunk);) put(chunk, out);
  return out;
}

/// Waits until the stream's queue must be full.
void let_fill(Stream& stream) {
  for (int64_t before = -1, now = 0; before != now || now < StreamState::kQueuedRounds;) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    before = now, now = stream.stats().tokens;
  }
}

class Unread : public ::testing::TestWithParam<const char*> {};
TEST_P(Unread, LendsItsSlotAndGoesOnWithTheSameBits) {
  const auto bare = load(model(), "");
  const auto engine = load(model(), GetParam());
  for (bool sampled : {true, false}) {
    const Request long_one = long_request(1, 700, sampled), short_one = long_request(2, 90);
    const auto alone = read_all(*bare->submit(long_one));
    const auto other = read_all(*bare->submit(short_one));
    auto unread = engine->submit(long_one);
    let_fill(*unread);
    EXPECT_EQ(read_all(*engine->submit(short_one)), other);
    // In the middle of the text it happens again, and the request that waits is cancelled.
    WithLogprobs got;
    Chunk chunk;
    while (got.said.tokens.size() < 300 && unread->next(chunk)) put(chunk, got);
    let_fill(*unread);
    EXPECT_EQ(read_all(*engine->submit(short_one)), other);
    EXPECT_GT(engine->verify_ms({1}, 8, 1)[0], 0);  // an idle engine is lent as well
    while (unread->next(chunk)) put(chunk, got);
    EXPECT_EQ(got, alone) << GetParam();

    const Stats stats = unread->stats();
    EXPECT_EQ(stats.tokens, 700);
    EXPECT_EQ(stats.prompt_tokens, int64_t(long_one.prompt.size()));
    EXPECT_EQ(stats.seed, long_one.sampling.seed);
    EXPECT_GE(stats.levels[0].emitted, 700);
    EXPECT_LE(stats.levels[0].emitted, 700 + kMaxEmitted);
    EXPECT_EQ(stats.levels[0].emitted, stats.levels[0].rounds + stats.levels[0].accepted);
  }
}
INSTANTIATE_TEST_SUITE_P(All, Unread,
                         ::testing::Values("", "lookup", "cast:int8,lookup",
                                           "cast:int8:shared,lookup", "cast:mxfp4:shared",
                                           "cast:w8a8,cast:mxfp4:shared,lookup"));

TEST(Unread, TakesTurnsWithOthersThatAreNotRead) {
  const auto bare = load(model(), "");
  Options options;
  options.max_sequences = 2;
  const auto engine = load(model(), "cast:int8:shared,lookup", options);
  std::vector<std::shared_ptr<Stream>> streams;
  for (unsigned i = 0; i < 5; ++i) streams.push_back(engine->submit(long_request(i, 400)));
  // Each is begun although none of those before it is ever read.
  for (const auto& stream : streams) let_fill(*stream);
  for (unsigned i = 5; i-- > 0;)
    EXPECT_EQ(read_all(*streams[i]), read_all(*bare->submit(long_request(i, 400)))) << i;
}

TEST(Unread, CanBeCancelledAndClosed) {
  auto engine = load(model(), "lookup");
  auto parked = engine->submit(long_request(1, 700)), kept = engine->submit(long_request(3, 700));
  let_fill(*kept);
  auto last = engine->submit(long_request(2, 90));
  EXPECT_EQ(read_all(*last).said.tokens.size(), 90u);
  parked->cancel();
  const auto cut = read_all(*parked);
  EXPECT_EQ(cut.said.finish, Finish::cancelled);
  const auto whole = read_all(*load(model(), "")->submit(long_request(1, 700)));
  ASSERT_GE(cut.said.tokens.size(), size_t(StreamState::kQueuedRounds));
  EXPECT_TRUE(
      std::equal(cut.said.tokens.begin(), cut.said.tokens.end(), whole.said.tokens.begin()));
  engine.reset();
  EXPECT_EQ(read_all(*kept).said.finish, Finish::cancelled);
}

TEST(Unread, GoesOnOnMemoryTheHostCannotRead) {
  Options options;
  options.draft = fixed_draft("cast:int8:shared,lookup");
  auto far = std::make_unique<FarBackend>("", 1);
  FarBackend& backend = *far;
  const auto engine = load_engine(model(), options, std::move(far));
  backend.seal();
  auto unread = engine->submit(long_request(1, 200));
  let_fill(*unread);
  read_all(*engine->submit(long_request(2, 30)));
  Options near;
  near.device = "cpu";
  EXPECT_EQ(read_all(*unread), read_all(*load(model(), "", near)->submit(long_request(1, 200))));
}

TEST(Unread, ReadersOfSeveralStreamsInTurnShareOneSlot) {
  const auto bare = load(model(), "");
  const auto engine = load(model(), "cast:int8:shared,lookup");
  std::vector<std::shared_ptr<Stream>> streams;
  std::vector<std::vector<Token>> tokens(3);
  for (unsigned i = 0; i < 3; ++i) streams.push_back(engine->submit(long_request(i, 150)));
  Chunk chunk;
  for (bool more = true; more;) {
    more = false;
    for (size_t i = 0; i < streams.size(); ++i)
      if (streams[i]->next(chunk)) {
        tokens[i].insert(tokens[i].end(), chunk.tokens.begin(), chunk.tokens.end());
        more = true;
      }
  }
  for (unsigned i = 0; i < 3; ++i)
    EXPECT_EQ(tokens[i], read_all(*bare->submit(long_request(i, 150))).said.tokens) << i;
}

TEST(Unread, ASlowReaderKeepsItsSlot) {
  const auto engine = load(model(), "");
  auto slow = engine->submit(long_request(1, 80));
  let_fill(*slow);
  auto waits = engine->submit(long_request(2, 10));
  Chunk chunk;
  for (int i = 0; i < 30 && slow->next(chunk); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  EXPECT_EQ(waits->stats().tokens, 0);
  while (slow->next(chunk)) {
  }
  EXPECT_EQ(read_all(*waits).said.tokens.size(), 10u);
}

}  // namespace
}  // namespace stepladder
