// Log-probabilities of the raw logits: of the choice itself and of the likeliest tokens. A thread
// block a node.
#include "backends/cuda/device/launch.cuh"
#include "backends/cuda/device/rank.cuh"
#include "backends/cuda/device/words.cuh"
#include "backends/cuda/kernels.h"
#include "core/noise.h"

namespace stepladder::cuda {
namespace {

constexpr int kThreads = 512;

__device__ float logprob(float logit, float top, double log_total) {
  if (logit != logit || logit == -__builtin_inff()) return -__builtin_inff();
  const float d = logit == top ? 0.f : logit - top;
  return static_cast<float>(static_cast<double>(d) - log_total);
}

/// The likeliest token behind those of rank `below` and more, lower ids first among equals; 0 where
/// there is none above -infinity.
__device__ Rank next_likeliest(const float* logits, int vocab, Rank below) {
  Rank most = 0;
  for (int id = threadIdx.x; id < vocab; id += kThreads) {
    if (!(logits[id] > -__builtin_inff())) continue;
    const Rank rank = rank_of(logits[id], id);
    if (rank < below && rank > most) most = rank;
  }
  return block_most(most);
}

__global__ void logprobs_kernel(LogprobArgs a) {
  begin();
  const int j = static_cast<int>(blockIdx.x), asked = *a.asked;
  if (asked < 0 || j >= live_rows(a.live)) return;
  const int node = first_row(a.live) + j;
  const float* logits = row_of<const float>(a.logits, j);
  const Rank first = next_likeliest(logits, a.vocab, ~Rank{0});
  const float top = first ? logits[id_of(first)] : -__builtin_inff();
  double total = 0;
  for (int i = threadIdx.x; i < a.vocab; i += kThreads)
    total += static_cast<double>(fixed_exp(logits[i] == top ? 0.f : logits[i] - top));
  const double log_total = log(block_sum(total));
  if (threadIdx.x == 0) a.chosen[node] = logprob(logits[a.choices.token[node]], top, log_total);

  const int64_t list = int64_t{node} * a.most;
  Rank rank = first;
  for (int i = 0; i < min(asked, a.most); ++i) {
    if (threadIdx.x == 0) {
      const int token = rank ? id_of(rank) : -1;
      a.top_token[list + i] = token;
      a.top_logprob[list + i] = rank ? logprob(logits[token], top, log_total) : -__builtin_inff();
    }
    if (rank) rank = next_likeliest(logits, a.vocab, rank);
  }
}

}  // namespace

void logprobs(const LogprobArgs& a, cudaStream_t stream) {
  launch_kernel(logprobs_kernel, a.live.capacity, kThreads, 0, stream, a);
}

}  // namespace stepladder::cuda
