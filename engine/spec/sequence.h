// The sequence is the truth every level syncs to.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "stepladder/engine.h"

namespace stepladder {

/// One sequence as a level sees it: its tokens so far, prompt included. The last token is the
/// root of the next round; its cache entry does not exist yet.
struct Sequence {
  int slot = 0;  // its place in every cache and in the rule table
  std::vector<Token> tokens;
  size_t committed = 0;  // tokens[0, committed) came from the prompt or the target
};
using Batch = std::span<Sequence* const>;

/// How many drafted tokens (the root not counted) a round wants for a sequence. 0, 0 = none.
struct Budget {
  int at_least = 0, at_most = 0;
};

}  // namespace stepladder
