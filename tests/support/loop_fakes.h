// A verifier, a drafter and a target's side without weights that write down what the loop asks of
// them and can be held up: the next token is a hash of the last three.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <stdexcept>
#include <vector>

#include "api/loop.h"

namespace stepladder {

/// Rules of the slots: here a seed alone.
class FakeSide final : public TargetSide {
 public:
  explicit FakeSide(int slots) : seeds(slots) {}
  void begin(int slot, const Sampling& s, std::span<const Token>, std::span<const Token>) override {
    if (s.seed == 666) throw Error(Code::unsupported, "seed 666");
    seeds[slot] = s.seed;
  }
  void ask_logprobs(int top) override { asked = top; }
  TokenLogprobs logprobs(int i, int k) const override {
    TokenLogprobs out{static_cast<float>(-k), {}};
    for (int t = 0; t < asked; ++t) out.top.emplace_back(t, static_cast<float>(-t - i));
    return out;
  }
  std::vector<uint64_t> seeds;
  int asked = -1;
};

/// The next token after `tokens`: a function of the last three and the seed.
inline Token fake_next(std::span<const Token> tokens, uint64_t seed, int vocab) {
  uint64_t h = seed + 0x9E3779B97F4A7C15u;
  for (size_t i = tokens.size() - std::min<size_t>(tokens.size(), 3); i < tokens.size(); ++i)
    h = (h ^ static_cast<uint64_t>(tokens[i] + 1)) * 0xBF58476D1CE4E5B9u, h ^= h >> 29;
  return static_cast<Token>(h % static_cast<uint64_t>(vocab));
}

/// What plain decoding writes: at most `limit` tokens, up to and without a token in `stops`.
inline std::vector<Token> fake_text(std::vector<Token> tokens, uint64_t seed, int vocab, int limit,
                                    const std::vector<Token>& stops = {}) {
  const size_t prompt = tokens.size();
  for (int i = 0; i < limit; ++i) {
    const Token t = fake_next(tokens, seed, vocab);
    if (std::find(stops.begin(), stops.end(), t) != stops.end()) break;
    tokens.push_back(t);
  }
  return {tokens.begin() + static_cast<long>(prompt), tokens.end()};
}

/// One call of the verifier.
struct FakeCall {
  bool verify = false;
  std::vector<int> slots;   // of the batch
  std::vector<int> amount;  // rows read, or nodes of each tree
};

class FakeVerifier final : public Verifier {
 public:
  struct Options {
    int slots = 1, vocab = 5, context = 1000;
    int fail_at = 0;  // the round that throws, counted from 1
  };
  FakeVerifier(const Options& o, const FakeSide& side)
      : options_(o), side_(side), held_(o.slots), usable_(o.slots) {}

  void sync(Batch batch) override {
    for (const Sequence* s : batch) {
      auto& held = held_[s->slot];
      const size_t n = std::min(held.size(), s->tokens.size() - 1);
      usable_[s->slot] =
          std::mismatch(held.begin(), held.begin() + long(n), s->tokens.begin()).first -
          held.begin();
    }
  }
  int lacking(const Sequence& s) const override {
    return int(s.tokens.size()) - 1 - int(usable_[s.slot]);
  }
  int catch_up() const override { return 4; }
  int room(const Sequence& s) const override { return options_.context - int(s.tokens.size()) + 1; }

  void read(Batch batch, int rows) override {
    FakeCall call;
    for (const Sequence* s : batch) {
      const int n = std::min(rows, lacking(*s));
      hold(*s, usable_[s->slot] + size_t(n));
      rows -= n;
      call.slots.push_back(s->slot), call.amount.push_back(n);
    }
    note(call);
  }

  void extend(Batch, std::span<const int>, std::span<RoundResult>) override {
    throw std::logic_error("the target is no leaf");
  }
  void verify(Batch batch, const DraftTrees& trees, std::span<RoundResult> out) override {
    if (options_.fail_at && ++rounds_ == options_.fail_at)
      throw Error(Code::internal, "the device went away");
    FakeCall call{true, {}, {}};
    for (size_t i = 0; i < batch.size(); ++i) {
      const Sequence& s = *batch[i];
      if (lacking(s) > catch_up() || room(s) < 1)
        throw std::logic_error("a round that should not be");
      hold(s, s.tokens.size() - 1);
      out[i] = accept(s, trees, int(i));
      auto& held = held_[s.slot];
      held.push_back(s.tokens.back());
      for (int d = 0; d + 1 < out[i].emitted; ++d) held.push_back(out[i].token[d]);
      if (int(held.size()) > options_.context) throw std::logic_error("written behind the context");
      call.slots.push_back(s.slot), call.amount.push_back(trees.count[i]);
    }
    note(call);
  }

  std::optional<double> last_ms() const override { return std::nullopt; }

  std::vector<FakeCall> calls() const {
    const std::lock_guard lock(mutex_);
    return calls_;
  }
  /// Calls that begin from now on do not end before open().
  void shut() {
    const std::lock_guard lock(mutex_);
    shut_ = true;
  }
  void open() {
    {
      const std::lock_guard lock(mutex_);
      shut_ = false;
    }
    changed_.notify_all();
  }
  /// Waits until `n` calls have begun.
  void wait_for_calls(size_t n) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return calls_.size() >= n; });
  }

 private:
  void hold(const Sequence& s, size_t n) {
    held_[s.slot].assign(s.tokens.begin(), s.tokens.begin() + long(n));
    usable_[s.slot] = n;
  }
  RoundResult accept(const Sequence& s, const DraftTrees& trees, int i) const {
    RoundResult r;
    std::vector<Token> path = s.tokens;
    for (int node = 0; node >= 0;) {
      const Token choice = fake_next(path, side_.seeds[s.slot], options_.vocab);
      r.logit[r.emitted] = float(path.size()), r.token[r.emitted++] = choice;
      path.push_back(choice);
      int next = -1;
      for (int c = node + 1; c < trees.count[i] && next < 0; ++c)
        if (trees.parent_at(i, c) == node && trees.token_at(i, c) == choice) next = c;
      node = next;
    }
    return r;
  }
  void note(const FakeCall& call) {
    std::unique_lock lock(mutex_);
    calls_.push_back(call);
    changed_.notify_all();
    changed_.wait(lock, [this] { return !shut_; });
  }

  Options options_;
  const FakeSide& side_;
  std::vector<std::vector<Token>> held_;
  std::vector<size_t> usable_;
  int rounds_ = 0;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<FakeCall> calls_;
  bool shut_ = false;
};

/// Guesses right most of the time, once it has read its way through the prompt.
class FakeDrafter final : public Drafter {
 public:
  FakeDrafter(int slots, int vocab, const FakeSide& side)
      : vocab_(vocab), side_(side), read_(slots) {}
  void sync(Batch batch) override {
    for (const Sequence* s : batch) read_[s->slot] = std::min(read_[s->slot], s->tokens.size());
  }
  bool ready(const Sequence& s) const override {
    return read_[s.slot] + kCatchUp >= s.tokens.size();
  }
  bool read(Batch batch, int rows) override {
    bool all = true;
    for (const Sequence* s : batch) {
      const size_t n =
          ready(*s) ? 0 : std::min<size_t>(size_t(rows), s->tokens.size() - read_[s->slot]);
      read_[s->slot] += n, rows -= int(n), blocks += n > 0;
      all = all && ready(*s);
    }
    return all;
  }
  void draft(Batch batch, std::span<const Budget> budgets, DraftTrees& out) override {
    for (size_t i = 0; i < batch.size(); ++i) {
      if (budgets[i].at_most == 0) continue;
      out.reset(int(i), batch[i]->tokens.back());
      if (!ready(*batch[i])) throw std::logic_error("asked to draft before it had read");
      read_[batch[i]->slot] = batch[i]->tokens.size();
      std::vector<Token> path = batch[i]->tokens;
      for (int d = 0; d < budgets[i].at_most; ++d) {
        Token t = fake_next(path, side_.seeds[batch[i]->slot], vocab_);
        if (path.size() % 7 == 3) t = (t + 1) % vocab_;  // now and then it is wrong
        if (out.add(int(i), d, t) < 0) break;
        path.push_back(t);
      }
    }
  }
  std::optional<double> last_ms() const override { return std::nullopt; }
  void forget(int slot) override { read_[slot] = 0; }

  std::atomic<int> blocks{0};

 private:
  static constexpr size_t kCatchUp = 40;
  int vocab_;
  const FakeSide& side_;
  std::vector<size_t> read_;
};

}  // namespace stepladder
