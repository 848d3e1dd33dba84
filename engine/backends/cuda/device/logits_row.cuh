// A row of logits as a rule shapes it: bias, penalties, temperature.
#pragma once

#include <cuda_runtime.h>

#include "backends/tables.h"

namespace stepladder::cuda {

/// A row of logits with what shapes it. Tokens that the counts do not know are the level's own
/// guesses and those on the node's path.
struct Row {
  const float* logits;
  const float* bias;              // or null
  const uint32_t* counts;         // or null: no penalties
  const int32_t* tentative;       // [tentatives]
  const int32_t *token, *parent;  // of the tree
  const uint32_t* seen;           // [32] a bit for each token % 1024 among the extra ones
  int tentatives, node, vocab;
  float repetition, frequency, presence, scale;
};

__device__ inline int times_extra(const Row& r, int id) {
  int times = 0;
  for (int i = 0; i < r.tentatives; ++i) times += r.tentative[i] == id;
  for (int at = r.node; at > 0; at = r.parent[at]) times += r.token[at] == id;
  return times;
}

/// Bias, penalties and scale of one token, of logit z.
__device__ inline float shaped(const Row& r, int id, float z) {
  if (r.bias) z = z + r.bias[id];
  if (r.counts) {
    uint32_t count = r.counts[id];
    if (r.seen[id / 32 % 32] >> (id % 32) & 1u) count += static_cast<uint32_t>(times_extra(r, id));
    if (count) {
      const auto times = static_cast<int32_t>(count & 0x7fffffffu);
      const float repeated = z * (z > 0 ? 1.f / r.repetition : r.repetition);
      z = (repeated - r.frequency * static_cast<float>(times)) - (times ? r.presence : 0.f);
    }
  }
  return z * r.scale;
}

}  // namespace stepladder::cuda
