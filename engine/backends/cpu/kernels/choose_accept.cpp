// What happens around the choices: log-probabilities of the raw logits, the walk that accepts
// drafts, and the counts the penalties read.
#include <cmath>

#include "backends/cpu/kernels.h"
#include "core/noise.h"

namespace stepladder::SL_ISA {
namespace {

constexpr int kChunk = 256;  // logits summed in one go; fixed, it decides the order of the sum

// log(sum e^(l - top)); NaN counts as -infinity.
double log_sum(const float* logits, int vocab, float top) {
  double total = 0;
  for (int first = 0; first < vocab; first += kChunk) {
    const int n = vocab - first < kChunk ? vocab - first : kChunk;
    float lanes[16] = {};
    float e[kChunk];
    for (int i = 0; i < kChunk; ++i) e[i] = 0;
    for (int i = 0; i < n; ++i) {
      const float l = logits[first + i];
      e[i] = fixed_exp(l == top ? 0.f : l - top);
    }
    for (int i = 0; i < kChunk; i += 16)
      for (int j = 0; j < 16; ++j) lanes[j] += e[i + j];
    for (int half = 8; half > 0; half /= 2)
      for (int j = 0; j < half; ++j) lanes[j] += lanes[j + half];
    total += static_cast<double>(lanes[0]);
  }
  return ::log(total);
}

float largest(const float* logits, int vocab) {
  int32_t most = order_key(-__builtin_inff());
  for (int i = 0; i < vocab; ++i) {
    const int32_t key = order_key(logits[i]);
    most = key > most ? key : most;
  }
  return from_order_key(most);
}

SL_INLINE float logprob(float logit, float top, double log_total) {
  if (logit != logit || logit == -__builtin_inff()) return -__builtin_inff();
  const float d = logit == top ? 0.f : logit - top;
  return static_cast<float>(static_cast<double>(d) - log_total);
}

// The n likeliest tokens, lower ids first among equals, by insertion: n is small. Fewer where
// fewer are above -infinity; the rest is token -1.
void likeliest(const float* logits, int vocab, int n, int32_t* token, float* value) {
  int held = 0;
  for (int i = 0; i < vocab; ++i) {
    const float l = logits[i];
    if (!(l > -__builtin_inff()) || (held == n && !(l > value[n - 1]))) continue;
    int at = held < n ? held++ : n - 1;
    for (; at > 0 && l > value[at - 1]; --at) value[at] = value[at - 1], token[at] = token[at - 1];
    value[at] = l, token[at] = i;
  }
  for (int i = held; i < n; ++i) token[i] = -1, value[i] = -__builtin_inff();
}

}  // namespace

void logprobs(const LogprobArgs& a, Lane lane) {
  const Share mine = share(live_rows(a.live), lane);
  const int first = first_row(a.live);
  for (int j = mine.begin; j < mine.end; ++j) {
    const int node = first + j;
    const float* logits =
        static_cast<const float*>(a.logits.data) + size_t(j) * size_t(a.logits.cols);
    const float top = largest(logits, a.vocab);
    const double log_total = log_sum(logits, a.vocab, top);
    a.chosen[node] = logprob(logits[a.choices.token[node]], top, log_total);
    const int wanted = *a.asked < a.most ? *a.asked : a.most;
    if (wanted <= 0) continue;
    float* values = a.top_logprob + size_t(node) * size_t(a.most);
    likeliest(logits, a.vocab, wanted, a.top_token + size_t(node) * size_t(a.most), values);
    for (int i = 0; i < wanted; ++i) values[i] = logprob(values[i], top, log_total);
  }
}

void accept(const AcceptArgs& a, Lane lane) {
  const int sequences = *a.plan.count;
  const Share mine = share(sequences, lane);
  for (int s = mine.begin; s < mine.end; ++s) {
    const int base = a.rows.sequence_node[s];  // index of the root over all nodes
    const int nodes = a.rows.sequence_node[s + 1] - base;
    const size_t tree = size_t(s) * size_t(a.trees.capacity);
    RoundResult& result = a.result[s];
    int32_t* path = a.path + size_t(s) * kMaxEmitted;
    int32_t* path_node = a.path_node + size_t(s) * kMaxEmitted;
    int emitted = 0;
    for (int node = 0; node < nodes && emitted < kMaxEmitted;) {
      const int32_t token = a.choices.token[base + node];
      path[emitted] = node, path_node[emitted] = base + node;
      result.token[emitted] = token, result.logit[emitted] = a.choices.logit[base + node];
      ++emitted;
      int child = node + 1;
      while (child < nodes &&
             !(a.trees.parent[tree + child] == node && a.trees.token[tree + child] == token))
        ++child;
      node = child;
    }
    result.emitted = emitted;
    for (int i = emitted; i < kMaxEmitted; ++i) {
      result.token[i] = 0, result.logit[i] = 0;
      path[i] = -1, path_node[i] = -1;
    }
    if (a.count) {
      const size_t row = size_t(a.plan.entries[s].rule) * size_t(a.rules.vocab);
      for (int i = 0; i < emitted; ++i) ++a.rules.counts[row + size_t(result.token[i])];
    }
  }
}

void count(const CountArgs& a, Lane lane) {
  if (lane.part != 0) return;
  uint32_t* row = a.rules.counts + size_t(a.row) * size_t(a.rules.vocab);
  if (a.reset)
    for (int i = 0; i < a.rules.vocab; ++i) row[i] = 0;
  for (int i = 0; i < a.count; ++i) {
    const int32_t t = a.tokens[i];
    if (t < 0 || t >= a.rules.vocab) continue;
    if (a.prompt)
      row[t] |= 0x80000000u;
    else
      ++row[t];
  }
}

}  // namespace stepladder::SL_ISA
