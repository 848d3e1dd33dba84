// The choice rule as its header states it, one step after the other and nothing clever.
#include "spec/choose.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "core/noise.h"
#include "core/philox.h"

namespace stepladder {

namespace {

constexpr float kNone = -std::numeric_limits<float>::infinity();

Token first_largest(std::span<const float> values) {
  Token best = 0;
  float top = kNone;
  for (size_t i = 0; i < values.size(); ++i)
    if (values[i] > top) top = values[i], best = static_cast<Token>(i);
  return best;
}

}  // namespace

std::vector<float> shape_logits(const ChoiceInput& in) {
  const RuleParams& rule = in.rule;
  std::vector<float> l(in.logits.begin(), in.logits.end());
  if (rule.bias)
    for (size_t i = 0; i < l.size(); ++i) l[i] += in.bias[i];
  if (rule.penalties) {
    std::vector<uint32_t> counts(in.counts, in.counts + l.size());
    for (Token t : in.extra)
      if (t >= 0 && static_cast<size_t>(t) < l.size()) ++counts[t];
    const float inverse = 1.f / rule.repetition;
    for (size_t i = 0; i < l.size(); ++i) {
      const auto times = static_cast<int32_t>(counts[i] & 0x7fffffffu);
      if (counts[i]) l[i] = l[i] > 0 ? l[i] * inverse : l[i] * rule.repetition;
      l[i] -= rule.frequency * static_cast<float>(times);
      l[i] -= times ? rule.presence : 0.f;
    }
  }
  for (float& x : l)
    if (x != x) x = kNone;
  return l;
}

std::vector<Token> keep_tokens(const RuleParams& rule, std::span<const float> scaled) {
  std::vector<Token> order(scaled.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](Token a, Token b) { return scaled[a] > scaled[b]; });
  const float top = scaled[order[0]];
  if (top == kNone) return {};

  if (rule.top_k > 0 && static_cast<size_t>(rule.top_k) < order.size()) order.resize(rule.top_k);
  if (rule.top_p < 1) {
    int64_t total = 0, mass = 0;
    for (Token t : order) total += nucleus_weight(scaled[t], top);
    const int64_t need = nucleus_need(rule.top_p, total);
    size_t kept = 0;
    while (mass < need) mass += nucleus_weight(scaled[order[kept++]], top);
    order.resize(kept);
  }
  if (rule.min_p > 0) {
    const float floor = min_p_floor(rule.min_p, top);
    while (!(scaled[order.back()] >= floor)) order.pop_back();
  }
  return order;
}

Chosen choose_token(const ChoiceInput& in) {
  std::vector<float> values = shape_logits(in);
  if (in.rule.temperature < kLeastTemperature) {
    const Token best = first_largest(values);
    return {best, in.logits[best]};
  }
  const float inverse = 1.f / in.rule.temperature;
  for (float& x : values) {
    x *= inverse;
    if (x != x) x = kNone;
  }
  std::vector<float> noisy(values.size(), kNone);
  for (Token t : keep_tokens(in.rule, values))
    noisy[t] = values[t] + gumbel(noise_word(in.rule.seed, in.position, t));
  const Token best = first_largest(noisy);
  return {best, in.logits[best]};
}

}  // namespace stepladder
