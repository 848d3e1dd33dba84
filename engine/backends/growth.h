// How candidates, beams and scratch slots of growing trees are numbered, and what the operators
// `grow` and `prune` do: integers and comparisons alone, the same on every backend.
#pragma once

#include "backends/operators.h"

namespace stepladder {

/// First candidate of a sequence in the arrays of all.
SL_INLINE size_t first_candidate(const GrowthView& g, int sequence) {
  return size_t(sequence) * size_t(GrowthView::candidates(g.width, g.depth));
}
/// Child `rank` of beam `beam` of step `step`; the root is the only beam of step 0.
SL_INLINE int candidate_of(const GrowthView& g, int step, int beam, int rank) {
  return step == 0 ? rank : g.width + ((step - 1) * g.width + beam) * g.width + rank;
}
SL_INLINE int step_of(const GrowthView& g, int candidate) {
  return candidate < g.width ? 0 : 1 + (candidate - g.width) / (g.width * g.width);
}
/// The beam, of step step_of() >= 1, whose child the candidate is.
SL_INLINE int parent_beam(const GrowthView& g, int candidate) {
  return candidate < g.width ? 0 : (candidate - g.width) / g.width % g.width;
}
SL_INLINE int32_t& beam_of(const GrowthView& g, int sequence, int step, int beam) {
  return g
      .beam[(size_t(sequence) * size_t(g.depth) + size_t(step)) * size_t(g.width) + size_t(beam)];
}
/// The candidate's parent among the candidates; -1 = the root.
SL_INLINE int parent_candidate(const GrowthView& g, int sequence, int candidate) {
  const int step = step_of(g, candidate);
  return step == 0 ? -1 : beam_of(g, sequence, step, parent_beam(g, candidate));
}
/// Scratch slot of a beam of step >= 1.
SL_INLINE int slot_of(const GrowthView& g, int step, int beam) {
  return 1 + (step - 1) * g.width + beam;
}
/// Scratch slot of the row's parent.
SL_INLINE int parent_slot(const Rows& r, int row) {
  return r.path[size_t(row) * size_t(r.depth) + size_t(r.position[row] - r.committed[row] - 1)];
}

/// Whether a candidate of this score and number comes before another one.
SL_INLINE bool before(float a, int a_number, float b, int b_number) {
  return a > b || (a == b && a_number < b_number);
}

/// The beams of a.step of a sequence: its candidates of the step before, the likeliest first.
SL_INLINE void choose_beams(const GrowArgs& a, int s) {
  const GrowthView& g = a.growth;
  const size_t tree = first_candidate(g, s);
  const bool deep = a.asks[s].nodes > 0 && a.asks[s].depth > a.step;
  int held = 0;
  for (int parent = 0; deep && parent < g.width; ++parent) {
    if (a.step == 1 ? parent > 0 : beam_of(g, s, a.step - 1, parent) < 0) break;
    for (int rank = 0; rank < g.width; ++rank) {
      const int c = candidate_of(g, a.step - 1, parent, rank);
      const float score = g.score[tree + size_t(c)];
      if (g.token[tree + size_t(c)] < 0) break;
      const auto comes_first = [&](int place) {
        const int other = beam_of(g, s, a.step, place);
        return before(score, c, g.score[tree + size_t(other)], other);
      };
      if (held == g.width && !comes_first(held - 1)) break;
      int at = held < g.width ? held++ : held - 1;
      for (; at > 0 && comes_first(at - 1); --at)
        beam_of(g, s, a.step, at) = beam_of(g, s, a.step, at - 1);
      beam_of(g, s, a.step, at) = c;
    }
  }
  for (; held < g.width; ++held) beam_of(g, s, a.step, held) = -1;
}

/// Rows for a sequence's beams, from row `first` on; how many.
SL_INLINE int add_beams(const GrowArgs& a, int s, int first) {
  const GrowthView& g = a.growth;
  const Rows& r = a.rows;
  const PlanEntry& e = a.plan.entries[s];
  int n = 0;
  for (; n < g.width && beam_of(g, s, a.step, n) >= 0; ++n) {
    const int row = first + n;
    r.token[row] = g.token[first_candidate(g, s) + size_t(beam_of(g, s, a.step, n))];
    r.position[row] = e.root_position + a.step;
    r.slot[row] = e.slot, r.committed[row] = e.root_position;
    r.scratch[row] = slot_of(g, a.step, n);
    uint16_t* path = r.path + size_t(row) * size_t(r.depth);
    for (int d = a.step, beam = n; d > 0; --d) {
      path[d] = static_cast<uint16_t>(slot_of(g, d, beam));
      beam = parent_beam(g, beam_of(g, s, d, beam));
    }
    path[0] = 0;
    r.node_row[row] = row, r.node_sequence[row] = s, r.node_index[row] = n;
  }
  return n;
}

/// The counts behind the last sequence's beams.
SL_INLINE void end_beams(const Rows& r, int sequences, int rows) {
  for (int s = sequences; s <= r.sequences; ++s) r.sequence_row[s] = r.sequence_node[s] = rows;
  *r.count = *r.node_count = rows;
  *r.block_row = *r.block_node = 0;
}

/// Candidates that may be there for what is asked.
SL_INLINE int asked_candidates(const GrowthView& g, const DraftAsk& ask) {
  if (ask.nodes <= 0 || ask.depth <= 0) return 0;
  return GrowthView::candidates(g.width, ask.depth < g.depth ? ask.depth : g.depth);
}
/// Whether there is such a candidate.
SL_INLINE bool is_candidate(const GrowthView& g, int s, int c) {
  const int step = step_of(g, c);
  return (step == 0 || beam_of(g, s, step, parent_beam(g, c)) >= 0) &&
         g.token[first_candidate(g, s) + size_t(c)] >= 0;
}
/// The node that candidate c becomes: 1 + how many come before it; 0 = none.
SL_INLINE int place_of(const GrowthView& g, int s, const DraftAsk& ask, int c) {
  if (!is_candidate(g, s, c)) return 0;
  const float* score = g.score + first_candidate(g, s);
  const int all = asked_candidates(g, ask);
  int place = 1;
  for (int other = 0; other < all && place <= ask.nodes; ++other)
    place += before(score[other], other, score[c], c) && is_candidate(g, s, other);
  return place <= ask.nodes ? place : 0;
}
/// Writes candidate c to its node, if it is one.
SL_INLINE void put_candidate(const PruneArgs& a, int s, int c, const int32_t* place) {
  if (place[c] == 0) return;
  const GrowthView& g = a.growth;
  const size_t at = size_t(s) * size_t(a.trees.capacity) + size_t(place[c]);
  const int parent = parent_candidate(g, s, c);
  a.trees.token[at] = g.token[first_candidate(g, s) + size_t(c)];
  a.trees.parent[at] = parent < 0 ? 0 : place[parent];
}

}  // namespace stepladder
