// The sequences' sampling rules in backend memory: parameters, token counts for the penalties and
// logit biases. Filled when a sequence begins; only the target's rounds change the counts.
#pragma once

#include <span>
#include <vector>

#include "backends/backend.h"
#include "core/arena.h"
#include "stepladder/engine.h"

namespace stepladder {

class RuleTable {
 public:
  /// `vocab`: tokens that may be chosen; `context`: the longest prompt.
  RuleTable(Backend&, int sequences, int vocab, int context);

  /// Backend memory such a table takes.
  static size_t bytes(int sequences, int vocab, int context);

  RuleView view() const { return view_; }
  /// Sets row `slot` to `sampling` and counts the prompt. Values must be valid already.
  void begin(int slot, const Sampling& sampling, std::span<const Token> prompt);
  /// Counts tokens as output: what a sequence wrote before it was begun again.
  void count_output(int slot, std::span<const Token> tokens);

 private:
  static int32_t* lay_out(RuleView&, Arena&, int sequences, int vocab, int context);

  Backend& backend_;
  Buffer memory_;
  RuleView view_;
  int32_t* staging_ = nullptr;  // [context] backend memory
  int context_;
  std::vector<float> bias_;  // host copy of one row
};

}  // namespace stepladder
