// What grows a draft tree. The likeliest children of a node are taken one after the other by a
// thread block; beams are chosen by a thread a sequence; the tree's nodes find their places at
// once.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/logits_row.cuh"
#include "backends/cuda/device/rank.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/kv_layout.h"
#include "backends/growth.h"
#include "core/noise.h"
#include "core/philox.h"

namespace stepladder::cuda {
namespace {

constexpr int kThreads = 256, kTopThreads = 1024;

__global__ void narrow_kernel(NarrowArgs a) {
  begin();
  const int i = static_cast<int>(blockIdx.x);
  if (i >= live_rows(a.live)) return;
  const int row = first_row(a.live) + i;
  const float* x = row_of<const float>(a.x, a.pick ? a.pick[row] : row);
  uint16_t* out = row_of<uint16_t>(a.out, i);
  for (int c = threadIdx.x; c < a.out.cols; c += kThreads) out[c] = to_16(a.out.dtype, x[c]);
}

__global__ void join_kernel(JoinArgs a) {
  begin();
  const int i = static_cast<int>(blockIdx.x);
  if (i >= live_rows(a.live)) return;
  const int row = first_row(a.live) + i, width = a.kv.spec.features.width;
  const int64_t entry = a.of_parents ? entry_of_scratch(a.kv.spec, parent_slot(a.rows, row))
                                     : int64_t{a.rows.position[row]};
  const uint16_t* state =
      static_cast<const uint16_t*>(a.kv.data) + features_at(a.kv.spec, a.rows.slot[row], entry);
  const uint16_t* embedding = row_of<const uint16_t>(a.table, a.rows.token[row]);
  uint16_t* out = row_of<uint16_t>(a.out, i);
  float* residual = row_of<float>(a.residual, row);
  for (int c = threadIdx.x; c < width; c += kThreads)
    out[c] = embedding[c], out[width + c] = state[c], residual[c] = 0.f;
}

/// The value of a token, with the noise of its position where the rule samples.
struct Value {
  const Row& row;
  bool sampled;
  uint64_t seed;
  int32_t position;

  __device__ float operator()(int id) const {
    const float z = shaped(row, id, row.logits[id]);
    return sampled ? z + gumbel(noise_word(seed, position, id)) : z;
  }
};

__global__ void top_kernel(TopArgs a) {
  begin();
  __shared__ uint32_t seen[32];
  __shared__ int32_t path_token[kMaxEmitted + 1], path_parent[kMaxEmitted + 1];
  const int j = static_cast<int>(blockIdx.x);
  if (j >= live_rows(a.live)) return;
  const GrowthView& g = a.growth;
  const int node = first_row(a.live) + j, s = a.rows.node_sequence[node];
  const int beam = node - a.rows.sequence_node[s];
  const PlanEntry& entry = a.plan.entries[s];
  const RuleParams rule = a.rules.params[entry.rule];
  const size_t tree = first_candidate(g, s);
  // The path as a chain of nodes 1 .. step.
  if (threadIdx.x == 0)
    for (int d = a.step, at = beam; d > 0; --d) {
      const int candidate = beam_of(g, s, d, at);
      path_token[d] = g.token[tree + candidate], path_parent[d] = d - 1;
      at = parent_beam(g, candidate);
    }
  const Row r = row_under(rule, a.rules, a.plan, entry, row_of<const float>(a.logits, j),
                          path_token, path_parent, a.step, seen);
  if (rule.penalties) note_seen(r, seen);
  const Value value{r, !(rule.temperature < kLeastTemperature), rule.seed,
                    a.rows.position[a.rows.node_row[node]] + 2};
  const size_t from = tree + candidate_of(g, a.step, a.step ? beam : 0, 0);
  const float above = a.step ? g.score[tree + beam_of(g, s, a.step, beam)] : 0.f;
  Rank last = ~Rank{0};
  float top = 0.f, total = 0.f;
  for (int k = 0; k < g.width; ++k) {
    Rank most = 0;
    for (int id = threadIdx.x; id < r.vocab; id += kTopThreads) {
      const Rank rank = rank_of(value(id), id);
      if (rank < last && rank > most) most = rank;
    }
    last = block_most(most);
    const float z = value_of(last);
    const bool there = last > 0 && z > -__builtin_inff();
    if (k == 0 && there) {
      top = z;
      float sum = 0.f;
      for (int id = threadIdx.x; id < r.vocab; id += kTopThreads)
        sum = sum + fixed_exp(value(id) - top);
      total = fixed_log(block_sum(sum));
    }
    if (threadIdx.x != 0) continue;
    const float own = (z - top) - total;
    g.token[from + k] = there ? id_of(last) : -1;
    g.score[from + k] = there ? above + (own < 0.f ? own : 0.f) : -__builtin_inff();
  }
}

__global__ void grow_kernel(GrowArgs a) {
  begin();
  const int sequences = min(*a.plan.count, a.plan.capacity);
  for (int s = threadIdx.x; s < sequences; s += kThreads) choose_beams(a, s);
  __syncthreads();
  if (threadIdx.x != 0) return;
  int rows = 0;
  for (int s = 0; s < sequences; ++s) {
    a.rows.sequence_row[s] = a.rows.sequence_node[s] = rows;
    rows += add_beams(a, s, rows);
  }
  end_beams(a.rows, sequences, rows);
}

__global__ void prune_kernel(PruneArgs a) {
  begin();
  extern __shared__ int32_t place[];
  const int s = static_cast<int>(blockIdx.x);
  if (s >= *a.plan.count) return;
  const DraftAsk ask = a.asks[s];
  const int all = asked_candidates(a.growth, ask);
  int nodes = 0;
  for (int c = threadIdx.x; c < all; c += kThreads) {
    place[c] = place_of(a.growth, s, ask, c);
    nodes += place[c] > 0;
  }
  nodes = block_sum(nodes);
  for (int c = threadIdx.x; c < all; c += kThreads) put_candidate(a, s, c, place);
  if (threadIdx.x != 0) return;
  const int64_t tree = int64_t{s} * a.trees.capacity;
  a.trees.token[tree] = ask.root, a.trees.parent[tree] = -1;
  a.trees.count[s] = 1 + nodes;
}

}  // namespace

void narrow(const NarrowArgs& a, cudaStream_t stream) {
  launch_kernel(narrow_kernel, a.live.capacity, kThreads, 0, stream, a);
}
void join(const JoinArgs& a, cudaStream_t stream) {
  launch_kernel(join_kernel, a.live.capacity, kThreads, 0, stream, a);
}
void top(const TopArgs& a, cudaStream_t stream) {
  launch_kernel(top_kernel, a.live.capacity, kTopThreads, 0, stream, a);
}
void grow(const GrowArgs& a, cudaStream_t stream) {
  launch_kernel(grow_kernel, 1, kThreads, 0, stream, a);
}
void prune(const PruneArgs& a, cudaStream_t stream) {
  const size_t shared =
      size_t(GrowthView::candidates(a.growth.width, a.growth.depth)) * sizeof(int32_t);
  launch_kernel(prune_kernel, a.plan.capacity, kThreads, shared, stream, a);
}

}  // namespace stepladder::cuda
