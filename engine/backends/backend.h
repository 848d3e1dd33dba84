// The narrow interface to a device: memory, one in-order queue, and the operators of a transformer
// round (backends/operators.h). Operators queue work; they never allocate and never wait. Every
// pointer in an argument is backend memory, unless it is named host_.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "backends/operators.h"

namespace stepladder {

/// Work that was queued while recording and can be queued again as one unit.
class Recording {
 public:
  virtual ~Recording() = default;
  virtual void replay() = 0;
};

class Backend {
 public:
  virtual ~Backend() = default;
  /// "cpu/avx512" and the like: bits are promised per name.
  virtual std::string name() const = 0;
  /// The kernel family fast paths are chosen for: "cpu/portable", "cpu/avx2", "cpu/avx512".
  virtual std::string kernels() const { return name(); }

  /// Bytes that allocate() could give in all just now; the largest size_t where nothing tells.
  virtual size_t available_bytes() const = 0;
  /// 64-byte aligned (2 MB for large blocks), zeroed. Throws Error(out_of_memory) with the numbers.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory, size_t bytes) noexcept = 0;
  /// Whether its memory is the host's, which may write what allocate() gave, from any thread, until
  /// the first operator uses it: then weights are packed straight into place.
  virtual bool on_host() const { return false; }
  /// Queues a copy to the backend; the host bytes are taken before the call returns. While nothing
  /// else runs, any thread may call it, one at a time.
  virtual void upload(void* to, const void* host_from, size_t bytes) = 0;
  /// Queues a copy to the host; `host_to` is valid after wait().
  virtual void read(void* host_to, const void* from, size_t bytes) = 0;
  virtual void wait() = 0;
  /// Whether work is done when the call that queues it returns, so that the host's clock times it.
  virtual bool runs_at_once() const = 0;
  /// Milliseconds from the first piece of work behind the wait before the last to the end of it, by
  /// the backend's own clock; none where it has none.
  virtual std::optional<double> worked_ms() const { return std::nullopt; }
  /// Milliseconds by that clock that nothing was queued before it, since the work before that; none
  /// where there was none.
  virtual std::optional<double> idle_ms() const { return std::nullopt; }
  /// Runs `body`, whose operators are remembered instead of run; or keeps it and runs it at every
  /// replay, so that it must hold what it works with by value.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& body) = 0;

  /// Numbers of rows that are worth a recording of their own, rising; the last is the block that
  /// wide rounds and prompts are cut into.
  virtual std::vector<int> row_buckets() const = 0;

  virtual size_t kv_bytes(const KVSpec&) const = 0;
  /// Queues a read of entries [first, first + count) of one sequence's region as
  /// [layers, 2 (k, v), count, kv_heads, head_dim] 16-bit values; for tests and tools.
  virtual void read_entries(uint16_t* host_to, const KVView&, int slot, int first, int count) = 0;
  /// The same of their features: [count, features.count, features.width] 16-bit values.
  virtual void read_features(uint16_t* host_to, const KVView&, int slot, int first, int count) = 0;

  /// Bytes an operator with arguments of these shapes wants for its work beside its outputs; asked
  /// at load, when pointers are not yet set.
  virtual size_t workspace_bytes(const ProjectArgs&) const { return 0; }
  virtual size_t workspace_bytes(const AttentionArgs&) const { return 0; }

  virtual void expand(const ExpandArgs&) = 0;
  virtual void embed(const EmbedArgs&) = 0;
  virtual void project(const ProjectArgs&) = 0;
  virtual void attention(const AttentionArgs&) = 0;
  virtual void feature(const FeatureArgs&) = 0;
  virtual void advance(const AdvanceArgs&) = 0;
  virtual void follow(const FollowArgs&) = 0;
  virtual void choose(const ChooseArgs&) = 0;
  virtual void logprobs(const LogprobArgs&) = 0;
  virtual void accept(const AcceptArgs&) = 0;
  virtual void keep(const KeepArgs&) = 0;
  virtual void count(const CountArgs&) = 0;
  // Of drafters that grow trees.
  virtual void narrow(const NarrowArgs&) = 0;
  virtual void join(const JoinArgs&) = 0;
  virtual void top(const TopArgs&) = 0;
  virtual void grow(const GrowArgs&) = 0;
  virtual void prune(const PruneArgs&) = 0;
};

/// How a backend is opened.
struct BackendOptions {
  std::string device = "auto";  // or a backend's name and perhaps an index, as in "cuda:1"
  // cpu: "" = the best there is; else "portable", "avx2", "avx512". "auto" takes a backend that has
  // instruction sets to choose from where one is asked for.
  std::string isa;
  int threads = 0;  // of the host; 0 = as many as the machine has cores
};
/// The backend that `device` names; "auto" is the one that runs and is preferred most. Throws
/// Error(unsupported) naming what there is when `device` or `isa` is not available.
std::unique_ptr<Backend> open_backend(const BackendOptions&);

/// The one constant that a backend's folder exports, named like the folder, in the namespace
/// `backend`.
struct BackendKind {
  int preference;  // of "auto": the highest of those that run
  bool has_isas;   // whether BackendOptions::isa is an option of its
  /// What it lacks on this machine, and why; "" when it can run.
  std::string (*missing)();
  /// How many devices there are, 1 or more where it can run.
  int (*devices)();
  /// Opens device `index`, which there is. Throws Error(unsupported) on options that are not its.
  std::unique_ptr<Backend> (*open)(int index, const BackendOptions&);
};
/// A backend of the build: one of the folders found.
struct BackendEntry {
  const char* name;
  const BackendKind* kind;  // null: it could not be built
  const char* missing;      // then what that took
};
std::vector<BackendEntry> backend_entries();
/// Instruction sets this machine can run, worst first.
std::vector<std::string> available_isas();

}  // namespace stepladder
