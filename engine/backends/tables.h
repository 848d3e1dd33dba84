// What a round works on, in backend memory: the plan that the host sends, the trees, the table of
// rows made of both, the rules by which tokens are chosen, and what the host reads back.
//
// How many rows are live in a pass, where they stand and what they may see is itself data, so that
// a recorded round replays at any lengths.
#pragma once

#include <array>
#include <cstdint>

#include "core/dtype.h"

namespace stepladder {

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

constexpr int kMaxWidth = 16;  // children that a growing tree's node is given
/// Draft trees while a head grows them, one per sequence of a batch. The root and then, in each of
/// depth - 1 steps, `width` beams are given their `width` likeliest children, the candidates. Those
/// of the root come first, then those of beam r of step d >= 1 from
/// width + ((d - 1) * width + r) * width on.
struct GrowthView {
  int sequences = 0;
  int width = 0, depth = 0;  // at most kMaxWidth and kMaxEmitted - 1
  int32_t* token = nullptr;  // [sequences, candidates()]; -1 = none
  float* score = nullptr;   // [sequences, candidates()] log-probability of the path that ends there
  int32_t* beam = nullptr;  // [sequences, depth, width] the candidate that is beam r of step d, the
                            // likeliest first; -1 = none

  static constexpr int candidates(int width, int depth) {
    return width * (1 + (depth - 1) * width);
  }
  static constexpr int slots(int width, int depth) { return 1 + (depth - 1) * width; }
};
/// What is asked of a drafter for a sequence.
struct DraftAsk {
  int32_t root = 0;              // the sequence's last token
  int32_t depth = 0, nodes = 0;  // levels, and guesses at most; 0 = the root alone
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

}  // namespace stepladder
