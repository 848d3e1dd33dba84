// The operators of a transformer round: what each is given, and what it does with it. Every pointer
// is backend memory, which the host may not be able to read.
#pragma once

#include <variant>

#include "backends/tables.h"
#include "core/format.h"
#include "core/tensor.h"

namespace stepladder {

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
/// The rows' hidden state rounded, for a projection that has no norm before it.
struct NarrowArgs {
  Live live;
  Tensor x;             // [rows of the round, width] f32
  const int32_t* pick;  // the row of x for a row of the round; null = itself
  Tensor out;           // [capacity, width] 16-bit
};
/// What the first projection of a head that drafts from hidden states reads of a row at position p:
/// the embedding of its token, which is that of position p + 1, then the hidden state of p, as an
/// entry's feature. Clears the rows of the residual, to which that projection adds.
struct JoinArgs {
  Live live;
  Rows rows;
  Tensor table;     // [vocab, width] 16-bit
  KVView kv;        // whose entries have the states as their only feature
  bool of_parents;  // the state is that of the row's parent, in its scratch slot; else that of the
                    // region at the row's position
  Tensor out;       // [capacity, 2 * width] 16-bit
  Tensor residual;  // [rows of the round, width] f32
};
/// The children of each live node: the `growth.width` tokens of the largest logits after bias,
/// penalties and temperature, with the noise of the position where the rule samples; equal ones by
/// id. A child's score is the log-softmax of the same, added to its parent's. Filters do not apply.
/// A node's row stands at the position before its token's, as for JoinArgs.
struct TopArgs {
  Live live;
  Tensor logits;  // [capacity, head rows] f32
  Plan plan;
  Rows rows;
  RuleView rules;
  GrowthView growth;
  int step;  // 0: the nodes are roots; else the beams of this step
};
/// Makes of the candidates of step - 1 the beams of step `step` >= 1, those of the highest score,
/// and their rows, where a sequence wants trees that deep. Beam r of step d goes to scratch slot
/// 1 + (d - 1) * width + r, below the root's, which is 0.
struct GrowArgs {
  Plan plan;
  const DraftAsk* asks;  // [plan.capacity]
  GrowthView growth;
  int step;
  Rows rows;  // all of them nodes; node_index is the beam
};
/// Makes trees of the candidates: the root, then those of the highest score, equal ones by their
/// number, so that parents come before children.
struct PruneArgs {
  Plan plan;
  const DraftAsk* asks;  // [plan.capacity]
  GrowthView growth;
  TreeView trees;
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

}  // namespace stepladder
