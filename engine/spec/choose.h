// The one choice rule, readable: the token at a position is a pure function of the logits row, the
// sequence's rule, its counts and the position. Every backend's choose() gives these bits.
//
//   1. logit + bias
//   2. repetition: tokens of the prompt or the output, l > 0 ? l * (1 / repetition) : l *
//   repetition
//   3. l - frequency * times in the output - (in the output ? presence : 0)
//   4. greedy (temperature below kLeastTemperature): the largest l, the lowest id among equals
//   5. else z = l * (1 / temperature), and three filters, each a prefix of the tokens in the order
//      of falling z, lower ids first among equals:
//        top_k   the first k
//        top_p   of those, the fewest whose probabilities, renormalized over them, reach top_p
//        min_p   of those, the ones at least min_p times as likely as the likeliest
//      Transformers and llama.cpp filter in this order; the temperature comes first, as in vLLM.
//   6. the largest z + gumbel(noise_word(seed, position, token)), the lowest id among equals
//
// NaN counts as -infinity; a row without anything above -infinity gives token 0. A row
// with a raw logit that is not finite ends the text: the model's arithmetic overflowed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backends/backend.h"
#include "stepladder/engine.h"

namespace stepladder {

/// What one choice depends on.
struct ChoiceInput {
  std::span<const float> logits;  // [vocab] raw
  RuleParams rule;
  const uint32_t* counts = nullptr;  // [vocab] as RuleView::counts; read when rule.penalties
  const float* bias = nullptr;       // [vocab]; read when rule.bias
  std::span<const Token> extra;      // output tokens the counts do not know: tentative and path
  int32_t position = 0;              // of the token to choose: one beyond its node's
};

struct Chosen {
  Token token = 0;
  float logit = 0;  // raw
};

/// Steps 1 to 3: the logits with bias and penalties, [vocab].
std::vector<float> shape_logits(const ChoiceInput&);

/// Step 5: the tokens the filters keep, likeliest first. Empty when nothing is above -infinity.
std::vector<Token> keep_tokens(const RuleParams&, std::span<const float> scaled);

/// The whole rule.
Chosen choose_token(const ChoiceInput&);

}  // namespace stepladder
