// A stand-in for a device on the far side of a bus, for tests: the CPU's operators behind memory
// whose addresses the host cannot touch, and a queue that runs late, in order, and only when
// waited for. What works on it above backend.h works on a real device.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "backends/backend.h"

namespace stepladder {

class CpuBackend;

/// What crossed the bus since the last reset.
struct FarCounters {
  int64_t uploads = 0, upload_bytes = 0;
  int64_t reads = 0, largest_read = 0;  // bytes of the largest
  int64_t waits = 0;
  int64_t recordings = 0, replays = 0;
  int64_t operators = 0;  // queued outside recordings, one by one
  int64_t recorded = 0;   // queued inside them
  int64_t allocations = 0;
};

class FarBackend : public Backend {
 public:
  /// isa "": the best the machine has; threads as in BackendOptions.
  FarBackend(const std::string& isa, int threads);
  ~FarBackend() override;

  std::string name() const override;     // "far/<isa>"
  std::string kernels() const override;  // "cpu/<isa>"

  const FarCounters& counters() const { return counters_; }
  void reset_counters() { counters_ = {}; }
  /// From now on allocate() throws Error(internal): nothing may be allocated after load.
  void seal() { sealed_ = true; }
  /// The memory it has in all; without this, as much as anyone asks for.
  void set_memory(size_t bytes) { memory_ = bytes; }
  /// Bytes allocated and not yet released.
  size_t held_bytes() const { return held_bytes_; }
  /// Queued pieces of work that have not run yet.
  size_t pending() const { return queue_.size(); }

  /// A piece of this backend's memory.
  struct Piece {
    const void* far = nullptr;
    size_t bytes = 0;
  };
  /// Queues an operator of a test's own, which gets the readable addresses of the pieces.
  void own(const std::vector<Piece>& pieces, std::function<void(std::span<void* const>)> work);

  size_t available_bytes() const override;
  void* allocate(size_t bytes) override;
  void release(void* memory, size_t bytes) noexcept override;
  void upload(void* to, const void* host_from, size_t bytes) override;
  void read(void* host_to, const void* from, size_t bytes) override;
  void wait() override;
  /// Work runs when it is waited for, so a clock around a call says nothing: nothing is measured.
  bool runs_at_once() const override { return false; }
  std::unique_ptr<Recording> record(const std::function<void()>& body) override;
  size_t kv_bytes(const KVSpec&) const override;
  std::vector<int> row_buckets() const override;
  void read_entries(uint16_t* host_to, const KVView&, int slot, int first, int count) override;
  void read_features(uint16_t* host_to, const KVView&, int slot, int first, int count) override;

  size_t workspace_bytes(const ProjectArgs&) const override;
  size_t workspace_bytes(const AttentionArgs&) const override;
  void expand(const ExpandArgs&) override;
  void embed(const EmbedArgs&) override;
  void project(const ProjectArgs&) override;
  void attention(const AttentionArgs&) override;
  void feature(const FeatureArgs&) override;
  void advance(const AdvanceArgs&) override;
  void follow(const FollowArgs&) override;
  void choose(const ChooseArgs&) override;
  void logprobs(const LogprobArgs&) override;
  void accept(const AcceptArgs&) override;
  void keep(const KeepArgs&) override;
  void count(const CountArgs&) override;
  void narrow(const NarrowArgs&) override;
  void join(const JoinArgs&) override;
  void top(const TopArgs&) override;
  void grow(const GrowArgs&) override;
  void prune(const PruneArgs&) override;

 private:
  class FarRecording;
  using Work = std::function<void()>;
  /// One allocation: the same pages, twice.
  struct Block {
    size_t bytes = 0, mapped = 0;  // asked for; and mapped, in whole pages
    std::byte* near = nullptr;     // where the operators read and write
  };
  /// The readable address of [far, far + bytes); null stays null. Throws Error(internal) naming
  /// `what` when the range is not inside one allocation of this backend.
  void* near(const void* far, size_t bytes, const char* what) const;
  template <class T>
  void move(T*& pointer, size_t count, const char* what) const;
  void move(Tensor&, const char* what) const;
  void move(Live&) const;
  void move(Rows&) const;
  void move(TreeView&) const;
  void move(Plan&) const;
  void move(RuleView&) const;
  void move(ChoiceView&, size_t count) const;
  void move(KVView&) const;
  void move(GrowthView&) const;
  void move(RopeAppend&) const;
  /// To the recording being made, else to the queue.
  void queue(Work);
  void outside_recordings(const char* what) const;

  std::unique_ptr<CpuBackend> cpu_;
  std::map<uintptr_t, Block> blocks_;            // by handed-out address
  std::vector<std::pair<void*, size_t>> dying_;  // near mappings queued work may still use
  std::vector<Work> queue_;
  std::vector<Work>* recording_ = nullptr;
  FarCounters counters_;
  size_t held_bytes_ = 0, memory_ = std::numeric_limits<size_t>::max();
  bool sealed_ = false;
};

}  // namespace stepladder
