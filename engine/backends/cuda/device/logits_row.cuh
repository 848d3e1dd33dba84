// A row of logits as a rule shapes it: bias, penalties, temperature.
#pragma once

#include <cuda_runtime.h>

#include "backends/tables.h"
#include "core/noise.h"

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

/// A row under the rule of a sequence's entry in the plan, for a node of a tree of such tokens and
/// parents. What `seen` [32] says is noted later.
__device__ inline Row row_under(const RuleParams& rule, const RuleView& rules, const Plan& plan,
                                const PlanEntry& entry, const float* logits, const int32_t* token,
                                const int32_t* parent, int node, const uint32_t* seen) {
  const int64_t rule_row = int64_t{entry.rule} * rules.vocab;
  return {.logits = logits,
          .bias = rule.bias ? rules.bias + rule_row : nullptr,
          .counts = rule.penalties ? rules.counts + rule_row : nullptr,
          .tentative = plan.tokens + entry.first_tentative,
          .token = token,
          .parent = parent,
          .seen = seen,
          .tentatives = entry.tentative,
          .node = node,
          .vocab = rules.vocab,
          .repetition = rule.repetition,
          .frequency = rule.frequency,
          .presence = rule.presence,
          .scale = rule.temperature < kLeastTemperature ? 1.f : 1.f / rule.temperature};
}
/// Notes the extra tokens of a row, in shared memory. All threads of a block call; a barrier ends
/// it.
__device__ inline void note_seen(const Row& r, uint32_t* seen) {
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 32) seen[thread] = 0;
  __syncthreads();
  const auto see = [seen](int id) { atomicOr(&seen[id / 32 % 32], 1u << (id % 32)); };
  for (int i = thread; i < r.tentatives; i += static_cast<int>(blockDim.x))
    if (r.tentative[i] >= 0) see(r.tentative[i]);
  if (thread == 0)
    for (int at = r.node; at > 0; at = r.parent[at])
      if (r.token[at] >= 0) see(r.token[at]);
  __syncthreads();
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
