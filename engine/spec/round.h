// One level-round as a backend runs it: the tables that say which rows and nodes it has, their
// image on the host that goes up in one piece, and the recordings that are replayed over them.
//
//   few rows     one recording for each bucket of rows, with nodes and without
//   many rows    one block of rows and one block of nodes are recorded; where a block begins is a
//                number in backend memory that the recording itself moves on
//
// So recordings add up: twice the buckets, and four.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "backends/backend.h"
#include "core/arena.h"
#include "spec/draft_tree.h"

namespace stepladder {

/// The largest round.
struct RoundLimits {
  int sequences = 1;
  int tree = 64;      // nodes of the largest tree, root included
  int ahead = 64;     // tokens a level may have guessed beyond what is committed
  int catch_up = 16;  // lacking rows that a round feeds itself, for each sequence
  int block = 128;    // rows of one pass

  int rows() const;  // in whole blocks
  int nodes() const { return sequences * tree; }
  int node_block() const { return nodes() < 64 ? nodes() : 64; }  // chosen for together
};

/// What a round computes over its rows: a model's forward pass, or that of a drafter of its own.
class RoundBody {
 public:
  virtual ~RoundBody() = default;
  /// Queues the work on a block of rows; blocks come in order.
  virtual void rows(const Live&) = 0;
  /// The same for a block of nodes, once all rows are done.
  virtual void nodes(const Live&) = 0;
  /// What ends a round that has nodes.
  virtual void finish() = 0;
};

class Round {
 public:
  /// A sequence's part in a round, as the host knows it.
  struct Part {
    int slot = 0, root_position = 0;
    std::span<const Token> missing;    // tokens of the rows before the root that the cache lacks
    std::span<const Token> tentative;  // what the level itself guessed so far, for the penalties
    int wanted = 0;                    // of a chain of rounds
  };

  /// Takes its tables from the arena; one that measures tells how large they are.
  Round(const RoundLimits&, Arena&);
  const RoundLimits& limits() const { return limits_; }
  /// Bytes of host memory beside them.
  size_t host_bytes() const { return up_bytes_; }

  const Plan& plan() const { return plan_; }
  const TreeView& trees() const { return trees_; }
  const Rows& rows() const { return rows_; }
  /// [1] The likeliest tokens whose log-probabilities are asked for; -1 = none.
  const int32_t* asked() const { return asked_; }
  /// For the operator that makes the next round of a chain of this one.
  FollowArgs follow(const RoundResult* result, RoundResult* out, int context, bool first) const;

  /// Records every shape a round can have; nothing is recorded or allocated afterwards.
  void record(Backend&, RoundBody&);
  int recordings() const;

  /// Begins to plan a round with empty trees.
  void begin(int asked = -1);
  /// The next sequence of the batch; it has no nodes until add_tree().
  void add(const Part&);
  /// Sequence i of `trees` for the sequence added last. Trees that a drafter wrote on the backend
  /// are counted by their bound.
  void add_tree(const DraftTrees& trees, int i);
  int planned_rows() const { return planned_rows_; }
  int planned_nodes() const { return planned_nodes_; }
  /// Uploads the plan, with the trees unless they are on the backend already, and queues the round.
  void run(Backend&, bool trees_on_backend = false);
  /// Queues a round of at most `rows` roots over what is on the backend.
  void run_again(int rows);

 private:
  struct Shape {
    int rows;
    std::unique_ptr<Recording> read, verify;
  };
  const Shape& shape_of(int rows) const;
  void queue_nodes(Backend&, RoundBody&, int most);

  RoundLimits limits_;
  // In backend memory.
  int32_t* up_ = nullptr;  // first word of the upload
  size_t up_bytes_ = 0, bytes_without_trees_ = 0;
  const int32_t* asked_ = nullptr;
  Plan plan_;
  TreeView trees_;
  Rows rows_;
  // The host's image of the upload, and the same arrays in it.
  std::vector<int32_t> image_;
  int32_t* count_ = nullptr;
  PlanEntry* entries_ = nullptr;
  int32_t* tokens_ = nullptr;
  TreeView host_trees_;
  int planned_rows_ = 0, planned_nodes_ = 0, planned_tokens_ = 0;

  std::vector<Shape> shapes_;  // by rising rows
  std::unique_ptr<Recording> expand_, block_, node_block_, finish_;
};

}  // namespace stepladder
