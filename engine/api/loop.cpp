#include "api/loop.h"

#include <algorithm>
#include <cmath>
#include <new>

#include "core/error.h"
#include "core/float_mode.h"

namespace stepladder {
namespace {

double milliseconds(std::chrono::steady_clock::duration d) {
  return std::chrono::duration<double, std::milli>(d).count();
}

/// Counters of one level over two slots.
void add(LevelStats& to, const LevelStats& from) {
  to.rounds += from.rounds, to.drafted += from.drafted, to.accepted += from.accepted;
  to.emitted += from.emitted, to.rows += from.rows;
  to.draft_ms += from.draft_ms, to.verify_ms += from.verify_ms, to.idle_ms += from.idle_ms;
  for (size_t d = 0; d < std::min(to.accepted_at.size(), from.accepted_at.size()); ++d)
    to.accepted_at[d] += from.accepted_at[d];
  for (size_t d = 0; d < std::min(to.drafted_at.size(), from.drafted_at.size()); ++d)
    to.drafted_at[d] += from.drafted_at[d];
}

std::string overflow_text(size_t position) {
  return "the model's arithmetic overflowed at position " + std::to_string(position) +
         " of the text, prompt included: its logits there are not all finite; its weights are "
         "damaged, or too large for the format they are stored or cast in; where config.json says "
         "the dtype is float16, bfloat16 there holds larger numbers";
}

/// The code and message of the exception in flight.
std::pair<Code, std::string> in_flight() {
  try {
    throw;
  } catch (const Error& e) {
    return {e.code(), e.what()};
  } catch (const std::bad_alloc&) {
    return {Code::out_of_memory, "the engine ran out of host memory"};
  } catch (const std::exception& e) {
    return {Code::internal, e.what()};
  } catch (...) {
    return {Code::internal, "unknown exception"};
  }
}

}  // namespace

Loop::Loop(LoopParts parts)
    : parts_(std::move(parts)), slots_(parts_.sequences), results_(parts_.sequences) {
  for (Level* level = parts_.target.get(); level; level = dynamic_cast<Level*>(level->inner()))
    levels_.push_back(level);
  for (int i = 0; i < parts_.sequences; ++i) {
    slots_[i].sequence.slot = i;
    slots_[i].sequence.tokens.reserve(parts_.limits.context + kMaxEmitted + 1);
    slots_[i].stats.levels.resize(levels_.size());
  }
  active_.reserve(parts_.sequences), members_.reserve(parts_.sequences),
      batch_.reserve(parts_.sequences);
  below_.reserve(parts_.sequences);
  limits_.reserve(parts_.sequences), drafts_.reserve(parts_.sequences);
  logprobs_.reserve(kMaxEmitted);
  thread_ = std::make_unique<std::thread>([this] { run(); });
}

Loop::~Loop() {
  if (guard_.forked()) {
    thread_.release();  // a thread of the parent; joining or destroying it here has no meaning
    return;
  }
  {
    const std::lock_guard lock(inbox_mutex_);
    stopping_ = true;
  }
  doorbell_->ring();
  thread_->join();
}

std::shared_ptr<Stream> Loop::submit(Request request) {
  guard_.check_here();
  check_request(request, parts_.limits);
  auto state = std::make_shared<StreamState>(std::move(request), doorbell_, cancels_);
  {
    const std::lock_guard lock(inbox_mutex_);
    if (broken_) throw *broken_;
    inbox_.push_back(state);
  }
  doorbell_->ring();
  return std::make_shared<StreamHandle>(std::move(state));
}

void Loop::run_idle(const std::function<void(Level&, TargetSide&)>& body) {
  guard_.check_here();
  Job job{&body, nullptr};
  std::unique_lock lock(inbox_mutex_);
  if (broken_) throw *broken_;
  jobs_.push_back(&job);
  doorbell_->ring();
  job_done_.wait(lock, [&] { return job.done; });
  if (job.error) std::rethrow_exception(job.error);
}

void Loop::run() {
  // A thread inherits the floating-point mode of whoever started it, and bits depend on it.
  const FloatMode mode;
  while (take_requests()) {
    drop_cancelled();
    bool wanted = false;
    try {
      recall();
      wanted = lend();
      run_jobs();
      admit();
      worked_ = false;
      worked_ = turn();
    } catch (...) {
      const auto [code, message] = in_flight();
      break_down(code, message);
    }
    if (worked_) continue;
    if (wanted)
      doorbell_->wait_for(kPatience);
    else
      doorbell_->wait();
  }
  for (Slot* slot : active_) slot->stream->finish(Finish::cancelled);
  for (const Work& work : waiting_) work.stream->finish(Finish::cancelled);
  for (const Work& work : parked_) work.stream->finish(Finish::cancelled);
}

/// Moves what callers handed in to the waiting line; false when the engine closes.
bool Loop::take_requests() {
  // Read first: whoever is counted here was in the inbox before, so drop_cancelled() finds it.
  cancels_now_ = cancels_->load();
  bool stopping = false;
  {
    const std::lock_guard lock(inbox_mutex_);
    arrived_.swap(inbox_);
    stopping = stopping_;
  }
  for (auto& stream : arrived_) waiting_.push_back({std::move(stream), {}, {}, {}});
  arrived_.clear();
  return !stopping;
}

void Loop::run_jobs() {
  std::vector<Job*> jobs;
  {
    const std::lock_guard lock(inbox_mutex_);
    if (jobs_.empty() || !active_.empty()) return;
    jobs.swap(jobs_);
  }
  for (Job* job : jobs) {
    try {
      (*job->body)(*parts_.target, *parts_.side);
    } catch (...) {
      job->error = std::current_exception();
    }
  }
  for (Slot& slot : slots_) slot.entries = 0;
  const std::lock_guard lock(inbox_mutex_);
  for (Job* job : jobs) job->done = true;
  job_done_.notify_all();
}

void Loop::drop_cancelled() {
  if (cancels_now_ == cancels_seen_) return;
  cancels_seen_ = cancels_now_;
  for (size_t i = active_.size(); i-- > 0;) {
    Slot& slot = *active_[i];
    if (!slot.stream->cancelled()) continue;
    slot.stream->finish(Finish::cancelled);
    release(slot);
  }
  const auto drop = [](const Work& work) {
    if (work.stream->cancelled()) work.stream->finish(Finish::cancelled);
    return work.stream->cancelled();
  };
  std::erase_if(waiting_, drop);
  std::erase_if(parked_, drop);
}

/// Parked streams whose callers take again go to the head of the waiting line.
void Loop::recall() {
  ptrdiff_t recalled = 0;
  for (size_t i = 0; i < parked_.size();) {
    if (!parked_[i].stream->may_return()) {
      ++i;
      continue;
    }
    waiting_.insert(waiting_.begin() + recalled++, std::move(parked_[i]));
    parked_.erase(parked_.begin() + static_cast<ptrdiff_t>(i));
  }
}

/// Streams that nobody takes from leave their slots to those that wait for one, or for an idle
/// engine: at once when the engine would idle while a caller stands waiting, else after a while.
/// Returns whether anybody waits.
bool Loop::lend() {
  size_t wanted = waiting_.size() - std::min(waiting_.size(), slots_.size() - active_.size());
  if (job_waits()) wanted = active_.size();
  if (wanted == 0) return false;
  auto since = std::chrono::steady_clock::now();
  if (worked_ || !someone_stands()) since -= kPatience;
  for (size_t i = 0, left = wanted; i < active_.size() && left > 0;) {
    if (active_[i]->stream->unread_since(since))
      park(*active_[i]), --left;
    else
      ++i;
  }
  return true;
}

/// Whether the caller of a stream in the waiting line waits for its next token this very moment.
bool Loop::someone_stands() const {
  return std::any_of(waiting_.begin(), waiting_.end(),
                     [](const Work& work) { return work.stream->awaited(); });
}

/// The request leaves its slot with all that is needed to go on in another: its text. The entries
/// it lacks there are read like those of a prompt, and a row's bits depend on the text alone.
void Loop::park(Slot& slot) {
  slot.stream->slotted(false);
  parked_.push_back({slot.stream, slot.sequence.tokens, slot.stats, slot.first_token});
  release(slot);
}

bool Loop::job_waits() {
  const std::lock_guard lock(inbox_mutex_);
  return !jobs_.empty();
}

void Loop::admit() {
  if (job_waits()) return;  // for an idle engine, so nobody new goes ahead of it
  while (!waiting_.empty() && active_.size() < slots_.size()) {
    // Callers that stand waiting go first; the others' streams are not being read.
    auto next = std::find_if(waiting_.begin(), waiting_.end(),
                             [](const Work& work) { return work.stream->awaited(); });
    if (next == waiting_.end()) next = waiting_.begin();
    Work work = std::move(*next);
    waiting_.erase(next);
    const auto stream = work.stream;
    Slot& slot = best_slot(work.text.empty() ? stream->request.prompt : work.text);
    try {
      begin(slot, std::move(work));
    } catch (...) {
      const auto [code, message] = in_flight();
      stream->fail(code, message);
      slot.stream = nullptr, slot.entries = 0;
    }
  }
}

/// The free slot whose target-written entries share the longest prefix with the text, else the
/// one that has not been used for longest.
Loop::Slot& Loop::best_slot(std::span<const Token> text) {
  Slot* best = nullptr;
  size_t best_shared = 0;
  for (Slot& slot : slots_) {
    if (slot.stream) continue;
    const auto& held = slot.sequence.tokens;
    const size_t n = std::min({slot.entries, held.size(), text.size()});
    const size_t shared =
        std::mismatch(held.begin(), held.begin() + n, text.begin()).first - held.begin();
    if (!best || shared > best_shared || (shared == best_shared && slot.admitted < best->admitted))
      best = &slot, best_shared = shared;
  }
  return *best;
}

void Loop::begin(Slot& slot, Work work) {
  const Request& request = work.stream->request;
  const bool again = !work.text.empty();
  const std::vector<Token>& text = again ? work.text : request.prompt;
  work.stream->open();
  work.stream->slotted(true);
  slot.sequence.tokens.assign(text.begin(), text.end());
  slot.sequence.committed = text.size();
  slot.entries = 0;
  slot.admitted = ++admissions_;
  slot.produced = static_cast<int>(text.size() - request.prompt.size());
  slot.stops = request.stop_token_ids;
  if (!request.ignore_eos)
    slot.stops.insert(slot.stops.end(), parts_.end_tokens.begin(), parts_.end_tokens.end());
  std::sort(slot.stops.begin(), slot.stops.end());

  parts_.target->forget(slot.sequence.slot);
  parts_.side->begin(slot.sequence.slot, request.sampling, request.prompt,
                     std::span(text).subspan(request.prompt.size()));
  Sequence* const one[] = {&slot.sequence};
  Verifier& verifier = parts_.target->verifier();
  verifier.sync(one);
  const int lacking = verifier.lacking(slot.sequence);
  slot.reading = lacking > verifier.catch_up();

  slot.earlier.clear();
  if (again) {
    slot.earlier = work.stats.levels;
    slot.stats = std::move(work.stats);
    slot.first_token = work.first_token;
  } else {
    slot.stats.prompt_tokens = static_cast<int64_t>(request.prompt.size());
    slot.stats.cached_tokens = slot.stats.prompt_tokens - 1 - lacking;
    slot.stats.seed = request.sampling.seed;
    slot.stats.tokens = 0;
    slot.stats.first_token_ms = slot.stats.decode_ms = 0;
  }
  slot.stream = std::move(work.stream);
  active_.push_back(&slot);
}

/// One prompt block and one round, as far as there are sequences for them; false if for neither.
bool Loop::turn() {
  const bool read = read_prompts();
  return round() || read;
}

bool Loop::read_prompts() {
  batch_.clear(), members_.clear();
  for (Slot* slot : active_)
    if (slot->reading) members_.push_back(slot), batch_.push_back(&slot->sequence);
  if (batch_.empty()) return false;
  Verifier& verifier = parts_.target->verifier();
  verifier.read(batch_, parts_.block);
  for (Slot* slot : members_) {
    const int lacking = verifier.lacking(slot->sequence);
    slot->reading = lacking > verifier.catch_up();
    slot->entries = slot->sequence.tokens.size() - 1 - lacking;
  }
  return true;
}

bool Loop::round() {
  batch_.clear(), members_.clear(), limits_.clear(), drafts_.clear();
  for (Slot* slot : active_)
    if (!slot->reading && slot->stream->has_room())
      members_.push_back(slot), batch_.push_back(&slot->sequence);
  if (batch_.empty()) return false;
  Level& target = *parts_.target;
  target.sync(batch_);
  read_below();
  int logprobs = -1;
  for (Slot* slot : members_) {
    const Request& request = slot->stream->request;
    limits_.push_back(std::min({request.max_tokens - slot->produced,
                                target.verifier().room(slot->sequence), kMaxEmitted}));
    // The first token comes as early as in plain decoding.
    drafts_.push_back(request.draft && slot->produced > 0);
    logprobs = std::max(logprobs, request.logprobs);
  }
  parts_.side->ask_logprobs(logprobs);
  target.advance(batch_, limits_, drafts_, std::span(results_).first(batch_.size()));
  for (size_t i = 0; i < members_.size(); ++i) deliver(*members_[i], static_cast<int>(i));
  return true;
}

/// The levels below the target read on, at most one block a round: nothing once they have caught
/// up, and the prompt only after the first token is out.
void Loop::read_below() {
  below_.clear();
  for (Slot* slot : members_)
    if (slot->stream->request.draft && slot->produced > 0) below_.push_back(&slot->sequence);
  if (!below_.empty()) parts_.target->read_below(below_, parts_.block);
}

void Loop::deliver(Slot& slot, int index) {
  const RoundResult& result = results_[index];
  const Request& request = slot.stream->request;
  const int emitted = std::min<int>(result.emitted, limits_[index]);
  int kept = 0;
  Finish finish = Finish::none;
  Token stop_token = -1;
  bool overflowed = false;
  for (; kept < emitted; ++kept) {
    // No raw logit is legitimately infinite or NaN; a choice beside such a one means nothing.
    overflowed = !std::isfinite(result.logit[kept]);
    if (overflowed) break;
    if (std::binary_search(slot.stops.begin(), slot.stops.end(), result.token[kept])) {
      finish = Finish::stop, stop_token = result.token[kept];
      break;
    }
  }
  auto& tokens = slot.sequence.tokens;
  const size_t before = tokens.size();
  tokens.insert(tokens.end(), result.token, result.token + kept);
  slot.sequence.committed = tokens.size();
  slot.entries = std::min(tokens.size(), before + result.emitted - 1);
  slot.produced += kept;
  if (finish == Finish::none &&
      (slot.produced == request.max_tokens || parts_.target->verifier().room(slot.sequence) < 1))
    finish = Finish::length;

  logprobs_.clear();
  if (request.logprobs >= 0)
    for (int k = 0; k < kept; ++k) {
      logprobs_.push_back(parts_.side->logprobs(index, k));
      auto& top = logprobs_.back().top;
      top.resize(std::min<size_t>(top.size(), request.logprobs));
    }
  update_stats(slot, std::chrono::steady_clock::now());
  slot.stream->push({result.token, size_t(kept)}, {result.logit, size_t(kept)}, logprobs_, finish,
                    stop_token);
  if (overflowed) slot.stream->fail(Code::model_format, overflow_text(tokens.size()));
  if (overflowed || finish != Finish::none) release(slot);
}

void Loop::update_stats(Slot& slot, std::chrono::steady_clock::time_point now) {
  Stats& stats = slot.stats;
  if (stats.tokens == 0 && slot.produced > 0) {
    slot.first_token = now;
    stats.first_token_ms = milliseconds(now - slot.stream->submitted);
  }
  if (slot.produced > stats.tokens) stats.decode_ms = milliseconds(now - slot.first_token);
  stats.tokens = slot.produced;
  for (size_t k = 0; k < levels_.size(); ++k) {
    stats.levels[k] = levels_[k]->stats(slot.sequence.slot);
    stats.levels[k].name = levels_[k]->name();
    if (!slot.earlier.empty()) add(stats.levels[k], slot.earlier[k]);
  }
  slot.stream->set_stats(stats);
}

/// The request leaves its slot; the sequence and its entries stay for whoever continues it.
void Loop::release(Slot& slot) {
  slot.stream = nullptr;
  std::erase(active_, &slot);
}

/// The levels' state is unknown after an error in a round, so nobody is served any more.
void Loop::break_down(Code code, const std::string& message) {
  std::vector<std::shared_ptr<StreamState>> late;
  {
    const std::lock_guard lock(inbox_mutex_);
    broken_.emplace(code, "the engine stopped after an error; load the model again: " + message);
    late.swap(inbox_);
    for (Job* job : jobs_) job->error = std::make_exception_ptr(*broken_), job->done = true;
    jobs_.clear();
    job_done_.notify_all();
  }
  for (Slot* slot : active_) slot->stream->fail(code, message);
  for (Slot* slot : active_) slot->stream = nullptr;
  active_.clear();
  for (const Work& work : waiting_) work.stream->fail(code, message);
  for (const Work& work : parked_) work.stream->fail(code, message);
  waiting_.clear(), parked_.clear();
  for (const auto& stream : late) stream->fail(code, message);
}

}  // namespace stepladder
