#include "api/stream.h"

#include <unistd.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "core/error.h"

namespace stepladder {

void Doorbell::ring() {
  {
    const std::lock_guard lock(mutex_);
    rings_ = true;
  }
  rung_.notify_one();
}

void Doorbell::wait() {
  std::unique_lock lock(mutex_);
  rung_.wait(lock, [this] { return rings_; });
  rings_ = false;
}

void Doorbell::wait_for(std::chrono::milliseconds time) {
  std::unique_lock lock(mutex_);
  rung_.wait_for(lock, time, [this] { return rings_; });
  rings_ = false;
}

ForkGuard::ForkGuard() : process_(::getpid()) {}

bool ForkGuard::forked() const noexcept { return ::getpid() != process_; }

void ForkGuard::check_here() const {
  check(!forked(), Code::unsupported,
        "this process was forked after the model was loaded, and the engine's threads stayed in "
        "the parent; load the "
        "model in the child, or start workers with 'spawn'");
}

const size_t StreamState::kQueueBytes = kQueuedRounds * sizeof(Round);

StreamState::StreamState(Request r, std::shared_ptr<Doorbell> doorbell,
                         std::shared_ptr<std::atomic<int>> cancels)
    : request(std::move(r)), doorbell_(std::move(doorbell)), cancels_(std::move(cancels)) {
  stats_.prompt_tokens = static_cast<int64_t>(request.prompt.size());
  stats_.seed = request.sampling.seed;
}

class StreamState::Awaiting {
 public:
  explicit Awaiting(StreamState& state) : state_(state) { state_.begin_to_wait(); }
  ~Awaiting() { state_.awaited_.fetch_sub(1); }
  Awaiting(const Awaiting&) = delete;
  Awaiting& operator=(const Awaiting&) = delete;

 private:
  StreamState& state_;
};

void StreamState::begin_to_wait() {
  awaited_.fetch_add(1);
  if (!slotted_.load()) doorbell_->ring();
}

bool StreamState::next(Chunk& out) {
  guard_.check_here();
  out = Chunk();
  std::unique_lock lock(mutex_);
  if (!ready()) {
    const Awaiting awaiting(*this);
    changed_.wait(lock, [this] { return ready(); });
  }
  if (queued_ > 0) {
    Round& round = rounds_[first_];
    out.tokens.assign(round.token, round.token + round.count);
    out.logits.assign(round.logit, round.logit + round.count);
    out.logprobs = std::move(round.logprobs);
    round.logprobs.clear();
    first_ = (first_ + 1) % kQueuedRounds;
    --queued_;
    full_since_.reset();
  } else if (finish_ == Finish::error) {
    throw *error_;
  } else if (ended_) {
    return false;
  }
  // An error is thrown on its own, after the tokens that came before it.
  if (queued_ == 0 && finish_ != Finish::none && finish_ != Finish::error) {
    out.finish = finish_, out.stop_token = stop_token_;
    ended_ = true;
  }
  const bool wake = queued_ < wake_below_;
  if (wake) wake_below_ = 0;
  lock.unlock();
  if (wake) doorbell_->ring();
  return true;
}

bool StreamState::wait(int milliseconds) {
  guard_.check_here();
  std::unique_lock lock(mutex_);
  if (ready() || milliseconds <= 0) return ready();
  const Awaiting awaiting(*this);
  return changed_.wait_for(lock, std::chrono::milliseconds(milliseconds),
                           [this] { return ready(); });
}

void StreamState::notify(std::function<void()> then) {
  guard_.check_here();
  std::unique_lock lock(mutex_);
  if (std::exchange(notify_, nullptr)) awaited_.fetch_sub(1);
  if (!then) return;
  if (ready()) {
    lock.unlock();
    then();
  } else {
    notify_ = std::move(then);
    begin_to_wait();
  }
}

void StreamState::tell(std::unique_lock<std::mutex> lock) {
  const auto then = ready() ? std::exchange(notify_, nullptr) : nullptr;
  if (then) awaited_.fetch_sub(1);
  lock.unlock();
  changed_.notify_all();
  if (then) then();
}

void StreamState::cancel() noexcept {
  if (guard_.forked() || cancel_.exchange(true)) return;
  cancels_->fetch_add(1);
  doorbell_->ring();
}

Stats StreamState::stats() const {
  guard_.check_here();
  const std::lock_guard lock(mutex_);
  return stats_;
}

void StreamState::open() {
  const std::lock_guard lock(mutex_);
  rounds_.resize(kQueuedRounds);
}

bool StreamState::has_room() {
  const std::lock_guard lock(mutex_);
  if (queued_ < kQueuedRounds) return true;
  if (!full_since_) full_since_ = std::chrono::steady_clock::now();
  wake_below_ = kQueuedRounds;
  return false;
}

bool StreamState::unread_since(std::chrono::steady_clock::time_point then) const {
  const std::lock_guard lock(mutex_);
  return full_since_ && *full_since_ <= then;
}

bool StreamState::may_return() {
  constexpr int most = kQueuedRounds / 2;
  const std::lock_guard lock(mutex_);
  if (queued_ <= most) return true;
  wake_below_ = most + 1;
  return false;
}

void StreamState::push(std::span<const Token> tokens, std::span<const float> logits,
                       std::span<TokenLogprobs> logprobs, Finish finish, Token stop_token) {
  std::unique_lock lock(mutex_);
  if (!tokens.empty()) {
    Round& round = rounds_[(first_ + queued_) % kQueuedRounds];
    round.count = static_cast<int>(tokens.size());
    std::copy(tokens.begin(), tokens.end(), round.token);
    std::copy(logits.begin(), logits.end(), round.logit);
    round.logprobs.assign(std::make_move_iterator(logprobs.begin()),
                          std::make_move_iterator(logprobs.end()));
    ++queued_;
  }
  finish_ = finish, stop_token_ = stop_token;
  tell(std::move(lock));
}

void StreamState::finish(Finish reason) {
  std::unique_lock lock(mutex_);
  if (finish_ != Finish::none) return;
  finish_ = reason;
  tell(std::move(lock));
}

void StreamState::fail(Code code, const std::string& message) {
  std::unique_lock lock(mutex_);
  if (finish_ != Finish::none) return;
  finish_ = Finish::error;
  error_.emplace(code, message);
  tell(std::move(lock));
}

void StreamState::set_stats(const Stats& stats) {
  const std::lock_guard lock(mutex_);
  stats_ = stats;
}

}  // namespace stepladder
