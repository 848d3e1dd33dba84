// The one choice rule over a row of logits; every step gives the bits of spec/choose.cpp.
//
// A cluster of thread blocks a node, which share out the tokens. A token's place in falling order,
// lower ids first among equals, is one 64-bit rank: the order key of its value above its id's
// complement. Filters keep the tokens of the largest ranks, so a filter is a least rank; it is
// found eight bits at a time from histograms of integer weights, whose sums are exact in any order.
#include <cooperative_groups.h>

#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/logits_row.cuh"
#include "backends/cuda/device/rank.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "core/noise.h"
#include "core/philox.h"

namespace stepladder::cuda {
namespace {

constexpr int kThreads = 512, kBins = 256, kBinBits = 8, kRankBits = 64;
constexpr float kMostNoise = 23.f;  // gumbel() stays below 22.9

/// The blocks of a cluster as one: what each has becomes what all have.
struct Crew {
  int rank = 0, size = 1;

  __device__ Crew() {
#if __CUDA_ARCH__ >= 900
    rank = static_cast<int>(cooperative_groups::this_cluster().block_rank());
    size = static_cast<int>(cooperative_groups::this_cluster().num_blocks());
#endif
  }
  __device__ void sync() const {
#if __CUDA_ARCH__ >= 900
    if (size > 1) cooperative_groups::this_cluster().sync();
#endif
  }
  /// Where block `of` has what this one has in its own shared memory at `own`.
  template <class T>
  __device__ T* in(int of, T* own) const {
#if __CUDA_ARCH__ >= 900
    return cooperative_groups::this_cluster().map_shared_rank(own, of);
#else
    return own;
#endif
  }
  /// The same x in all threads of a block, folded over the blocks by rank. All threads call.
  template <class T, class Fold>
  __device__ T over(T x, const Fold& fold) const {
    if (size == 1) return x;
    __shared__ T own;
    if (threadIdx.x == 0) own = x;
    sync();
    x = *in(0, &own);
    for (int i = 1; i < size; ++i) x = fold(x, *in(i, &own));
    sync();
    return x;
  }
  template <class T>
  __device__ T sum(T x) const {
    return over(block_sum(x), [](T a, T b) { return a + b; });
  }
  template <class T>
  __device__ T most(T x) const {
    return over(block_most(x), [](T a, T b) { return b > a ? b : a; });
  }
};

/// Calls see(id, logit, shaped value) for the thread's tokens, whose logits it loads some at a
/// time.
template <class See>
__device__ void each_token(const Row& r, const Crew& crew, const See& see) {
  constexpr int kAtOnce = 8;
  const int step = kThreads * crew.size;
  for (int first = crew.rank * kThreads + static_cast<int>(threadIdx.x); first < r.vocab;
       first += step * kAtOnce) {
    float z[kAtOnce];
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      z[j] = first + j * step < r.vocab ? r.logits[first + j * step] : 0.f;
#pragma unroll
    for (int j = 0; j < kAtOnce; ++j)
      if (first + j * step < r.vocab)
        see(first + j * step, z[j], shaped(r, first + j * step, z[j]));
  }
}

/// The rank down to which the weights of ranks from `kept` on first reach `need`, or `kept`.
template <class Weight>
__device__ Rank narrow(const Row& r, const Crew& crew, Rank kept, int64_t need,
                       const Weight& weight) {
  __shared__ Rank bins[kBins], all[kBins];
  __shared__ Rank prefix_found;
  __shared__ int64_t above_found;
  Rank prefix = 0;    // the bits found so far
  int64_t above = 0;  // weight of the ranks over them
  const int bin = static_cast<int>(threadIdx.x);
  for (int shift = kRankBits - kBinBits; shift >= 0; shift -= kBinBits) {
    if (bin < kBins) bins[bin] = 0;
    __syncthreads();
    each_token(r, crew, [&](int id, float, float z) {
      const Rank rank = rank_of(z, id);
      if (rank < kept) return;
      if (shift < kRankBits - kBinBits && rank >> (shift + kBinBits) != prefix) return;
      const auto w = static_cast<Rank>(weight(z));
      if (w) atomicAdd(&bins[rank >> shift & (kBins - 1)], w);
    });
    __syncthreads();
    crew.sync();
    if (bin < kBins) {
      Rank sum = 0;
      for (int i = 0; i < crew.size; ++i) sum += crew.in(i, bins)[bin];
      all[bin] = sum;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int b = kBins - 1;
      while (b > 0 && above + static_cast<int64_t>(all[b]) < need)
        above += static_cast<int64_t>(all[b--]);
      prefix_found = prefix << kBinBits | static_cast<Rank>(b), above_found = above;
    }
    crew.sync();  // until all have read the bins
    __syncthreads();
    prefix = prefix_found, above = above_found;
  }
  return prefix > kept ? prefix : kept;
}

__device__ Rank nucleus(const Row& r, const Crew& crew, Rank kept, float top, float p) {
  const auto weight = [top](float z) { return nucleus_weight(z, top); };
  int64_t total = 0;
  each_token(r, crew, [&](int id, float, float z) {
    if (rank_of(z, id) >= kept) total += weight(z);
  });
  return narrow(r, crew, kept, nucleus_need(p, crew.sum(total)), weight);
}

/// The kept token of the largest value plus noise.
__device__ int sample(const Row& r, const Crew& crew, Rank kept, Rank most, uint64_t seed,
                      int32_t position) {
  const int first = id_of(most);
  float best = value_of(most) + gumbel(noise_word(seed, position, first));
  Rank best_rank = rank_of(best, first);
  each_token(r, crew, [&](int id, float, float z) {
    if (!(z + kMostNoise >= best) || rank_of(z, id) < kept) return;
    const float value = z + gumbel(noise_word(seed, position, id));
    const Rank rank = rank_of(value, id);
    if (rank > best_rank) best_rank = rank, best = value;
  });
  return id_of(crew.most(best_rank));
}

/// The token chosen where `most` is the largest rank.
__device__ int choose_token(const Row& r, const Crew& crew, Rank most, const RuleParams& rule,
                            int32_t position) {
  const float top = value_of(most);
  if (top == -__builtin_inff()) return 0;
  if (rule.temperature < kLeastTemperature) return id_of(most);
  Rank kept = 0;
  if (rule.top_k > 0 && rule.top_k < r.vocab)
    kept = narrow(r, crew, kept, rule.top_k, [](float) { return 1; });
  if (rule.top_p < 1) kept = nucleus(r, crew, kept, top, rule.top_p);
  if (rule.min_p > 0) {
    const Rank floor = rank_of(min_p_floor(rule.min_p, top), -1);  // the last id of that value
    kept = floor > kept ? floor : kept;
  }
  return sample(r, crew, kept, most, rule.seed, position);
}

__global__ void __launch_bounds__(kThreads) choose_kernel(ChooseArgs a) {
  begin();
  __shared__ uint32_t seen[32];
  const int j = static_cast<int>(blockIdx.y);
  if (j >= live_rows(a.live)) return;
  const int node = first_row(a.live) + j;
  const int s = a.rows.node_sequence[node], x = a.rows.node_index[node];
  const PlanEntry& entry = a.plan.entries[s];
  const RuleParams rule = a.rules.params[entry.rule];
  const int64_t tree = int64_t{s} * a.trees.capacity;
  const Row r = row_under(rule, a.rules, a.plan, entry, row_of<const float>(a.logits, j),
                          a.trees.token + tree, a.trees.parent + tree, x, seen);
  if (rule.penalties) note_seen(r, seen);
  const int32_t position = a.rows.position[a.rows.node_row[node]] + 1;
  const Crew crew;
  Rank most = 0;
  uint32_t largest = 0;  // of the logits without their signs
  each_token(r, crew, [&](int id, float logit, float z) {
    const Rank rank = rank_of(z, id);
    most = rank > most ? rank : most;
    largest = max(largest, __float_as_uint(logit) & 0x7fffffffu);
  });
  most = crew.most(most), largest = crew.most(largest);
  const int token = choose_token(r, crew, most, rule, position);
  if (threadIdx.x != 0 || crew.rank != 0) return;
  a.out.token[node] = token;
  a.out.logit[node] = largest < 0x7f800000u ? r.logits[token] : __builtin_nanf("");
}

}  // namespace

void choose(const ChooseArgs& a, cudaStream_t stream) {
  constexpr unsigned kMostBlocks = 8;  // of a cluster, on any device that has them
  const unsigned nodes = a.live.capacity;
  unsigned blocks = nodes <= 16 ? kMostBlocks : nodes <= 64 ? 2 : 1;
  cudaFuncAttributes attributes{};
  must(cudaFuncGetAttributes(&attributes, choose_kernel), "a kernel's version");
  if (attributes.ptxVersion < 90) blocks = 1;
  launch_clusters(choose_kernel, dim3(blocks, nodes), blocks, kThreads, 0, stream, a);
}

}  // namespace stepladder::cuda
