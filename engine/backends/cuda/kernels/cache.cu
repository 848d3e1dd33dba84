// The cache's writers: a row of qkv is split, queries and keys are normalized per head where the
// model asks for it and rotated, everything is rounded, and key and value go to the row's entry;
// and accepted entries move from scratch to the region.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/kv_layout.h"

namespace stepladder::cuda {
namespace {

constexpr int kThreads = 128;

/// One head of a query or key by a warp: norm, rotation, rounding. Halves are rotated.
__device__ void rotate(const float* x, const float* norm, float eps, const float* table, int dim,
                       DType t, uint16_t* out) {
  const int half = dim / 2, lane = lane_of_thread();
  float inverse = 1.f;
  if (norm) {
    float squares = 0.f;
    for (int c = lane; c < dim; c += kWarp) squares = fmaf(x[c], x[c], squares);
    inverse = inverse_root(warp_sum(squares) / static_cast<float>(dim) + eps);
  }
  for (int i = lane; i < half; i += kWarp) {
    const float c = table[2 * i], s = table[2 * i + 1];
    float a = x[i], b = x[i + half];
    if (norm) a = a * inverse * norm[i], b = b * inverse * norm[i + half];
    out[i] = to_16(t, a * c - b * s);
    out[i + half] = to_16(t, b * c + a * s);
  }
}

/// A warp a head: queries, then keys, then values.
__global__ void rope_append_kernel(RopeAppendArgs args) {
  // Attention, which is next, reads older keys and the tables before it waits: all that made them
  // is over when this kernel's wait is.
  wait_for_inputs();
  start_next();
  const RopeAppend& a = args.to;
  const KVSpec& spec = a.kv.spec;
  const int i = static_cast<int>(blockIdx.y), dim = spec.head_dim;
  const int head = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + warp_of_thread();
  if (i >= live_rows(args.live) || head >= a.heads + 2 * spec.kv_heads) return;
  const int row = first_row(args.live) + i, position = a.rows.position[row];
  const float* x = row_of<const float>(args.qkv, i) + int64_t{head} * dim;
  const float* table = a.rope + int64_t{position} * dim;
  if (head < a.heads)
    return rotate(x, a.q_norm, a.eps, table, dim, a.q.dtype,
                  row_of<uint16_t>(a.q, i) + int64_t{head} * dim);

  const int scratch = a.rows.scratch[row];
  const int64_t entry = scratch >= 0 ? entry_of_scratch(spec, scratch) : position;
  const bool is_key = head < a.heads + spec.kv_heads;
  const int kv_head = (head - a.heads) % spec.kv_heads;
  uint16_t* to = static_cast<uint16_t*>(a.kv.data) +
                 keys_at(spec, a.layer, a.rows.slot[row], kv_head) + entry * dim;
  if (is_key) return rotate(x, a.k_norm, a.eps, table, dim, spec.dtype, to);
  to += kv_plane(spec);
  for (int c = lane_of_thread(); c < dim; c += kWarp) to[c] = to_16(spec.dtype, x[c]);
}

/// Blocks of (layer, sequence); behind the last layer stand the features.
__global__ void keep_kernel(KeepArgs a) {
  begin();
  const KVSpec& spec = a.kv.spec;
  const int layer = static_cast<int>(blockIdx.x), s = static_cast<int>(blockIdx.y);
  if (s >= *a.plan.count) return;
  const PlanEntry& e = a.plan.entries[s];
  uint16_t* const data = static_cast<uint16_t*>(a.kv.data);
  const int emitted = min(a.result[s].emitted, kMaxEmitted), dim = spec.head_dim;
  for (int d = 0; d < emitted; ++d) {
    const int position = e.root_position + d, node = a.path[s * kMaxEmitted + d];
    if (position >= spec.positions || node < 0) return;
    const int64_t from = entry_of_scratch(spec, node);
    if (layer == spec.layers) {
      for (int64_t i = threadIdx.x; i < feature_size(spec); i += kThreads)
        data[features_at(spec, e.slot, position) + i] = data[features_at(spec, e.slot, from) + i];
      continue;
    }
    for (int i = threadIdx.x; i < 2 * spec.kv_heads * dim; i += kThreads) {
      const int plane = i / (spec.kv_heads * dim), head = i / dim % spec.kv_heads;
      uint16_t* const entries = data + keys_at(spec, layer, e.slot, head) + plane * kv_plane(spec);
      entries[int64_t{position} * dim + i % dim] = entries[from * dim + i % dim];
    }
  }
}

}  // namespace

void rope_append(const RopeAppendArgs& a, cudaStream_t stream) {
  const int heads = a.to.heads + 2 * a.to.kv.spec.kv_heads, each = kThreads / kWarp;
  const dim3 grid((heads + each - 1) / each, a.live.capacity);
  launch_kernel(rope_append_kernel, grid, kThreads, 0, stream, a);
}

void keep(const KeepArgs& a, cudaStream_t stream) {
  const KVSpec& spec = a.kv.spec;
  const dim3 grid(spec.layers + (feature_size(spec) > 0 ? 1 : 0), a.plan.capacity);
  launch_kernel(keep_kernel, grid, kThreads, 0, stream, a);
}

}  // namespace stepladder::cuda
