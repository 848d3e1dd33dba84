// Softmax attention by logical position, for any head dimension. A row takes its keys in steps of
// 32 aligned to absolute position: step s goes to warp s % kWarps of the row's thread block, a warp
// takes its steps in order, and the warps are merged by index. So a row's bits follow from its
// position and the tokens before it. Keys below `committed` lie in the region; from there on the
// row's own path says in which scratch slot each one is. A key the row may not see weighs 0, and
// its value is not read.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "backends/cuda/kv_layout.h"

namespace stepladder::cuda {
namespace {

constexpr int kWarps = 8;
constexpr float kLog2e = 1.44269504f, kLowest = -3.40282347e38f;
constexpr int kAtOnce = 8;  // values on the way
static_assert(kAttentionStep == kWarp && kWarp % kAtOnce == 0);

/// Two elements that stand in one word.
__device__ float2 pair_of(DType t, uint32_t word) {
  return {from_16(t, static_cast<uint16_t>(word)), from_16(t, static_cast<uint16_t>(word >> 16))};
}

/// q times a key, element by element, kWords words at a time: loads that are on the way together.
template <int kWords>
__device__ float dot(DType t, const float* q, const uint16_t* key, int dim) {
  float sum = 0.f;
  for (int c = 0; c < dim; c += 2 * kWords) {
    uint32_t words[kWords];
    if constexpr (kWords >= 4) {
#pragma unroll
      for (int i = 0; i < kWords / 4; ++i)
        *reinterpret_cast<uint4*>(words + 4 * i) = *reinterpret_cast<const uint4*>(key + c + 8 * i);
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(key + c);
    }
#pragma unroll
    for (int i = 0; i < kWords; ++i) {
      const float2 pair = pair_of(t, words[i]);
      sum = fmaf(q[c + 2 * i], pair.x, sum);
      sum = fmaf(q[c + 2 * i + 1], pair.y, sum);
    }
  }
  return sum;
}

/// kPairs: pairs of a value's elements that a lane adds up.
template <int kPairs>
__global__ void __launch_bounds__(kWarps* kWarp, 2) attention_kernel(AttentionArgs a) {
  begin();
  __shared__ float q[kMaxHeadDim], parts[kWarps][kMaxHeadDim];
  __shared__ float largests[kWarps], weights[kWarps];
  const int i = static_cast<int>(blockIdx.y), head = static_cast<int>(blockIdx.x);
  if (i >= live_rows(a.live)) return;
  const KVSpec& spec = a.kv.spec;
  const int row = first_row(a.live) + i, dim = spec.head_dim, pairs = dim / 2;
  const int lane = lane_of_thread(), warp = warp_of_thread();
  const int kv_head = head / (a.heads / spec.kv_heads);
  const uint16_t* keys =
      static_cast<const uint16_t*>(a.kv.data) + keys_at(spec, a.layer, a.rows.slot[row], kv_head);
  const uint16_t* values = keys + kv_plane(spec);
  const int seen = a.rows.position[row] + 1, committed = a.rows.committed[row];
  const uint16_t* path = a.rows.path + int64_t{row} * a.rows.depth;
  const float scale = a.scale * kLog2e;

  const uint16_t* from = row_of<const uint16_t>(a.q, i) + int64_t{head} * dim;
  for (int c = threadIdx.x; c < dim; c += kWarps * kWarp) q[c] = from_16(a.q.dtype, from[c]);
  __syncthreads();

  float largest = kLowest, weight = 0.f;
  float2 sum[kPairs] = {};
  for (int first = warp * kAttentionStep; first < seen; first += kWarps * kAttentionStep) {
    const int at = first + lane, valid = min(seen - first, kAttentionStep);
    int entry = 0;
    float score = kLowest;
    if (lane < valid) {
      entry = at < committed ? at : static_cast<int>(entry_of_scratch(spec, path[at - committed]));
      const uint16_t* key = keys + int64_t{entry} * dim;
      score = scale * (dim % 32 == 0  ? dot<16>(spec.dtype, q, key, dim)
                       : dim % 8 == 0 ? dot<4>(spec.dtype, q, key, dim)
                                      : dot<1>(spec.dtype, q, key, dim));
    }
    const float most = warp_most(score);
    const float top = most > largest ? most : largest, shrink = exp2f(largest - top);
    const float share = lane < valid ? exp2f(score - top) : 0.f;
    largest = top;
    weight = fmaf(weight, shrink, warp_sum(share));
    for (int t = 0; t < kPairs; ++t) sum[t].x = sum[t].x * shrink, sum[t].y = sum[t].y * shrink;
    // Some values at a time, so that their loads are on the way together.
    for (int j0 = 0; j0 < valid; j0 += kAtOnce) {
      uint32_t words[kAtOnce][kPairs];
      float p[kAtOnce];
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j) {
        // Behind the last key p is 0, and the entry one that may be read; what lies there may be no
        // number.
        p[j] = __shfl_sync(kAllLanes, share, j0 + j);
        const uint16_t* value = values + int64_t{__shfl_sync(kAllLanes, entry, j0 + j)} * dim;
#pragma unroll
        for (int t = 0; t < kPairs; ++t) {
          const int c = t * kWarp + lane;
          words[j][t] =
              c < pairs && j0 + j < valid ? reinterpret_cast<const uint32_t*>(value)[c] : 0;
        }
      }
#pragma unroll
      for (int j = 0; j < kAtOnce; ++j)
#pragma unroll
        for (int t = 0; t < kPairs; ++t) {
          const float2 pair = pair_of(spec.dtype, words[j][t]);
          if (j0 + j < valid)
            sum[t].x = fmaf(p[j], pair.x, sum[t].x), sum[t].y = fmaf(p[j], pair.y, sum[t].y);
        }
    }
  }

  if (lane == 0) largests[warp] = largest, weights[warp] = weight;
  for (int t = 0; t < kPairs; ++t) {
    const int c = t * kWarp + lane;
    if (c < pairs) parts[warp][2 * c] = sum[t].x, parts[warp][2 * c + 1] = sum[t].y;
  }
  __syncthreads();
  float top = largests[0];
  for (int w = 1; w < kWarps; ++w) top = largests[w] > top ? largests[w] : top;
  float total = 0.f, factor[kWarps];
  for (int w = 0; w < kWarps; ++w) {
    factor[w] = exp2f(largests[w] - top);
    total = fmaf(weights[w], factor[w], total);
  }
  uint16_t* out = row_of<uint16_t>(a.out, i) + int64_t{head} * dim;
  for (int c = threadIdx.x; c < dim; c += kWarps * kWarp) {
    float value = 0.f;
    for (int w = 0; w < kWarps; ++w) value = fmaf(parts[w][c], factor[w], value);
    out[c] = to_16(a.out.dtype, value / total);
  }
}

}  // namespace

void attention(const AttentionArgs& a, cudaStream_t stream) {
  if (attention_in_tiles(a, stream)) return;
  const int dim = a.kv.spec.head_dim;
  const auto kernel = dim <= 64    ? attention_kernel<1>
                      : dim <= 128 ? attention_kernel<2>
                                   : attention_kernel<4>;
  launch_kernel(kernel, dim3(a.heads, a.live.capacity), kWarps * kWarp, 0, stream, a);
}

}  // namespace stepladder::cuda
