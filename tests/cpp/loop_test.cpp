// The loop over levels without weights: who is served when, how a text ends, what a caller sees.
#include "api/loop.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <future>
#include <random>
#include <thread>

#include "core/error.h"
#include "support/loop_fakes.h"

namespace stepladder {
namespace {

constexpr int kVocab = 5;
constexpr int kBlock = 120;  // rows of a prompt block

// ---- the loop ------------------------------------------------------------------------------

struct Fixture {
  explicit Fixture(FakeVerifier::Options options, bool drafts = true,
                   std::vector<Token> ends = {}) {
    LoopParts parts;
    parts.block = kBlock;
    auto fake_side = std::make_unique<FakeSide>(options.slots);
    side = fake_side.get();
    auto fake = std::make_unique<FakeVerifier>(options, *side);
    verifier = fake.get();
    std::unique_ptr<FakeDrafter> below;
    if (drafts) below = std::make_unique<FakeDrafter>(options.slots, options.vocab, *side);
    drafter = below.get();
    parts.target = std::make_unique<Level>(
        std::move(fake), std::move(below),
        LevelOptions{
            .name = "target", .tokens = 4, .sequences = options.slots, .context = options.context});
    parts.side = std::move(fake_side);
    parts.end_tokens = std::move(ends);
    parts.limits = {options.vocab, options.context, options.context};
    parts.sequences = options.slots;
    loop = std::make_unique<Loop>(std::move(parts));
  }
  ~Fixture() {
    if (loop) verifier->open();
  }
  FakeSide* side;
  FakeVerifier* verifier;
  FakeDrafter* drafter;
  std::unique_ptr<Loop> loop;
};

struct Text {
  std::vector<Token> tokens;
  std::vector<float> logits;
  Finish finish = Finish::none;
  Token stop_token = -1;
};
Text take(Stream& stream) {
  Text out;
  for (Chunk chunk; stream.next(chunk);) {
    EXPECT_EQ(out.finish, Finish::none);
    out.tokens.insert(out.tokens.end(), chunk.tokens.begin(), chunk.tokens.end());
    out.logits.insert(out.logits.end(), chunk.logits.begin(), chunk.logits.end());
    out.finish = chunk.finish, out.stop_token = chunk.stop_token;
  }
  Chunk chunk;
  EXPECT_FALSE(stream.next(chunk));
  return out;
}

std::vector<Token> some_prompt(size_t n, unsigned seed) {
  std::mt19937 random(seed);
  std::vector<Token> out(n);
  for (Token& t : out) t = static_cast<Token>(random() % kVocab);
  return out;
}
Request request_of(std::vector<Token> prompt, int max_tokens, uint64_t seed = 0) {
  Request r;
  r.prompt = std::move(prompt), r.max_tokens = max_tokens, r.sampling.seed = seed;
  return r;
}

TEST(Loop, WritesTheModelsText) {
  for (bool drafts : {false, true}) {
    Fixture f({.slots = 1}, drafts);
    for (unsigned i = 0; i < 20; ++i) {
      const auto prompt = some_prompt(1 + i * 13 % 300, i);
      auto stream = f.loop->submit(request_of(prompt, 1 + int(i) * 5, i));
      const Text text = take(*stream);
      EXPECT_EQ(text.tokens, fake_text(prompt, i, kVocab, 1 + int(i) * 5));
      EXPECT_EQ(text.finish, Finish::length);
      for (size_t k = 0; k < text.logits.size(); ++k)
        EXPECT_EQ(text.logits[k], float(prompt.size() + k));
      const Stats stats = stream->stats();
      EXPECT_EQ(stats.tokens, int64_t(text.tokens.size()));
      EXPECT_EQ(stats.prompt_tokens, int64_t(prompt.size()));
      EXPECT_EQ(stats.seed, i);
      ASSERT_EQ(stats.levels.size(), 1u);
      EXPECT_EQ(stats.levels[0].name, "target");
      EXPECT_GT(stats.first_token_ms, 0);
      if (drafts && i > 5) {
        EXPECT_GT(stats.levels[0].acceptance_length(), 1.5);
      }
    }
  }
}

TEST(Loop, TheFirstRoundHasNoDraftsAndTheLevelsBelowReadAfterIt) {
  Fixture f({.slots = 1});
  auto stream = f.loop->submit(request_of(some_prompt(600, 1), 40));
  EXPECT_EQ(take(*stream).tokens.size(), 40u);
  std::vector<int> nodes;
  int blocks = 0;
  for (const FakeCall& call : f.verifier->calls())
    if (call.verify) {
      nodes.push_back(call.amount[0]);
    } else {
      ++blocks;
      EXPECT_TRUE(nodes.empty());
      EXPECT_LE(call.amount[0], kBlock);
    }
  EXPECT_EQ(blocks, 5);
  EXPECT_EQ(nodes[0], 1);
  // 600 tokens take the level below five blocks of 120, one after each round: plain until then.
  for (int i = 1; i < 5; ++i) EXPECT_EQ(nodes[i], 1) << i;
  EXPECT_GT(*std::max_element(nodes.begin(), nodes.end()), 1);
  EXPECT_EQ(f.drafter->blocks, 5);
}

TEST(Loop, ARequestWithoutDraftsGetsNone) {
  Fixture f({.slots = 1});
  Request request = request_of(some_prompt(50, 2), 30);
  request.draft = false;
  auto stream = f.loop->submit(request);
  EXPECT_EQ(take(*stream).tokens, fake_text(request.prompt, 0, kVocab, 30));
  for (const FakeCall& call : f.verifier->calls())
    if (call.verify) {
      EXPECT_EQ(call.amount[0], 1);
    }
  EXPECT_EQ(f.drafter->blocks, 0);
}

TEST(Loop, PromptBlocksAlternateWithTheRoundsOfThoseThatStream) {
  Fixture f({.slots = 2, .context = 5000});
  f.verifier->shut();
  // One token a round, and all of them fit its queue: it streams whether it is read or not.
  Request streaming = request_of(some_prompt(3, 1), 100);
  streaming.draft = false;
  auto first = f.loop->submit(streaming);
  auto second = f.loop->submit(request_of(some_prompt(1300, 2), 3));
  f.verifier->open();
  take(*second);
  take(*first);
  int blocks = 0;
  bool round_since = true;
  for (const FakeCall& call : f.verifier->calls()) {
    if (!call.verify) {
      EXPECT_TRUE(round_since);
      EXPECT_LE(call.amount[0], kBlock);
      ++blocks, round_since = false;
    } else {
      round_since = true;
    }
  }
  EXPECT_EQ(blocks, 11);
}

TEST(Loop, SequencesThatAreReadyShareOnePass) {
  Fixture f({.slots = 4}, true);
  f.verifier->shut();
  std::vector<std::shared_ptr<Stream>> streams;
  for (unsigned i = 0; i < 4; ++i)
    streams.push_back(f.loop->submit(request_of(some_prompt(3, i), 50, i)));
  f.verifier->wait_for_calls(1);  // the loop hangs in its first round; by the next all are there
  f.verifier->open();
  for (unsigned i = 0; i < 4; ++i)
    EXPECT_EQ(take(*streams[i]).tokens, fake_text(some_prompt(3, i), i, kVocab, 50));
  size_t widest = 0;
  for (const FakeCall& call : f.verifier->calls()) widest = std::max(widest, call.slots.size());
  EXPECT_EQ(widest, 4u);
}

TEST(Loop, EndTokensInsideADraftEndTheTextExactlyThere) {
  for (Token end = 0; end < kVocab; ++end)
    for (unsigned i = 0; i < 30; ++i) {
      Fixture f({.slots = 1}, true, {end});
      const auto prompt = some_prompt(4, i);
      const auto expected = fake_text(prompt, i, kVocab, 60, {end});
      auto stream = f.loop->submit(request_of(prompt, 60, i));
      const Text text = take(*stream);
      EXPECT_EQ(text.tokens, expected);
      EXPECT_EQ(text.finish, expected.size() < 60 ? Finish::stop : Finish::length);
      EXPECT_EQ(text.stop_token, expected.size() < 60 ? end : -1);
      Request request = request_of(prompt, 60, i);
      request.ignore_eos = true, request.stop_token_ids = {(end + 1) % kVocab};
      const Text other = take(*f.loop->submit(request));
      EXPECT_EQ(other.tokens, fake_text(prompt, i, kVocab, 60, request.stop_token_ids));
    }
}

TEST(Loop, AFullContextEndsTheTextAtTheSamePlaceWithAndWithoutDrafts) {
  for (int left = 1; left <= 10; ++left) {
    Text texts[2];
    for (bool drafts : {false, true}) {
      Fixture f({.slots = 1, .context = 60}, drafts);
      Request request = request_of(some_prompt(size_t(60 - left + 1), 3), 100);
      texts[drafts] = take(*f.loop->submit(request));
      EXPECT_EQ(texts[drafts].finish, Finish::length);
      EXPECT_EQ(texts[drafts].tokens, fake_text(request.prompt, 0, kVocab, left));
    }
    EXPECT_EQ(texts[0].tokens, texts[1].tokens);
  }
}

TEST(Loop, ARequestTakesTheSlotThatSharesItsBeginning) {
  Fixture f({.slots = 3});
  const auto a = some_prompt(200, 1), b = some_prompt(200, 2), c = some_prompt(200, 3);
  for (const auto& prompt : {a, b, c}) take(*f.loop->submit(request_of(prompt, 5)));
  auto longer = b;
  const auto answer = fake_text(b, 0, kVocab, 5);
  longer.insert(longer.end(), answer.begin(), answer.end());
  longer.push_back(1);
  auto stream = f.loop->submit(request_of(longer, 5));
  EXPECT_EQ(take(*stream).tokens, fake_text(longer, 0, kVocab, 5));
  EXPECT_EQ(stream->stats().cached_tokens, 204);  // all but the last token written and the new one
  EXPECT_EQ(f.verifier->calls().back().slots[0], 1);
  // Nothing in common with anybody: the least recently used slot, which is a's.
  std::vector<Token> fresh = {(a[0] + 1) % kVocab, 0, 0};
  while (fresh[0] == b[0] || fresh[0] == c[0] || fresh[0] == a[0])
    fresh[0] = (fresh[0] + 1) % kVocab;
  take(*f.loop->submit(request_of(fresh, 2)));
  EXPECT_EQ(f.verifier->calls().back().slots[0], 0);
}

TEST(Loop, RequestsBeyondTheSlotsQueue) {
  Fixture f({.slots = 2});
  std::vector<std::shared_ptr<Stream>> streams;
  for (unsigned i = 0; i < 30; ++i)
    streams.push_back(f.loop->submit(request_of(some_prompt(10 + i, i), 20, i)));
  for (unsigned i = 0; i < 30; ++i)
    EXPECT_EQ(take(*streams[i]).tokens, fake_text(some_prompt(10 + i, i), i, kVocab, 20));
}

TEST(Loop, ASlowCallerIsLeftOutOfRoundsAndLosesNothing) {
  Fixture f({.slots = 2, .context = 3000}, false);
  auto slow = f.loop->submit(request_of(some_prompt(3, 1), 1000, 1));
  auto quick = f.loop->submit(request_of(some_prompt(3, 2), 1000, 2));
  EXPECT_EQ(take(*quick).tokens.size(), 1000u);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(slow->stats().tokens, StreamState::kQueuedRounds);
  auto third = f.loop->submit(request_of(some_prompt(3, 3), 100, 3));
  EXPECT_EQ(take(*third).tokens.size(), 100u);
  EXPECT_EQ(take(*slow).tokens, fake_text(some_prompt(3, 1), 1, kVocab, 1000));
}

TEST(Loop, CancelEndsWithinOneRound) {
  Fixture f({.slots = 1, .context = 5000}, false);
  f.verifier->shut();
  auto stream = f.loop->submit(request_of(some_prompt(3, 1), 4000));
  f.verifier->wait_for_calls(1);
  stream->cancel();
  f.verifier->open();
  const Text text = take(*stream);
  EXPECT_EQ(text.finish, Finish::cancelled);
  EXPECT_EQ(text.tokens.size(), 1u);
  EXPECT_EQ(f.verifier->calls().size(), 1u);
}

TEST(Loop, CancelEndsBetweenTwoPromptBlocksAndKeepsWhatWasRead) {
  Fixture f({.slots = 1, .context = 5000}, false);
  f.verifier->shut();
  const auto prompt = some_prompt(2000, 1);
  auto stream = f.loop->submit(request_of(prompt, 10));
  f.verifier->wait_for_calls(1);
  stream->cancel();
  f.verifier->open();
  EXPECT_EQ(take(*stream).finish, Finish::cancelled);
  EXPECT_EQ(f.verifier->calls().size(), 1u);
  auto again = f.loop->submit(request_of(prompt, 10));
  EXPECT_EQ(take(*again).tokens, fake_text(prompt, 0, kVocab, 10));
  EXPECT_EQ(again->stats().cached_tokens, kBlock);
}

TEST(Loop, CancelOfAQueuedOrStarvedOrDroppedStream) {
  Fixture f({.slots = 1, .context = 100000}, false);
  auto running = f.loop->submit(request_of(some_prompt(3, 1), 90000));
  auto queued = f.loop->submit(request_of(some_prompt(3, 2), 10));
  queued->cancel();
  EXPECT_EQ(take(*queued).finish, Finish::cancelled);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));  // nobody reads: it starves
  running->cancel();
  EXPECT_EQ(take(*running).finish, Finish::cancelled);
  f.loop->submit(request_of(some_prompt(3, 3), 90000)).reset();
  EXPECT_EQ(take(*f.loop->submit(request_of(some_prompt(3, 4), 7))).tokens.size(), 7u);
}

TEST(Loop, AnErrorInARoundReachesEveryStream) {
  Fixture f({.slots = 2, .fail_at = 8}, false);
  std::vector<std::shared_ptr<Stream>> streams;
  for (unsigned i = 0; i < 4; ++i)
    streams.push_back(f.loop->submit(request_of(some_prompt(3, i), 100, i)));
  for (auto& stream : streams) {
    std::vector<Token> got;
    try {
      for (Chunk chunk; stream->next(chunk);)
        got.insert(got.end(), chunk.tokens.begin(), chunk.tokens.end());
      ADD_FAILURE() << "it ended without the error";
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("the device went away"), std::string::npos);
    }
    EXPECT_LE(got.size(), 8u);
  }
  EXPECT_THROW(f.loop->submit(request_of({1}, 1)), Error);
  EXPECT_THROW(f.loop->run_idle([](Level&, TargetSide&) {}), Error);
}

TEST(Loop, AnErrorAtTheBeginningConcernsItsOwnStreamAlone) {
  Fixture f({.slots = 1});
  auto bad = f.loop->submit(request_of({1, 2}, 5, 666));
  Chunk chunk;
  EXPECT_THROW(bad->next(chunk), Error);
  EXPECT_EQ(take(*f.loop->submit(request_of({1, 2}, 5, 1))).tokens,
            fake_text({1, 2}, 1, kVocab, 5));
}

TEST(Loop, ClosingEndsWhatRunsAsCancelled) {
  auto f = std::make_unique<Fixture>(FakeVerifier::Options{.slots = 1, .context = 100000}, false);
  auto running = f->loop->submit(request_of(some_prompt(3, 1), 90000));
  auto queued = f->loop->submit(request_of(some_prompt(3, 2), 10));
  Chunk chunk;
  ASSERT_TRUE(running->next(chunk));
  f->verifier->open();
  f->loop.reset();
  EXPECT_EQ(take(*running).finish, Finish::cancelled);
  EXPECT_EQ(take(*queued).finish, Finish::cancelled);
  EXPECT_GT(running->stats().tokens, 0);
}

TEST(Loop, LogprobsComeWithTheTokensThatAskedForThem) {
  Fixture f({.slots = 2});
  Request with = request_of(some_prompt(3, 1), 20), without = request_of(some_prompt(3, 2), 20);
  with.logprobs = 3;
  auto a = f.loop->submit(with), b = f.loop->submit(without);
  size_t seen = 0;
  for (Chunk chunk; a->next(chunk);) {
    ASSERT_EQ(chunk.logprobs.size(), chunk.tokens.size());
    for (size_t k = 0; k < chunk.tokens.size(); ++k, ++seen) {
      EXPECT_EQ(chunk.logprobs[k].chosen, -float(k));
      EXPECT_EQ(chunk.logprobs[k].top.size(), 3u);
    }
  }
  EXPECT_EQ(seen, 20u);
  for (Chunk chunk; b->next(chunk);) EXPECT_TRUE(chunk.logprobs.empty());
}

TEST(Loop, WaitSaysWhetherNextWouldReturn) {
  Fixture f({.slots = 1}, false);
  f.verifier->shut();
  auto stream = f.loop->submit(request_of(some_prompt(3, 1), 2));
  f.verifier->wait_for_calls(1);
  EXPECT_FALSE(stream->wait(0));
  EXPECT_FALSE(stream->wait(5));
  f.verifier->open();
  EXPECT_TRUE(stream->wait(10000));
  EXPECT_EQ(take(*stream).tokens.size(), 2u);
  EXPECT_TRUE(stream->wait(0));  // next() returns at once: there is nothing more
}

TEST(Loop, NotifyCallsOnceWhenNextWouldReturn) {
  Fixture f({.slots = 1}, false);
  f.verifier->shut();
  auto stream = f.loop->submit(request_of(some_prompt(3, 1), 2));
  f.verifier->wait_for_calls(1);
  std::atomic<int> replaced = 0, withdrawn = 0;
  std::promise<void> arrived;
  stream->notify([&] { ++replaced; });
  stream->notify([&] { ++withdrawn; });
  stream->notify(nullptr);
  stream->notify([&] { arrived.set_value(); });  // a second call would throw
  EXPECT_FALSE(stream->wait(0));
  f.verifier->open();
  arrived.get_future().wait();
  EXPECT_TRUE(stream->wait(0));
  EXPECT_EQ(take(*stream).tokens.size(), 2u);
  EXPECT_EQ(replaced + withdrawn, 0);
  int now = 0;
  stream->notify([&] { ++now; });  // nothing more will come, which next() says at once
  EXPECT_EQ(now, 1);
}

TEST(Loop, AStreamThatIsToBeNotifiedStandsInTheLine) {
  Fixture f({.slots = 1, .context = 5000});
  auto unread = f.loop->submit(request_of(some_prompt(3, 1), 4000));
  Chunk first;
  ASSERT_TRUE(unread->next(first));  // it has the slot, and soon a full queue
  auto behind = f.loop->submit(request_of(some_prompt(3, 2), 5));
  std::promise<void> arrived;
  behind->notify([&] { arrived.set_value(); });
  arrived.get_future().wait();
  EXPECT_EQ(take(*behind).tokens.size(), 5u);
  unread->cancel();
}

TEST(Loop, ACancelledStreamNotifies) {
  Fixture f({.slots = 1});
  f.verifier->shut();
  auto stream = f.loop->submit(request_of(some_prompt(3, 1), 50));
  f.verifier->wait_for_calls(1);
  std::promise<void> ended;
  stream->notify([&] { ended.set_value(); });
  stream->cancel();
  f.verifier->open();
  ended.get_future().wait();
  EXPECT_TRUE(stream->wait(0));
}

TEST(Loop, JobsRunWhenNobodyIsServed) {
  Fixture f({.slots = 1, .context = 5000});
  auto stream = f.loop->submit(request_of(some_prompt(3, 1), 300));
  Chunk first;
  ASSERT_TRUE(stream->next(first));  // it is being served
  std::thread reader([&] { EXPECT_EQ(take(*stream).tokens.size() + first.tokens.size(), 300u); });
  int64_t tokens = 0;
  f.loop->run_idle([&](Level&, TargetSide&) { tokens = stream->stats().tokens; });
  EXPECT_EQ(tokens, 300);
  EXPECT_THROW(f.loop->run_idle([](Level&, TargetSide&) { throw Error(Code::io, "job"); }), Error);
  reader.join();
}

// A fork copies the engine without its thread. The child must be told so, and must be able to end.
TEST(Loop, AForkedChildIsToldSo) {
  Fixture f({.slots = 1, .context = 100000}, false);
  auto stream = f.loop->submit(request_of(some_prompt(3, 1), 90000));
  Chunk chunk;
  ASSERT_TRUE(stream->next(chunk));
  const pid_t child = fork();
  if (child == 0) {
    alarm(10);
    int refused = 0;
    for (int what = 0; what < 3; ++what) try {
        if (what == 0) f.loop->submit(request_of({1}, 1));
        if (what == 1) stream->next(chunk);
        if (what == 2) stream->stats();
      } catch (const Error& e) {
        refused += e.code() == Code::unsupported &&
                   std::string(e.what()).find("fork") != std::string::npos;
      }
    stream->cancel();
    stream.reset();
    _exit(refused == 3 ? 0 : 1);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_TRUE(stream->next(chunk));  // the parent goes on
}

TEST(LoopConcurrency, ManyCallersGetTheTextTheyWouldGetAlone) {
  Fixture f({.slots = 3, .context = 400}, true, {2});
  std::vector<std::thread> callers;
  for (unsigned c = 0; c < 8; ++c)
    callers.emplace_back([&, c] {
      std::mt19937 random(c);
      for (unsigned i = 0; i < 25; ++i) {
        const auto prompt = some_prompt(1 + random() % 300, random() % 7);
        const uint64_t seed = random() % 5;
        const int max_tokens = int(1 + random() % 90);
        auto stream = f.loop->submit(request_of(prompt, max_tokens, seed));
        const auto expected =
            fake_text(prompt, seed, kVocab, std::min(max_tokens, 401 - int(prompt.size())), {2});
        if (random() % 4) {
          EXPECT_EQ(take(*stream).tokens, expected);
          continue;
        }
        std::thread canceller([&stream, wait = random() % 300] {
          std::this_thread::sleep_for(std::chrono::microseconds(wait));
          stream->cancel();
        });
        const Text text = take(*stream);
        canceller.join();
        ASSERT_LE(text.tokens.size(), expected.size());
        EXPECT_TRUE(std::equal(text.tokens.begin(), text.tokens.end(), expected.begin()));
      }
    });
  for (auto& caller : callers) caller.join();
}

TEST(Loop, ThousandsOfGenerationsLeaveNothingBehind) {
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "a sanitizer keeps what was freed";
#endif
  Fixture f({.slots = 2});
  const auto resident = [] {
    long pages = 0, rest = 0;
    FILE* file = std::fopen("/proc/self/statm", "r");
    const bool read = file && std::fscanf(file, "%ld %ld", &rest, &pages) == 2;
    if (file) std::fclose(file);
    return read ? pages * 4096 : 0;
  };
  const auto generate = [&](int n) {
    for (int i = 0; i < n; ++i)
      take(*f.loop->submit(request_of(some_prompt(5, unsigned(i % 10)), 8)));
  };
  generate(500);
  const long before = resident();
  generate(3000);
  // The fake's record of calls is all that may grow: under 200 bytes a call.
  EXPECT_LT(resident() - before, 3000L * 1024);
}

}  // namespace
}  // namespace stepladder
