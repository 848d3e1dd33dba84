// Operators that work row by row: embeddings, norms, int8 activations, the gated activation, and
// the features of entries. A thread block a row; what a thread adds up follows from the width
// alone.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/norm.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/kv_layout.h"

namespace stepladder::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void embed_kernel(EmbedArgs a) {
  begin();
  if (static_cast<int>(blockIdx.x) >= live_rows(a.live)) return;
  const int64_t row = first_row(a.live) + blockIdx.x;
  const uint16_t* from = row_of<const uint16_t>(a.table, a.token[row]);
  float* to = row_of<float>(a.out, row);
  for (int c = threadIdx.x; c < a.out.cols; c += kThreads) to[c] = from_16(a.table.dtype, from[c]);
}

__global__ void rms_norm_kernel(RmsNormArgs a) {
  begin();
  const int i = static_cast<int>(blockIdx.x);
  if (i >= live_rows(a.live)) return;
  const int row = first_row(a.live) + i;
  norm_row(
      a.out.dtype, [&] { return row_of<const float>(a.x, a.pick ? a.pick[row] : row); }, a.weight,
      a.eps, static_cast<int>(a.out.cols), row_of<uint16_t>(a.out, i));
}

__global__ void feature_kernel(FeatureArgs a) {
  begin();
  if (static_cast<int>(blockIdx.x) >= live_rows(a.live)) return;
  const int row = first_row(a.live) + static_cast<int>(blockIdx.x);
  const KVSpec& spec = a.kv.spec;
  const int scratch = a.rows.scratch[row], width = static_cast<int>(a.x.cols);
  const int64_t entry = scratch >= 0 ? entry_of_scratch(spec, scratch) : a.rows.position[row];
  uint16_t* out = static_cast<uint16_t*>(a.kv.data) + features_at(spec, a.rows.slot[row], entry) +
                  int64_t{a.index} * spec.features.width;
  const float* x = row_of<const float>(a.x, row);
  if (a.norm)
    norm_row(spec.dtype, [&] { return x; }, a.norm, a.eps, width, out);
  else
    for (int c = threadIdx.x; c < width; c += kNormThreads) out[c] = to_16(spec.dtype, x[c]);
}

/// A warp a group: its scale (NaN if a value is), its codes and the sum of every sum_group of them.
__global__ void quantize_kernel(QuantizeArgs a) {
  begin();
  const int row = static_cast<int>(blockIdx.y), k = static_cast<int>(a.x.cols);
  const int g = static_cast<int>(blockIdx.x) * (kThreads / kWarp) + warp_of_thread();
  const int groups = k / a.group, sums = a.group / a.sum_group, lane = lane_of_thread();
  if (g >= groups || row >= live_rows(a.live)) return;
  const uint16_t* x = row_of<const uint16_t>(a.x, row) + int64_t{g} * a.group;
  int8_t* q = a.q + int64_t{row} * k + int64_t{g} * a.group;
  float largest = 0.f;
  int none = 0;  // NaNs, which the maximum drops
  for (int c = lane; c < a.group; c += kWarp) {
    const float v = fabsf(from_16(a.x.dtype, x[c]));
    none |= v != v;
    largest = v > largest ? v : largest;
  }
  const float step = warp_most(largest) / 127.f;
  none = __any_sync(kAllLanes, none);
  if (lane == 0) a.scale[int64_t{row} * groups + g] = none ? __builtin_nanf("") : step;
  // Where the step itself rounds to 0 the group counts as zeros.
  const float divisor = step > 0.f ? step : 1.f;
  for (int s = 0; s < sums; ++s) {
    int total = 0;
    for (int c = s * a.sum_group + lane; c < (s + 1) * a.sum_group; c += kWarp) {
      const float v = from_16(a.x.dtype, x[c]) / divisor;
      const int code = static_cast<int>(rintf(fminf(fmaxf(v, -127.f), 127.f)));  // ties to even
      q[c] = static_cast<int8_t>(code);
      total += code;
    }
    total = warp_sum(total);
    if (lane == 0) a.sum[(int64_t{row} * groups + g) * sums + s] = total;
  }
}

__global__ void gated_act_kernel(GatedActArgs a) {
  begin();
  const int row = static_cast<int>(blockIdx.y), width = static_cast<int>(a.out.cols);
  const int c = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (c >= width || row >= live_rows(a.live)) return;
  const float* gate = row_of<const float>(a.gate_up, row);
  row_of<uint16_t>(a.out, row)[c] = to_16(a.out.dtype, silu(gate[c]) * gate[width + c]);
}

unsigned blocks(int64_t items, int each) {
  return static_cast<unsigned>((items + each - 1) / each);
}

}  // namespace

void embed(const EmbedArgs& a, cudaStream_t stream) {
  launch_kernel(embed_kernel, a.live.capacity, kThreads, 0, stream, a);
}
void rms_norm(const RmsNormArgs& a, cudaStream_t stream) {
  launch_kernel(rms_norm_kernel, a.live.capacity, kNormThreads, 0, stream, a);
}
void feature(const FeatureArgs& a, cudaStream_t stream) {
  launch_kernel(feature_kernel, a.live.capacity, kNormThreads, 0, stream, a);
}
void quantize(const QuantizeArgs& a, cudaStream_t stream) {
  const dim3 grid(blocks(a.x.cols / a.group, kThreads / kWarp), a.live.capacity);
  launch_kernel(quantize_kernel, grid, kThreads, 0, stream, a);
}
void gated_act(const GatedActArgs& a, cudaStream_t stream) {
  const dim3 grid(blocks(a.out.cols, kThreads), a.live.capacity);
  launch_kernel(gated_act_kernel, grid, kThreads, 0, stream, a);
}

}  // namespace stepladder::cuda
