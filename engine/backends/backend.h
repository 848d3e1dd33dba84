// The narrow interface to a device: memory, one in-order queue, and the operators of a transformer
// round. Operators queue work; they never allocate and never wait. Every pointer in an argument
// struct is backend memory, which the host may not be able to read, unless it is named host_.
//
// How many rows are live in a pass, where they stand and what they may see is itself data in
// backend memory (Live, Rows, Plan), so that a recorded round replays at any lengths.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <variant>
#include <vector>

#include "core/format.h"
#include "core/tensor.h"

namespace stepladder {

// ---- what a pass works on ------------------------------------------------------------------

/// A block of a round's rows (or of its nodes), of which only the backend knows where it begins and
/// how many are live: clamp(*total - *first, 0, capacity). Row i of the block is row *first + i of
/// the round. The round's tables and the residual are indexed by the row of the round, what a pass
/// computes on its way by the row of the block.
struct Live {
  const int32_t* total = nullptr;
  const int32_t* first = nullptr;  // null = 0
  int capacity = 0;
};

constexpr int kAttentionStep = 32;  // keys an attention step takes; steps are aligned to position
constexpr int kMaxEmitted = 31;     // tokens a round can emit: 30 drafts deep and the bonus

/// Rows of hidden state that each entry of a cache carries for a drafter that reads them.
struct FeatureSpec {
  int count = 0, width = 0;       // rows an entry, at most 3; values of a row
  std::array<int, 3> layer = {};  // row i: the residual that enters this layer; behind the last
                                  // one, the residual after the final norm
};
/// Key/value memory of all sequences of one cache. A sequence has a region of `positions` entries,
/// entry p belonging to position p, and `scratch` slots for the nodes of the tree in flight.
struct KVSpec {
  int layers = 0, kv_heads = 0, head_dim = 0;
  int positions = 0;  // a multiple of kAttentionStep
  int scratch = 0, sequences = 0;
  DType dtype = DType::bf16;  // of keys, values and features
  FeatureSpec features;
};
struct KVView {
  KVSpec spec;
  void* data = nullptr;
};

/// The rows of one pass, in passing order. Catch-up rows (the sequence's tokens its cache lacks)
/// go to the region at their position; a tree node x goes to scratch slot x and sees the region
/// below `committed`, then its own path. Arrays have `capacity` elements unless said otherwise.
struct Rows {
  int capacity = 0, depth = 0, sequences = 0;  // depth: longest path a row may have
  int32_t* count = nullptr;                    // [1] live rows
  int32_t* token = nullptr;
  int32_t* position = nullptr;
  int32_t* slot = nullptr;        // the sequence's place in the cache
  int32_t* committed = nullptr;   // positions below this are read from the region
  int32_t* scratch = nullptr;     // slot its own entry goes to; -1 = the region, at its position
  uint16_t* path = nullptr;       // [capacity, depth] scratch slots from the root to the row itself
  int32_t* node_count = nullptr;  // [1] rows that are tree nodes, over all sequences
  int32_t* node_row = nullptr;    // [capacity] the row of the j-th node
  int32_t* node_sequence = nullptr;  // [capacity] index of its sequence in the plan
  int32_t* node_index = nullptr;     // [capacity] its number in its tree
  int32_t* sequence_row = nullptr;   // [sequences + 1] where the rows of a sequence begin
  int32_t* sequence_node = nullptr;  // [sequences + 1] where its nodes begin
  int32_t* block_row = nullptr;      // [1] first row of the block in hand; expand() sets it to 0
  int32_t* block_node = nullptr;     // [1] first node of the block in hand, likewise
};

/// Draft trees, one per sequence of the batch: parents before children, node 0 the root.
struct TreeView {
  int sequences = 0, capacity = 0;  // capacity: nodes of the largest tree
  int32_t* count = nullptr;         // [sequences] nodes; 0 = the sequence only reads
  int32_t* token = nullptr;         // [sequences, capacity]
  int32_t* parent = nullptr;        // [sequences, capacity]; parent of the root is -1
};

/// What one level-round needs to know of a sequence; goes up in the round's one upload.
struct PlanEntry {
  int32_t slot = 0;             // in the cache
  int32_t rule = 0;             // row of the rule table
  int32_t root_position = 0;    // position of the root = entries committed after the catch-up rows
  int32_t missing = 0;          // catch-up rows, at positions root_position - missing ...
  int32_t first_missing = 0;    // index of their tokens in Plan::tokens
  int32_t tentative = 0;        // tokens the level itself guessed so far, for the penalties
  int32_t first_tentative = 0;  // index of them in Plan::tokens
  int32_t wanted = 0;           // tokens that a chain of rounds shall emit in all
};
struct Plan {
  int capacity = 0;
  const int32_t* count = nullptr;      // [1] sequences in the round
  const PlanEntry* entries = nullptr;  // [capacity]
  const int32_t* tokens = nullptr;
};

/// How a sequence's tokens are chosen. One row of the rule table, in backend memory.
struct RuleParams {
  uint64_t seed = 0;
  float temperature = 0;  // 0 = greedy
  float top_p = 1, min_p = 0;
  int32_t top_k = 0;  // 0 = all
  float repetition = 1, frequency = 0, presence = 0;
  int32_t penalties = 0;  // any of the three set
  int32_t bias = 0;       // the sequence has a bias row
  int32_t pad = 0;
};
struct RuleView {
  int sequences = 0, vocab = 0;  // vocab: real tokens; padded rows of the head are never chosen
  RuleParams* params = nullptr;  // [sequences]
  uint32_t* counts =
      nullptr;            // [sequences, vocab] bit 31: in the prompt; rest: times in the output
  float* bias = nullptr;  // [sequences, vocab]
};

/// The verifier's own choice at each node, in node order.
struct ChoiceView {
  int32_t* token = nullptr;
  float* logit = nullptr;  // the chosen token's raw logit; NaN where one of its row is not finite
};

/// What the host reads back of a sequence after a round: 256 bytes.
struct RoundResult {
  int32_t emitted = 0;  // tokens emitted: accepted drafts, then the bonus
  int32_t token[kMaxEmitted] = {};
  float logit[kMaxEmitted] = {};
  int32_t pad = 0;
};
static_assert(sizeof(RoundResult) == 256);

// ---- operator arguments --------------------------------------------------------------------

/// Builds Rows from a plan and its trees: for each sequence its catch-up rows, then its nodes.
struct ExpandArgs {
  Plan plan;
  TreeView trees;
  Rows rows;
};
struct EmbedArgs {
  Live live;
  const int32_t* token;  // by row of the round
  Tensor table;          // [vocab, width] 16-bit
  Tensor out;            // [rows of the round, width] f32
};
/// What a projection multiplies: 16-bit rows as they are, or rows of f32 through an RMS norm, in
/// which a row whose squares overflow comes out as NaN.
struct ProjectInput {
  Tensor x;                       // [capacity, k] 16-bit; with a norm [rows of the round, k] f32
  DType type = DType::bf16;       // 16-bit type that is multiplied; that of x without a norm
  const float* norm = nullptr;    // [k] gains, or null
  float eps = 0;                  // of the norm
  const int32_t* pick = nullptr;  // with a norm: the row of x for a row of the round; null = itself
};
/// A format's fast kernel; each backend derives one with a signature of its own. A kernel's result
/// must not depend on the number of rows or on how its work is shared out.
struct FastKernel {};
/// A weight as one activation mode runs it.
struct ProjectWeight {
  PackedWeight packed;
  ActMode mode;
  const FastKernel* kernel = nullptr;  // null: the generic path over the described format
};

// What becomes of y = x W^T + bias.
/// It is stored.
struct Store {
  Tensor y;  // [capacity, n] f32
};
/// It is added to the residual.
struct AddTo {
  Tensor residual;  // [rows of the round, n] f32
};
/// It is a row of qkv: split, q and k normalized per head where asked, rotated, k and v stored.
struct RopeAppend {
  Rows rows;
  const float* q_norm = nullptr;  // [head_dim] or null
  const float* k_norm = nullptr;
  float eps = 0;
  const float* rope = nullptr;  // [positions, head_dim / 2, 2] cos, sin; halves are rotated
  int heads = 0;
  KVView kv;
  int layer = 0;
  Tensor q;  // [capacity, heads * head_dim] 16-bit
};
/// It is gate and up, gate first: silu(gate) * up.
struct Gate {
  Tensor out;  // [capacity, n / 2] 16-bit
};

/// One projection of a layer, with what comes before and after it: norm, activation quantization,
/// product, bias, and the result's way. What of this runs as one kernel is the backend's affair.
struct ProjectArgs {
  Live live;
  ProjectInput input;
  ProjectWeight weight;
  std::variant<Store, AddTo, RopeAppend, Gate> result;
  void* workspace = nullptr;  // at least workspace_bytes()
};
/// Softmax attention by logical position: steps of kAttentionStep keys aligned to position; from
/// the last boundary below `committed` on, keys are gathered along the row's own path.
struct AttentionArgs {
  Live live;
  Rows rows;
  Tensor q;  // [capacity, heads * head_dim] 16-bit
  KVView kv;
  int layer, heads;
  float scale;
  Tensor out;                 // [capacity, heads * head_dim] 16-bit
  void* workspace = nullptr;  // at least workspace_bytes()
};
/// The one choice rule at each live node. `live` counts nodes; logits row j is node *first + j.
struct ChooseArgs {
  Live live;
  Tensor logits;  // [capacity, head rows] f32
  Plan plan;
  TreeView trees;
  Rows rows;
  RuleView rules;
  ChoiceView out;  // indexed by node, over all sequences
};
/// log-softmax of the raw logits: of the choice itself and of the *asked likeliest tokens.
struct LogprobArgs {
  Live live;
  Tensor logits;
  ChoiceView choices;
  int vocab, most;       // most: likeliest tokens there is room for
  const int32_t* asked;  // [1] how many are wanted; negative = nothing is
  float* chosen;         // [nodes] indexed as choices
  int32_t* top_token;    // [nodes, most]
  float* top_logprob;    // [nodes, most]
};
/// Walks each tree while the choice at a node is one of its children (the first of them).
struct AcceptArgs {
  Plan plan;
  TreeView trees;
  Rows rows;
  ChoiceView choices;
  RuleView rules;
  bool count;           // Level 0: what is emitted enters the rule's counts
  RoundResult* result;  // [plan.capacity]
  int32_t* path;        // [plan.capacity, kMaxEmitted] accepted nodes, the root first
  int32_t* path_node;   // [plan.capacity, kMaxEmitted] the same as index over all nodes
};
/// The rows' hidden state, to where their entries are: rounded as it is, or through the final norm.
struct FeatureArgs {
  Live live;
  Rows rows;
  Tensor x;           // [rows of the round, width] f32
  const float* norm;  // [width] gains, or null
  float eps;
  KVView kv;
  int index;  // which of the features
};
/// Moves the block in hand on: *at += by.
struct AdvanceArgs {
  int32_t* at;
  int by;
};
/// Behind a round of roots, makes the next one of a chain: what the sequence emitted goes to `out`
/// and becomes its root, as long as it has emitted fewer tokens than it wants and the context has
/// room; else it has no rows any more.
struct FollowArgs {
  const int32_t* count;  // [1] sequences
  int capacity;          // sequences at most
  PlanEntry* entries;    // [capacity]
  int32_t* tokens;       // of the plan; behind a sequence's tentative ones there is room for more
  TreeView trees;
  const RoundResult* result;  // [capacity] of the round
  RoundResult* out;           // [capacity] of the chain
  int context;                // positions a sequence may fill
  bool first;                 // whether the chain began with this round
};
/// Copies each accepted path from scratch to the region: the root to root_position and so on.
struct KeepArgs {
  Plan plan;
  KVView kv;
  const RoundResult* result;
  const int32_t* path;
};
/// Marks or clears a sequence's tokens in the rule's counts; clears its row first when `reset`.
struct CountArgs {
  RuleView rules;
  int row;
  const int32_t* tokens;
  int count;
  bool prompt, reset;
};

// ---- the backend ---------------------------------------------------------------------------

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
};

/// How a backend is opened.
struct BackendOptions {
  std::string device = "cpu";  // "auto", or a backend's name and perhaps an index, as in "cuda:1"
  std::string isa;             // cpu: "" = the best there is; else "portable", "avx2", "avx512"
  int threads = 0;             // of the host; 0 = as many as the machine has cores
};
/// The backend that `device` names; "auto" is the one that runs and is preferred most. Throws
/// Error(unsupported) naming what there is when `device` or `isa` is not available.
std::unique_ptr<Backend> open_backend(const BackendOptions&);

/// The one constant that a backend's folder exports, named like the folder, in the namespace
/// `backend`.
struct BackendKind {
  int preference;  // of "auto": the highest of those that run
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
