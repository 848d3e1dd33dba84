// Translation of every operator's pointers, the late queue and the counters.
#include "support/far/far_backend.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <utility>

#include "backends/cpu/cpu_backend.h"
#include "core/error.h"

namespace stepladder {
namespace {

size_t page_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

}  // namespace

/// Remembered work; replaying queues it again as it is, without looking at a single argument.
class FarBackend::FarRecording final : public Recording {
 public:
  FarRecording(FarBackend& owner, std::vector<Work> work)
      : owner_(owner), work_(std::make_shared<const std::vector<Work>>(std::move(work))) {}
  void replay() override {
    owner_.outside_recordings("replay");
    ++owner_.counters_.replays;
    owner_.queue_.push_back([work = work_] {
      for (const Work& piece : *work) piece();
    });
  }

 private:
  FarBackend& owner_;
  std::shared_ptr<const std::vector<Work>> work_;
};

FarBackend::FarBackend(const std::string& isa, int threads)
    : cpu_(std::make_unique<CpuBackend>(isa, threads)) {}

FarBackend::~FarBackend() {
  for (auto& [far, block] : blocks_) {
    munmap(reinterpret_cast<void*>(far), block.mapped);
    munmap(block.near, block.mapped);
  }
  for (auto& [near, bytes] : dying_) munmap(near, bytes);
}

std::string FarBackend::kernels() const { return cpu_->kernels(); }
std::string FarBackend::name() const {
  const std::string cpu = cpu_->name();
  return "far" + cpu.substr(cpu.find('/'));
}

// ---- memory --------------------------------------------------------------------------------

size_t FarBackend::available_bytes() const {
  return memory_ > held_bytes_ ? memory_ - held_bytes_ : 0;
}

void* FarBackend::allocate(size_t bytes) {
  outside_recordings("allocate");
  check(bytes <= available_bytes(), Code::out_of_memory, "far backend: ", bytes, " bytes wanted, ",
        available_bytes(), " available");
  check(!sealed_, Code::internal, "far backend: ", bytes, " bytes asked for after load");
  // One page more than asked for keeps blocks apart, so that an end pointer names its own block.
  const size_t page = page_bytes(), mapped = (bytes + 2 * page - 1) / page * page;
  const int file = memfd_create("stepladder-far", MFD_CLOEXEC);
  check(file >= 0, Code::out_of_memory, "far backend: no file for ", bytes, " bytes");
  void* far = MAP_FAILED;
  void* near = MAP_FAILED;
  if (ftruncate(file, static_cast<off_t>(mapped)) == 0) {
    far = mmap(nullptr, mapped, PROT_NONE, MAP_SHARED, file, 0);
    near = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  close(file);
  if (far == MAP_FAILED || near == MAP_FAILED) {
    if (far != MAP_FAILED) munmap(far, mapped);
    if (near != MAP_FAILED) munmap(near, mapped);
    fail(Code::out_of_memory, "far backend: no memory for ", bytes, " bytes");
  }
  blocks_[reinterpret_cast<uintptr_t>(far)] = {bytes, mapped, static_cast<std::byte*>(near)};
  held_bytes_ += bytes;
  ++counters_.allocations;
  return far;
}

void FarBackend::release(void* memory, size_t) noexcept {
  const auto it = blocks_.find(reinterpret_cast<uintptr_t>(memory));
  if (it == blocks_.end()) return;
  munmap(memory, it->second.mapped);
  held_bytes_ -= it->second.bytes;
  // Work queued before the release still writes there: the pages go once the queue has run.
  if (queue_.empty())
    munmap(it->second.near, it->second.mapped);
  else
    dying_.emplace_back(it->second.near, it->second.mapped);
  blocks_.erase(it);
}

void* FarBackend::near(const void* far, size_t bytes, const char* what) const {
  if (!far) return nullptr;
  const auto address = reinterpret_cast<uintptr_t>(far);
  auto it = blocks_.upper_bound(address);
  check(it != blocks_.begin(), Code::internal, "far backend: ", what, " is not backend memory");
  --it;
  const size_t offset = address - it->first;
  check(offset <= it->second.bytes, Code::internal, "far backend: ", what,
        " is not backend memory");
  check(bytes <= it->second.bytes - offset, Code::internal, "far backend: ", what, " needs ", bytes,
        " bytes, its allocation has ", it->second.bytes - offset, " left there");
  return it->second.near + offset;
}

template <class T>
void FarBackend::move(T*& pointer, size_t count, const char* what) const {
  pointer = static_cast<T*>(near(pointer, count * sizeof(T), what));
}
void FarBackend::move(Tensor& t, const char* what) const { t.data = near(t.data, t.bytes(), what); }
void FarBackend::move(Live& live) const {
  check(live.total != nullptr, Code::internal, "far backend: no live count");
  move(live.total, 1, "live.total"), move(live.first, 1, "live.first");
}
void FarBackend::move(Rows& r) const {
  const size_t n = static_cast<size_t>(r.capacity);
  move(r.count, 1, "rows.count");
  move(r.token, n, "rows.token");
  move(r.position, n, "rows.position");
  move(r.slot, n, "rows.slot");
  move(r.committed, n, "rows.committed");
  move(r.scratch, n, "rows.scratch");
  move(r.path, n * static_cast<size_t>(r.depth), "rows.path");
  move(r.node_count, 1, "rows.node_count");
  move(r.node_row, n, "rows.node_row");
  move(r.node_sequence, n, "rows.node_sequence");
  move(r.node_index, n, "rows.node_index");
  move(r.sequence_row, static_cast<size_t>(r.sequences) + 1, "rows.sequence_row");
  move(r.sequence_node, static_cast<size_t>(r.sequences) + 1, "rows.sequence_node");
  move(r.block_row, 1, "rows.block_row"), move(r.block_node, 1, "rows.block_node");
}
void FarBackend::move(TreeView& t) const {
  const size_t nodes = static_cast<size_t>(t.sequences) * t.capacity;
  move(t.count, static_cast<size_t>(t.sequences), "trees.count");
  move(t.token, nodes, "trees.token");
  move(t.parent, nodes, "trees.parent");
}
void FarBackend::move(Plan& p) const {
  move(p.count, 1, "plan.count");
  move(p.entries, static_cast<size_t>(p.capacity), "plan.entries");
  move(p.tokens, 0, "plan.tokens");
}
void FarBackend::move(RuleView& r) const {
  const size_t n = static_cast<size_t>(r.sequences);
  move(r.params, n, "rules.params");
  move(r.counts, n * r.vocab, "rules.counts");
  move(r.bias, n * r.vocab, "rules.bias");
}
void FarBackend::move(ChoiceView& c, size_t count) const {
  move(c.token, count, "choices.token");
  move(c.logit, count, "choices.logit");
}
void FarBackend::move(KVView& kv) const {
  kv.data = near(kv.data, cpu_->kv_bytes(kv.spec), "kv.data");
}
void FarBackend::move(GrowthView& g) const {
  const size_t n = static_cast<size_t>(g.sequences);
  const size_t candidates = n * GrowthView::candidates(g.width, g.depth);
  move(g.token, candidates, "growth.token"), move(g.score, candidates, "growth.score");
  move(g.beam, n * g.depth * g.width, "growth.beam");
}
void FarBackend::move(RopeAppend& a) const {
  const size_t dim = static_cast<size_t>(a.kv.spec.head_dim);
  move(a.rows), move(a.q, "rope.q"), move(a.kv);
  move(a.q_norm, dim, "rope.q_norm"), move(a.k_norm, dim, "rope.k_norm");
  move(a.rope, 0, "rope.table");
}

// ---- the queue -----------------------------------------------------------------------------

void FarBackend::outside_recordings(const char* what) const {
  check(!recording_, Code::internal, "far backend: ", what, " while recording");
}

void FarBackend::queue(Work work) {
  if (recording_) {
    ++counters_.recorded;
    recording_->push_back(std::move(work));
  } else {
    ++counters_.operators;
    queue_.push_back(std::move(work));
  }
}

void FarBackend::own(const std::vector<Piece>& pieces,
                     std::function<void(std::span<void* const>)> work) {
  std::vector<void*> at;
  for (const Piece& p : pieces) at.push_back(near(p.far, p.bytes, "a piece of a test's own"));
  queue([at = std::move(at), work = std::move(work)] { work(at); });
}

void FarBackend::upload(void* to, const void* host_from, size_t bytes) {
  outside_recordings("upload");
  void* target = near(to, bytes, "upload's target");
  const auto* from = static_cast<const std::byte*>(host_from);
  ++counters_.uploads;
  counters_.upload_bytes += static_cast<int64_t>(bytes);
  queue_.push_back([target, copy = std::vector<std::byte>(from, from + bytes)] {
    if (!copy.empty()) std::memcpy(target, copy.data(), copy.size());
  });
}

void FarBackend::read(void* host_to, const void* from, size_t bytes) {
  outside_recordings("read");
  const void* source = near(from, bytes, "read's source");
  ++counters_.reads;
  if (static_cast<int64_t>(bytes) > counters_.largest_read)
    counters_.largest_read = static_cast<int64_t>(bytes);
  queue_.push_back([=] { std::memcpy(host_to, source, bytes); });
}

void FarBackend::wait() {
  outside_recordings("wait");
  ++counters_.waits;
  // Taken out first: an operator that throws must not run again at the next wait.
  std::vector<Work> work = std::exchange(queue_, {});
  for (Work& piece : work) piece();
  cpu_->wait();
  for (auto& [near, bytes] : dying_) munmap(near, bytes);
  dying_.clear();
}

std::unique_ptr<Recording> FarBackend::record(const std::function<void()>& body) {
  outside_recordings("record");
  std::vector<Work> work;
  recording_ = &work;
  try {
    body();
  } catch (...) {
    recording_ = nullptr;
    throw;
  }
  recording_ = nullptr;
  ++counters_.recordings;
  return std::make_unique<FarRecording>(*this, std::move(work));
}

// ---- operators -----------------------------------------------------------------------------

size_t FarBackend::kv_bytes(const KVSpec& spec) const { return cpu_->kv_bytes(spec); }

void FarBackend::read_entries(uint16_t* host_to, const KVView& kv, int slot, int first, int count) {
  outside_recordings("read_entries");
  KVView view = kv;
  move(view);
  queue_.push_back([=, this] { cpu_->read_entries(host_to, view, slot, first, count); });
}

std::vector<int> FarBackend::row_buckets() const { return cpu_->row_buckets(); }

void FarBackend::read_features(uint16_t* host_to, const KVView& kv, int slot, int first,
                               int count) {
  outside_recordings("read_features");
  KVView view = kv;
  move(view);
  queue_.push_back([=, this] { cpu_->read_features(host_to, view, slot, first, count); });
}

void FarBackend::expand(const ExpandArgs& args) {
  ExpandArgs a = args;
  move(a.plan), move(a.trees), move(a.rows);
  queue([=, this] { cpu_->expand(a); });
}

void FarBackend::embed(const EmbedArgs& args) {
  EmbedArgs a = args;
  move(a.live);
  move(a.token, static_cast<size_t>(a.live.capacity), "embed.token");
  move(a.table, "embed.table"), move(a.out, "embed.out");
  queue([=, this] { cpu_->embed(a); });
}

size_t FarBackend::workspace_bytes(const ProjectArgs& a) const { return cpu_->workspace_bytes(a); }
size_t FarBackend::workspace_bytes(const AttentionArgs& a) const {
  return cpu_->workspace_bytes(a);
}

void FarBackend::project(const ProjectArgs& args) {
  ProjectArgs a = args;
  const size_t n = static_cast<size_t>(a.weight.packed.n),
               k = static_cast<size_t>(a.weight.packed.k);
  move(a.live), move(a.input.x, "project.x");
  move(a.input.norm, k, "project.norm");
  move(a.input.pick, static_cast<size_t>(a.live.capacity), "project.pick");
  PackedWeight& weight = a.weight.packed;
  weight.data = near(weight.data, weight.bytes, "project.weight");
  move(weight.bias, n, "project.bias");
  if (auto* store = std::get_if<Store>(&a.result)) move(store->y, "project.y");
  if (auto* add = std::get_if<AddTo>(&a.result)) move(add->residual, "project.residual");
  if (auto* rope = std::get_if<RopeAppend>(&a.result)) move(*rope);
  if (auto* gate = std::get_if<Gate>(&a.result)) move(gate->out, "project.out");
  a.workspace = near(a.workspace, cpu_->workspace_bytes(args), "project.workspace");
  queue([=, this] { cpu_->project(a); });
}

void FarBackend::attention(const AttentionArgs& args) {
  AttentionArgs a = args;
  move(a.live), move(a.rows), move(a.q, "attention.q"), move(a.out, "attention.out"), move(a.kv);
  a.workspace = near(a.workspace, cpu_->workspace_bytes(args), "attention.workspace");
  queue([=, this] { cpu_->attention(a); });
}

void FarBackend::feature(const FeatureArgs& args) {
  FeatureArgs a = args;
  move(a.live), move(a.rows), move(a.x, "feature.x"), move(a.kv);
  move(a.norm, static_cast<size_t>(a.x.cols), "feature.norm");
  queue([=, this] { cpu_->feature(a); });
}

void FarBackend::advance(const AdvanceArgs& args) {
  AdvanceArgs a = args;
  move(a.at, 1, "advance.at");
  queue([=, this] { cpu_->advance(a); });
}

void FarBackend::follow(const FollowArgs& args) {
  FollowArgs a = args;
  const size_t n = static_cast<size_t>(a.capacity);
  move(a.count, 1, "follow.count"), move(a.entries, n, "follow.entries");
  move(a.tokens, 0, "follow.tokens"), move(a.trees);
  move(a.result, n, "follow.result"), move(a.out, n, "follow.out");
  queue([=, this] { cpu_->follow(a); });
}

void FarBackend::choose(const ChooseArgs& args) {
  ChooseArgs a = args;
  const size_t nodes = static_cast<size_t>(a.live.capacity);
  move(a.live), move(a.logits, "choose.logits"), move(a.plan), move(a.trees), move(a.rows);
  move(a.rules), move(a.out, nodes);
  queue([=, this] { cpu_->choose(a); });
}

void FarBackend::logprobs(const LogprobArgs& args) {
  LogprobArgs a = args;
  const size_t nodes = static_cast<size_t>(a.live.capacity);
  const size_t top = nodes * static_cast<size_t>(a.most);
  move(a.live), move(a.logits, "logprobs.logits"), move(a.choices, nodes);
  move(a.asked, 1, "logprobs.asked"), move(a.chosen, nodes, "logprobs.chosen");
  move(a.top_token, top, "logprobs.top_token"), move(a.top_logprob, top, "logprobs.top_logprob");
  queue([=, this] { cpu_->logprobs(a); });
}

void FarBackend::accept(const AcceptArgs& args) {
  AcceptArgs a = args;
  const size_t n = static_cast<size_t>(a.plan.capacity);
  move(a.plan), move(a.trees), move(a.rows), move(a.choices, 0), move(a.rules);
  move(a.result, n, "accept.result"), move(a.path, n * kMaxEmitted, "accept.path");
  move(a.path_node, n * kMaxEmitted, "accept.path_node");
  queue([=, this] { cpu_->accept(a); });
}

void FarBackend::keep(const KeepArgs& args) {
  KeepArgs a = args;
  const size_t n = static_cast<size_t>(a.plan.capacity);
  move(a.plan), move(a.kv), move(a.result, n, "keep.result");
  move(a.path, n * kMaxEmitted, "keep.path");
  queue([=, this] { cpu_->keep(a); });
}

void FarBackend::count(const CountArgs& args) {
  CountArgs a = args;
  move(a.rules);
  move(a.tokens, static_cast<size_t>(a.count), "count.tokens");
  queue([=, this] { cpu_->count(a); });
}

void FarBackend::narrow(const NarrowArgs& args) {
  NarrowArgs a = args;
  move(a.live), move(a.x, "narrow.x"), move(a.out, "narrow.out");
  move(a.pick, static_cast<size_t>(a.live.capacity), "narrow.pick");
  queue([=, this] { cpu_->narrow(a); });
}

void FarBackend::join(const JoinArgs& args) {
  JoinArgs a = args;
  move(a.live), move(a.rows), move(a.table, "join.table"), move(a.kv);
  move(a.out, "join.out"), move(a.residual, "join.residual");
  queue([=, this] { cpu_->join(a); });
}

void FarBackend::top(const TopArgs& args) {
  TopArgs a = args;
  move(a.live), move(a.logits, "top.logits"), move(a.plan), move(a.rows), move(a.rules);
  move(a.growth);
  queue([=, this] { cpu_->top(a); });
}

void FarBackend::grow(const GrowArgs& args) {
  GrowArgs a = args;
  move(a.plan), move(a.asks, static_cast<size_t>(a.plan.capacity), "grow.asks");
  move(a.growth), move(a.rows);
  queue([=, this] { cpu_->grow(a); });
}

void FarBackend::prune(const PruneArgs& args) {
  PruneArgs a = args;
  move(a.plan), move(a.asks, static_cast<size_t>(a.plan.capacity), "prune.asks");
  move(a.growth), move(a.trees);
  queue([=, this] { cpu_->prune(a); });
}

}  // namespace stepladder
