// Guesses with parents, one tree per sequence of a batch. Arrays of fixed capacity, so that making
// a tree never allocates.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "backends/backend.h"
#include "stepladder/engine.h"

namespace stepladder {

/// Parents come before children and node 0 is the root. A drafter that works on the host fills the
/// arrays with reset() and add(); one that works on the backend sets `made` instead and knows of
/// each tree how many nodes it has at most, and how deep it is.
struct DraftTrees {
  DraftTrees(int sequences, int capacity)
      : capacity(capacity),
        count(sequences),
        depth(sequences),
        token(size_t(sequences) * capacity),
        parent(size_t(sequences) * capacity) {}

  int capacity;                        // nodes of the largest tree, root included
  std::vector<int32_t> count, depth;   // [sequences]; depth: guesses on the longest path
  std::vector<int32_t> token, parent;  // [sequences, capacity]
  TreeView made{};                     // backend memory, when a drafter built the trees there

  int sequences() const { return static_cast<int>(count.size()); }
  Token token_at(int sequence, int node) const { return token[size_t(sequence) * capacity + node]; }
  int parent_at(int sequence, int node) const { return parent[size_t(sequence) * capacity + node]; }
  int depth_at(int sequence, int node) const {
    int d = 0;
    while ((node = parent_at(sequence, node)) >= 0) ++d;
    return d;
  }

  /// Starts the sequence's tree anew with its root.
  void reset(int sequence, Token root) {
    count[sequence] = depth[sequence] = 0;
    add(sequence, -1, root);
  }
  /// The new node's number, or -1 when the tree is full.
  int add(int sequence, int parent_node, Token t) {
    if (count[sequence] == capacity) return -1;
    const int node = count[sequence]++;
    const size_t at = size_t(sequence) * capacity + node;
    token[at] = t, parent[at] = parent_node;
    depth[sequence] = std::max(depth[sequence], depth_at(sequence, node));
    return node;
  }
};

}  // namespace stepladder
