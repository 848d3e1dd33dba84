// What the operator `follow` does to a sequence: integers alone, the same on every backend.
#pragma once

#include "backends/operators.h"

namespace stepladder {

SL_INLINE void follow_sequence(const FollowArgs& a, int i) {
  PlanEntry& e = a.entries[i];
  const RoundResult& said = a.result[i];
  RoundResult& out = a.out[i];
  if (a.first) out.emitted = 0;
  for (int j = 0; j < said.emitted && out.emitted < kMaxEmitted; ++j, ++out.emitted) {
    out.token[out.emitted] = said.token[j], out.logit[out.emitted] = said.logit[j];
    a.tokens[e.first_tentative + e.tentative++] = said.token[j];
  }
  e.missing = 0;
  e.root_position += said.emitted;
  const bool on = said.emitted > 0 && out.emitted < e.wanted && e.root_position < a.context;
  a.trees.count[i] = on ? 1 : 0;
  const int64_t root = int64_t{i} * a.trees.capacity;
  a.trees.token[root] = on ? said.token[said.emitted - 1] : 0;
  a.trees.parent[root] = -1;
}

}  // namespace stepladder
