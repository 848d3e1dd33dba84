#include <cuda_runtime.h>

#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/kv_layout.h"
#include "backends/cuda/staging.h"
#include "tests/support/cuda/kernels.h"

namespace stepladder::cuda::control {
namespace {

// Launched as they are, without letting the next kernel begin: controls break one rule only.

__device__ bool on_path(const uint16_t* path, int nodes, int node) {
  for (int d = 0; d < nodes; ++d)
    if (path[d] == node) return true;
  return false;
}

/// A warp a head of a row, a lane a key.
__global__ void masked_slots_kernel(AttentionArgs a) {
  const int head = static_cast<int>(blockIdx.x), i = static_cast<int>(blockIdx.y);
  if (i >= live_rows(a.live)) return;
  const KVSpec& spec = a.kv.spec;
  const int row = first_row(a.live) + i, dim = spec.head_dim, lane = lane_of_thread();
  const uint16_t* keys = static_cast<const uint16_t*>(a.kv.data) +
                         keys_at(spec, a.layer, a.rows.slot[row], head / (a.heads / spec.kv_heads));
  const uint16_t* values = keys + kv_plane(spec);
  const int committed = a.rows.committed[row], own = a.rows.scratch[row];
  const int slots = committed + (own < 0 ? 0 : own + 1);
  const int nodes = own < 0 ? 0 : a.rows.position[row] - committed + 1;
  const uint16_t* path = a.rows.path + int64_t{row} * a.rows.depth;
  const uint16_t* q = row_of<const uint16_t>(a.q, i) + int64_t{head} * dim;

  float most = -__builtin_inff(), sum = 0.f, out[kMaxHeadDim / kWarp] = {};
  for (int first = 0; first < slots; first += kWarp) {
    const int slot = first + lane, node = slot - committed;
    const int entry = node < 0 ? slot : static_cast<int>(entry_of_scratch(spec, node));
    float score = -__builtin_inff();
    if (slot < slots && (node < 0 || on_path(path, nodes, node))) {
      score = 0.f;
      for (int c = 0; c < dim; ++c)
        score = fmaf(from_16(a.q.dtype, q[c]), from_16(spec.dtype, keys[int64_t{entry} * dim + c]),
                     score);
      score *= a.scale;
    }
    const float top = fmaxf(most, warp_most(score)), shrink = most == top ? 1.f : expf(most - top);
    most = top, sum *= shrink;
    for (float& o : out) o *= shrink;
    const float weight = from_16(spec.dtype, to_16(spec.dtype, expf(score - most)));
    for (int j = 0; j < min(kWarp, slots - first); ++j) {
      const float w = __shfl_sync(kAllLanes, weight, j);
      const int at = __shfl_sync(kAllLanes, entry, j);
      if (w == 0.f) continue;
      sum += w;
      for (int c = lane; c < dim; c += kWarp)
        out[c / kWarp] =
            fmaf(w, from_16(spec.dtype, values[int64_t{at} * dim + c]), out[c / kWarp]);
    }
  }
  uint16_t* to = row_of<uint16_t>(a.out, i) + int64_t{head} * dim;
  for (int c = lane; c < dim; c += kWarp) to[c] = to_16(a.out.dtype, out[c / kWarp] / sum);
}

__global__ void half_of_k_kernel(Tensor x, bool second, uint16_t* to) {
  const int k = static_cast<int>(x.cols), row = static_cast<int>(blockIdx.x);
  for (int c = threadIdx.x; c < k; c += blockDim.x)
    to[int64_t{row} * k + c] =
        (c < k / 2) == second ? uint16_t{0} : row_of<const uint16_t>(x, row)[c];
}

__global__ void send_nodes_kernel(Live live, int32_t* scratch, int32_t from, int32_t to) {
  for (int i = threadIdx.x; i < live_rows(live); i += blockDim.x)
    if (scratch[first_row(live) + i] == from) scratch[first_row(live) + i] = to;
}

__global__ void break_device_kernel() { *reinterpret_cast<volatile int*>(16) = 1; }

}  // namespace

void masked_slots(const AttentionArgs& a, cudaStream_t stream) {
  masked_slots_kernel<<<dim3(a.heads, a.live.capacity), kWarp, 0, stream>>>(a);
  must(cudaGetLastError(), "a control");
}
void half_of_k(const Tensor& x, bool second, uint16_t* to, cudaStream_t stream) {
  half_of_k_kernel<<<static_cast<unsigned>(x.rows), 128, 0, stream>>>(x, second, to);
  must(cudaGetLastError(), "a control");
}
void send_nodes(const Live& live, const Rows& rows, int32_t from, int32_t to, cudaStream_t stream) {
  send_nodes_kernel<<<1, 128, 0, stream>>>(live, rows.scratch, from, to);
  must(cudaGetLastError(), "a control");
}
void break_device(cudaStream_t stream) {
  break_device_kernel<<<1, 1, 0, stream>>>();
  must(cudaGetLastError(), "a control");
}

}  // namespace stepladder::cuda::control
