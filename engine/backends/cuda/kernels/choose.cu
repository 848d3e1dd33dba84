// The one choice rule over a row of logits; every step gives the bits of spec/choose.cpp.
//
// A thread block a node. A token's place in falling order, lower ids first among equals, is one
// 64-bit rank: the order key of its value above its id's complement. Filters keep the tokens of the
// largest ranks, so a filter is a least rank; it is found eight bits at a time from histograms of
// integer weights, whose sums are exact in any order.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/logits_row.cuh"
#include "backends/cuda/device/rank.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "core/noise.h"
#include "core/philox.h"

namespace stepladder::cuda {
namespace {

constexpr int kThreads = 1024, kBins = 256, kBinBits = 8, kRankBits = 64;
constexpr float kMostNoise = 23.f;  // gumbel() stays below 22.9

/// The rank down to which the weights of ranks from `kept` on first reach `need`, or `kept`.
template <class Weight>
__device__ Rank narrow(const Row& r, Rank kept, int64_t need, const Weight& weight) {
  __shared__ Rank bins[kBins];
  __shared__ Rank prefix_found;
  __shared__ int64_t above_found;
  Rank prefix = 0;    // the bits found so far
  int64_t above = 0;  // weight of the ranks over them
  for (int shift = kRankBits - kBinBits; shift >= 0; shift -= kBinBits) {
    for (int b = threadIdx.x; b < kBins; b += kThreads) bins[b] = 0;
    __syncthreads();
    for (int id = threadIdx.x; id < r.vocab; id += kThreads) {
      const float z = shaped(r, id);
      const Rank rank = rank_of(z, id);
      if (rank < kept) continue;
      if (shift < kRankBits - kBinBits && rank >> (shift + kBinBits) != prefix) continue;
      const auto w = static_cast<Rank>(weight(z));
      if (w) atomicAdd(&bins[rank >> shift & (kBins - 1)], w);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      int b = kBins - 1;
      while (b > 0 && above + static_cast<int64_t>(bins[b]) < need)
        above += static_cast<int64_t>(bins[b--]);
      prefix_found = prefix << kBinBits | static_cast<Rank>(b), above_found = above;
    }
    __syncthreads();
    prefix = prefix_found, above = above_found;
  }
  return prefix > kept ? prefix : kept;
}

__device__ Rank nucleus(const Row& r, Rank kept, float top, float p) {
  const auto weight = [top](float z) { return nucleus_weight(z, top); };
  int64_t total = 0;
  for (int id = threadIdx.x; id < r.vocab; id += kThreads) {
    const float z = shaped(r, id);
    if (rank_of(z, id) >= kept) total += weight(z);
  }
  return narrow(r, kept, nucleus_need(p, block_sum(total)), weight);
}

/// The kept token of the largest value plus noise.
__device__ int sample(const Row& r, Rank kept, Rank most, uint64_t seed, int32_t position) {
  const int first = id_of(most);
  float best = value_of(most) + gumbel(noise_word(seed, position, first));
  Rank best_rank = rank_of(best, first);
  for (int id = threadIdx.x; id < r.vocab; id += kThreads) {
    const float z = shaped(r, id);
    if (!(z + kMostNoise >= best) || rank_of(z, id) < kept) continue;
    const float value = z + gumbel(noise_word(seed, position, id));
    const Rank rank = rank_of(value, id);
    if (rank > best_rank) best_rank = rank, best = value;
  }
  return id_of(block_most(best_rank));
}

__device__ int choose_token(const Row& r, const RuleParams& rule, int32_t position) {
  Rank most = 0;
  for (int id = threadIdx.x; id < r.vocab; id += kThreads) {
    const Rank rank = rank_of(shaped(r, id), id);
    most = rank > most ? rank : most;
  }
  most = block_most(most);
  const float top = value_of(most);
  if (top == -__builtin_inff()) return 0;
  if (rule.temperature < kLeastTemperature) return id_of(most);
  Rank kept = 0;
  if (rule.top_k > 0 && rule.top_k < r.vocab)
    kept = narrow(r, kept, rule.top_k, [](float) { return 1; });
  if (rule.top_p < 1) kept = nucleus(r, kept, top, rule.top_p);
  if (rule.min_p > 0) {
    const Rank floor = rank_of(min_p_floor(rule.min_p, top), -1);  // the last id of that value
    kept = floor > kept ? floor : kept;
  }
  return sample(r, kept, most, rule.seed, position);
}

__global__ void choose_kernel(ChooseArgs a) {
  begin();
  __shared__ uint32_t seen[32];
  const int j = static_cast<int>(blockIdx.x);
  if (j >= live_rows(a.live)) return;
  const int node = first_row(a.live) + j;
  const int s = a.rows.node_sequence[node], x = a.rows.node_index[node];
  const PlanEntry& entry = a.plan.entries[s];
  const RuleParams rule = a.rules.params[entry.rule];
  const int64_t rule_row = int64_t{entry.rule} * a.rules.vocab;
  const int64_t tree = int64_t{s} * a.trees.capacity;
  Row r{.logits = row_of<const float>(a.logits, j),
        .bias = rule.bias ? a.rules.bias + rule_row : nullptr,
        .counts = rule.penalties ? a.rules.counts + rule_row : nullptr,
        .tentative = a.plan.tokens + entry.first_tentative,
        .token = a.trees.token + tree,
        .parent = a.trees.parent + tree,
        .seen = seen,
        .tentatives = entry.tentative,
        .node = x,
        .vocab = a.rules.vocab,
        .repetition = rule.repetition,
        .frequency = rule.frequency,
        .presence = rule.presence,
        .scale = rule.temperature < kLeastTemperature ? 1.f : 1.f / rule.temperature};
  if (rule.penalties) {
    if (threadIdx.x < 32) seen[threadIdx.x] = 0;
    __syncthreads();
    const auto see = [](int id) { atomicOr(&seen[id / 32 % 32], 1u << (id % 32)); };
    for (int i = threadIdx.x; i < r.tentatives; i += kThreads)
      if (r.tentative[i] >= 0) see(r.tentative[i]);
    if (threadIdx.x == 0)
      for (int at = x; at > 0; at = r.parent[at])
        if (r.token[at] >= 0) see(r.token[at]);
    __syncthreads();
  }
  const int token = choose_token(r, rule, a.rows.position[a.rows.node_row[node]] + 1);

  uint32_t largest = 0;  // of the logits without their signs
  for (int id = threadIdx.x; id < r.vocab; id += kThreads)
    largest = max(largest, __float_as_uint(r.logits[id]) & 0x7fffffffu);
  largest = block_most(largest);
  if (threadIdx.x != 0) return;
  a.out.token[node] = token;
  a.out.logit[node] = largest < 0x7f800000u ? r.logits[token] : __builtin_nanf("");
}

}  // namespace

void choose(const ChooseArgs& a, cudaStream_t stream) {
  launch_kernel(choose_kernel, a.live.capacity, kThreads, 0, stream, a);
}

}  // namespace stepladder::cuda
