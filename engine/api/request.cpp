#include "api/request.h"

#include <algorithm>
#include <cmath>

#include "core/error.h"

namespace stepladder {
namespace {

void check_range(const char* field, float value, bool ok, const char* range) {
  check(std::isfinite(value) && ok, Code::invalid_argument, field, ": ", value,
        " is out of range; it must be ", range);
}

void check_token(const char* field, size_t index, Token token, int vocab) {
  check(token >= 0 && token < vocab, Code::invalid_argument, field, ": token ", token, " at index ",
        index, " is not in the vocabulary; ids run from 0 to ", vocab - 1);
}

void check_bias(const std::vector<std::pair<Token, float>>& bias, int vocab) {
  for (size_t i = 0; i < bias.size(); ++i) {
    check_token("logit_bias", i, bias[i].first, vocab);
    check(std::isfinite(bias[i].second), Code::invalid_argument, "logit_bias: the value for token ",
          bias[i].first, " is ", bias[i].second, "; it must be finite (-1e9 bans a token)");
  }
  std::vector<Token> ids;
  for (const auto& [token, value] : bias) ids.push_back(token);
  std::sort(ids.begin(), ids.end());
  const auto twice = std::adjacent_find(ids.begin(), ids.end());
  check(twice == ids.end(), Code::invalid_argument, "logit_bias: token ",
        twice == ids.end() ? 0 : *twice, " is named twice");
}

void check_sampling(const Sampling& s, int vocab) {
  // Below 0.001 the division by the temperature loses the noise, and with it the sampling.
  check_range("temperature", s.temperature,
              s.temperature == 0 || (s.temperature >= 1e-3f && s.temperature <= 100),
              "0 (greedy) or from 0.001 to 100");
  check_range("top_p", s.top_p, s.top_p > 0 && s.top_p <= 1, "above 0 and at most 1");
  check_range("min_p", s.min_p, s.min_p >= 0 && s.min_p <= 1, "from 0 to 1");
  check(s.top_k >= 0, Code::invalid_argument, "top_k: ", s.top_k,
        " is out of range; it must be 0 (all) or more");
  check_range("repetition_penalty", s.repetition_penalty,
              s.repetition_penalty > 0 && s.repetition_penalty <= 10, "above 0 and at most 10");
  check_range("frequency_penalty", s.frequency_penalty, std::abs(s.frequency_penalty) <= 2,
              "from -2 to 2");
  check_range("presence_penalty", s.presence_penalty, std::abs(s.presence_penalty) <= 2,
              "from -2 to 2");
  check_bias(s.logit_bias, vocab);
}

}  // namespace

void check_counts(const RequestCounts& counts, const RequestLimits& limits) {
  const bool more = limits.model_context > limits.context;
  check(counts.prompt <= static_cast<size_t>(limits.context), Code::invalid_argument,
        "prompt: ", counts.prompt, " tokens do not fit the context of ", limits.context,
        "; shorten it", more ? " or load with a larger context, at most " : "",
        more ? std::to_string(limits.model_context) : "");
  const auto check_list = [&](const char* field, size_t count) {
    check(count <= static_cast<size_t>(limits.vocab), Code::invalid_argument, field, ": ", count,
          " entries for a vocabulary of ", limits.vocab, "; one a token is the most");
  };
  check_list("stop_token_ids", counts.stop_token_ids);
  check_list("logit_bias", counts.logit_bias);
}

void check_request(const Request& r, const RequestLimits& limits) {
  check_counts({r.prompt.size(), r.stop_token_ids.size(), r.sampling.logit_bias.size()}, limits);
  check(!r.prompt.empty(), Code::invalid_argument,
        "prompt: it has no tokens; start with at least one, such as the model's bos token");
  for (size_t i = 0; i < r.prompt.size(); ++i) check_token("prompt", i, r.prompt[i], limits.vocab);
  check(r.max_tokens >= 1, Code::invalid_argument, "max_tokens: ", r.max_tokens,
        " is out of range; it must be 1 or more");
  for (size_t i = 0; i < r.stop_token_ids.size(); ++i)
    check_token("stop_token_ids", i, r.stop_token_ids[i], limits.vocab);
  check(r.logprobs >= -1 && r.logprobs <= kMaxLogprobs, Code::invalid_argument,
        "logprobs: ", r.logprobs, " is out of range; it must be -1 (none) or from 0 to ",
        kMaxLogprobs);
  check_sampling(r.sampling, limits.vocab);
}

}  // namespace stepladder
