// The operators on a round's tables: rows out of plan and trees, the walk that accepts drafts, the
// next round of a chain, and the counts that penalties read. All are integers, so any order will
// do.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "backends/follow.h"

namespace stepladder::cuda {
namespace {

constexpr int kThreads = 256;

__device__ int sequences_of(const Plan& plan) {
  return *plan.count < plan.capacity ? *plan.count : plan.capacity;
}

/// Nodes from here up to the root of the node's part of the tree.
__device__ int depth_of(const int32_t* parent, int node) {
  int depth = 0;
  for (int at = node; at > 0 && parent[at] >= 0; at = parent[at]) ++depth;
  return depth;
}

__device__ void put_row(const Rows& r, int row, int token, int position, const PlanEntry& e,
                        int committed, int scratch) {
  r.token[row] = token, r.position[row] = position, r.slot[row] = e.slot;
  r.committed[row] = committed, r.scratch[row] = scratch;
}

/// One thread block. A tree is cut before the first node that has no room, since a later node may
/// be its child.
__global__ void expand_kernel(ExpandArgs a) {
  begin();
  __shared__ int room;  // nodes of the tree in hand that have a row
  const Rows& r = a.rows;
  const int sequences = sequences_of(a.plan), thread = static_cast<int>(threadIdx.x);
  int n = 0, nodes = 0;
  for (int i = 0; i < sequences; ++i) {
    const PlanEntry e = a.plan.entries[i];
    if (thread == 0) r.sequence_row[i] = n, r.sequence_node[i] = nodes;
    const int missing = e.missing < r.capacity - n ? e.missing : r.capacity - n;
    for (int j = thread; j < missing; j += kThreads) {
      const int position = e.root_position - e.missing + j;
      put_row(r, n + j, a.plan.tokens[e.first_missing + j], position, e, position + 1, -1);
    }
    n += missing;
    if (i >= a.trees.sequences) continue;

    const int64_t tree = int64_t{i} * a.trees.capacity;
    const int32_t *token = a.trees.token + tree, *parent = a.trees.parent + tree;
    int count = a.trees.count[i] < a.trees.capacity ? a.trees.count[i] : a.trees.capacity;
    if (count > r.capacity - n) count = r.capacity - n;
    __syncthreads();
    if (thread == 0) room = count;
    __syncthreads();
    for (int x = thread; x < count; x += kThreads)
      if (depth_of(parent, x) >= r.depth) atomicMin(&room, x);
    __syncthreads();
    count = room;
    for (int x = thread; x < count; x += kThreads) {
      const int row = n + x, depth = depth_of(parent, x);
      put_row(r, row, token[x], e.root_position + depth, e, e.root_position, x);
      uint16_t* path = r.path + int64_t{row} * r.depth;
      for (int at = x, d = depth; d >= 0; at = parent[at], --d) path[d] = static_cast<uint16_t>(at);
      r.node_row[nodes + x] = row, r.node_sequence[nodes + x] = i, r.node_index[nodes + x] = x;
    }
    n += count, nodes += count;
  }
  for (int i = sequences + thread; i <= r.sequences; i += kThreads)
    r.sequence_row[i] = n, r.sequence_node[i] = nodes;
  if (thread == 0) {
    *r.count = n, *r.node_count = nodes;
    *r.block_row = *r.block_node = 0;
  }
}

__global__ void advance_kernel(AdvanceArgs a) {
  begin();
  *a.at += a.by;
}

/// A thread a sequence.
__global__ void follow_kernel(FollowArgs a) {
  begin();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= a.capacity || i >= *a.count) return;
  follow_sequence(a, i);
}

/// The first node behind `node` that is its child and bears the token, or `nodes`. A whole warp.
__device__ int child_of(const int32_t* token, const int32_t* parent, int nodes, int node,
                        int wanted) {
  for (int first = node + 1; first < nodes; first += kWarp) {
    const int x = first + lane_of_thread();
    const unsigned found =
        __ballot_sync(kAllLanes, x < nodes && parent[x] == node && token[x] == wanted);
    if (found) return first + __ffs(static_cast<int>(found)) - 1;
  }
  return nodes;
}

/// A warp a sequence.
__global__ void accept_kernel(AcceptArgs a) {
  begin();
  const int s = static_cast<int>(blockIdx.x), lane = lane_of_thread();
  if (s >= sequences_of(a.plan)) return;
  const int base = a.rows.sequence_node[s], nodes = a.rows.sequence_node[s + 1] - base;
  const int64_t tree = int64_t{s} * a.trees.capacity;
  RoundResult& result = a.result[s];
  int32_t* path = a.path + int64_t{s} * kMaxEmitted;
  int32_t* path_node = a.path_node + int64_t{s} * kMaxEmitted;
  int emitted = 0;
  for (int node = 0; node < nodes && emitted < kMaxEmitted; ++emitted) {
    const int32_t token = a.choices.token[base + node];
    if (lane == 0) {
      path[emitted] = node, path_node[emitted] = base + node;
      result.token[emitted] = token, result.logit[emitted] = a.choices.logit[base + node];
    }
    node = child_of(a.trees.token + tree, a.trees.parent + tree, nodes, node, token);
  }
  if (lane == 0) result.emitted = emitted;
  for (int i = emitted + lane; i < kMaxEmitted; i += kWarp) {
    result.token[i] = 0, result.logit[i] = 0;
    path[i] = path_node[i] = -1;
  }
  __syncwarp();
  if (!a.count) return;
  uint32_t* counts = a.rules.counts + int64_t{a.plan.entries[s].rule} * a.rules.vocab;
  for (int i = lane; i < emitted; i += kWarp) atomicAdd(counts + result.token[i], 1u);
}

__global__ void count_kernel(CountArgs a) {
  begin();
  uint32_t* row = a.rules.counts + int64_t{a.row} * a.rules.vocab;
  if (a.reset)
    for (int i = static_cast<int>(threadIdx.x); i < a.rules.vocab; i += kThreads) row[i] = 0;
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < a.count; i += kThreads) {
    const int32_t t = a.tokens[i];
    if (t < 0 || t >= a.rules.vocab) continue;
    if (a.prompt)
      atomicOr(row + t, 0x80000000u);
    else
      atomicAdd(row + t, 1u);
  }
}

}  // namespace

void expand(const ExpandArgs& a, cudaStream_t stream) {
  launch_kernel(expand_kernel, 1, kThreads, 0, stream, a);
}
void advance(const AdvanceArgs& a, cudaStream_t stream) {
  launch_kernel(advance_kernel, 1, 1, 0, stream, a);
}
void follow(const FollowArgs& a, cudaStream_t stream) {
  launch_kernel(follow_kernel, dim3((a.capacity + kWarp - 1) / kWarp), kWarp, 0, stream, a);
}
void accept(const AcceptArgs& a, cudaStream_t stream) {
  launch_kernel(accept_kernel, a.plan.capacity, kWarp, 0, stream, a);
}
void count(const CountArgs& a, cudaStream_t stream) {
  launch_kernel(count_kernel, 1, kThreads, 0, stream, a);
}

}  // namespace stepladder::cuda
