// Where a request's tokens wait between the engine's thread, which writes them, and the caller,
// who takes them. The queue is bounded: a stream whose caller is slow is left out of rounds,
// and one whose caller has gone lends its slot to whoever waits for one.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "backends/backend.h"
#include "stepladder/engine.h"

namespace stepladder {

/// Wakes the engine's thread. Shared, so that a stream may outlive its engine.
class Doorbell {
 public:
  void ring();
  /// Returns at once if it has rung since the last wait.
  void wait();
  /// wait() for at most so long.
  void wait_for(std::chrono::milliseconds);

 private:
  std::mutex mutex_;
  std::condition_variable rung_;
  bool rings_ = false;
};

/// Throws Error(unsupported) in a child that was forked after the model was loaded: the engine's
/// thread and its workers exist in the parent alone. Asked before any lock, which the fork may
/// have copied while it was held.
class ForkGuard {
 public:
  ForkGuard();
  bool forked() const noexcept;
  void check_here() const;

 private:
  long process_;
};

/// One request from submission to its last chunk.
class StreamState {
 public:
  /// Rounds that may wait for the caller: enough that a caller who is busy for a moment never
  /// slows the engine, little enough that one who has gone costs nothing.
  static constexpr int kQueuedRounds = 32;

  /// What the queue takes, log-probabilities aside.
  static const size_t kQueueBytes;

  StreamState(Request, std::shared_ptr<Doorbell>, std::shared_ptr<std::atomic<int>> cancels);

  const Request request;
  const std::chrono::steady_clock::time_point submitted = std::chrono::steady_clock::now();

  // The caller's side.
  bool next(Chunk& out);
  bool wait(int milliseconds);
  void notify(std::function<void()> then);
  void cancel() noexcept;
  Stats stats() const;

  // The engine's side.
  /// Whether a caller stands in next() or wait() with nothing to take, or is to be notified.
  bool awaited() const noexcept { return awaited_.load(std::memory_order_relaxed) > 0; }
  /// Whether the request has a slot; while it has none, a caller who begins to wait rings the
  /// doorbell.
  void slotted(bool has) noexcept { slotted_.store(has, std::memory_order_relaxed); }
  bool cancelled() const noexcept { return cancel_.load(std::memory_order_relaxed); }
  /// Takes the queue's memory, when the request gets a slot.
  void open();
  /// Whether one more round can be pushed. If not, the doorbell rings once there is room.
  bool has_room();
  /// Whether has_room() has said no since `then` or earlier, and nothing has been taken since.
  bool unread_since(std::chrono::steady_clock::time_point then) const;
  /// Whether a request that lent its slot should have one again: half its queue has been taken, so
  /// that its caller has something to do while it catches up. If not, the doorbell rings once so.
  bool may_return();
  /// Queues what a round gave, and how the text ended if it did. `logprobs` is empty or as long as
  /// `tokens`, and is moved from.
  void push(std::span<const Token> tokens, std::span<const float> logits,
            std::span<TokenLogprobs> logprobs, Finish finish, Token stop_token);
  /// No more rounds follow. The first end counts.
  void finish(Finish);
  void fail(Code, const std::string& message);
  void set_stats(const Stats&);

 private:
  /// Counts a caller as waiting while it does.
  class Awaiting;
  void begin_to_wait();
  /// Whether next() would return at once.
  bool ready() const { return queued_ > 0 || finish_ != Finish::none; }
  /// Tells everyone who waits that there is something to take, once the lock has been given back.
  void tell(std::unique_lock<std::mutex>);
  struct Round {
    int count = 0;
    Token token[kMaxEmitted];
    float logit[kMaxEmitted];
    std::vector<TokenLogprobs> logprobs;
  };

  const ForkGuard guard_;
  const std::shared_ptr<Doorbell> doorbell_;
  const std::shared_ptr<std::atomic<int>> cancels_;  // of all streams; says that one is to be found
  std::atomic<bool> cancel_{false};
  std::atomic<int> awaited_{0};
  std::atomic<bool> slotted_{false};

  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> notify_;  // counts in awaited_ while there is one
  std::vector<Round> rounds_;     // ring of kQueuedRounds
  int first_ = 0, queued_ = 0;
  int wake_below_ = 0;  // the doorbell rings once fewer rounds are queued
  std::optional<std::chrono::steady_clock::time_point> full_since_;  // as the engine found it
  Finish finish_ = Finish::none;
  Token stop_token_ = -1;
  std::optional<Error> error_;
  bool ended_ = false;  // the last chunk has been given
  Stats stats_;
};

/// The caller's handle: dropping it cancels what still runs.
class StreamHandle final : public Stream {
 public:
  explicit StreamHandle(std::shared_ptr<StreamState> state) : state_(std::move(state)) {}
  ~StreamHandle() override { state_->cancel(); }
  bool next(Chunk& out) override { return state_->next(out); }
  bool wait(int milliseconds) override { return state_->wait(milliseconds); }
  void notify(std::function<void()> then) override { state_->notify(std::move(then)); }
  void cancel() noexcept override { state_->cancel(); }
  Stats stats() const override { return state_->stats(); }

 private:
  std::shared_ptr<StreamState> state_;
};

}  // namespace stepladder
