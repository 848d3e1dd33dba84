// What the tests of devices share: the backends they run over, each beside the CPU's portable
// kernels, and random rounds in a backend's memory.
#pragma once

#include <random>

#include "cpp/backend_fixture.h"
#include "support/backends.h"

namespace stepladder::test {

using AnyMachine = MachineOf<Backend>;

class DeviceTest : public ::testing::TestWithParam<BackendCase> {
 protected:
  std::unique_ptr<Backend> subject() const { return GetParam().open(2); }
  static std::unique_ptr<Backend> reference() { return open_backend({"cpu", "portable", 1}); }
  /// What `body` gives on the reference and on the subject.
  template <class Body>
  auto both(const Body& body) const {
    AnyMachine a(reference()), b(subject());
    return std::pair(body(a), body(b));
  }
};

/// A random round: its plan, trees and rows in a machine's memory.
struct RoundOf {
  static constexpr int kSequences = 4, kTree = 40, kCapacity = 96, kDepth = 24, kTokens = 400;
  Plan plan;
  TreeView trees;
  Rows rows;
  std::vector<PlanEntry> entries;

  RoundOf(AnyMachine& m, std::mt19937& g, int most_missing = 20, int positions = 1000) {
    const int sequences = pick(g, 1, kSequences);
    std::vector<int32_t> tokens(kTokens), count(kSequences), token(kSequences * kTree),
        parent(kSequences * kTree, -1);
    for (int32_t& t : tokens) t = pick(g, -1, 60);
    entries.resize(kSequences);
    for (int i = 0; i < sequences; ++i) {
      PlanEntry& e = entries[i];
      e.slot = e.rule = (i + 1) % kSequences;
      e.missing = pick(g, 0, most_missing), e.first_missing = i * 20;
      e.root_position = e.missing + pick(g, 0, positions - most_missing - kDepth);
      e.tentative = pick(g, 0, 30), e.first_tentative = 100 + i * 70, e.wanted = pick(g, 0, 8);
      count[i] = pick(g, 0, 3) ? pick(g, 0, kTree) : 0;
      for (int x = 0; x < count[i]; ++x) {
        token[i * kTree + x] = pick(g, 0, 60);
        // Mostly deep, so that some paths are longer than there is room for.
        parent[i * kTree + x] = x == 0 ? -1 : pick(g, 0, 4) ? x - 1 : pick(g, 0, x - 1);
      }
    }
    plan = {kSequences, m.put<int32_t>(sequences), m.put(entries), m.put(tokens)};
    trees = {kSequences, kTree, m.put(count), m.put(token), m.put(parent)};
    rows = m.rows(kCapacity, kDepth, kSequences);
    m->expand({plan, trees, rows});
  }
};

/// All that a table of rows says, as one list.
inline std::vector<int64_t> said(AnyMachine& m, const Rows& r) {
  const int n = m.get(r.count, 1)[0], nodes = m.get(r.node_count, 1)[0];
  std::vector<int64_t> out{n, nodes, m.get(r.block_row, 1)[0], m.get(r.block_node, 1)[0]};
  const auto add = [&](const auto* from, size_t count) {
    for (const auto x : m.get(from, count)) out.push_back(x);
  };
  for (const int32_t* list : {r.token, r.position, r.slot, r.committed, r.scratch}) add(list, n);
  for (const int32_t* list : {r.node_row, r.node_sequence, r.node_index}) add(list, nodes);
  for (const int32_t* list : {r.sequence_row, r.sequence_node}) add(list, r.sequences + 1);
  for (int i = 0; i < n; ++i) {
    const int position = m.get(r.position + i, 1)[0], committed = m.get(r.committed + i, 1)[0];
    if (m.get(r.scratch + i, 1)[0] >= 0)
      add(r.path + int64_t{i} * r.depth, position - committed + 1);
  }
  return out;
}

/// Every device there is, and one that is made of the CPU.
inline std::vector<BackendCase> devices() {
  std::vector<BackendCase> out{{"cpu", available_isas().back(), true}};
  for (const BackendCase& c : backend_cases())
    if (c.device != "cpu") out.push_back(c);
  return out;
}

}  // namespace stepladder::test
