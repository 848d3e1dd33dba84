// The engine's thread: takes requests in, gives each a slot, alternates prompt blocks with rounds
// of the sequences that stream, and hands the tokens out. It knows levels only by their interface.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "api/request.h"
#include "api/stream.h"
#include "spec/level.h"

namespace stepladder {

/// How long a stream whose queue is full keeps its slot from others while nobody takes from it.
constexpr std::chrono::milliseconds kPatience{200};

/// The target's side of a request that is no level's business.
class TargetSide {
 public:
  virtual ~TargetSide() = default;
  /// The slot's tokens are chosen by `sampling` from now on, over this prompt and what has been
  /// written after it already.
  virtual void begin(int slot, const Sampling& sampling, std::span<const Token> prompt,
                     std::span<const Token> output) = 0;
  /// Rounds from now on bring log-probabilities with the `top` likeliest tokens; -1 = none.
  virtual void ask_logprobs(int top) = 0;
  /// Of the k-th token that sequence i of the last round emitted, likeliest first.
  virtual TokenLogprobs logprobs(int i, int k) const = 0;
};

struct LoopParts {
  std::unique_ptr<Level> target;
  std::unique_ptr<TargetSide> side;
  std::vector<Token> end_tokens;
  RequestLimits limits;
  int sequences = 1;
  int block = 128;  // rows of one prompt block: the backend's own
};

class Loop {
 public:
  explicit Loop(LoopParts);
  /// Ends what still runs as cancelled and joins the thread. In a forked child the thread is not
  /// there, and what the loop holds is left alone.
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  /// Checks the request and queues it.
  std::shared_ptr<Stream> submit(Request);
  /// Runs `job` on the engine's thread once no request is running, and waits for it; the job may
  /// use every slot. What it throws is thrown here.
  void run_idle(const std::function<void(Level& target, TargetSide&)>& job);
  bool forked() const noexcept { return guard_.forked(); }

 private:
  /// A request without a slot, and how far it came in an earlier one.
  struct Work {
    std::shared_ptr<StreamState> stream;
    std::vector<Token> text;  // prompt and output so far; empty = not begun
    Stats stats;
    std::chrono::steady_clock::time_point first_token;
  };
  struct Slot {
    Sequence sequence;   // stays after its request, for the next one with the same beginning
    size_t entries = 0;  // tokens of it whose entries the target wrote
    uint64_t admitted = 0;
    std::shared_ptr<StreamState> stream;  // null = free
    std::vector<Token> stops;             // sorted
    bool reading = false;                 // the target has not caught up with the prompt
    int produced = 0;
    std::chrono::steady_clock::time_point first_token;
    Stats stats;
    std::vector<LevelStats> earlier;  // of the request's earlier slots; empty if there were none
  };
  struct Job {
    const std::function<void(Level&, TargetSide&)>* body;
    std::exception_ptr error;
    bool done = false;
  };

  void run();
  bool take_requests();
  void run_jobs();
  void drop_cancelled();
  void recall();
  bool lend();
  bool someone_stands() const;
  void park(Slot&);
  bool job_waits();
  void admit();
  Slot& best_slot(std::span<const Token> text);
  void begin(Slot&, Work);
  bool turn();
  bool read_prompts();
  bool round();
  void read_below();
  void deliver(Slot&, int index);
  void update_stats(Slot&, std::chrono::steady_clock::time_point now);
  void release(Slot&);
  void break_down(Code, const std::string& message);

  LoopParts parts_;
  std::vector<Level*> levels_;  // the target and the verifying levels below it
  const ForkGuard guard_;
  const std::shared_ptr<Doorbell> doorbell_ = std::make_shared<Doorbell>();
  const std::shared_ptr<std::atomic<int>> cancels_ = std::make_shared<std::atomic<int>>(0);

  std::mutex inbox_mutex_;  // guards the next four
  std::vector<std::shared_ptr<StreamState>> inbox_;
  std::vector<Job*> jobs_;
  std::optional<Error> broken_;
  bool stopping_ = false;
  std::condition_variable job_done_;

  // The thread's own.
  std::deque<Work> waiting_;  // for a slot
  bool worked_ = true;        // in the last turn
  std::vector<Work> parked_;  // lent their slots, and wait for their callers
  std::vector<std::shared_ptr<StreamState>> arrived_;
  std::vector<Slot> slots_;
  std::vector<Slot*> active_;  // in order of admission
  uint64_t admissions_ = 0;
  int cancels_now_ = 0, cancels_seen_ = 0;
  // Of the round in hand; sized once, so that a round allocates nothing.
  std::vector<Slot*> members_;
  std::vector<Sequence*> batch_, below_;
  std::vector<int> limits_;
  std::vector<char> drafts_;
  std::vector<RoundResult> results_;
  std::vector<TokenLogprobs> logprobs_;

  std::unique_ptr<std::thread> thread_;  // last: it uses all of the above
};

}  // namespace stepladder
