#include "spec/rule_table.h"

#include <algorithm>

#include "backends/memory.h"

namespace stepladder {

/// Returns where tokens are staged.
int32_t* RuleTable::lay_out(RuleView& view, Arena& arena, int sequences, int vocab, int context) {
  view = {sequences, vocab, arena.take_array<RuleParams>(sequences),
          arena.take_array<uint32_t>(size_t(sequences) * vocab),
          arena.take_array<float>(size_t(sequences) * vocab)};
  return arena.take_array<int32_t>(context);
}

size_t RuleTable::bytes(int sequences, int vocab, int context) {
  RuleView view;
  Arena measure;
  lay_out(view, measure, sequences, vocab, context);
  return measure.peak();
}

RuleTable::RuleTable(Backend& backend, int sequences, int vocab, int context)
    : backend_(backend), context_(context), bias_(vocab) {
  const size_t size = bytes(sequences, vocab, context);
  memory_ = allocate_buffer(backend, size);
  Arena arena(memory_.data(), size);
  staging_ = lay_out(view_, arena, sequences, vocab, context);
}

void RuleTable::begin(int slot, const Sampling& s, std::span<const Token> prompt) {
  RuleParams params;
  params.seed = s.seed;
  params.temperature = s.temperature;
  params.top_p = s.top_p, params.min_p = s.min_p, params.top_k = s.top_k;
  params.repetition = s.repetition_penalty, params.frequency = s.frequency_penalty,
  params.presence = s.presence_penalty;
  params.penalties =
      s.repetition_penalty != 1 || s.frequency_penalty != 0 || s.presence_penalty != 0;
  params.bias = !s.logit_bias.empty();
  backend_.upload(view_.params + slot, &params, sizeof params);
  if (params.bias) {
    std::fill(bias_.begin(), bias_.end(), 0.f);
    for (const auto& [token, value] : s.logit_bias) bias_[token] = value;
    backend_.upload(view_.bias + size_t(slot) * view_.vocab, bias_.data(),
                    bias_.size() * sizeof(float));
  }
  const int n = params.penalties ? static_cast<int>(prompt.size()) : 0;
  check(n <= context_, Code::internal, "rule table: a prompt of ", n, " tokens for a context of ",
        context_);
  if (n) backend_.upload(staging_, prompt.data(), n * sizeof(Token));
  backend_.count({view_, slot, staging_, n, true, true});
}

void RuleTable::count_output(int slot, std::span<const Token> tokens) {
  if (tokens.empty()) return;
  backend_.upload(staging_, tokens.data(), tokens.size_bytes());
  backend_.count({view_, slot, staging_, static_cast<int>(tokens.size()), false, false});
}

}  // namespace stepladder
