// The narrow interface to a device: memory, one in-order queue, and the operators of a transformer
// round. Operators queue work; they never allocate and never wait. Every pointer in an argument
// struct is backend memory, which the host may not be able to read, unless it is named host_.
//
// How many rows are live in a pass, where they stand and what they may see is itself data in
// backend memory (Live, Rows, Plan), so that a recorded round replays at any lengths.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/format.h"
#include "core/tensor.h"

namespace stepladder {

// ---- what a pass works on ------------------------------------------------------------------

/// A block of rows whose live count only the backend knows: clamp(*total - first, 0, capacity).
struct Live {
  const int32_t* total = nullptr;
  int first = 0, capacity = 0;
};

constexpr int kAttentionStep = 32;  // keys an attention step takes; steps are aligned to position
constexpr int kMaxEmitted = 31;     // tokens a round can emit: 30 drafts deep and the bonus

/// Key/value memory of all sequences of one cache. A sequence has a region of `positions` entries,
/// entry p belonging to position p, and `scratch` slots for the nodes of the tree in flight.
struct KVSpec {
  int layers = 0, kv_heads = 0, head_dim = 0;
  int positions = 0;  // a multiple of kAttentionStep
  int scratch = 0, sequences = 0;
  DType dtype = DType::bf16;
};
struct KVView {
  KVSpec spec;
  void* data = nullptr;
};

/// The rows of one pass, in passing order. Catch-up rows (the sequence's tokens its cache lacks)
/// go to the region at their position; a tree node x goes to scratch slot x and sees the region
/// below `committed`, then its own path. All arrays have `capacity` elements.
struct Rows {
  int capacity = 0, depth = 0;  // depth: longest path a row may have
  int32_t* count = nullptr;     // [1] live rows
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
  int32_t pad = 0;
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
  const int32_t* token;
  Tensor table;  // [vocab, width] 16-bit
  Tensor out;    // [capacity, width] f32
};
/// A row whose squares overflow comes out as NaN.
struct RmsNormArgs {
  Live live;
  Tensor x;             // [*, width] f32
  const int32_t* pick;  // row of x for each live row; null = the row itself
  const float* weight;  // [width]
  float eps;
  Tensor out;  // [capacity, width] 16-bit
};
/// int8 activations: q = round(x / scale) with scale = amax / 127 over each group of k, ties to
/// even; a group of zeros has scale 0, one with a NaN has scale NaN. `sum` holds the sum of q over
/// each group.
struct QuantizeArgs {
  Live live;
  Tensor x;      // [capacity, k] 16-bit
  int group;     // k per scale; k itself when per token
  int8_t* q;     // [capacity, k]
  float* scale;  // [capacity, k / group]
  int32_t* sum;  // [capacity, k / group]
};
struct LinearArgs;
/// Where in the backend a kernel runs: on a CPU, which share of the outputs; on CUDA, the stream.
/// With a counter, a lane takes whichever part is next until none is left, so that a thread that is
/// held up holds nobody up.
struct Lane {
  int part = 0, parts = 1;
  void* stream = nullptr;
  int32_t* next = nullptr;
};
/// A format's fast kernel. Its result must not depend on the number of rows or on the lane.
using LinearKernelFn = void (*)(const LinearArgs&, Lane);
/// y = x W^T (+ bias), or y += when `accumulate`.
struct LinearArgs {
  Live live;
  Tensor y;         // [capacity, n] f32
  Tensor x;         // [capacity, k] 16-bit
  QuantizeArgs x8;  // the quantized x when act is a8
  Act act;
  PackedWeight weight;
  bool accumulate;
  LinearKernelFn kernel;  // null: the generic path over the described format
};
/// Splits qkv, normalizes q and k per head where asked, rotates them, and stores k and v.
struct RopeAppendArgs {
  Live live;
  Rows rows;            // already offset to the block
  Tensor qkv;           // [capacity, (heads + 2 kv_heads) * head_dim] f32
  const float* q_norm;  // [head_dim] or null
  const float* k_norm;
  float eps;
  const float* rope;  // [positions, head_dim / 2, 2] cos, sin; halves are rotated
  int heads;
  KVView kv;
  int layer;
  Tensor q;  // [capacity, heads * head_dim] 16-bit
};
/// Softmax attention by logical position: steps of kAttentionStep keys aligned to position; from
/// the last boundary below `committed` on, keys are gathered along the row's own path.
struct AttentionArgs {
  Live live;
  Rows rows;  // already offset to the block
  Tensor q;   // [capacity, heads * head_dim] 16-bit
  KVView kv;
  int layer, heads;
  float scale;
  Tensor out;  // [capacity, heads * head_dim] 16-bit
};
/// silu(gate) * up, gate first.
struct GatedActArgs {
  Live live;
  Tensor gate_up;  // [capacity, 2 * width] f32
  Tensor out;      // [capacity, width] 16-bit
};
/// The one choice rule at each live node. `live` counts nodes; logits row j is node live.first + j.
struct ChooseArgs {
  Live live;
  Tensor logits;  // [capacity, head rows] f32
  Plan plan;
  TreeView trees;
  Rows rows;
  RuleView rules;
  ChoiceView out;  // indexed by node, over all sequences
};
/// log-softmax of the raw logits: of the choice itself and of the `top` likeliest tokens.
struct LogprobArgs {
  Live live;
  Tensor logits;
  ChoiceView choices;
  int vocab, top;
  float* chosen;       // [nodes] indexed as choices
  int32_t* top_token;  // [nodes, top]
  float* top_logprob;  // [nodes, top]
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

  /// 64-byte aligned (2 MB for large blocks), zeroed. Throws Error(out_of_memory) with the numbers.
  virtual void* allocate(size_t bytes) = 0;
  virtual void release(void* memory, size_t bytes) noexcept = 0;
  /// Queues a copy to the backend; the host bytes are taken before the call returns.
  virtual void upload(void* to, const void* host_from, size_t bytes) = 0;
  /// Queues a copy to the host; `host_to` is valid after wait().
  virtual void read(void* host_to, const void* from, size_t bytes) = 0;
  virtual void wait() = 0;
  /// Whether work is done when the call that queues it returns, so that the host's clock times it.
  virtual bool runs_at_once() const = 0;
  /// Runs `body`, whose operators are remembered instead of run.
  virtual std::unique_ptr<Recording> record(const std::function<void()>& body) = 0;

  virtual size_t kv_bytes(const KVSpec&) const = 0;
  /// Queues a read of entries [first, first + count) of one sequence's region as
  /// [layers, 2 (k, v), count, kv_heads, head_dim] 16-bit values; for tests and tools.
  virtual void read_entries(uint16_t* host_to, const KVView&, int slot, int first, int count) = 0;

  virtual void expand(const ExpandArgs&) = 0;
  virtual void embed(const EmbedArgs&) = 0;
  virtual void rms_norm(const RmsNormArgs&) = 0;
  virtual void quantize(const QuantizeArgs&) = 0;
  virtual void linear(const LinearArgs&) = 0;
  virtual void rope_append(const RopeAppendArgs&) = 0;
  virtual void attention(const AttentionArgs&) = 0;
  virtual void gated_act(const GatedActArgs&) = 0;
  virtual void choose(const ChooseArgs&) = 0;
  virtual void logprobs(const LogprobArgs&) = 0;
  virtual void accept(const AcceptArgs&) = 0;
  virtual void keep(const KeepArgs&) = 0;
  virtual void count(const CountArgs&) = 0;
};

/// How a backend is opened. threads 0: as many as the machine has cores.
struct BackendOptions {
  std::string device = "cpu";  // "auto" or a backend's name
  std::string isa;             // "" = the best there is; else "portable", "avx2", "avx512"
  int threads = 0;
};
/// Throws Error(unsupported) naming what there is when `device` or `isa` is not available.
std::unique_ptr<Backend> open_backend(const BackendOptions&);
/// Instruction sets this machine can run, worst first.
std::vector<std::string> available_isas();

}  // namespace stepladder
